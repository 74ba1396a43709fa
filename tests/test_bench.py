"""The benchmarks run, at sizes that take seconds, and their tables can be made from what they measure."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dualslm import tiny
from dualslm.conversation import Conversation
from dualslm.inference.session import Session
from dualslm.model.generation import GenerationSettings
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
    for path in [*root.glob("bench/*.py"), *root.glob("docs/build/*.py")]:
        sys.modules.pop(path.stem, None)


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
    assert all(len(row["rounds_s"]) == 1 for row in rest[:-1])
    assert all(row["at_once"] == 4 for row in rest[:-1])
    assert not any(step() for step in made), "no model outlives its row"
    cells = bench("tables").step_cells
    assert cells(row, rest[0], 4, {})[0] == "short, 2 at once"
    assert cells(rest[-1], rest[0], 4, {}) == ["short", "does not fit", *[""] * 6]
    assert cells(rest[0], rest[-1], 4, {})[2] == "", "no ratio to what was not measured"


def test_a_ratio_is_of_two_times_of_one_round(bench: Any) -> None:
    ratios = bench("tables").round_ratios
    ours = {"seconds": 2.0, "rounds_s": [1.0, 2.0, 8.0]}  # the machine got slower
    other = {"seconds": 4.0, "rounds_s": [3.0, 4.0, 24.0]}
    assert ratios(other, ours) == "3.00 [2.00, 3.00]"
    assert ratios({**other, "rounds_s": [3.0, None, 24.0]}, ours) == "3.00 [3.00, 3.00]"
    assert ratios({"seconds": 4.0}, ours) == "2.00", "an older result has the medians alone"


def test_every_step_is_done_once_a_round(bench: Any) -> None:
    module = bench("train_step")
    done: list[str] = []
    steps = {name: lambda at_once, name=name: done.append(name) for name in ("a", "b", "c")}
    rows: dict[str, Any] = {name: {"at_once": 4} for name in steps} | {"d": {"fault": "does not fit"}}
    module._go_round(steps, rows, 2, "cpu")
    assert done == ["a", "b", "c", "b", "c", "a"]
    assert [len(rows[name]["rounds_s"]) for name in steps] == [2, 2, 2]


def test_a_shorter_l_is_less_work(bench: Any) -> None:
    module = bench("train_step")
    work = module.Work("transcription", 2, 12, 4.0, 4, branches=1)
    parts = module.frozen_parts(module.SHAPES["small"], "cpu", torch.float32)
    steps = module.ours(module.SHAPES["small"], work, "cpu", torch.float32, parts, per_second=4.0)
    flops = {name: bench("measuring").count_flops(steps[name]) for name in (module.OURS, module.SKIPPED)}
    # each position that is left out saves two operations for every weight of the LLM's layers, on the way forward alone
    layers = {name: part for name, part in parts[1].named_modules() if isinstance(part, torch.nn.Linear)}
    weights = sum(part.weight.numel() for name, part in layers.items() if "lm_head" not in name)
    left_out = round(work.samples * work.seconds * (10 - 4))
    assert flops[module.OURS] - flops[module.SKIPPED] > 2 * weights * left_out
    live, short = "- the cache of frames", "+ L skipped, short windows, no cache"
    assert bench("measuring").count_flops(steps[short]) < 0.5 * bench("measuring").count_flops(steps[live])


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


# ---------------------------------------------------------------------- speed beside others


def script(root: Path, name: str, *arguments: str) -> str:
    """What a benchmark prints, run by itself as a user runs it."""
    ran = subprocess.run(
        [sys.executable, str(root / "bench" / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_training_step_of_all_goes_round_quickly(root: Path, tmp_path: Path) -> None:
    script(root, "train_step", "--quick", "--out", str(tmp_path / "r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"dialogue", "transcription"}
    assert all(len(row["rounds_s"]) == 2 for row in rows)
    assert {"ours", "+ L skipped", "Ultravox style", "Qwen2-Audio (transformers)"} <= {row["step"] for row in rows}


def test_the_first_token_is_measured_each_way_at_each_turn(root: Path, tmp_path: Path) -> None:
    printed = script(root, "first_token", "--quick", "--out", str(tmp_path / "r.json"))
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["rounds"][0].keys() == {"paper", "short windows, L skipped"}
    assert all(len(times) == 2 and min(times) > 0 for times in row["rounds"][0].values())
    assert "last turn / first" in printed


def test_a_cascade_pays_for_its_recognizer(bench: Any, tmp_path: Path) -> None:
    first_token = bench("first_token")
    stub = "import sys, time, json; print('ready', flush=True)\nfor line in sys.stdin:\n time.sleep(0.5)\n"
    stub += " print(json.dumps({'text': 'i lost my keys', 'from': line.strip()}), flush=True)"
    model = tiny.load()
    with bench("worker").Worker([sys.executable, "-c", stub]) as worker:
        way = first_token.cascade(worker, tmp_path)
        session = Session(model, Conversation("Hello."), generation=GenerationSettings(max_new_tokens=4))
        assert way(session, np.zeros(16_000, np.float32)) > 0.5
    assert session.conversation.turns[0].parts == ("i lost my keys",)
    with pytest.raises(RuntimeError, match="ended"), bench("worker").Worker([sys.executable, "-c", "pass"]):
        pass


def test_turns_have_one_length_and_differ(bench: Any) -> None:
    turns = bench("first_token").turns_of(sorted(tiny.CLIPS.glob("*.wav"))[:2], 20.0, 3)
    assert {len(turn) for turn in turns} == {320_000}
    assert not (turns[0] == turns[1]).all()


def test_features_are_measured_beside_what_plan_says(root: Path, tmp_path: Path) -> None:
    script(root, "features", "--quick", "--out", str(tmp_path / "r.json"))
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["ratios"]) == 2
    assert result["predicted"] > 1.5, "clips of 1 to 10 s are shorter than its window of 8 s on the whole"


def test_decoding_is_measured(root: Path, tmp_path: Path) -> None:
    assert "tokens/s" in script(root, "decoding", "--quick", "--out", str(tmp_path / "r.json"))
    rounds = json.loads((tmp_path / "r.json").read_text())["rounds"]
    assert len(rounds) == 2
    assert all(one["ours"]["tokens"] > 1 for one in rounds)


def test_the_wire_carries_less_without_silence(root: Path, tmp_path: Path) -> None:
    script(root, "wire", "--width", "8", "--seconds", "4", "--out", str(tmp_path / "r.json"))
    whole, skipped = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert whole["positions, turn 1"] - skipped["positions, turn 1"] == 4 * (10 - 4)
    assert whole["positions, turn 10"] - skipped["positions, turn 10"] == 10 * 4 * (10 - 4)
    assert skipped["bytes, turn 10"] < whole["bytes, turn 10"]
