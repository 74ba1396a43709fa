"""Threads by what is free, chosen before torch is imported, and the first line of every verb that imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dualslm.cli import threads

VERBS = """
import sys
from dualslm.cli import main as cli

class Imported(BaseException):
    pass

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise Imported

sys.meta_path.insert(0, Guard())
for arguments in {verbs!r}:
    print(">", arguments[0], file=sys.stderr)
    try:
        cli.main(arguments)
    except Imported:
        print("torch", file=sys.stderr)
    assert "torch" not in sys.modules
"""


@pytest.fixture
def before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv(threads.SETTING, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)


@pytest.mark.usefixtures("before_torch")
@pytest.mark.parametrize(("free", "chosen"), [(0.1, "1"), (1.4, "1"), (1.6, "2"), (6.9, "7")])
def test_as_many_threads_as_cores_are_free(free: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda cores: free)
    said = threads.settle()
    assert os.environ[threads.SETTING] == chosen
    assert said.startswith(f"threads: {chosen}, because {free} of 8")


@pytest.mark.usefixtures("before_torch")
def test_on_a_free_machine_pytorch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda cores: 7.8)
    assert "all 8 cores are free" in threads.settle()
    assert threads.SETTING not in os.environ


@pytest.mark.usefixtures("before_torch")
def test_what_is_set_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.SETTING, "3")
    monkeypatch.setattr(threads, "free_cores", lambda cores: pytest.fail("nobody asked"))
    assert threads.settle() == "threads: 3, as OMP_NUM_THREADS says"
    assert os.environ[threads.SETTING] == "3"


def test_free_cores_are_those_that_idle_or_wait_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu  100 50 30 1000 20 0 0 0 100 50\ncpu0 1 1 1 1\n")
    later = "cpu  120 80 30 1040 30 0 0 0 120 80\ncpu0 1 1 1 1\n"  # 50 of 100 without work; nice work counts as work
    monkeypatch.setattr(threads, "STAT", stat)
    monkeypatch.setattr("time.sleep", lambda seconds: stat.write_text(later))
    assert threads.free_cores(4) == 2.0


def test_without_proc_the_load_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "STAT", tmp_path / "none")
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 9.0, 9.0), raising=False)
    assert threads.free_cores(4) == 2.5
    assert threads.free_cores(1) == 0.0


def test_every_verb_says_its_threads_before_torch_is_imported(root: Path, tmp_path: Path) -> None:
    clip = str(next((root / "dualslm" / "tiny" / "wavs").glob("*.wav")))
    turn = {"role": "user", "parts": [{"audio": "a.wav", "transcript": "a", "caption": "sad"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "tasks": ["respond"], "turns": [turn]}) + "\n")
    recipe = str(root / "recipes" / "small.toml")
    named = ["--set", f'data.train=["{tmp_path}/a.jsonl"]']
    verbs = [
        ["ask", clip],
        ["show", clip],
        ["chat"],
        ["serve", "--port", "0"],
        ["demo"],
        ["train", recipe, *named],
        ["features", recipe, *named],
        ["targets", recipe, *named],
        ["eval", "--on", str(tmp_path / "a.jsonl")],
    ]
    env = {key: value for key, value in os.environ.items() if key != threads.SETTING}
    ran = subprocess.run(
        [sys.executable, "-c", VERBS.format(verbs=verbs)],
        env={**env, "PYTHONPATH": str(root), threads.SETTING: "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = "dualslm: threads: 1, as OMP_NUM_THREADS says; loading PyTorch\ntorch\n"
    assert ran.stderr == "".join(f"> {verb}\n{said}" for verb, *_ in verbs)
