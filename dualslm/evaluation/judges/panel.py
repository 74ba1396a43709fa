"""Judges at work for one report: tried first, then asked for scores and comparisons.

Every judge is tried on the calibration items before its scores are shown, so that no table of scores stands without a
word on whether they mean anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from dualslm.evaluation.judges.run import Outcome, Show, compare, judge, verdicts
from dualslm.evaluation.judges.sanity import calibration, controls, trust
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

VERDICTS, PAIRS, TRIAL, CACHE = "verdicts.jsonl", "pairs.jsonl", "sanity.jsonl", "judges.sqlite"
DEFAULT = ("cs", "egs")


@dataclass(frozen=True)
class Order:
    """What the user wants judged, and by whom.

    Attributes:
        judges: one or more.
        protocols: that score single replies.
        repeats: of each question.
        pairs: systems that are compared.
        controls: also judge replies made from the references, as systems of their own.
        cache: of raw answers; a file in the output folder when None.
    """

    judges: tuple[JudgeSpec, ...]
    protocols: tuple[str, ...] = DEFAULT
    repeats: int = 1
    pairs: tuple[tuple[str, str], ...] = ()
    controls: bool = False
    cache: Path | None = None


@dataclass
class Judged:
    """What came of it.

    Attributes:
        report: for report.json: `summary`'s tables, and `trust`.
        enough: whether so many questions have a verdict that the figures may stand; else exit with status 1.
        told: lines for the user.
    """

    report: dict[str, Any] = field(default_factory=dict)
    enough: bool = True
    told: list[str] = field(default_factory=list)

    def take(self, what: str, outcome: Outcome) -> list[dict[str, Any]]:
        """Notes an outcome and returns its verdicts."""
        self.enough &= outcome.enough
        self.told += [f"{what}: {line}" for line in outcome.told()]
        return verdicts(outcome.path)


def run(
    what: Order,
    out: Path,
    predictions: Sequence[Mapping[str, Any]] | None = None,
    tested: Sequence[Mapping[str, Any]] = (),
    *,
    run_id: str | None = None,
    seed: int = 0,
) -> Judged:
    """Tries the judges, then lets them judge.

    Args:
        what: the user's order.
        out: folder of the verdicts.
        predictions: rows of predictions.jsonl; None: the judges are only tried.
        tested: cards of the systems on trial.
        run_id: for the record.
        seed: of the resamples.

    Raises:
        DualSLMError: see `judge`.
    """
    cache, found = what.cache or out / CACHE, Judged()
    with _bar("trying the judges") as show:
        tried = judge(calibration(), what.judges, what.protocols, out / TRIAL, cache, tested=tested, show=show)
    found.report["trust"] = trust(found.take("trial", tried), seed=seed)
    found.told += [line for row in found.report["trust"] for line in row["told"]]
    if predictions is None:
        return found
    rows = [*predictions, *(controls(predictions) if what.controls else [])]
    common: dict[str, Any] = {"tested": tested, "run_id": run_id}
    with _bar("judging") as show:
        paths = out / VERDICTS, cache
        scored = judge(rows, what.judges, what.protocols, *paths, repeats=what.repeats, show=show, **common)
    records = found.take("scores", scored)
    if what.pairs:
        with _bar("comparing") as show:
            compared = compare(rows, what.pairs, what.judges, out / PAIRS, cache, show=show, **common)
        records += found.take("pairs", compared)
    found.report |= summary(records, seed=seed)
    return found


@contextmanager
def _bar(name: str) -> Iterator[Show]:
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(name, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show
