"""How far the labels of `dualslm label` agree with labels that others gave: docs/label.md.

    python -m studies.label_agreement DATA      measures, writes docs/results/label.json and the table of docs/label.md
    python -m studies.label_agreement --page    writes the table anew from the result file

DATA holds `ravdess/` (RAVDESS with a labels.csv of flac, gender, emotion, text) and `textrolspeech/VccmDataset/`,
whose test lists have labels of some RAVDESS clips. The result has figures alone, no row of these corpora.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dualslm.data.label import ANY, MEASURED, Labelling, label
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.tiny.build.readme import put

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "label.md"
RESULT = ROOT / "docs" / "results" / "label.json"
LISTS = ("controlspeech_test.csv", "controlspeech_test_prompt.csv")
THEIRS = {"pitch": "pitch", "energy": "energy", "tempo": "dur"}  # columns of these lists
VCCM_PITCH = {"male": (108.22, 167.15), "female": (179.22, 252.10)}  # Hz, ControlSpeech's own thresholds
TEXTROL_PITCH = {ANY: (136.57698522, 196.09780757)}  # Hz, TextrolSpeech's dataprocess.py, for every speaker
WAYS: dict[str, dict[str, Any]] = {
    "terciles of all clips": {},
    "terciles, pitch by gender": {"by_gender": True},
    "pitch by TextrolSpeech's thresholds": {"given": {"pitch": TEXTROL_PITCH}},
    "pitch by VccmDataset's thresholds, by gender": {"given": {"pitch": VCCM_PITCH}},
}


def main() -> int:
    """Measures, or only writes the page."""
    if "--page" not in sys.argv:
        RESULT.write_text(json.dumps(measured(Path(sys.argv[1])), indent=1) + "\n")
    PAGE.write_text(put(PAGE.read_text(), "label", table(json.loads(RESULT.read_text()))))
    return 0


def measured(data: Path) -> dict[str, Any]:
    """The agreement of each way of setting thresholds, by attribute."""
    given = given_labels(data)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "ravdess.jsonl"
        clips = manifest(data / "ravdess", source)
        ways = {}
        for name, settings in WAYS.items():
            out = Path(folder) / "labelled.jsonl"
            start = time.perf_counter()
            report = label(source, out, Labelling(**settings))
            seconds = time.perf_counter() - start
            ways[name] = {"thresholds": report["thresholds"], **compared(out, given)}
    return {
        "recordings": clips,
        "with_labels": len(given),
        "present": sum((data / "ravdess" / name).exists() for name in given),
        "recordings_a_second": round(clips / seconds, 1),
        "units": dict(MEASURED),
        "ways": ways,
    }


def given_labels(data: Path) -> dict[str, dict[str, str]]:
    """Labels that VccmDataset gives to RAVDESS clips, by file name."""
    found = {}
    for name in LISTS:
        with (data / "textrolspeech" / "VccmDataset" / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["item_name"].startswith("RAVDESS-"):
                    _, actor, clip = row["item_name"].split("-", 2)
                    found[f"{actor}/{clip}.flac"] = row
    return found


def manifest(folder: Path, out: Path) -> int:
    """Writes a manifest of all clips."""
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with out.open("w", encoding="utf-8") as file:
        for row in rows:
            clip = {"audio": str((folder / row["flac"]).resolve()), "transcript": row["text"]}
            clip["labels"] = {"gender": row["gender"]}
            file.write(json.dumps({"id": row["flac"], "tasks": ["asr"], "turns": [turn(clip)]}) + "\n")
    return len(rows)


def turn(clip: dict[str, Any]) -> dict[str, Any]:
    """A user's turn of one recording."""
    return {"role": "user", "parts": [clip]}


def compared(out: Path, given: dict[str, dict[str, str]]) -> dict[str, Any]:
    """How many labels are the same, and how many at most one step away, by attribute."""
    same = Counter[str]()
    near = Counter[str]()
    total = 0
    for line in out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["id"] in given:
            total += 1
            ours = row["turns"][0]["parts"][0]["labels"]
            for name, column in THEIRS.items():
                values = ATTRIBUTES[name].values
                theirs = ATTRIBUTES[name].value({"labels": {name: given[row["id"]][column]}})
                # Values are in order, from low to high: a step apart may be a threshold set a little elsewhere.
                step = abs(values.index(ours[name]) - values.index(str(theirs)))
                same[name] += step == 0
                near[name] += step <= 1
    return {"total": total, "same": dict(same), "within_one": dict(near)}


def table(result: dict[str, Any]) -> str:
    """The agreement as a table."""
    lines = [
        f"{result['recordings']} RAVDESS clips, {result['recordings_a_second']} a second on one core; "
        f"{result['present']} of the {result['with_labels']} clips with labels are among them. "
        "Same label / at most one step away:\n",
        "| thresholds | " + " | ".join(THEIRS) + " |",
        "|---|" + "--:|" * len(THEIRS),
    ]
    for name, way in result["ways"].items():
        cells = [f"{way['same'][one]} / {way['within_one'][one]} of {way['total']}" for one in THEIRS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
