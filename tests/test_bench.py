"""The benchmarks run, at sizes that take seconds, and their tables can be made from what they measure."""

from __future__ import annotations

import importlib
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dualslm.recipe import load
from dualslm.training.shapes import KNOWN_LLMS

PLANNED = {"Qwen2.5-7B": "Qwen/Qwen2.5-7B-Instruct", "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct"}


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of bench/ or docs/build/ as a module."""
    # Scripts import one another by bare names, as they do when run.
    for folder in ("docs/build", "bench"):
        monkeypatch.syspath_prepend(str(root / folder))
    yield importlib.import_module
    # Each test gets modules of its own: some of them patch their constants.
    for name in ("full_size", "data_paths", "scale", "tables", "train_step", "step_profile", "rivals", "measuring"):
        sys.modules.pop(name, None)


def test_every_measure_of_full_size_has_a_floor_and_most_a_rival(bench: Any) -> None:
    module = bench("full_size")
    shape = module.SIZES["small"]["Llama-3.1-8B"]
    here = module.rates(module.Machine("cpu", torch.float32, 1), shape)
    found = list(module.measure("Llama-3.1-8B", shape, here, 4))
    rows = list({row["what"]: row for row in found}.values())
    # A result file is written after every row: what was measured before a failure is not lost.
    assert len(found) == len(rows) + 4, "ours first, and again beside the rival's"
    assert [row["what"] for row in rows][-1] == "a token"
    assert all(row["seconds"] > 0 and row["floor"] > 0 for row in rows)
    floors = {row["what"]: row["floor"] for row in rows}
    assert floors["first token, turn 1"] <= floors["first token, turn 10"]
    assert sum(row["rival"] is not None for row in rows) == 4
    result = {"command": "", "machine": "", "torch": "", "transformers": "", "size": "small", "samples": 4, "rounds": 1}
    made = bench("tables").full_size({**result, "matrix_tflops": 1.0, "copy_gb_s": 1.0, "rows": rows})
    assert made.count("Llama-3.1-8B") == len(rows)


def test_a_step_in_parts_learns_what_a_whole_one_does(bench: Any) -> None:
    module = bench("train_step")
    shape = module.SHAPES["small"]
    work = module.Work("dialogue", 8, 12, 1.0, 4, branches=4)
    makers = {**module.RIVALS, module.OURS: lambda *sizes: module.ours(*sizes)[module.OURS]}
    for name, make in makers.items():
        losses = []
        for at_once in (None, 4):
            torch.manual_seed(1)
            step = make(shape, work, "cpu", torch.float32)
            losses.append(torch.stack([step(at_once), step(at_once)]))
        assert losses[0][1] != losses[0][0], f"{name} learns"
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)


def test_what_does_not_fit_goes_in_parts_and_else_says_so(bench: Any) -> None:
    fitting = bench("measuring").fitting
    tried: list[int] = []

    def do(at_once: int, most: int) -> int:
        tried.append(at_once)
        if at_once > most:
            raise torch.OutOfMemoryError("no room")
        return 2 * at_once

    assert fitting(lambda at_once: do(at_once, 12), 48) == (12, 24)
    # 12 samples cannot be halved without separating four that share a prefix.
    assert fitting(lambda at_once: do(at_once, 6), 48, together=4) is None
    assert tried == [48, 24, 12, 48, 24, 12]


def test_memory_counts_what_is_saved_once_and_skips_tensors_without_storage(bench: Any) -> None:
    memory_of = bench("measuring").memory_of
    with FakeTensorMode():  # as a test of compiled code may leave one behind
        fake = torch.nn.Parameter(torch.ones(4))
    meta = torch.nn.Parameter(torch.ones(4, device="meta"))
    weight = torch.nn.Parameter(torch.ones(8))
    inputs = torch.ones(8)
    with memory_of("cpu") as found:
        loss = (weight * inputs).sum() + (weight * inputs).sum()
    assert found[0] == inputs.nbytes, "the inputs once, and no weight"
    assert loss == 16
    assert len(fake) == len(meta) == 4


def test_no_row_is_lost_where_memory_is_short(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = bench("train_step")
    made: list[weakref.ref[Any]] = []

    def short(shape: Any, work: Any, device: str, dtype: torch.dtype) -> Any:
        step = module.ultravox(shape, work, device, dtype)
        made.append(weakref.ref(step))

        def run(at_once: int | None = None) -> Any:
            if (at_once or work.samples) > 2 or work.name == "transcription":
                raise torch.OutOfMemoryError("no room")
            return step(at_once)

        return run

    works = [module.Work(name, 4, 12, 1.0, 4, branches=4) for name in ("dialogue", "transcription")]
    monkeypatch.setattr(module, "works", lambda samples: works)
    monkeypatch.setattr(module, "RIVALS", {"short": short})
    for row in (rows := module.measure("small", 4, 1, "cpu")):
        assert row["seconds"] > 0
        if row["step"] == "short":
            break
    assert row["at_once"] == 2
    rest = list(rows)
    assert rest[-1] == {"work": "transcription", "step": "short", "fault": "does not fit"}
    assert all(row["at_once"] == 4 for row in rest[:-1])
    assert not any(step() for step in made), "no model outlives its row"
    cells = bench("tables").step_cells
    assert cells(row, rest[0], 4)[0] == "short, 2 at once"
    assert cells(rest[-1], rest[0], 4) == ["short", "does not fit", *[""] * 5]
    assert cells(rest[0], rest[-1], 4)[2] == "", "no ratio to what was not measured"


def test_tables_of_full_size_show_what_does_not_fit(bench: Any) -> None:
    row = {"llm": "x", "what": "step", "floor": 0.5, "bound": "FLOPs", "rival": None}
    rows = [
        {**row, "fault": "does not fit", "rival": 3.0, "rival_at_once": 12},
        {**row, "seconds": 1.0, "memory_gb": 70.0, "at_once": 24, "rival_fault": "does not fit"},
        {**row, "seconds": 1.0, "at_once": 48, "rival": 3.0, "rival_at_once": 12},
    ]
    result = {"command": "", "machine": "", "torch": "", "transformers": "", "size": "full", "samples": 48, "rounds": 1}
    made = bench("tables").full_size({**result, "matrix_tflops": 1.0, "copy_gb_s": 1.0, "rows": rows})
    assert made.splitlines()[-3:] == [
        "| x | step | does not fit | 0.5000 | FLOPs |  | 3.0000, 12 at once |  |  |",
        "| x | step, 24 at once | 1.0000 | 0.5000 | FLOPs | 50% | does not fit |  | 70.00 |",
        "| x | step | 1.0000 | 0.5000 | FLOPs | 50% | 3.0000, 12 at once | 3.00 |  |",
    ]


def test_the_time_of_a_kernel_counts_once(bench: Any) -> None:
    module = bench("step_profile")
    cpu, gpu = module.DeviceType.CPU, module.DeviceType.CUDA
    events = [
        SimpleNamespace(key=key, device_type=device, self_device_time_total=took, is_user_annotation=annotation)
        for key, device, took, annotation in (
            ("aten::mm", cpu, 6.0, False),
            ("nvjet_tst_128x256_64x4_1x2_h_bz_TNT", gpu, 4.0, False),
            ("sm90_xmma_gemm_bf16bf16", gpu, 2.0, False),
            ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", gpu, 1.0, False),
            ("void at::native::vectorized_elementwise_kernel<4>", gpu, 2.0, False),
            ("void at::native::multi_tensor_apply_kernel<TensorListMetadata<4>>", gpu, 1.0, False),
            ("Optimizer.step#AdamW.step", gpu, 1.0, True),
        )
    ]
    # The operator and the annotation on the GPU have the kernels' time once more.
    found = module.shares(events, gpu=True)
    assert found == {"matrix products": 0.6, "everything else": 0.2, "attention": 0.1, "optimizer": 0.1}


def test_shapes_of_full_size_are_those_that_are_planned(bench: Any) -> None:
    sizes = bench("full_size").SIZES["full"]
    for name, known in PLANNED.items():
        measured = sizes[name]
        planned = KNOWN_LLMS[known]
        heads = (measured.d_llm, measured.layers, measured.heads, measured.kv_heads)
        assert heads == (planned.width, planned.layers, planned.heads, planned.kv_heads)
        assert (measured.ffn, measured.vocabulary) == (planned.ffn, planned.vocabulary)


def test_data_paths_are_measured(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = bench("data_paths")
    monkeypatch.setattr(module, "READINGS", 50)
    module.make_manifest(tmp_path / "train.jsonl", 40)
    module.make_cache(tmp_path / "frames", 2)
    assert module.manifest(tmp_path / "train.jsonl")["talks"] == 60  # 20 with two tasks each, 20 with a reply
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


def test_attacks_are_shown_beside_those_on_another_checkout(bench: Any) -> None:
    row = {"attack": "a", "seconds": 1.0, "stall": 0.5, "peak": 3.0, "kept": 0.01, "outcome": "413"}
    was = {**row, "seconds": 142.0, "outcome": "the server died"}
    result = {"command": "", "machine": "", "torch": "", "transformers": "", "before": [was], "after": [row]}
    made = bench("tables").attack(result)
    assert "| a | 1.0 | 0.50 | 3 | +1% | 413 | 142.0 s, silence 0.5 s, the server died |" in made
