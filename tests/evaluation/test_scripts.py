"""Word errors in other languages and scripts, counted by hand; figures without a value, and shares that are none."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest

from dualslm.evaluation import measure, score
from dualslm.evaluation.metrics import wer
from dualslm.evaluation.metrics.bootstrap import difference, figure, holm
from dualslm.evaluation.report.tables import tables

pytest.importorskip("whisper_normalizer", reason="pip install 'dualslm[eval]'")


def row(truth: str, answer: str, number: int = 0, system: str = "s") -> dict[str, object]:
    known = {"id": f"i{number}", "task": "asr", "choices": None, "truth": truth, "answer": answer, "ended": True}
    return {**known, "cluster": f"c{number}", "system": system, "view": None, "corpus": "c", "split": "t"}


BY_HAND = {  # pairs, and errors of so many words or characters
    "German": (
        [("Das Bier ist für dich", "Das Bär ist fur dich"), ("Es ist schon gut", "es ist schön gut")],
        3,
        9,
        "wer",
    ),
    "French": ([("Il a déjà mangé.", "il a deja mange")], 2, 4, "wer"),
    "an accent typed apart": ([("déjà", "de\u0301ja\u0300")], 0, 1, "wer"),
    "a soft hyphen": ([("Straßen\u00adbahn für alle", "Straßenbahn für alle")], 0, 3, "wer"),
    "Russian": ([("Привет, мир!", "привет мил")], 1, 2, "wer"),
    "Hindi": ([("मुझे पानी चाहिए", "मुझे पानी चाहिये")], 1, 3, "wer"),
    "Korean": ([("안녕하세요 세계", "안녕하세요 새계")], 1, 2, "wer"),
    "Arabic": ([("مرحبا بالعالم", "مرحبا بالعالم")], 0, 2, "wer"),
    "a stretched Arabic word": ([("مرحبـــا بالعالم", "مرحبا بالعالم")], 0, 2, "wer"),
    "a Turkish capital": ([("İstanbul çok güzel", "istanbul cok güzel")], 1, 3, "wer"),
    "Greek capitals": ([("ΚΑΛΗΜΕΡΑ ΚΟΣΜΟΣ", "καλημερα κοσμε")], 1, 2, "wer"),
    "Korean letters typed apart": ([("\u1112\u1161\u11ab 국", "한 국")], 0, 2, "wer"),
    "Chinese": ([("今天天气很好。", "今天天气好")], 1, 6, "cer"),
    "Chinese with English": ([("我丢了 USB 钥匙", "今天 USB 天气")], 5, 8, "cer"),
    "Japanese": ([("今日は寒い", "今日は熱い")], 1, 5, "cer"),
    "Thai": ([("ฉันรักคุณ", "ฉันรักเธอ")], 3, 9, "cer"),  # ฉ ั น ร ั ก ค ุ ณ
    "English with a name": ([("my friend 李 said so", "my friend said so")], 1, 5, "wer"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_other_scripts_give_the_figures_of_a_count_by_hand(name: str) -> None:
    pairs, errors, of, rate = BY_HAND[name]
    found = measure.measure([row(truth, answer, number) for number, (truth, answer) in enumerate(pairs)], 0)
    assert found["figures"][f"{rate}_raw"]["value"] == pytest.approx(100 * errors / of)
    assert found["edits"]["raw"]["reference_words"] == of
    assert found["unit"] == ("characters" if rate == "cer" else "words")
    # Whisper's normalizer hides no accent and cuts no letter of another language.
    assert found["figures"][f"{rate}_whisper"]["value"] == pytest.approx(100 * errors / of)


def test_plain_english_is_counted_as_before() -> None:
    assert wer.raw("THE KING'S MEN") == ["the", "king's", "men"]
    assert wer.raw("it's 5 o'clock_now! a-b \t c") == ["it's", "5", "o'clock", "now", "a", "b", "c"]
    how = wer.counting(["a café"] + ["plain words"] * 30)
    assert (how.characters, how.english) == (False, True)
    assert how.tokens("whisper", "He's at the café") == ["he", "is", "at", "the", "cafe"]


def test_words_keep_vowel_signs() -> None:
    assert wer.words("नमस्ते, दुनिया") == ["नमस्ते", "दुनिया"]


def test_a_reference_that_a_normalizer_empties_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row("um", "um", 0), row("hello", "hello", 1), row("", "", 2)]
    with caplog.at_level(logging.WARNING, "dualslm"):
        found = measure.measure(rows, 0)
    assert found["edits"]["whisper"]["emptied"] == 1
    assert found["edits"]["raw"]["emptied"] == 0
    assert [record.getMessage() for record in caplog.records] == [
        "whisper leaves nothing of 1 of 3 references, for example 'um'"
    ]


def predictions(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_the_table_says_cer(tmp_path: Path) -> None:
    rows = [row("今天天气很好", "今天天气好", 0, "a"), row("今天天气很好", "天气好", 0, "b")]
    report = score.score([predictions(tmp_path, rows)])
    table = next(one for one in tables(report) if one.title.startswith("Table III ·"))
    assert table.columns == ("c/t CER raw", "c/t CER Whisper")
    assert "characters" in table.note
    assert [one.cells[0].text for one in table.lines] == ["16.7", "50.0"]
    assert report["comparisons"][0]["measure"] == "cer_raw"
    assert report["comparisons"][0]["value"] == pytest.approx(-100 / 3)


def test_no_p_value_where_there_is_no_difference(tmp_path: Path) -> None:
    rows = [row("", answer, number, system) for system, answer in (("a", "x"), ("b", "")) for number in (0, 1)]
    rows += [row("word", "word", 2, "a") | {"split": "u"}, row("word", "world", 2, "b") | {"split": "u"}]
    found = score.score([predictions(tmp_path, rows)])["comparisons"]
    assert [one["p"] is None for one in found] == [True, False]
    assert found[0]["p_holm"] is None
    assert found[1]["p_holm"] == found[1]["p"], "what was not tested is not corrected for"
    table = next(
        one for one in tables(score.score([predictions(tmp_path, rows)])) if one.title.startswith("Differences")
    )
    assert [one.text for one in table.lines[0].cells[:3]] == ["-", "-", "-"]


def test_holm_passes_over_what_was_not_tested() -> None:
    assert holm([0.01, math.nan, 0.04])[::2] == [0.02, 0.04]
    nothing = np.zeros((3, 2))
    assert math.isnan(difference(nothing, nothing, ["a", "b", "c"]).p)


def test_counts_get_no_interval_of_a_share() -> None:
    rows = [{**row("", "word " * 100, number), "task": "respond", "truth": None} for number in range(4)]
    length = measure.measure(rows, 0)["figures"]["length"]
    assert (length["value"], length["low"], length["high"]) == (100.0, 100.0, 100.0)
    # More errors than words: no share either, though it is 100 % in all.
    counts = np.array([(2.0, 1.0), (2.0, 1.0), (0.0, 1.0), (0.0, 1.0)])
    assert figure(counts[:2] / [2, 1], ["a", "b"]).low < 100, "a share gets Wilson's interval"
    assert measure.measure([row("a", "b c", 0), row("a b c", "a b d e", 1)], 0)["figures"]["wer_raw"]["value"] == 100.0
