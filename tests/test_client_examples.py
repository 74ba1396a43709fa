"""Examples of other people's clients, run against a server.

The clients pull in a hundred packages, so they lie in an environment of their own: `make test-clients` makes it and
names its Python by DUALSLM_CLIENTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servekit import SAD, process

CLIENTS = {
    "openai": ("text", "audio", "stream", "transcription", "responses"),
    "litellm": ("text", "audio", "stream", "transcription", "responses"),
    "langchain_openai": ("text", "audio", "stream", "responses"),
    "llm": ("text", "audio", "stream"),
    "pipecat": ("text", "audio"),
}
ASKED = [(module, what) for module, known in CLIENTS.items() for what in known]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with process() as (address, _):
        yield address


@pytest.mark.parametrize(("module", "what"), ASKED)
def test_a_client_gets_a_reply(root: Path, request: pytest.FixtureRequest, module: str, what: str) -> None:
    python = os.environ.get("DUALSLM_CLIENTS", sys.executable)
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        pytest.skip(f"{module} is not installed: make test-clients")
    path = root / "examples" / "clients" / f"{module.removesuffix('_openai')}_client.py"
    command = [python, str(path), request.getfixturevalue("url"), str(SAD), what]
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches a list of prices first
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert ("umbrella" if what in ("text", "responses") else "bakery") in done.stdout


@pytest.mark.parametrize("name", ["openai", "litellm", "langchain", "llm", "pipecat"])
def test_without_arguments_it_says_how_it_is_used(root: Path, name: str) -> None:
    path = root / "examples" / "clients" / f"{name}_client.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"examples/clients/{name}_client.py http" in done.stderr
