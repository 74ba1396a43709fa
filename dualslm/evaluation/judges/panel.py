"""Runs the judges of one report: first on the calibration items, then for scores and comparisons.

The calibration comes first, so that every table of scores stands beside a statement on whether they mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualslm.data.progress import Progress
from dualslm.evaluation.judges.protocols import protocol
from dualslm.evaluation.judges.run import Outcome, Show, compare, judge, verdicts
from dualslm.evaluation.judges.sanity import calibration, controls, trust
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

VERDICTS = "verdicts.jsonl"
PAIRS = "pairs.jsonl"
TRIAL = "sanity.jsonl"  # verdicts on the calibration items
CACHE = "judges.sqlite"
# The paper's two scales. Neither of the two papers that they come from tells its judge how the user speaks.
DEFAULT = ("cs-words", "egs-words")


@dataclass(frozen=True)
class Order:
    """What the user wants judged, and by whom.

    Attributes:
        judges: judges, one or more.
        protocols: names or ids of the protocols that score single replies.
        repeats: number of times that each question is asked.
        pairs: pairs of systems that are compared, told how the user speaks where one of the protocols is.
        controls: whether replies made from the references are judged too, as systems of their own.
        cache: file of raw answers; None for `CACHE` in the output folder.
    """

    judges: tuple[JudgeSpec, ...]
    protocols: tuple[str, ...] = DEFAULT
    repeats: int = 1
    pairs: tuple[tuple[str, str], ...] = ()
    controls: bool = False
    cache: Path | None = None


@dataclass
class Judged:
    """The outcome for one report.

    Attributes:
        report: part of report.json: the tables of `summary`, and `trust`.
        enough: whether so many questions have a verdict that the figures may stand; else exit with status 1.
        lines: lines of text for the user.
    """

    report: dict[str, Any] = field(default_factory=dict)
    enough: bool = True
    lines: list[str] = field(default_factory=list)

    def take(self, step: str, outcome: Outcome) -> list[dict[str, Any]]:
        """Adds the outcome of a step, under its name, and returns the step's verdicts."""
        self.enough &= outcome.enough
        self.lines += [f"{step}: {line}" for line in outcome.lines()]
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
    """Tries the judges on the calibration items, then lets them judge.

    Args:
        what: what is judged, and by whom.
        out: folder of the verdicts.
        predictions: rows of predictions.jsonl; None to only try the judges.
        tested: cards of the systems under test.
        run_id: name of the run, written into every verdict.
        seed: seed of the resamples.

    Raises:
        DualSLMError: for the same reasons as `judge`.
    """
    cache = what.cache or out / CACHE
    found = Judged()
    with _bar("trying the judges") as show:
        tried = judge(calibration(), what.judges, what.protocols, out / TRIAL, cache, tested=tested, show=show)
    found.report["trust"] = trust(found.take("trial", tried), seed=seed)
    found.lines += [line for row in found.report["trust"] for line in row["told"]]
    if predictions is None:
        return found
    rows = [*predictions, *(controls(predictions) if what.controls else [])]
    common: dict[str, Any] = {"tested": tested, "run_id": run_id}
    with _bar("judging") as show:
        scored = judge(
            rows, what.judges, what.protocols, out / VERDICTS, cache, repeats=what.repeats, show=show, **common
        )
    records = found.take("scores", scored)
    if what.pairs:
        with _bar("comparing") as show:
            styled = any(protocol(name).styled for name in what.protocols)
            asked = {"protocol": "pair" if styled else "pair-words", **common}
            compared = compare(rows, what.pairs, what.judges, out / PAIRS, cache, show=show, **asked)
        records += found.take("pairs", compared)
    found.report |= summary(records, seed=seed)
    return found


@contextmanager
def _bar(name: str) -> Iterator[Show]:
    with Progress(name, None) as progress:
        yield progress.update
