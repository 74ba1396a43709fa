"""Recording one's own sentences: kept one by one, resumed, and refused where nothing was said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from dualslm.audio import SAMPLE_RATE
from dualslm.chat.record import LIST, SENTENCES, record
from dualslm.cli import main as cli
from dualslm.errors import DualSLMError

Samples = NDArray[np.float32]
TEXTS = ["One bird.", "Two birds.", "Three birds.", "Four birds.", "Five birds."]


def voice(seconds: float = 1.0) -> Samples:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def take(
    folder: Path, sounds: list[Samples | None], typed: list[str], texts: list[str] = TEXTS
) -> tuple[int, list[str]]:
    said: list[str] = []
    listen: Iterator[Samples | None] = iter(sounds)
    ask = iter(typed)
    return record(folder, texts, lambda: next(listen), lambda _: next(ask), said.append), said


def listed(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / LIST).read_text().splitlines()]


def test_each_sentence_is_kept_before_the_next(tmp_path: Path) -> None:
    done, said = take(tmp_path, [voice(), voice(2.0), None], ["", ""])
    assert done == 2
    assert said[-1].startswith("3 of 5")
    assert "Three birds." in said[-1]
    assert [line["transcript"] for line in listed(tmp_path)] == TEXTS[:2]
    assert soundfile.info(tmp_path / "002.wav").duration == pytest.approx(2.0)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert take(tmp_path, [voice()], ["q"])[0] == 1
    done, said = take(tmp_path, [voice()] * 4, [""] * 4)
    assert done == 5
    assert said[0].startswith("2 of 5")
    assert [line["split"] for line in listed(tmp_path)] == ["train"] * 4 + ["validation"]


def test_a_slip_is_recorded_again(tmp_path: Path) -> None:
    take(tmp_path, [voice(1.0), voice(3.0), None], ["r", ""])
    assert soundfile.info(tmp_path / "001.wav").duration == pytest.approx(3.0)


@pytest.mark.parametrize("sound", [np.zeros(SAMPLE_RATE, np.float32), voice(0.3)])
def test_no_sentence_is_not_kept(tmp_path: Path, sound: Samples) -> None:
    done, said = take(tmp_path, [sound, None], [])
    assert done == 0
    assert any("once more" in line for line in said)
    assert not (tmp_path / LIST).exists()


def test_a_folder_of_other_sentences_is_refused(tmp_path: Path) -> None:
    take(tmp_path, [voice()], ["q"])
    with pytest.raises(DualSLMError, match="holds other sentences"):
        take(tmp_path, [voice()], [""], ["A cat."])


def test_ours_hold_every_letter_sound_often_enough() -> None:
    """Spellings of the consonants and vowels that English tells apart, by the commonest way each is written."""
    text = " ".join(SENTENCES).lower()
    for sound in ("th", "sh", "ch", "ng", "wh", "oo", "ou", "ea", "ee", "ow", "v", "j", "y", "w", "r", "l"):
        assert text.count(sound) >= 2, sound
    assert len(SENTENCES) == len(set(SENTENCES)) == 20


def test_a_file_without_sentences_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.txt").write_text("\n")
    assert cli.main(["record", str(tmp_path / "out"), "--sentences", str(tmp_path / "none.txt")]) == 2
    assert "holds no sentence" in capsys.readouterr().err
