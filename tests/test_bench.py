"""The benchmarks of full size, data and scale run, at sizes that take seconds, and their tables can be made."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dualslm.recipe import load
from dualslm.shapes import KNOWN_LLMS

PLANNED = {"Qwen2.5-7B": "Qwen/Qwen2.5-7B-Instruct", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct"}


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a script of bench/ as a module."""
    monkeypatch.syspath_prepend(str(root / "bench"))
    yield importlib.import_module
    for name in ("full_size", "data_paths", "scale", "tables", "train_step", "rivals"):
        sys.modules.pop(name, None)


def test_every_measure_of_full_size_has_a_floor_and_most_a_rival(bench: Any) -> None:
    module = bench("full_size")
    shape = module.SIZES["small"]["Llama-3.1-8B"]
    here = module.rates(module.Machine("cpu", torch.float32, 1), shape)
    rows = list(module.measure("Llama-3.1-8B", shape, here, 4))
    assert [row["what"] for row in rows][-1] == "a token"
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in rows)
    floors = {row["what"]: row["floor"] for row in rows}
    assert floors["first token, turn 1"] <= floors["first token, turn 10"]
    assert sum(row["rival"] is not None for row in rows) == 4
    result = {"command": "", "machine": "", "torch": "", "transformers": "", "size": "small", "samples": 4, "rounds": 1}
    made = bench("tables").full_size({**result, "matrix_tflops": 1.0, "copy_gb_s": 1.0, "rows": rows})
    assert made.count("Llama-3.1-8B") == len(rows)


def test_shapes_of_full_size_are_those_that_are_planned(bench: Any) -> None:
    sizes = bench("full_size").SIZES["full"]
    for name, known in PLANNED.items():
        one, other = sizes[name], KNOWN_LLMS[known]
        heads = (one.d_llm, one.layers, one.heads, one.kv_heads)
        assert heads == (other.width, other.layers, other.heads, other.kv_heads)
        assert (one.ffn, one.vocabulary) == (other.ffn, other.vocabulary)


def test_data_paths_are_measured(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = bench("data_paths")
    monkeypatch.setattr(module, "GETS", 50)
    module.make_manifest(tmp_path / "train.jsonl", 40)
    module.make_cache(tmp_path / "frames", 2)
    assert module.manifest(tmp_path / "train.jsonl")["talks"] == 60
    assert module.cache(tmp_path / "frames")["recordings"] == 512


def test_the_model_of_scaling_loses_by_what_it_sends_and_by_what_does_not_divide(bench: Any, root: Path) -> None:
    module = bench("scale")
    recipe = load(root / "recipes" / "paper-qwen.toml")
    weights = module.adapters(recipe)
    assert weights == pytest.approx(45e6, rel=0.05), "the README's 45 M"
    rows = list(module.modelled(recipe, weights))
    own = [row["efficiency"] for row in rows if row["batch"] == 48]
    assert own[0] == 1.0
    assert own == sorted(own, reverse=True)
    assert all(row["sum_s"] == 0 for row in rows if row["gpus"] == 1)
