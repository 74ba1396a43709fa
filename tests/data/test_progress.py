"""Lines of progress where there is no terminal: at once, then every so often, with the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.trainkit import make

from dualslm.data import progress
from dualslm.data.progress import Pace, Progress
from dualslm.training.train import encode, train


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("dualslm.data.progress.time.monotonic", lambda: self.now)


def test_a_line_at_once_and_then_every_so_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress("measuring", 100) as shown:
        assert capsys.readouterr().err == "measuring: 0 of 100\n"
        for _ in range(100):
            clock.now += 1.0
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "measuring: 30 of 100, 1.2 min left",
        "measuring: 60 of 100, 0.7 min left",
        "measuring: 90 of 100, 0.2 min left",
        "measuring: 100 of 100",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(1000, done=900)
    assert pace.stated(900) == "900 of 1000"
    clock.now += 7200.0
    assert pace.stated(901) == "901 of 1000, 198.0 h left"
    assert Pace(None).stated(7) == "7"


def test_a_total_may_become_known_and_another_process_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress("asking", None) as shown, Progress("asking", None, active=False) as silent:
        clock.now += 60.0
        shown.update(5, 10, "asking more")
        silent.update(5, 10)
    assert (
        capsys.readouterr().err == "asking: 0\nasking more: 5 of 10, 1.0 min left\nasking more: 5 of 10, 1.0 min left\n"
    )


def test_features_and_training_are_not_silent_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    recipe = make(tmp_path)
    encode(recipe, device="cpu")
    assert "features: 16 of 16" in capsys.readouterr().err  # within a part, whose end has a line of its own
    train(recipe, tmp_path / "run", device="cpu")
    said = capsys.readouterr().err
    assert "joint: 0 of 7\n" in said
    assert "joint: 2 of 7, " in said
    assert "disentangle  linguistic " in said
    assert ": 7 of 7\n" in said
