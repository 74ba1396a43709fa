"""The completion scripts, run by the shells that they are for."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from dualslm.cli import completion
from dualslm.cli import main as cli

BASH = shutil.which("bash")


def completed(*words: str) -> list[str]:
    """What bash offers for the last of some words."""
    script = completion.bash(cli._parser()) + (
        f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; _dualslm\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert BASH is not None
    return subprocess.run([BASH, "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(BASH is None, reason="no bash here")
def test_bash_completes_verbs_options_and_choices() -> None:
    assert completed("dualslm", "re") == ["record", "recipes"]
    assert "--temperature" in completed("dualslm", "ask", "--te")
    assert completed("dualslm", "ask", "a.wav", "--device", "")[:2] == ["cpu", "cuda"]
    assert completed("dualslm", "eval", "--only", "s")[0] == "score"
    assert completed("dualslm", "completion", "--he") == ["--help"]
    assert "--patience" not in completed("dualslm", "serve", "--pa"), "former names are not offered"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_script_names_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for verb in completion.verbs_of(cli._parser()):
        assert verb in script
    found = shutil.which(shell)
    if found:
        subprocess.run([found, "-n"], input=script, text=True, check=True)
