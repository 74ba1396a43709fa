"""The embedded default: every build step at toy length, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualslm import DualSLM
from dualslm.tiny import ADAPTERS, CLIPS, WEIGHTS
from dualslm.tiny.__main__ import main
from dualslm.tiny.build import readme, run

VERBS = ["build", "--quick", "--device", "cpu", "--processes", "1", "--out"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader", reason="the build speaks: pip install 'dualslm[voices]'")
    out = tmp_path_factory.mktemp("tiny")  # one build for all tests: it takes most of a minute
    assert main([*VERBS, str(out)]) == 0
    return out


def test_quick_build_makes_every_part(built: Path) -> None:
    for part in ("llm", "encoder"):
        assert json.loads((built / part / "card.json").read_text())
    model = DualSLM.from_pretrained(built / "adapters", device="cpu")
    assert isinstance(model.reply(str(CLIPS / "tones_1_happy.wav"), system="Write."), str)


def test_quick_build_measures_every_stage_and_the_run_without_err(built: Path) -> None:
    figures = json.loads((built / "figures.json").read_text())["figures"]
    assert set(figures) == {"align", "joint", "disentangle", "respond", "without-err", "final"}
    for voices in ("seen", "unseen"):
        assert {f"{voices}/wer/none,speech", f"{voices}/reply memory of speech/speech,speech"} <= set(figures["final"])
    assert all(figure["n"] == run.QUICK.tested for figure in figures["joint"].values())
    readme.tables(json.loads((built / "figures.json").read_text()))


def test_a_finished_build_is_not_done_again(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (built / "llm" / "model.safetensors").stat().st_mtime_ns
    assert main([*VERBS, str(built), "--steps", "llm,encoder"]) == 0
    assert (built / "llm" / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_not_built_is_the_shipped_part(tmp_path: Path) -> None:
    recipe = run._recipe(tmp_path, run.QUICK)
    assert (recipe.model.encoder, recipe.model.llm) == (str(WEIGHTS / "encoder"), str(WEIGHTS / "llm"))


def test_the_recipes_conversations_are_made_with_nothing_built(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="the build speaks: pip install 'dualslm[voices]'")
    assert main([*VERBS, str(tmp_path), "--steps", "talks"]) == 0
    assert (tmp_path / "talks" / "train.jsonl").read_text()  # replies of the shipped LLM
    assert not (tmp_path / "encoder").exists()


def test_an_unknown_step_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*VERBS, str(tmp_path), "--steps", "llm,singing"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown build step: got singing")


def test_shipped_parts_are_small(root: Path) -> None:
    frozen = [path for part in ("encoder", "llm") for path in (WEIGHTS / part).rglob("*")]
    assert sum(path.stat().st_size for path in frozen) < 24 * 2**20
    assert ADAPTERS.is_dir()


def test_the_readmes_tables_are_those_of_the_result_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert readme.write(check=True) == 0
