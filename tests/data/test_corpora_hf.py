"""Datasets of the Hugging Face hub, from a local folder: whole and streamed alike."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from dualslm.cli.main import main
from dualslm.data.corpora.schema import read

datasets = pytest.importorskip("datasets", reason="pip install 'dualslm[hf]'")
datasets.disable_progress_bars()
MAP = ["--map", "transcript=text", "--map", "gender=sex"]


def tone(number: int) -> bytes:
    out = io.BytesIO()
    samples = 0.1 * np.sin(np.arange(4000 + 800 * number) / (5 + number))
    soundfile.write(out, samples.astype(np.float32), 16_000, format="FLAC")
    return out.getvalue()


@pytest.fixture
def conversations() -> Any:
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": datasets.Value("string"),
            "sex": datasets.ClassLabel(names=["male", "female"]),
            "speaker": datasets.Value("int64"),
        }
    )
    found = {}
    for split, numbers in (("train", range(6)), ("validation", range(6, 8))):
        columns = {
            "audio": [{"bytes": tone(number), "path": f"{number}.flac"} for number in numbers],
            "text": [f"It is number {number}." for number in numbers],
            "sex": [number % 2 for number in numbers],
            "speaker": [number // 2 for number in numbers],
        }
        found[split] = datasets.Dataset.from_dict(columns, features=features).cast_column("audio", datasets.Audio())
    return datasets.DatasetDict(found)


def files(out: Path) -> dict[str, bytes]:
    found = [path for path in sorted(out.rglob("*")) if path.suffix in (".jsonl", ".flac", ".tsv")]
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def test_whole_saved_and_streamed_give_the_same(conversations: Any, tmp_path: Path) -> None:
    conversations.save_to_disk(str(tmp_path / "saved"))
    for split, data in conversations.items():
        (tmp_path / "parquet").mkdir(exist_ok=True)
        data.to_parquet(str(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet"))
    for name, more in (("saved", []), ("parquet", []), ("parquet", ["--streaming"])):
        out = tmp_path / f"{name}{len(more)}"
        assert main(["prepare", f"hf:{tmp_path / name}", "--out", str(out), *MAP, *more]) == 0
    assert files(tmp_path / "saved0") == files(tmp_path / "parquet0") == files(tmp_path / "parquet1")
    rows = [row for _, row in read(tmp_path / "saved0" / "train.jsonl")]
    part = rows[1]["turns"][-1]["parts"][0]
    assert len(rows) == 6
    assert (part["transcript"], part["labels"]["gender"]) == ("It is number 1.", "female")
    assert (tmp_path / "saved0" / part["audio"]).read_bytes() == tone(1)
    assert len(list(read(tmp_path / "saved0" / "validation.jsonl"))) == 2


def test_again_after_a_stop_gives_the_same(conversations: Any, tmp_path: Path) -> None:
    conversations.save_to_disk(str(tmp_path / "saved"))
    command = ["prepare", "hf", str(tmp_path / "saved"), *MAP, "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    half = tmp_path / "two" / "clips" / "train"
    half.mkdir(parents=True)
    (half / "0000001.flac").write_bytes(tone(0)[:50])
    assert main([*command, str(tmp_path / "two")]) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody/nothing"], "cannot load the dataset 'nobody/nothing'"),
        (["SAVED", "--limit", "none"], "--limit makes no sense"),
        (["SAVED", "--map", "audio=sound"], "has no column sound"),
        (["FOLDER"], "pip install torchcodec"),
        (["FOLDER", "--streaming"], "pip install torchcodec"),
    ],
)
def test_mistakes_are_one_line(
    conversations: Any,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversations.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.wav").write_bytes(tone(0))
    if "FOLDER" in arguments and find_spec("torchcodec") is not None:
        pytest.skip("torchcodec is there: audio folders can be read")
    paths = {"SAVED": str(tmp_path / "saved"), "FOLDER": str(tmp_path / "folder")}
    given = [paths.get(word, word) for word in arguments]
    assert main(["prepare", "hf", *given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dualslm: error:")
    assert message in error
    assert error.count("\n") == 1


def test_a_limit(conversations: Any, tmp_path: Path) -> None:
    conversations.save_to_disk(str(tmp_path / "saved"))
    command = ["--json", "prepare", f"hf:{tmp_path / 'saved'}", *MAP, "--limit", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {split: counts["rows"] for split, counts in report["splits"].items()} == {"train": 1, "validation": 1}
