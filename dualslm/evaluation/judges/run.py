"""Judging: every question asked once, each verdict on disk before the next is counted; killed, it goes on.

`verdicts.jsonl` holds exactly the verdicts of what was asked for: those of other replies, judges or wordings are
dropped, and what is unscored is tried again. Raw answers stay in the cache in any case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.evaluation.judges import protocols as known
from dualslm.evaluation.judges.ask import Bench, Verdict
from dualslm.evaluation.judges.cache import Cache
from dualslm.evaluation.judges.questions import Question, identity, pairwise, pointwise
from dualslm.evaluation.judges.spec import JudgeSpec, check
from dualslm.files import replacing

ENOUGH = 0.99  # of the questions must have a verdict
LISTED = 5  # items that are named for each reason
Show = Callable[[int, int], None]


@dataclass
class Outcome:
    """What became of all questions.

    Attributes:
        path: of the verdicts.
        asked: questions in all.
        scored: of them with a verdict.
        kept: verdicts that an earlier run had left.
        sent: requests that went to servers.
        unscored: items without a verdict, by judge, protocol and reason.
    """

    path: Path
    asked: int = 0
    scored: int = 0
    kept: int = 0
    sent: int = 0
    unscored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether so many questions have a verdict that the figures may stand; else the command fails."""
        return self.asked > 0 and self.scored >= ENOUGH * self.asked

    def told(self) -> list[str]:
        """Lines for the user: what was judged, and every failure with its reason."""
        lines = [f"{self.scored} of {self.asked} verdicts, {self.kept} from before, {self.sent} requests sent"]
        for reason, items in sorted(self.unscored.items()):
            more = ", ..." if len(items) > LISTED else ""
            lines.append(f"unscored {len(items)}: {reason} ({', '.join(items[:LISTED])}{more})")
        if not self.enough:
            lines.append(f"fewer than {100 * ENOUGH:g} % of the verdicts are there; run the same command again")
        return lines


def judge(
    predictions: Sequence[Mapping[str, Any]],
    judges: Sequence[JudgeSpec],
    protocols: Sequence[str],
    out: Path,
    cache: Path,
    *,
    tested: Sequence[Mapping[str, Any]] = (),
    repeats: int = 1,
    run_id: str | None = None,
    show: Show = lambda done, total: None,
) -> Outcome:
    """Scores replies and writes the verdicts.

    Args:
        predictions: rows of predictions.jsonl; those of other tasks than "respond" are left out.
        judges: one or more.
        protocols: ids or names, for example "cs" and "egs".
        out: the file of verdicts.
        cache: the file of raw answers; best one for all runs.
        tested: cards of the systems on trial, so that none of them judges itself.
        repeats: how often each question is asked, to see whether a judge agrees with itself.
        run_id: for the record.
        show: is told how many questions are done, and of how many.

    Raises:
        DualSLMError: a judge that is on trial, a server that cannot be reached or knows neither model nor key, or
            an unknown protocol. What was judged before stays.
    """
    check(judges, tested)
    chosen = list(dict.fromkeys(known.protocol(name) for name in protocols))
    if not chosen or any(one.pairwise for one in chosen):
        raise DualSLMError(
            "that scores no single reply", got=", ".join(protocols) or "no protocol", do="use cs, egs or both"
        )
    if repeats < 1:
        raise DualSLMError("repeats make no sense", got=repeats, do="give 1 or more")
    return answer(pointwise(predictions, judges, chosen, repeats, run_id), out, cache, show)


def compare(
    predictions: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
    judges: Sequence[JudgeSpec],
    out: Path,
    cache: Path,
    *,
    protocol: str = "pair",
    tested: Sequence[Mapping[str, Any]] = (),
    run_id: str | None = None,
    show: Show = lambda done, total: None,
) -> Outcome:
    """Compares systems two by two, in both orders, and writes the verdicts; arguments as for `judge`."""
    check(judges, tested)
    chosen = known.protocol(protocol)
    if not chosen.pairwise:
        raise DualSLMError("that compares no replies", got=protocol, do="use pair or pair-words")
    return answer(pairwise(predictions, pairs, judges, chosen, run_id), out, cache, show)


def answer(questions: Sequence[Question], out: Path, cache: Path, show: Show) -> Outcome:
    """Asks what has no verdict yet; see `judge`."""
    if not questions:
        raise DualSLMError("nothing to judge", got="no reply", do="predict the task respond first")
    wanted = {question.id: question for question in questions}
    done = {key: record for key, record in _before(out) if key in wanted and record["status"] == "scored"}
    outcome = Outcome(out, len(wanted), kept=len(done))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(_line(record) for record in done.values())
    with out.open("a", encoding="utf-8") as file:
        left = [question for key, question in wanted.items() if key not in done]
        for question, verdict in _answered(left, cache, outcome, show):
            done[question.id] = question.record(verdict)
            file.write(_line(done[question.id]))
            file.flush()
            os.fsync(file.fileno())
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(_line(done[key]) for key in wanted)  # in the order of the questions, whoever was first
    return _counted(outcome, [done[key] for key in wanted])


def verdicts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of verdicts.

    Raises:
        DualSLMError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise DualSLMError(f"cannot read the verdicts {path}", got=error, do="judge the predictions first") from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=True) + "\n"


def _before(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What an earlier run wrote; half a line at the end is no verdict."""
    if not out.exists():
        return
    for line in out.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            key = identity(record)
        except (ValueError, AttributeError) as error:
            do = "give another folder, or delete it; nothing is asked twice"
            raise DualSLMError(f"{out} holds something else than verdicts", got=error, do=do) from error
        yield key, record


def _answered(
    questions: Sequence[Question], cache: Path, outcome: Outcome, show: Show
) -> Iterator[tuple[Question, Verdict]]:
    """Each question with its verdict, in the order in which they come; the judges work side by side."""
    total = len(questions)
    open_ = [question for question in questions if question.settled is None]
    by_rule = [question for question in questions if question.settled is not None]
    for question in by_rule:
        assert question.settled is not None
        yield question, question.settled
    if not open_:
        return
    answers = Cache(cache)
    with ExitStack() as stack:
        stack.callback(answers.close)
        benches = {question.judge: Bench(question.judge, answers) for question in open_}
        pools = {judge: stack.enter_context(ThreadPoolExecutor(judge.at_once)) for judge in benches}
        futures: dict[Future[Verdict], Question] = {}
        for one in open_:
            ask = benches[one.judge].ask
            futures[pools[one.judge].submit(ask, one.protocol, one.messages, one.repeat)] = one
        try:
            for count, future in enumerate(as_completed(futures), 1):
                show(len(by_rule) + count, total)
                yield futures[future], future.result()
        finally:
            _drop(futures)
            outcome.sent = sum(bench.sent for bench in benches.values())


def _drop(futures: Iterable[Future[Verdict]]) -> None:
    """What has not begun is not asked any more."""
    for future in futures:
        future.cancel()


def _counted(outcome: Outcome, records: Sequence[Mapping[str, Any]]) -> Outcome:
    outcome.scored = sum(record["status"] == "scored" for record in records)
    for record in records:
        if record["status"] != "scored":
            reason = f"{record['judge']}, {record['protocol']}: {kind_of(record['reason'])}"
            outcome.unscored.setdefault(reason, []).append(f"{record['system']} {record['item_id']}")
    return outcome


def kind_of(reason: str) -> str:
    """A reason without its details, for counting."""
    return reason.split(":", 1)[0]
