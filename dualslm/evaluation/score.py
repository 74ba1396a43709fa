"""`score`: predictions.jsonl → report.json, with no model and no GPU (docs/evaluation.md).

A report holds everything that its pages show, recordings to listen to included, so that they can be made from it
alone: figures, intervals, counts of what was not measured, protocols, and the commands that led here.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import soundfile

from dualslm.audio import SAMPLE_RATE, load
from dualslm.errors import DualSLMError
from dualslm.evaluation import measure
from dualslm.evaluation.metrics import answers, wer
from dualslm.evaluation.metrics.bootstrap import RESAMPLES, holm
from dualslm.evaluation.predict import META, records
from dualslm.files import parsed_json, read_json, replacing, sha256

REPORT = "report.json"
FORMAT = 1
BOOTSTRAP = "cluster-bootstrap/1"
EXAMPLES = {"respond": 3, "asr": 2}  # recordings to listen to of a set, by its task; one for any other task
MAX_EXAMPLES = 10  # of a report, whose page holds the recordings themselves
MAX_EXAMPLE_SECONDS = 12.0
KEY = ("task", "corpus", "split")  # what makes a set
Row = Mapping[str, Any]


def score(
    files: Sequence[Path],
    *,
    seed: int = 0,
    command: str = "",
    versions: Mapping[str, str] | None = None,
    judged: Mapping[str, Any] | None = None,
    diagnostics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures predictions.

    Args:
        files: files of predictions; those of several runs are compared on the items that they share.
        seed: seed of the resamples.
        command: command line that the user gave, for the record.
        versions: versions of the packages, for the record.
        judged: summary of the judges' verdicts.
        diagnostics: results of the diagnostics, by name.

    Returns:
        The report, to be written as JSON.

    Raises:
        DualSLMError: predictions that cannot be read, or none.
    """
    sources = [_source(path) for path in files]
    sets = _sets(files)
    if not sets:
        raise DualSLMError("nothing to measure", got="no prediction", do="run predict first")
    return {
        "format": FORMAT,
        "command": command,
        "versions": dict(versions or {}),
        "seed": seed,
        "resamples": RESAMPLES,
        "protocols": {"bootstrap": BOOTSTRAP, "parser": answers.PROTOCOL, "wer": "raw/1, whisper/1"},
        # Only where it is used: the package is an optional one, and without transcriptions nobody needs it.
        "normaliser": wer.normaliser() if any(task == "asr" for task, *_ in sets) else None,
        "sources": sources,
        "systems": [card for source in sources for card in source.pop("systems")],
        "skipped": {why: count for source in sources for why, count in source["skipped"].items()},
        "cells": [_cell(key, side, rows, seed) for key, sides in sets.items() for side, rows in sides.items()],
        "comparisons": _comparisons(sets, seed),
        "examples": _examples(files),
        "judged": dict(judged or {}),
        "instruments": dict(diagnostics or {}),
    }


def write(report: Mapping[str, Any], out: Path) -> Path:
    """Writes a report into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    # `allow_nan=False`: json would write NaN, which is no JSON and which a browser's parser refuses.
    with replacing(out / REPORT) as partial:
        partial.write_text(json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return out / REPORT


def read(path: Path) -> dict[str, Any]:
    """A report from its file or folder.

    Raises:
        DualSLMError: none there, or one of another format.
    """
    file = path / REPORT if path.is_dir() else path
    report: dict[str, Any] = read_json(file, "the report", "run dualslm eval first")
    if not isinstance(report, dict):
        raise DualSLMError(f"{file} is no report", got=type(report).__name__, do="run dualslm eval first")
    if report.get("format") != FORMAT:
        got = f"format {report.get('format')}"
        raise DualSLMError(f"{file} is no report of this version", got=got, do="score the predictions again")
    return report


def merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several reports as one: stages and ablations side by side.

    Everything else, such as seed and protocols, is that of the first.

    Raises:
        DualSLMError: two of them have the same cell.
    """
    out = dict(reports[0])
    for key in ("sources", "systems", "cells", "comparisons", "examples"):
        out[key] = [*chain.from_iterable(report[key] for report in reports)]
    for key in ("skipped", "judged", "instruments"):
        out[key] = {name: value for report in reports for name, value in report[key].items()}
    out["command"] = "\n".join(dict.fromkeys(str(report["command"]) for report in reports))
    out["normaliser"] = next((report["normaliser"] for report in reports if report["normaliser"]), None)
    # A table has one line for a system and a view: of two such cells it would show one and hide the other.
    names = [tuple(cell[key] for key in ("system", "view", *KEY)) for cell in out["cells"]]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        got = " ".join(map(str, twice[0]))
        raise DualSLMError(
            "two reports have the same cell", got=got, do="give systems different names, or one report once"
        )
    return out


# ---------------------------------------------------------------------- what was predicted


def _source(path: Path) -> dict[str, Any]:
    """A file of predictions, and what its meta file says of it."""
    # Another program may have written the predictions, without a meta file; a damaged one hides how they were made.
    try:
        meta = parsed_json(path.with_name(META).read_bytes(), str(path.with_name(META)), "run predict again", fields=())
    except OSError:
        meta = {}
    settings = meta.get("settings", {})
    try:
        digest = sha256(path)
    except OSError as error:
        raise DualSLMError(f"cannot read the predictions {path}", got=error.strerror, do="run predict first") from error
    return {
        "file": path.name,
        "sha256": digest,
        "n": meta.get("n"),
        "command": meta.get("command"),
        "took_s": meta.get("took_s"),
        "cpu_s": meta.get("cpu_s"),
        "manifests": settings.get("manifests", []),
        "skipped": meta.get("skipped", {}),
        "systems": settings.get("systems", []),
    }


def _sets(files: Sequence[Path]) -> dict[tuple[str, ...], dict[tuple[str, str | None], list[Row]]]:
    """Predictions by set, then by system and view, each in order of appearance."""
    sets: dict[tuple[str, ...], dict[tuple[str, str | None], list[Row]]] = defaultdict(lambda: defaultdict(list))
    seen: set[tuple[Any, ...]] = set()
    for path in files:
        for row in records(path):
            prediction = (row["id"], row["system"], row["view"])
            # Counted twice, an item would narrow the intervals without telling anything new.
            if prediction in seen:
                got = " ".join(map(str, prediction))
                raise DualSLMError("a prediction stands twice", got=got, do="give every file once")
            seen.add(prediction)
            sets[tuple(str(row[key]) for key in KEY)][row["system"], row["view"]].append(row)
    return sets


def _cell(key: tuple[str, ...], side: tuple[str, str | None], rows: Sequence[Row], seed: int) -> dict[str, Any]:
    system, view = side
    clusters = len({row["cluster"] for row in rows})
    head = {"system": system, "view": view, **dict(zip(KEY, key, strict=True)), "kind": rows[0].get("kind")}
    return {**head, "n": len(rows), "clusters": clusters, **measure.measure(rows, seed)}


def _comparisons(
    sets: Mapping[tuple[str, ...], Mapping[tuple[str, str | None], Sequence[Row]]], seed: int
) -> list[dict[str, Any]]:
    """The first system through its first view against every other cell of the set."""
    found: list[dict[str, Any]] = []
    for key, sides in sets.items():
        (first, own), *others = sides.items()
        for other, rows in others:
            if (result := measure.compare(own, rows, seed)) is not None:
                name, gap = result
                # Without an interval or a difference there is a NaN; it becomes null, which JSON has.
                numbers = {
                    field: None if isinstance(value, float) and math.isnan(value) else value
                    for field, value in asdict(gap).items()
                }
                names = {"first": list(first), "second": list(other), "measure": name}
                found.append({**dict(zip(KEY, key, strict=True)), **names, **numbers})
    # One family of all comparisons of the report: a reader picks the best of them wherever it stands.
    corrected = holm([math.nan if one["p"] is None else one["p"] for one in found])
    return [{**one, "p_holm": None if math.isnan(p) else p} for one, p in zip(found, corrected, strict=True)]


# ---------------------------------------------------------------------- to listen to


def _examples(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Some items with their recordings and the answers of all systems, drawn by their ids."""
    asked: dict[str, list[tuple[Row, Path]]] = defaultdict(list)
    for path in files:
        for row in records(path):
            if row.get("audio"):
                asked[row["id"]].append((row, path))
    by_set: dict[tuple[str, ...], list[str]] = defaultdict(list)
    # A hash of the id draws evenly and the same items each time; Python's own `hash` differs between processes.
    for name in sorted(asked, key=lambda name: zlib.crc32(name.encode())):
        by_set[tuple(str(asked[name][0][0][key]) for key in KEY)].append(name)
    # Replies and transcriptions first, which are worth hearing; of a cut list the attributes go.
    order = sorted(by_set, key=lambda key: -EXAMPLES.get(key[0], 0))
    drawn = [name for key in order for name in by_set[key][: EXAMPLES.get(key[0], 1)]]
    shown = (_example(asked[name]) for name in drawn)
    return [one for one in shown if one][:MAX_EXAMPLES]


def _example(rows: Sequence[tuple[Row, Path]]) -> dict[str, Any] | None:
    """An item as it is shown; None where its recording is too long, or no longer there."""
    row, path = rows[0]
    sound = _sound(path.parent / row["audio"])
    if sound is None:
        return None
    item = {key: row.get(key) for key in ("id", "task", "context", "asked", "transcript", "labels", "truth")}
    answered = [{"system": one["system"], "view": one["view"], "answer": one["answer"]} for one, _ in rows]
    return {**item, "audio": sound, "answers": answered}


def _sound(path: Path) -> str | None:
    """A recording as a data URI of mp3."""
    try:
        samples = load(path)
    except DualSLMError:
        return None
    if len(samples) > MAX_EXAMPLE_SECONDS * SAMPLE_RATE:
        return None
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
