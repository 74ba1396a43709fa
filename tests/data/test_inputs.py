"""Files as other programs leave them: byte order marks, null recordings, pipes, and paths with odd spaces."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.badaudio import tone, wav

from dualslm import recipe
from dualslm.data.corpora import get
from dualslm.data.corpora.base import MISSING, table
from dualslm.data.corpora.prepare import prepare
from dualslm.data.corpora.schema import read
from dualslm.data.manifest import Examples, recordings
from dualslm.data.manifest_index import open_index
from dualslm.data.tasks.task import NO_AUDIO
from dualslm.errors import DualSLMError
from dualslm.evaluation import items, predict, prediction_fields, score
from dualslm.files import sha256

MARK = "\ufeff"


def turn(audio: str | None, text: str = "Hi.") -> dict[str, object]:
    return {"role": "user", "parts": [{"audio": audio, "transcript": text, "labels": {"gender": "male"}}]}


def spoken(name: str, audio: str | None, **fields: object) -> str:
    return json.dumps({"id": name, "turns": [turn(audio)], "tasks": ["asr", "gender"]} | fields)


def answered(name: str, audio: str | None) -> str:
    turns = [turn(audio), {"role": "assistant", "parts": ["Hello."]}]
    return json.dumps({"id": name, "kind": "dual", "turns": turns})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    wav(tmp_path / "a.wav", tone())
    return tmp_path


def test_a_manifest_may_have_marks(folder: Path) -> None:
    path = folder / "m.jsonl"
    # The second mark is where two files were put together, the last one an empty file.
    path.write_text(f"{MARK}{spoken('1', 'a.wav')}\r\n{MARK}{spoken('2', 'a.wav')}\r\n{MARK}\n", encoding="utf-8")
    examples = Examples([path])
    assert examples.count("linguistic") == 2
    assert [examples.get("linguistic", index).id for index in (0, 1)] == ["1/asr", "2/asr"]
    assert [number for number, _ in read(path)] == [1, 2]
    assert len(items.read([path]).items) == 4


def test_other_files_may_have_marks(folder: Path) -> None:
    (folder / "raw.jsonl").write_text(f'{MARK}{{"audio": "a.wav", "transcript": "Hi.", "split": "train"}}\n', "utf-8")
    report = prepare(get("jsonl"), folder / "raw.jsonl", folder / "out")
    assert report["splits"]["train"]["talks"] == 1
    (folder / "a.csv").write_text(f"{MARK}name,text\n1,one\n", encoding="utf-8")
    assert list(table(folder / "a.csv", ("name", "text"))) == [{"name": "1", "text": "one"}]
    plain = Path(__file__).parents[2] / "recipes/tiny.toml"
    (folder / "r.toml").write_text(MARK + plain.read_text(), encoding="utf-8")
    assert recipe.load(folder / "r.toml") == recipe.load(plain)
    row = dict.fromkeys(prediction_fields.NEEDED, "x") | {"task": "asr", "choices": None, "ended": True}
    (folder / "p.jsonl").write_text(f"{MARK}{json.dumps(row)}\n", encoding="utf-8")
    assert [one["answer"] for one in predict.records(folder / "p.jsonl")] == ["x"]


def test_text_of_another_encoding_is_one_line(folder: Path) -> None:
    (folder / "r.toml").write_text("[model]", encoding="utf-16")
    with pytest.raises(DualSLMError, match="UTF-8"):
        recipe.load(folder / "r.toml")


def test_null_recordings_are_counted_and_not_fatal(folder: Path) -> None:
    lines = [spoken("1", "a.wav"), spoken("2", None), answered("3", "a.wav"), answered("4", None)]
    path = folder / "m.jsonl"
    path.write_text("\n".join(lines) + "\n")
    examples = Examples([path])
    assert [examples.count(kind) for kind in ("linguistic", "paralinguistic", "dual")] == [1, 1, 1]
    assert examples.left_out == {f"{name}: {NO_AUDIO}": 1 for name in ("asr", "gender", "dual")}
    assert recordings(examples) == [str(folder / "a.wav")]
    exam = items.read([path])
    assert [item.id.rpartition("/")[2] for item in exam.items] == ["asr", "gender", "3"]
    assert exam.skipped == {NO_AUDIO: 2}


def test_null_recordings_of_a_corpus_are_counted(folder: Path) -> None:
    rows: list[dict[str, str | None]] = [
        {"audio": "a.wav", "transcript": "Hi."},
        {"audio": None, "transcript": "Gone."},
        {"audio": "", "id": "x"},
    ]
    lines = [json.dumps({**row, "split": "train"}) for row in rows] + [answered("4", None)]
    (folder / "raw.jsonl").write_text("\n".join(lines) + "\n")
    report = prepare(get("jsonl"), folder / "raw.jsonl", folder / "out", options={"split-by": "clip"})
    excluded = [line.split("\t") for line in (folder / "out/excluded.tsv").read_text().splitlines()]
    assert [reason for _, _, reason, _ in excluded] == [MISSING] * 3
    assert report["splits"]["train"]["talks"] == 1


def test_a_mistyped_column_is_still_refused(folder: Path) -> None:
    (folder / "raw.jsonl").write_text('{"audoi": "a.wav", "transcript": "Hi."}\n')
    with pytest.raises(DualSLMError, match="audio=COLUMN"):
        prepare(get("jsonl"), folder / "raw.jsonl", folder / "out")


def test_paths_are_left_as_they_are(folder: Path) -> None:
    for name in ("two  spaces.wav", " before.wav", "tab\tin.wav", "after.wav "):
        wav(folder / name, tone())
        (folder / "raw.jsonl").write_text(json.dumps({"audio": name, "transcript": "Hi.", "split": "train"}) + "\n")
        prepare(get("jsonl"), folder / "raw.jsonl", folder / "out", again=True)
        (_, row), *_ = read(folder / "out/train.jsonl")
        assert row["turns"][0]["parts"][0]["audio"] == f"../{name}"


def test_pipes_are_refused_in_one_line(folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    readers: list[Callable[[], object]] = [
        lambda: recipe.load(pipe),
        lambda: open_index(pipe),
        lambda: list(read(pipe)),
        lambda: prepare(get("jsonl"), pipe, folder / "out"),
        lambda: list(table(pipe, ())),
        lambda: list(predict.records(pipe)),
        lambda: score.score([pipe]),
        lambda: score.read(pipe),
        lambda: sha256(pipe),
    ]
    for reader in readers:
        with pytest.raises(DualSLMError, match="a pipe or a device") as caught:
            reader()
        assert "\n" not in str(caught.value)
