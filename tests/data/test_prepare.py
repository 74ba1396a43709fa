"""`dualslm prepare`: the command, its error messages, and a kill at any instant."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import standins
from support.badaudio import POINTER

from dualslm.cli import main as cli
from dualslm.data import manifest_index
from dualslm.data.corpora import CORPORA, clips
from dualslm.data.corpora.base import AudioInfo
from dualslm.data.corpora.clips import FLUSH_EVERY
from dualslm.data.corpora.prepare import PROBE_LOG, finished, prepare
from dualslm.data.corpora.schema import check
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError

PARTS = {"train-clean-100": ["1", "2", "5", "6"], "dev-clean": ["3"], "test-clean": ["4"]}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """LibriSpeech with 258 recordings, two of them missing."""
    root = standins.librispeech(tmp_path / "raw", PARTS, utterances=43)
    for name in ("train-clean-100/2/100/2-100-0003.flac", "test-clean/4/100/4-100-0000.flac"):
        (root / name).unlink()
    return root


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_the_command_and_its_table(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "librispeech", str(raw), "--out", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert [line.split() for line in table.splitlines() if "train " in line] == [
        ["train", "172", "171", "171", "0.02", "1"]
    ]
    assert cli.main(["--json", "prepare", "librispeech", str(raw), "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert files(tmp_path / "out").keys() == {
        "complete.json",
        "excluded.tsv",
        "report.json",
        "test-clean.jsonl",
        "train.jsonl",
        "validation.jsonl",
    }


def test_by_default_manifests_are_where_recipes_look(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "librispeech", "raw", "--part", "dev-clean", "--tasks", "gender,asr"]) == 0
    first = json.loads((tmp_path / "data/librispeech/validation.jsonl").read_text().splitlines()[0])
    assert first["tasks"] == ["asr", "gender"]
    assert (tmp_path / "data/librispeech" / first["turns"][0]["parts"][0]["audio"]).exists()


def test_large_manifests_have_their_index(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_index, "INDEXED", 0)
    assert cli.main(["prepare", "librispeech", str(raw), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob(".*.npz")} == {
        f".{split}.jsonl.index.npz" for split in ("train", "validation", "test-clean")
    }
    monkeypatch.setattr(manifest_index, "rows", None)  # no line is read again
    assert Examples([tmp_path / "out" / "train.jsonl"]).count("linguistic") == 171


def test_commands_of_the_docs_are_understood(root: Path) -> None:
    lines = (root / "docs/corpora.md").read_text().splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("dualslm prepare")]
    named = {cli._parser().parse_args(command).corpus.name for command in commands}
    assert named == CORPORA.keys()


def test_lines_of_the_docs_are_conversations(root: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (root / "docs/manifest.md").read_text(), re.DOTALL)
    assert [check(json.loads(block))["id"] for block in blocks] == ["a1", "train/dia0_utt3"]


# ---------------------------------------------------------------------- mistakes


def _empty(folder: Path) -> None:
    (folder / "raw").mkdir()


def _styletalk(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _empty(folder)
        (folder / "raw/train.csv").write_text(text)
        (folder / "raw/eval.csv").write_text(text)

    return make


def _file(name: str, text: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def _nothing(_: Path) -> None:
    pass


HEADER = "diag_id,context,curr_audio_id,res_audio_id,curr_text,res_text,curr_emotion,curr_speed,curr_volume,"
HEADER += "res_emotion,res_speed,res_volume\n"
MELD = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n"
CAPTION = "wav_fp,style_prompt,gender\na.wav,A voice.,F\n"

MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no folder": (_nothing, ["meld", "raw"], "no such folder"),
    "a file": (_file("raw", "x"), ["meld", "raw"], "got a file"),
    "an empty folder": (_empty, ["dailytalk", "raw"], "no metadata.json there: got nothing"),
    "another corpus": (_file("raw/metadata.json", "{}"), ["librispeech", "raw"], "no SPEAKERS.TXT there"),
    "no captions": (_empty, ["textrolspeech", "raw"], "no caption/*.csv"),
    "half of MELD": (_file("raw/train_sent_emo.csv", MELD), ["meld", "raw"], "dev_sent_emo.csv"),
    "another csv": (_styletalk("a,b\n1,2\n"), ["styletalk", "raw"], "no column diag_id"),
    "an empty csv": (_styletalk(""), ["styletalk", "raw"], "no column diag_id"),
    "a cut off csv": (_styletalk(HEADER + "x,A : hi"), ["styletalk", "raw"], "train.csv line 2 is cut off"),
    "a csv of a header": (_styletalk(HEADER), ["styletalk", "raw"], "no row at all"),
    "other json": (_file("raw/metadata.json", "[1]"), ["dailytalk", "raw"], "is not DailyTalk's"),
    "half a json": (_file("raw/metadata.json", '{"0": '), ["dailytalk", "raw"], "is not DailyTalk's"),
    "json without text": (_file("raw/metadata.json", '{"0": {"0": {}}}'), ["dailytalk", "raw"], "no speaker"),
    "a pointer": (_file("raw/metadata.json", POINTER), ["dailytalk", "raw"], "git lfs pull"),
    "no list": (_file("raw/metadata.json", "{}"), ["dailytalk", "raw", "--validation-list", "none.txt"], "none.txt"),
    "a bad list": (
        _file("raw/metadata.json", "{}"),
        ["dailytalk", "raw", "--validation-list", "raw/metadata.json"],
        "no list",
    ),
    "no audio": (_file("raw/caption/a.csv", CAPTION), ["textrolspeech", "raw"], "1 rows, all left out: missing audio"),
    "no caption column": (_file("raw/a.csv", "wav_fp\nx\n"), ["textrolspeech", "raw"], "style_prompt or caption"),
    "no part": (_file("raw/SPEAKERS.TXT", "1 | F | a | 1 | N\n"), ["librispeech", "raw", "--part", "x"], "no part x"),
    "an unknown task": (_empty, ["meld", "raw", "--tasks", "asr,sing"], "sing"),
    "a bad map": (_file("raw", "{}"), ["jsonl", "raw", "--map", "audio:x"], "NAME=COLUMN"),
    "no audio column": (_file("raw", '{"a": 1}'), ["jsonl", "raw"], "raw line 1: audio is missing"),
    "a list for text": (_file("raw", '\n{"audio": ["a"]}'), ["jsonl", "raw"], "raw line 2: audio must be text"),
    "broken lines": (_file("raw", '{"audio": '), ["jsonl", "raw"], "raw line 1: the line is not JSON"),
    "a broken conversation": (
        _file("raw", '{"id": "x", "kind": "dual", "turns": []}'),
        ["jsonl", "raw"],
        "raw line 1: turns must",
    ),
    "damaged csv": (_styletalk(HEADER + "x" * 200_000), ["styletalk", "raw"], "is damaged: got field larger"),
    "odd dialogues": (_file("raw/metadata.json", '{"a": {}}'), ["dailytalk", "raw"], "is not DailyTalk's"),
    "other manifests": (
        _file("out/train.jsonl", "{}"),
        ["meld", "raw", "--out", "out"],
        "holds other manifests: got train",
    ),
    "a wrong path": (
        _file("raw", '{"audio": "here/nothing.wav", "transcript": "Hi."}'),
        ["jsonl", "raw"],
        "left out: missing audio, for example raw-1 ",
    ),
    "a null byte": (_file("raw", '{"audio": "a\\u0000b.wav"}'), ["jsonl", "raw"], "left out: unreadable"),
    "no files": (_empty, ["jsonl", "raw"], "no *.jsonl"),
    "its own folder": (_file("raw/a.jsonl", "{}"), ["jsonl", "raw", "--out", "raw"], "another folder"),
    "a file for --out": (_file("file", "x"), ["jsonl", "raw", "--out", "file"], "--out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, arguments, words = MISTAKES[name]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("dualslm: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "data" / arguments[0] / "complete.json").exists()


def test_a_wrong_folder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DualSLMError):
        prepare(CORPORA["meld"], Path("raw"), Path("out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["prepare"], ["prepare", "timit"], ["prepare", "meld", "raw", "--roles", "both"]]
)
def test_unknown_corpora_and_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


# ---------------------------------------------------------------------- once, again, killed


def run(raw: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return prepare(CORPORA["librispeech"], raw, out, **settings)


def test_what_is_complete_is_not_done_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    report = run(raw, out)
    before = files(out)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "probe", None)
        assert run(raw, out) == report == finished(out)
    standins.Voice(tmp_path / "raw").say(raw / "test-clean/4/100/4-100-0000.flac")
    assert run(raw, out) == report
    assert run(raw, out, again=True)["splits"]["test-clean"]["usable"] == 43
    assert run(raw, out, options={"part": ("dev-clean",)})["splits"].keys() == {"validation"}
    assert files(out).keys() == before.keys() - {"train.jsonl", "test-clean.jsonl", "excluded.tsv"}
    (out / "mine.jsonl").write_text("{}")
    with_mine = files(out)
    with pytest.raises(DualSLMError, match=r"holds other manifests: got mine\.jsonl"):
        run(raw, out, again=True)
    assert files(out) == with_mine, "nothing is deleted"
    (out / "validation.jsonl").unlink()
    assert finished(out) is None


def die_at(raw: Path, out: Path, patch: Callable[[Callable[[], None]], None]) -> bool:
    """Runs a preparation in a child that kills itself where the patch says; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            patch(lambda: os.kill(os.getpid(), signal.SIGKILL))
            run(raw, out)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def at_probe(number: int) -> Callable[[Callable[[], None]], None]:
    """Dies before the probe of a number."""

    def patch(die: Callable[[], None]) -> None:
        real = clips.probe
        count = [0]

        def probe(*args: Any, **more: Any) -> AudioInfo:
            count[0] += 1
            if count[0] == number:
                die()
            return real(*args, **more)

        clips.probe = probe

    return patch


def at_replace(number: int) -> Callable[[Callable[[], None]], None]:
    """Dies before the rename of a number."""

    def patch(die: Callable[[], None]) -> None:
        real = Path.replace
        count = [0]

        def replace(self: Path, target: Path) -> Path:
            count[0] += 1
            if count[0] == number:
                die()
            return real(self, target)

        Path.replace = replace  # type: ignore[method-assign, assignment]

    return patch


def test_a_kill_at_any_instant_changes_no_byte(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "whole")
    out = tmp_path / "killed"
    instants = [at_probe(1), at_probe(60), at_probe(150), *(at_replace(number) for number in range(1, 7))]
    for instant in instants:
        assert die_at(raw, out, instant)
        assert finished(out) is None
    run(raw, out)
    assert files(out) == files(tmp_path / "whole")


def test_nothing_is_left_of_a_stopped_run_with_other_settings(raw: Path, tmp_path: Path) -> None:
    assert die_at(raw, tmp_path / "out", at_replace(4))
    assert len(list((tmp_path / "out").glob("*.jsonl"))) >= 2
    run(raw, tmp_path / "out", options={"part": ("dev-clean",)})
    assert files(tmp_path / "out").keys() == {"complete.json", "report.json", "validation.jsonl"}


def test_a_stopped_run_probes_no_recording_twice(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert die_at(raw, tmp_path / "out", at_probe(FLUSH_EVERY + 20))
    with (tmp_path / "out" / PROBE_LOG).open("ab") as log:
        log.write(b'["half a li')
    seen: list[Path] = []
    real = clips.probe

    def probe(path: Path, *args: Any, **more: Any) -> AudioInfo:
        seen.append(path)
        return real(path, *args, **more)

    monkeypatch.setattr(clips, "probe", probe)
    run(raw, tmp_path / "out")
    assert len(seen) == 258 - FLUSH_EVERY
    run(raw, tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_changed_recording_is_probed_again(raw: Path, tmp_path: Path) -> None:
    assert die_at(raw, tmp_path / "out", at_replace(1))
    standins.Voice(tmp_path / "raw").say(raw / "train-clean-100/2/100/2-100-0003.flac")
    assert run(raw, tmp_path / "out")["splits"]["train"]["usable"] == 172
