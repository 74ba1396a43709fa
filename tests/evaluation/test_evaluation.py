"""`dualslm eval` end to end: predict, score, judge, report; what a report says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.evalkit import SETTINGS, Parrot, exam, small_model
from support.judgekit import fake
from support.standins import meld
from support.trainkit import make

from dualslm.cli import main as cli
from dualslm.errors import DualSLMError
from dualslm.evaluation import items, predict, score
from dualslm.evaluation.metrics import bootstrap
from dualslm.evaluation.report import html, markdown, tables
from dualslm.evaluation.systems.named import checkpoint_of
from dualslm.recipe import load
from dualslm.training.train import train

pytest.importorskip("whisper_normalizer", reason="pip install 'dualslm[eval]'")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model, saved."""
    folder = tmp_path_factory.mktemp("model")
    return small_model(folder).save_pretrained(folder / "run" / "joint")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of two systems that answer by rule."""
    folder = tmp_path_factory.mktemp("parrots")
    asked = predict.plan(items.read(exam(folder / "exam")), [Parrot("good", wrong=5), Parrot("bad", wrong=2)])
    path = predict.run(folder / "out", asked, SETTINGS, command="dualslm eval --system good")
    return score.score([path], command="dualslm eval --only score", versions={"dualslm": "1"})


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples, for speed."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)


def run(*arguments: str | Path | int) -> int:
    return cli.main(["eval", *map(str, arguments)])


# ---------------------------------------------------------------------- the command


def test_the_command_end_to_end(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, finished = exam(tmp_path / "exam", 6)
    common: list[str | Path | int] = [
        "--on",
        asked,
        "--on",
        finished,
        "--system",
        "majority",
        "--likelihoods",
        "--max-new-tokens",
        6,
        "--device",
        "cpu",
    ]
    assert run(checkpoint, *common, "--out", tmp_path / "out", "--limit", 4) == 0
    assert "Table I" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    cells = {(cell["system"], cell["view"], cell["task"], cell["split"]): cell for cell in found["cells"]}
    views = {view for system, view, task, _ in cells if system == "run/joint" and task == "respond"}
    assert views == {"speech,speech", "speech,none", "none,speech", "text,text", "none,text"}
    assert cells["run/joint", "speech,none", "emotion", "asked"]["figures"]["wa_likelihood"]["n"] == 4
    assert cells["majority", None, "emotion", "finished"]["figures"]["wa"]["value"] == 50.0
    assert found["skipped"] == {"majority, asr: no choices": 4, "majority, respond: no choices": 4}
    before = (tmp_path / "out" / "report.json").read_bytes()
    assert run("--only", "score", "--out", tmp_path / "out") == 0
    after = json.loads((tmp_path / "out" / "report.json").read_text())
    assert after["cells"] == json.loads(before)["cells"]
    for name in ("report.html", "report.md"):
        assert (
            str(tmp_path)
            not in (tmp_path / "out" / name).read_text().replace(found["command"], "").split("predicted by")[0]
        )


def test_score_needs_no_torch(tmp_path: Path) -> None:
    asked = predict.plan(items.read(exam(tmp_path / "exam")), [Parrot()])
    predict.run(tmp_path / "out", asked, SETTINGS)
    code = (
        "import sys; from dualslm.cli import main as cli; "
        f"assert cli.main(['eval', '--only', 'score', '--out', {str(tmp_path / 'out')!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_majority_line_of_meld(shared: Path, tmp_path: Path) -> None:
    source = next((shared / "data" / "meld").rglob("test_sent_emo.csv")).parent
    (tmp_path / "csvs").mkdir()
    for name in ("train", "dev", "test"):
        lines = (source / f"{name}_sent_emo.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / "csvs" / f"{name}_sent_emo.csv").write_text("".join(lines if name == "test" else lines[:3]))
    (tmp_path / "raw").mkdir()
    meld(tmp_path / "raw", tmp_path / "csvs")
    assert cli.main(["prepare", "meld", str(tmp_path / "raw"), "--out", str(tmp_path / "meld")]) == 0
    test = tmp_path / "meld" / "test.jsonl"
    assert run("--system", "majority", "--on", test, "--out", tmp_path / "out", "--batch", 200) == 0
    (cell,) = json.loads((tmp_path / "out" / "report.json").read_text())["cells"]
    assert cell["n"] == 2610
    assert {name: round(cell["figures"][name]["value"], 2) for name in ("wa", "ua", "wf1", "macro_f1")} == {
        "wa": 48.12,
        "ua": 14.29,
        "wf1": 31.27,
        "macro_f1": 9.28,
    }
    assert "48.12" in (tmp_path / "out" / "report.md").read_text()


def test_judges_are_asked_and_tried(tmp_path: Path) -> None:
    asked = predict.plan(
        items.read(exam(tmp_path / "exam"), tasks=["respond"]), [Parrot("one"), Parrot("two", wrong=2)]
    )
    predict.run(tmp_path / "out", asked, SETTINGS)
    with fake() as server:
        judge = f"name=j,base_url={server.url},model=org/judge"
        assert run("--only", "score", "--out", tmp_path / "out", "--judge", judge) == 0
        first = len(server.bodies)
        assert run("--only", "score", "--out", tmp_path / "out", "--judge", judge) == 0
        assert len(server.bodies) == first > 0  # nothing is asked twice
    page = (tmp_path / "out" / "report.html").read_text()
    for text in (
        "Table IV · replies by judge j",
        "judge j: org/judge",
        "judge protocol",
        "Can these judges be trusted?",
    ):
        assert text in page
    judged = json.loads((tmp_path / "out" / "report.json").read_text())["judged"]
    assert {row["system"] for row in judged["scores"]} == {"one", "two"}
    assert all(trial["usable"] for trial in judged["trust"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "score", "--out", "nowhere"], "run predict first"),
        (["--only", "report", "nowhere"], "run dualslm eval first"),
        (["--on", "nowhere.jsonl", "--system", "majority"], "cannot read the manifest"),
        (["--batch", "0"], "--batch makes no sense"),
        (["--instruments", "--only", "predict", "nowhere/run", "--on", "x.jsonl"], "cannot read the manifest"),
        (["--view", "speech", "--on", "x.jsonl"], "a view is two sources"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


# ---------------------------------------------------------------------- the report


def test_a_report_says_how_it_was_made(report: dict[str, Any]) -> None:
    pages = {"md": markdown.page(report), "html": html.page(report)}
    for page in pages.values():
        for text in (
            "dualslm eval --system good",
            "dualslm eval --only score",
            "cluster-bootstrap/1",
            "choices/1",
            report["normaliser"],
            "2000 resamples",
            "unparsed",
            "unscored",
            "none was asked",
            "SLM-Qwen (paper)",
            "93.2",
        ):
            assert text in page, text
    for cell in report["cells"]:
        for name, figure in cell["figures"].items():
            assert figure["n"] > 0
            assert figure["low"] is not None, (cell["task"], name)
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_every_number_of_a_page_is_in_the_report(report: dict[str, Any]) -> None:
    wa = next(cell for cell in report["cells"] if cell["task"] == "emotion" and cell["split"] == "finished")["figures"][
        "wa"
    ]
    shown = f"{wa['value']:.2f} [{wa['low']:.2f}, {wa['high']:.2f}]"
    assert shown in markdown.page(report)
    moved = json.loads(json.dumps(report).replace(str(wa["value"]), "12.34"))
    assert "12.34 [" in markdown.page(moved)


class _Closed(HTMLParser):
    """The tags that are opened and not closed, and what is fetched from elsewhere."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed as it is opened."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone(report: dict[str, Any]) -> None:
    page = html.page({**report, "instruments": DIAGNOSTICS})
    parser = _Closed()
    parser.feed(page)
    assert not parser.open
    assert all(address.startswith(("#", "data:audio/mpeg;base64,")) for address in parser.fetched)
    assert sum(address.startswith("data:") for address in parser.fetched) == len(report["examples"]) > 0
    assert len(page) < 2_000_000
    assert "Emotion from words alone" in page


DIAGNOSTICS = {
    "leaks": {
        "title": "Leak cells",
        "rows": [
            {"label": "Emotion from words alone", "value": 24.0, "low": 20.0, "high": 29.0, "n": 50, "zero": 22.0}
        ],
        "reading": "Words alone tell no more than the transcript.",
    }
}


def test_answers_cannot_break_the_page(tmp_path: Path) -> None:
    class Rude(Parrot):
        def _one(self, item: Any) -> Any:
            from dualslm.conversation import Reply

            return Reply("<script>alert(1)</script> | \n# x")

    asked = predict.plan(items.read(exam(tmp_path / "exam")), [Rude("<b>rude</b>")])
    made = score.score([predict.run(tmp_path / "out", asked, SETTINGS)])
    page = html.page(made)
    assert "<script" not in page
    assert "<b>rude" not in page


def test_comparisons_are_paired_and_corrected(report: dict[str, Any]) -> None:
    found = [one for one in report["comparisons"] if one["task"] == "emotion" and one["split"] == "finished"]
    (one,) = found
    assert (one["first"], one["second"], one["n"], one["clusters"]) == (["good", None], ["bad", None], 12, 6)
    assert all(one["p"] <= one["p_holm"] <= 1 for one in report["comparisons"])


def test_reports_are_joined(tmp_path: Path) -> None:
    made = []
    for name in ("stage1", "stage2"):
        asked = predict.plan(items.read(exam(tmp_path / name)), [Parrot(name)])
        path = predict.run(tmp_path / f"{name}-out", asked, SETTINGS)
        one = score.score([path], command=name)
        one["systems"] = [{**card, "kind": "dualslm"} for card in one["systems"]]
        made.append(one)
    joined = score.merged(made)
    (side,) = [table for table in tables.tables(joined) if table.title.startswith("Stages")]
    assert side.columns == ("stage1", "stage2")
    assert len(side.lines) == 4  # replies without a reference have no figure to set side by side
    with pytest.raises(DualSLMError, match="two reports have the same cell"):
        score.merged([made[0], made[0]])


def test_predictions_that_stand_twice_are_refused(tmp_path: Path) -> None:
    path = predict.run(tmp_path, predict.plan(items.read(exam(tmp_path / "exam")), [Parrot()]), SETTINGS)
    with pytest.raises(DualSLMError, match="a prediction stands twice"):
        score.score([path, path])


def test_published_figures_have_a_source() -> None:
    found = tables.published()
    assert "ICME 2025" in found["source"]
    for table in (found["attributes"], found["emotion"], found["words"], found["replies"]):
        for row in table["rows"]:
            assert len(row["values"]) == len(table["columns"])
            assert "(paper)" in row["system"] or re.match(r"\[\d+\]$", row["source"])


# ---------------------------------------------------------------------- beside it


def test_the_asr_rival_is_a_recipe(root: Path) -> None:
    read = load(root / "recipes" / "slam-asr.toml")
    (stage,) = read.stages
    assert {name: (kind.learns, kind.view.para, kind.view.ling) for name, kind in stage.kinds.items()} == {
        "linguistic": (("ling",), ("none",), ("speech",))
    }


def test_the_tiny_test_set(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="pip install 'dualslm[voices]'")
    from dualslm.tiny import testset, world

    paths = testset.write(tmp_path, count=8)
    found = items.read(paths)
    assert not found.skipped
    by_task: dict[tuple[str, str], list[Any]] = {}
    for item in found.items:
        by_task.setdefault((item.split, item.task), []).append(item)
    assert {key: len(some) for key, some in by_task.items()} == {
        **{("voice", task): 8 for task in ("asr", "gender", "pitch", "tempo", "energy", "emotion")},
        ("dialogue", "emotion"): 8,
        ("talk", "respond"): 8,
    }
    assert all(world.is_held_out(item.speech.transcript or "") for item in found.items)
    pair = [item for item in by_task["talk", "respond"] if item.cluster == by_task["talk", "respond"][0].cluster]
    assert len({item.speech.transcript for item in pair}) == 1 < len({item.speech.labels["emotion"] for item in pair})
    assert testset.write(tmp_path, count=8) == paths


def test_the_trainer_takes_the_asr_rival(root: Path, tmp_path: Path) -> None:
    """Its stage, on the tests' own miniature: L learns, and P stays as it was."""
    recipe = make(tmp_path)
    (stage,) = load(root / "recipes" / "slam-asr.toml").stages
    short = replace(stage, batch=4, epochs=None, steps=2, warmup=0)
    words: list[dict[str, torch.Tensor]] = []
    for steps in (1, 2):
        run_folder = tmp_path / f"run{steps}"
        train(replace(recipe, stages=(replace(short, steps=steps),)), run_folder, device="cpu")
        found = checkpoint_of(str(run_folder))
        assert found.endswith("transcribe")
        tensors = load_file(Path(found) / "adapters.safetensors")
        words.append({key: value for key, value in tensors.items() if key.startswith("ling")})
    assert any(not torch.equal(words[0][key], words[1][key]) for key in words[0])


def test_the_page_of_evaluation_is_that_of_its_report(root: Path) -> None:
    done = subprocess.run([sys.executable, str(root / "bench" / "evaluation.py"), "--check"], check=False)
    assert done.returncode == 0, "run python bench/evaluation.py"
