"""The rule of the tiny world as a judge behind a real server (ours): Table IV in miniature needs no LLM that can judge.

No small LLM can (docs/judges.md), but the world has a rule that says what a good listener replies: a sentence for the
tone, one for the words, one that remembers. The server looks the question up among those that it knows the right reply
to and counts which of its sentences the reply has. It is asked as any judge is, over HTTP and under the same protocols,
and what it does not know it does not score.
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

from dualslm.evaluation.judges import JudgeSpec, controls, judge, summary, trust
from dualslm.evaluation.judges.panel import CACHE, VERDICTS, Judged
from dualslm.evaluation.judges.protocols import PROTOCOLS
from dualslm.evaluation.judges.questions import item_of
from dualslm.evaluation.judges.run import Show
from dualslm.evaluation.judges.sanity import WORDS

NAME = "world-rule"
ASKED = ("cs-1", "egs-1")
CASCADE = "none,text"  # the view that knows the words and not the voice
SILENT = 0.25  # of the scale, for a reply that says nothing
SENTENCE = re.compile(r"(?<=[.!?])\s+")
Row = Mapping[str, Any]


def judged(rows: Sequence[Row], out: Path, *, seed: int = 0, show: Show = lambda done, total: None) -> Judged:
    """Lets the world's rule judge replies, with the references, shuffled ones and a generic one beside them.

    Args:
        rows: predictions on talks of the tiny world; those of other tasks or without a reference are left out.
        out: folder of the verdicts.
        seed: of the resamples.
        show: is told how many questions are done, and of how many.

    Returns:
        Tables, the trial on the rows themselves (transcript-only is whoever answered through the view none,text), and
        lines for the user.
    """
    known = [row for row in rows if row.get("truth") and row.get("task") == "respond"]
    found = Judged()
    with serving(known) as spec:
        every = [*known, *controls(known)]
        records = found.take("scores", judge(every, [spec], ASKED, out / VERDICTS, out / CACHE, show=show))
    deaf = [{**one, "system": WORDS} for one in records if one["view"] == CASCADE]
    found.report = {**summary(records, seed=seed), "trust": trust([*records, *deaf], seed=seed)}
    found.told += [line for row in found.report["trust"] for line in row["told"]]
    return found


@contextmanager
def serving(rows: Sequence[Row]) -> Iterator[JudgeSpec]:
    """A server on a free loopback port that knows the right replies of these predictions."""
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

    Content and C1 count all sentences, style and C3 the one for the tone, C4 those for the words and the memory; the
    world has no ill words, so C2 is 10. A single sentence without anything right in it ("I see.") claims nothing
    wrong either, and is a step above a reply to something else.
    """
    content = messages[1]["content"]
    truth = right.get(_question(content))
    if truth is None:
        return "I do not know what would be right here."
    reply = json.loads(content.rsplit("<reply>\n", 1)[1].removesuffix("\n</reply>"))
    hits = [sentence in reply for sentence in SENTENCE.split(truth)]
    silent = not any(hits) and len(SENTENCE.split(reply)) == 1
    tone, words, every = float(hits[0]), _share(hits[1:]), SILENT if silent else _share(hits)
    if '"C1"' in messages[0]["content"]:
        return json.dumps({"C1": _on(10, every), "C2": 10, "C3": _on(10, tone), "C4": _on(10, words)})
    return json.dumps({"content": _on(5, every), "style": _on(5, tone)})


def _question(content: str) -> str:
    """What is asked about, without the reply."""
    return content.rsplit("\n<reply>", 1)[0]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / max(1, len(hits))


def _on(most: int, share: float) -> int:
    """A share on a scale from 1."""
    return 1 + round((most - 1) * share)
