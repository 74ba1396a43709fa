"""Terminals of cp1252 and ASCII: everything is printed, nothing ends in a traceback, and JSON stays true."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dualslm.tiny import CLIPS

CLIP = str(CLIPS / "hear_1_angry.wav")


def run(encoding: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-m", "dualslm", *arguments], capture_output=True, env=env, check=False)
    assert b"Traceback" not in done.stderr, done.stderr.decode(encoding)
    assert done.returncode == 0, done.stderr.decode(encoding)
    return done.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_has_other_characters_is_printed(encoding: str) -> None:
    shown = run(encoding, "show", CLIP)
    assert "L" in shown
    assert "tokens" in shown
    assert "?" not in shown.replace("?\n", ""), "each character has a lookalike"


def test_json_is_true_in_ascii() -> None:
    code = "from dualslm.cli import options; options.print_json({'said': 'schön \\u4f60'})"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    assert json.loads(done.stdout) == {"said": "schön 你"}


def test_lookalikes() -> None:
    code = (
        "from dualslm.cli.encoding import tolerate; tolerate(); "
        "print('a \\u2192 b \\u00d7 2 \\u00b7 schön \\u201cso\\u201d \\u2026 \\u2014 \\u4f60')"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == 'a -> b x 2 - schon "so" ... - ?\n'


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_one_that_holds_nothing(closed: str) -> None:
    shell = ["sh", "-c", f'"$0" -m dualslm ask - --json {closed}', sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2  # there is no recording
    shell[2] = f'"$0" -m dualslm recipes {closed}'
    subprocess.run(shell, capture_output=True, check=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", ["ask --help", "recipes", "no-such-verb"])
def test_a_full_disk_is_one_line_where_a_line_can_be_written(words: str) -> None:
    def ended(streams: str) -> tuple[int, list[str]]:
        shell = ["sh", "-c", f'exec "$0" -m dualslm {words} {streams}', sys.executable]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return done.returncode, done.stderr.splitlines()

    status, said = ended(">/dev/full")
    assert (status, len(said)) == (2, 1)
    assert "space" in said[0] or words == "no-such-verb"
    assert ended(">/dev/full 2>/dev/full")[0] == 2
    assert ended("2>/dev/full") == (2 if words == "no-such-verb" else 0, [])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_note_that_cannot_be_written_ends_nothing() -> None:
    shell = ["sh", "-c", f'exec "$0" -m dualslm show {CLIP} 2>/dev/full', sys.executable]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout
