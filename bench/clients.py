"""What works with other people's clients: each one's example against a server, as people would run it.

    python bench/clients.py [--python PYTHON] [--quick] [--out docs/results/clients.json]

Starts `dualslm serve` with the embedded model, and runs the examples of `examples/clients/` and `examples/realtime.py`
with the clients of the environment whose Python is named (`make test-clients` makes one). An example works where it
ends well and its answer takes up what was said. What Open WebUI sends was recorded from it, because it is an
application of its own that pulls in hundreds of packages: those requests are sent again as they were. `--quick` runs
OpenAI's own client alone.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import soundfile
from measuring import about, write_result

from dualslm import tiny

ROOT = Path(__file__).parents[1]
CLIP = tiny.CLIPS / "hear_3_sad.wav"  # "I lost my job at the bakery on Saturday."
EXAMPLES = {  # what each example's third word may be; realtime has an example of its own
    "openai": ("text", "audio", "stream", "transcription", "responses", "realtime"),
    "litellm": ("text", "audio", "stream", "transcription", "responses"),
    "langchain-openai": ("text", "audio", "stream", "responses"),
    "llm": ("text", "audio", "stream"),
    "pipecat-ai": ("text", "audio"),
}


def main() -> None:
    """Runs every example and writes what worked."""
    parser = argparse.ArgumentParser(description="other people's clients against `dualslm serve`")
    parser.add_argument("--python", default=sys.executable, help="Python of an environment that has the clients")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    clients = {"openai": EXAMPLES["openai"]} if args.quick else EXAMPLES
    result: dict[str, Any] = {**about(), "dualslm": importlib.metadata.version("dualslm"), "clients": []}
    with server() as url:
        for client, known in clients.items():
            row: dict[str, Any] = {"client": client, "version": version(args.python, client)}
            if row["version"]:
                row["works"] = {what: outcome(args.python, url, client, what) for what in known}
            result["clients"].append(row)
            print(json.dumps(row))
        recorded = json.loads((ROOT / "examples/clients/open_webui.json").read_text())
        row = {"client": "Open WebUI, its requests", "version": recorded["version"], "works": sent_again(url, recorded)}
        result["clients"].append(row)
        print(json.dumps(row))
    write_result(result, args.out)


@contextmanager
def server() -> Iterator[str]:
    """`dualslm serve` on a free port, and its address up to and with /v1."""
    command = [sys.executable, "-m", "dualslm", "serve", "--port", "0", "--no-page", "--ignore-tools"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        try:
            yield run.stdout.readline().split()[-1]
        finally:
            run.terminate()


def version(python: str, package: str) -> str:
    """The version of a package in another environment; empty where it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def outcome(python: str, url: str, client: str, what: str) -> dict[str, Any]:
    """Whether an example works, in how many seconds with the start of the client, and else what it said last."""
    name = "realtime" if what == "realtime" else f"clients/{client.split('-')[0]}_client"
    command = [python, str(ROOT / "examples" / f"{name}.py"), url, str(CLIP)]
    command += [] if what == "realtime" else [what]
    began = time.perf_counter()
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches a list of prices first
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)
    right = done.returncode == 0 and ("umbrella" if what in ("text", "responses") else "bakery") in done.stdout
    found: dict[str, Any] = {"ok": right, "seconds": round(time.perf_counter() - began, 1)}
    return found if right else {**found, "said": (done.stderr or done.stdout).strip().splitlines()[-1:]}


def sent_again(url: str, recorded: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What comes of requests that were recorded, with the shipped clip in the place of a voice."""
    found = {}
    sound = base64.b64encode(CLIP.read_bytes()).decode()
    for what, body in recorded["chat"].items():
        filled = json.loads(json.dumps(body).replace("{audio}", sound))
        found[what] = answered(f"{url}/chat/completions", "bakery" if what == "audio" else "", json=filled)
    mp3 = io.BytesIO()  # Open WebUI makes one of whatever was recorded
    soundfile.write(mp3, *soundfile.read(CLIP), format="MP3")
    name, kind = recorded["transcription"]["file"]
    form: dict[str, Any] = {
        "data": recorded["transcription"]["fields"],
        "files": {"file": (name, mp3.getvalue(), kind)},
    }
    found["transcription"] = answered(f"{url}/audio/transcriptions", "bakery", **form)
    return found


def answered(url: str, word: str, **sent: Any) -> dict[str, Any]:
    """Whether an answer comes and holds a word, whole or in pieces."""
    began = time.perf_counter()
    answer = httpx2.post(url, timeout=120, **sent)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"]]
    said = "".join(pieces) if lines else answer.text
    right = answer.status_code == httpx2.codes.OK and word in said
    return {"ok": right, "seconds": round(time.perf_counter() - began, 1), **({} if right else {"said": [said]})}


if __name__ == "__main__":
    main()
