"""Asks all questions and writes the verdicts; a run that was killed goes on where it stopped.

Each verdict is on disk before the next one is counted. At the end `verdicts.jsonl` holds exactly the verdicts that were
asked for: those on other replies, by other judges or under other wordings are dropped, and unscored ones are tried
again. The raw answers stay in the cache in any case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.evaluation.judges.ask import JudgeClient, Verdict
from dualslm.evaluation.judges.cache import Cache
from dualslm.evaluation.judges.protocols import protocol as protocol_of
from dualslm.evaluation.judges.questions import Question, identity, pairwise, pointwise
from dualslm.evaluation.judges.spec import JudgeSpec, check
from dualslm.files import read_text, replacing

MIN_SCORED_SHARE = 0.99  # of the questions: what fails is seldom random, and more would bias the means
LISTED_ITEMS = 5  # items named for each reason
Show = Callable[[int, int], None]
"""Shows progress: receives the number of questions that are done, and of all questions."""


@dataclass
class Outcome:
    """What became of all questions.

    Attributes:
        path: file of the verdicts.
        asked: number of all questions.
        scored: number of questions with a verdict.
        reused: number of verdicts of an earlier run that still hold.
        sent: number of requests to servers.
        unscored: items without a verdict, by judge, protocol and reason.
    """

    path: Path
    asked: int = 0
    scored: int = 0
    reused: int = 0
    sent: int = 0
    unscored: dict[str, list[str]] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether so many questions have a verdict that the figures may stand; else the command fails."""
        return self.asked > 0 and self.scored >= MIN_SCORED_SHARE * self.asked

    def lines(self) -> list[str]:
        """Lines of text for the user: what was judged, and every failure with its reason."""
        lines = [f"{self.scored} of {self.asked} verdicts, {self.reused} from before, {self.sent} requests sent"]
        for reason, items in sorted(self.unscored.items()):
            more = ", ..." if len(items) > LISTED_ITEMS else ""
            lines.append(f"unscored {len(items)}: {reason} ({', '.join(items[:LISTED_ITEMS])}{more})")
        if not self.enough:
            lines.append(
                f"fewer than {100 * MIN_SCORED_SHARE:g} % of the verdicts are there; run the same command again"
            )
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
        judges: judges, one or more.
        protocols: ids or names of protocols, for example "cs" and "egs".
        out: file of the verdicts.
        cache: file of raw answers, which runs may share.
        tested: cards of the systems under test, so that none of them judges itself.
        repeats: number of times that each question is asked, to see whether a judge agrees with itself.
        run_id: name of the run, written into every verdict.
        show: called with the progress after every answer.

    Raises:
        DualSLMError: a judge that is itself under test, a server that cannot be reached or knows neither model nor
            key, or an unknown protocol. Verdicts that were written before stay.
    """
    check(judges, tested)
    chosen = list(dict.fromkeys(protocol_of(name) for name in protocols))
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
    """Compares pairs of systems, in both orders, and writes the verdicts; further arguments as for `judge`.

    Args:
        predictions: rows of predictions.jsonl.
        pairs: pairs of systems, each named as by `label`.
        judges: judges, one or more.
        out: file of the verdicts.
        cache: file of raw answers, which runs may share.
        protocol: id or name of a pairwise protocol.
        tested: cards of the systems under test.
        run_id: name of the run.
        show: called with the progress after every answer.
    """
    check(judges, tested)
    chosen = protocol_of(protocol)
    if not chosen.pairwise:
        raise DualSLMError("that compares no replies", got=protocol, do="use pair or pair-words")
    return answer(pairwise(predictions, pairs, judges, chosen, run_id), out, cache, show)


def answer(questions: Sequence[Question], out: Path, cache: Path, show: Show) -> Outcome:
    """Asks the questions that have no verdict in the file yet, and writes it anew; see `judge`."""
    if not questions:
        raise DualSLMError("nothing to judge", got="no reply", do="predict the task respond first")
    wanted = {question.id: question for question in questions}
    done = {key: record for key, record in _written_before(out) if key in wanted and record["status"] == "scored"}
    outcome = Outcome(out, len(wanted), reused=len(done))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(_line(record) for record in done.values())
    with out.open("a", encoding="utf-8") as file:
        open_questions = [question for key, question in wanted.items() if key not in done]
        for question, verdict in _answered(open_questions, cache, outcome, show):
            done[question.id] = question.record(verdict)
            file.write(_line(done[question.id]))
            file.flush()
            os.fsync(file.fileno())  # an answer costs seconds of a large LLM, and a sync next to nothing
    # Once more as a whole: in the order of the questions, whichever answer came first, so that runs can be compared.
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(_line(done[key]) for key in wanted)
    for record in (done[key] for key in wanted):
        if record["status"] == "scored":
            outcome.scored += 1
        else:
            reason = f"{record['judge']}, {record['protocol']}: {kind_of(record['reason'])}"
            outcome.unscored.setdefault(reason, []).append(f"{record['system']} {record['item_id']}")
    return outcome


def verdicts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of verdicts.

    Raises:
        DualSLMError: it cannot be read.
    """
    try:
        text = read_text(path, "the verdicts", "judge the predictions first")
        return [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError) as error:
        raise DualSLMError(f"cannot read the verdicts {path}", got=error, do="judge the predictions first") from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=True) + "\n"


def _written_before(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The verdicts that an earlier run wrote, by the identity of their question."""
    if not out.exists():
        return
    # What follows the last newline is left out: a run that was killed may have written half a line.
    for line in out.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            key = identity(record)
        except (ValueError, AttributeError, RecursionError) as error:
            do = "give another folder, or delete it; nothing is asked twice"
            raise DualSLMError(f"{out} holds something else than verdicts", got=error, do=do) from error
        yield key, record


def _answered(
    questions: Sequence[Question], cache: Path, outcome: Outcome, show: Show
) -> Iterator[tuple[Question, Verdict]]:
    """Each question with its verdict, in the order in which the answers come."""
    total = len(questions)
    unsettled = []
    for question in questions:
        if question.settled is None:
            unsettled.append(question)
        else:
            yield question, question.settled
    if not unsettled:
        return
    answers = Cache(cache)
    with ExitStack() as stack:
        stack.callback(answers.close)  # entered first, so closed last: the pools below still write to it
        clients = {question.judge: JudgeClient(question.judge, answers) for question in unsettled}
        # A pool for each judge, so that a slow server does not hold up the others.
        pools = {judge: stack.enter_context(ThreadPoolExecutor(judge.at_once)) for judge in clients}
        futures: dict[Future[Verdict], Question] = {}
        for question in unsettled:
            ask = clients[question.judge].ask
            future = pools[question.judge].submit(ask, question.protocol, question.messages, question.repeat)
            futures[future] = question
        try:
            for count, future in enumerate(as_completed(futures), total - len(unsettled) + 1):
                show(count, total)
                yield futures[future], future.result()
        finally:
            # After a fatal error, a pool would otherwise ask all that is left before it lets go.
            for future in futures:
                future.cancel()
            outcome.sent = sum(client.sent for client in clients.values())


def kind_of(reason: str) -> str:
    """A reason without its details, for counting."""
    return reason.split(":", 1)[0]
