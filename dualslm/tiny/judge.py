"""The rule of the tiny world as a judge behind a real server (ours), so that Table IV in miniature needs no large LLM.

No small LLM judges well enough (docs/judges.md). But the world has a rule for what a good listener replies: a sentence
for the tone, one for the words, one for an earlier fact. The server looks up the right reply to a question and counts
which of its sentences the given reply has. It is asked as every judge is, over HTTP and under the same protocols; a
question that it does not know gets no score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from dualslm.evaluation.judges.panel import CACHE, VERDICTS, Judged
from dualslm.evaluation.judges.protocols import PROTOCOLS
from dualslm.evaluation.judges.questions import item_of
from dualslm.evaluation.judges.run import Show, judge
from dualslm.evaluation.judges.sanity import WORDS, controls, trust
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

NAME = "world-rule"
ASKED = ("cs-1", "egs-1")
TRANSCRIPT_VIEW = "none,text"  # the view that knows the words and not the voice
EMPTY_REPLY_SHARE = 0.25  # share of the scale for a reply that claims nothing
SENTENCE = re.compile(r"(?<=[.!?])\s+")
Row = Mapping[str, Any]


def judged(rows: Sequence[Row], out: Path, *, seed: int = 0, show: Show = lambda done, total: None) -> Judged:
    """Lets the world's rule judge replies, with the references, shuffled ones and a generic one beside them.

    Args:
        rows: predictions on conversations of the tiny world; rows of other tasks or without a reference are left out.
        out: folder of the verdicts.
        seed: seed of the bootstrap.
        show: progress callback; it gets the number of finished questions, and of all.

    Returns:
        The tables, the trial on the rows themselves, and lines for the user. In the trial, replies through the view
        "none,text" stand for a system that knows the transcript alone.
    """
    known = [row for row in rows if row.get("truth") and row.get("task") == "respond"]
    found = Judged()
    with serving(known) as spec:
        every = [*known, *controls(known)]
        records = found.take("scores", judge(every, [spec], ASKED, out / VERDICTS, out / CACHE, show=show))
    without_tone = [{**one, "system": WORDS} for one in records if one["view"] == TRANSCRIPT_VIEW]
    found.report = {**summary(records, seed=seed), "trust": trust([*records, *without_tone], seed=seed)}
    found.lines += [line for row in found.report["trust"] for line in row["told"]]
    return found


@contextmanager
def serving(rows: Sequence[Row]) -> Iterator[JudgeSpec]:
    """Serves a judge on a free loopback port that knows the right replies to these predictions."""
    # The question is taken from the protocol's own message, so that both sides word it alike.
    right = {
        _question(PROTOCOLS[name].messages(item_of([row]))[1]["content"]): row["truth"]
        for row in rows
        for name in ASKED
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": answer(body["messages"], right)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = json.dumps({"object": "chat.completion", "model": NAME, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

        def log_message(self, *_: object) -> None:
            """Says nothing on the terminal."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield JudgeSpec(NAME, f"http://127.0.0.1:{web.server_port}/v1", NAME)
    finally:
        web.shutdown()
        web.server_close()


def answer(messages: Sequence[Mapping[str, str]], right: Mapping[str, str]) -> str:
    """The verdict as JSON, or a sentence where the question is not known.

    "content" and "C1" count all sentences, "style" and "C3" the one for the tone, "C4" those for the words and the
    memory. "C2" is 10, since nothing in the world can offend. A single sentence that is not among the right ones
    ("I see.") claims nothing wrong, and scores a step above a reply to something else.

    Args:
        messages: the judge's prompt: a system and a user message.
        right: the right reply to each question.
    """
    content = messages[1]["content"]
    truth = right.get(_question(content))
    if truth is None:
        return "I do not know what would be right here."
    reply = json.loads(content.rsplit("<reply>\n", 1)[1].removesuffix("\n</reply>"))
    hits = [sentence in reply for sentence in SENTENCE.split(truth)]
    empty = not any(hits) and len(SENTENCE.split(reply)) == 1
    tone = float(hits[0])
    words = _share(hits[1:])
    overall = EMPTY_REPLY_SHARE if empty else _share(hits)
    if '"C1"' in messages[0]["content"]:  # each protocol names its dimensions in the system text
        return json.dumps({"C1": _score(10, overall), "C2": 10, "C3": _score(10, tone), "C4": _score(10, words)})
    return json.dumps({"content": _score(5, overall), "style": _score(5, tone)})


def _question(content: str) -> str:
    """The part of a judge's prompt in front of the reply."""
    return content.rsplit("\n<reply>", 1)[0]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / max(1, len(hits))


def _score(highest: int, share: float) -> int:
    """A share as a score from 1 to the highest."""
    return 1 + round((highest - 1) * share)
