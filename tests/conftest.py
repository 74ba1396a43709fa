"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.vllmkit import vllm

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, one a core
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no name is looked for on the hub

__all__ = ["root", "shared", "vllm"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real recordings and weights: the folder that DUALSLM_SHARED names, or `shared` beside the checkout."""
    folder = Path(os.environ.get("DUALSLM_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no real recordings: set DUALSLM_SHARED to a folder that holds data/ and weights/")
    return folder
