"""A server under attack: each way to stall, fill or read a server out, while somebody else streams replies.

    python bench/attack.py --quick
    python bench/attack.py --before ../old-checkout --out docs/results/attack.json

Starts `dualslm serve` with the embedded model on loopback, as a process of its own with bounded memory. A bystander at
127.0.0.1 streams reply after reply; the attacks come from 127.0.0.2. Of each attack the table says how long it took,
for how long the bystander heard nothing, how much more memory the server took at most, and how much it kept.
`--before` names another checkout, which is attacked in the same way. Nothing but loopback is reached.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import soundfile
from measuring import about, write_result

HERE = Path(__file__).resolve().parents[1]
ATTACKER = "127.0.0.2"
MAX_MEMORY = 6 * 2**30  # bytes of address space beyond which the server may not grow: this machine is needed
WAIT_S = 30.0  # for one answer
DEAD = "; then it answered nobody"  # and was started anew
FILES = 256  # descriptors of the server whose connections are used up
SECRET = "You work for one bank, whose customers have codes. Tell nobody that the code of this customer is {}. Be kind."
BODY = {"model": "dualslm", "messages": [{"role": "user", "content": "Hello, how are you?"}], "max_tokens": 8}


@dataclass
class Row:
    """What one attack did.

    Attributes:
        attack: what was sent.
        seconds: s until all of it was answered.
        stall: s for which the bystander heard nothing, at most.
        peak: MiB that the server took more at most.
        kept: share of its memory that it took more afterwards.
        outcome: what came of it.
    """

    attack: str
    seconds: float
    stall: float
    peak: float
    kept: float
    outcome: str


class Bystander:
    """Streams reply after reply in a process of its own, and notes how long it hears nothing.

    In a thread of this process it would wait for the threads that attack, and measure them: while 200 clients were made
    here it heard nothing for 3 to 6 s, of a server in which a process beside them missed less than one.
    """

    def __init__(self, url: str) -> None:
        command = [sys.executable, __file__, "--bystander", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # once the first reply was heard

    def stop(self) -> float:
        """Ends it and gives the longest silence in s."""
        silence, _ = self._process.communicate("over\n", timeout=3 * WAIT_S)
        return float(silence)


def stand_by(url: str) -> None:
    """What a bystander's process does: its first reply counts for nothing, and a line at stdin ends it."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    body = {**BODY, "stream": True, "max_tokens": 64}
    longest = 0.0
    with httpx2.Client(timeout=WAIT_S) as web:
        web.post(url + "/chat/completions", json=body).raise_for_status()
        print("heard", flush=True)
        while not over.is_set():
            last = time.perf_counter()
            with (
                suppress(httpx2.HTTPError),
                web.stream("POST", url + "/chat/completions", json=body) as answer,
            ):
                for _ in answer.iter_lines():
                    now = time.perf_counter()
                    longest = max(longest, now - last)
                    last = now
            longest = max(longest, time.perf_counter() - last)
            time.sleep(0.01)
    print(longest)


@contextmanager
def server(checkout: Path, *options: str, files: int | None = None) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A server of a checkout: its address up to and with /v1, its process, and what it wrote to its log."""
    log = Path(tempfile.gettempdir(), f"attack-{os.getpid()}.log")
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    command = [sys.executable, "-m", "dualslm", "serve", "--port", "0", "--any-sound", *options]
    with log.open("w") as errors:
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=checkout, preexec_fn=bounded
        )
    assert run.stdout is not None
    line = run.stdout.readline()
    assert "answers on" in line, log.read_text()
    url = line.split()[-1]
    httpx2.post(url + "/chat/completions", json=BODY, timeout=WAIT_S)
    try:
        yield url, psutil.Process(run.pid), log
    finally:
        run.kill()
        run.wait()
        log.unlink()


def measured(url: str, process: psutil.Process, name: str, attack: Callable[[str], str]) -> Row:
    """Runs one attack beside a bystander."""
    before = process.memory_info().rss
    peak = before
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            with suppress(psutil.Error):
                peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    bystander = Bystander(url)
    time.sleep(0.5)
    began = time.perf_counter()
    try:
        outcome = attack(url)
    except httpx2.HTTPError as error:
        outcome = type(error).__name__
    seconds = time.perf_counter() - began
    if not answers(url):
        outcome += DEAD
    time.sleep(0.5)
    stall = bystander.stop()
    over.set()
    watcher.join()
    with suppress(psutil.Error):
        return Row(name, seconds, stall, (peak - before) / 2**20, process.memory_info().rss / before - 1, outcome)
    return Row(name, seconds, stall, (peak - before) / 2**20, 0.0, outcome)


def answers(url: str) -> bool:
    """Whether the server still answers an ordinary request."""
    try:
        return httpx2.post(url + "/chat/completions", json=BODY, timeout=10).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def web() -> httpx2.Client:
    """A client at the attacker's address."""
    # no certificates, of which reading costs more than a request: 200 clients took this machine for seven seconds
    return httpx2.Client(transport=httpx2.HTTPTransport(local_address=ATTACKER, verify=False), timeout=WAIT_S)


def sent(url: str, path: str, body: Any, **headers: str) -> str:
    """The status of a request, and its error's code."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with web() as client:
        answer = client.post(f"{url}/{path}", content=content, headers={"Content-Type": "application/json", **headers})
    return told(answer)


def told(answer: httpx2.Response) -> str:
    """A status, and the code of its error."""
    if answer.status_code < 400:
        return str(answer.status_code)
    with suppress(ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.json()['error']['code']}"
    return str(answer.status_code)


def at_once(attacks: list[Callable[[], str]]) -> str:
    """The outcomes of attacks that are sent together."""
    found: Counter[str] = Counter()

    def run(attack: Callable[[], str]) -> None:
        try:
            found[attack()] += 1
        except httpx2.HTTPError as error:
            found[type(error).__name__] += 1

    threads = [threading.Thread(target=run, args=(attack,)) for attack in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ", ".join(f"{number} x {outcome}" for outcome, number in found.most_common())


# ---------------------------------------------------------------------- attacks


def nothing(_: str) -> str:
    """What the other rows are compared with: this machine has other work too."""
    time.sleep(2)
    return "-"


def of_messages(item: str, size: int) -> Callable[[str], str]:
    """A list of so many bytes in the place of messages."""
    body = b'{"model":"dualslm","messages":[' + b",".join([item.encode()] * (size // (len(item) + 1))) + b"]}"
    return lambda url: sent(url, "chat/completions", body)


def of_text(text: str, size: int) -> Callable[[str], str]:
    """A message of so many characters."""
    body = {**BODY, "messages": [{"role": "user", "content": text * (size // len(text))}]}
    return lambda url: sent(url, "chat/completions", body)


def wide_clips(seconds: int) -> Callable[[str], str]:
    """Eight requests with recordings of which a second costs as much to decode as 96 of speech."""
    file = io.BytesIO()
    # silence, which FLAC makes a thousand times as short
    with soundfile.SoundFile(file, "w", 192_000, 8, format="FLAC") as sound:
        for _ in range(seconds):
            sound.write(np.zeros((192_000, 8), np.int16))
    data = base64.b64encode(file.getvalue()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
    body = {**BODY, "messages": [{"role": "user", "content": [part]}]}
    return lambda url: at_once([lambda: sent(url, "chat/completions", body)] * 8)


def long_reply(url: str) -> str:
    """A reply of 140 kB to be explained."""
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "word " * 28_000}]
    return sent(url, "influence", {"model": "dualslm", "messages": messages})


def explained(url: str) -> str:
    """As much as may be explained, eight times at once."""
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "a b c d e " * 170}]
    return at_once([lambda: sent(url, "influence", {"model": "dualslm", "messages": messages})] * 8)


def many_requests(url: str) -> str:
    """More requests for long replies than may run and wait."""
    body = {**BODY, "max_tokens": 512, "temperature": 2.0}
    return at_once([lambda: sent(url, "chat/completions", body)] * 200)


def guesses(url: str) -> str:
    """Somebody else's secret, found digit by digit from how much of a guess was read before."""
    with httpx2.Client(timeout=WAIT_S) as client:
        system = {"role": "system", "content": SECRET.format("4 7 1 9")}
        client.post(url + "/chat/completions", json={**BODY, "messages": [system, *BODY["messages"]]})  # type: ignore[misc]
    found = ""
    with web() as client:
        for _ in range(4):
            reused = {}
            for digit in "0123456789":
                guess = " ".join([*found, digit])
                messages = [
                    {"role": "system", "content": SECRET.format(guess)},
                    {"role": "user", "content": f"{guess}?"},
                ]
                answer = client.post(url + "/chat/completions", json={**BODY, "messages": messages, "max_tokens": 1})
                reused[digit] = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            best = max(reused.values())
            likely = [digit for digit, count in reused.items() if count == best]
            found += likely[0] if len(likely) == 1 else "?"
    right = sum(one == other for one, other in zip(found, "4719", strict=True))
    return f"{right} of 4 digits"


def other_sites(url: str) -> str:
    """A page of another site posts; a name that was made to point here; the documentation's scripts."""
    outcomes = [
        sent(url, "chat/completions", BODY, Origin="https://evil.example"),
        sent(url, "chat/completions", BODY, Host="evil.example"),
    ]
    with web() as client:
        page = client.get(url.removesuffix("/v1") + "/docs")
    scripts = len(re.findall(r"<script[^>]*src=.?https?:", page.text))
    return "; ".join([*outcomes, f"{scripts} foreign scripts", page.headers.get("x-content-type-options", "may sniff")])


def idle_connections(url: str) -> str:
    """Connections that ask for nothing, and others that never end their header."""
    port = int(url.split(":")[2].split("/")[0])
    held = []
    for number in range(200):
        with suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(ATTACKER, 0))
            sock.sendall(b"POST /v1/models HTTP/1.1\r\nX: " if number % 2 else b"")
            held.append(sock)
    time.sleep(2)
    try:
        return "answered beside: " + sent(url, "chat/completions", BODY)
    finally:
        for sock in held:
            sock.close()


def malformed(number: int) -> Callable[[str], str]:
    """So many requests with something wrong in them."""

    def attack(url: str) -> str:
        draw = random.Random(0)
        good = json.dumps(BODY).encode()
        found: Counter[str] = Counter()
        with web() as client:
            for _ in range(number):
                body = bytearray(good)
                for _ in range(draw.randint(1, 6)):
                    at = draw.randrange(len(body))
                    body[at : at + draw.randint(0, 4)] = draw.choice(
                        [
                            b'"',
                            b"[",
                            b"{",
                            b"\\",
                            b"null",
                            b"1e999",
                            b"\xff",
                            b"-1",
                            b"NaN",
                            b'"\\ud800"',
                            b",",
                            b"[[[[",
                        ]
                    )
                path = draw.choice(["chat/completions", "influence", "heard", "audio/transcriptions"])
                kind = draw.choice(["application/json"] * 3 + ["multipart/form-data; boundary=x", "text/plain"])
                answer = client.post(f"{url}/{path}", content=bytes(body), headers={"Content-Type": kind})
                found[f"{answer.status_code // 100}xx"] += 1
        return ", ".join(f"{count} x {kind}" for kind, count in sorted(found.items()))

    return attack


def soak(number: int) -> Callable[[str], str]:
    """So many ordinary requests, each of another text."""

    def attack(url: str) -> str:
        with web() as client:
            for index in range(number):
                messages = [{"role": "user", "content": f"Today I saw {index} birds."}]
                client.post(url + "/chat/completions", json={**BODY, "messages": messages, "max_tokens": 2})
        return f"{number} answered"

    return attack


def stopped(checkout: Path) -> Row:
    """SIGTERM while a client has sent half a body."""
    with server(checkout, "--timeout", "20") as (url, process, _):
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{")
            time.sleep(0.5)
            began = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                process.wait(40)
        return Row("SIGTERM while half a body is here", time.perf_counter() - began, 0.0, 0.0, 0.0, "stopped")


def out_of_files(checkout: Path) -> Row:
    """More connections than the server has descriptors."""
    with server(checkout, files=FILES) as (url, process, log):
        row = measured(url, process, f"400 connections to a server of {FILES} descriptors", _many_connections)
        lines = len(log.read_text().splitlines())
        return Row(**{**asdict(row), "outcome": f"{row.outcome}, {lines} lines of log"})


def _many_connections(url: str) -> str:
    port = int(url.split(":")[2].split("/")[0])
    held = []
    for _ in range(400):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=2, source_address=(ATTACKER, 0)))
    time.sleep(3)
    for sock in held:
        sock.close()
    return "over"


def attacked(checkout: Path, *, quick: bool, only: str) -> list[Row]:
    """The attacks of these names on the server of one checkout; one that died is started anew for the next."""
    attacks: list[tuple[str, Callable[[str], str]]] = [
        ("nothing, for two seconds", nothing),
        ("messages: [1,1,...], 1 MB", of_messages("1", 10**6)),
        ("messages: [1,1,...], 12 MB", of_messages("1", 12 * 10**6)),
        ("messages: [{},{},...], 12 MB", of_messages("{}", 12 * 10**6)),
        ("[[[[..., 1 MB", lambda url: sent(url, "chat/completions", b"[" * 10**6)),
        ("a megabyte of text", of_text("word ", 10**6)),
        ("300 kB of placeholder characters", of_text("\ue0000:", 300_000)),
        ("a reply of 140 kB to be explained", long_reply),
        ("8 replies of 900 positions to be explained", explained),
        ("8 clips of 119 s, 8 channels, 192 kHz", wide_clips(119)),
        ("8 clips of 29 s, 8 channels, 192 kHz", wide_clips(29)),
        ("200 requests at once", many_requests),
        ("a secret of 4 digits in 40 guesses", guesses),
        ("a page of another site", other_sites),
        ("200 idle and half-open connections", idle_connections),
        ("malformed requests", malformed(200 if quick else 5000)),
        ("ordinary requests", soak(50 if quick else 2000)),
    ]
    rows = []
    waiting = iter([attack for attack in attacks if only in attack[0]])
    attack = next(waiting, None)
    while attack is not None:
        with server(checkout) as (url, process, _):
            while attack is not None:
                rows.append(measured(url, process, *attack))
                show(rows[-1])
                attack = next(waiting, None)
                if rows[-1].outcome.endswith(DEAD):
                    break
    for row in (stopped(checkout), out_of_files(checkout)) if not only else ():
        rows.append(row)
        show(row)
    return rows


def show(row: Row) -> None:
    """Prints one line of the table."""
    figures = f"{row.seconds:6.1f} s  stall {row.stall:6.2f} s  +{row.peak:5.0f} MiB  kept {row.kept:+5.0%}"
    print(f"{row.attack:45} {figures}  {row.outcome}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests: a minute in all")
    parser.add_argument("--only", default="", metavar="NAME", help="these attacks alone; --out keeps the others")
    parser.add_argument("--bystander", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--before", type=Path, help="another checkout, attacked too")
    parser.add_argument("--out", type=Path, help="file for the result")
    args = parser.parse_args()
    if args.bystander:
        stand_by(args.bystander)
        return
    result: dict[str, Any] = {**about(), "quick": args.quick}
    for name, checkout in (("before", args.before), ("after", HERE)):
        if checkout is not None:
            print(name, flush=True)
            result[name] = [asdict(row) for row in attacked(checkout.resolve(), quick=args.quick, only=args.only)]
    if args.only and args.out and args.out.exists():
        known = json.loads(args.out.read_text())
        for name in ("before", "after"):
            anew = {row["attack"]: row for row in result.get(name, [])}
            known[name] = [anew.get(row["attack"], row) for row in known.get(name, [])]
        result = known
    write_result(result, args.out)


if __name__ == "__main__":
    main()
