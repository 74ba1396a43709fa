"""The pocket study: texts cover the LLM's tokens, splits share no speaker, recipes load, and L is read by direction."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from support.aligned import WORD, aligned_model
from support.factory import tokenizer

from dualslm import recipe
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import read_card
from studies.pocket import __main__ as command
from studies.pocket import corpora, measure, own_voice, page, ship, texts, voices, words_lost

ROOT = Path(__file__).parents[2]
TAG = re.compile(r"# (paper §|measured: |assumed: |ours: )\S")

# ---------------------------------------------------------------------- texts


def test_every_asked_token_is_in_enough_texts() -> None:
    words = tokenizer()
    known = {words.decode([token]).strip() for token in range(len(words))}
    wanted = texts.common_tokens(words, 12, {word for word in known if len(word) > 1})
    assert len(wanted) == 12
    said = [texts.Text("a", f"We said{words.decode([token])} again.") for token in wanted[:6] for _ in range(3)]
    chosen = texts.choose(said, words, wanted, texts.Plan(each=2, words=1000))
    count = Counter(token for text in chosen for token in texts.tokens_of(words, text.text))
    assert all(count[token] >= 2 for token in wanted)
    assert {text.source for text in chosen} == {"a", "lists"}
    assert chosen == texts.choose(said, words, wanted, texts.Plan(each=2, words=1000))


def test_sentences_are_cut_where_a_voice_can_pause() -> None:
    long = ", ".join(["one two three four five six seven"] * 5) + "."
    parts = list(texts.sentences(texts.clean(f"Hello (he waves) there... friend. In 1984 it was. {long}")))
    assert parts[0] == "Hello there, friend."
    assert all(len(part.split()) <= texts.MAX_WORDS for part in parts)
    assert not any("1984" in part for part in parts)


def test_capitals_stand_where_a_reader_writes_them() -> None:
    names = texts.names_in(["So we met Anna there.", "Then Anna left us."])
    assert names == {"anna"}
    assert texts.sentence_case("WE SAW ANNA'S DOG AND I'M GLAD", names) == "We saw Anna's dog and I'm glad"
    assert texts.sentence_case("all is well. it is late", names) == "All is well. It is late"
    assert texts.for_alignment("WE SAW ANNA", names) == " we saw Anna"
    assert texts.for_alignment("Anna left. We stay. I too", names) == " Anna left. we stay. I too"


def test_the_series_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    for name, column in (("meld", "Utterance"), ("styletalk", "curr_text,res_text,context")):
        (tmp_path / name).mkdir()
        row = ",".join([f"{name} it is {word}." for word in ("so", "late", "cold")][: column.count(",") + 1])
        (tmp_path / name / "train.csv").write_text(f"{column}\n{row}\n")
    assert {text.source for text in texts.read(tmp_path, tmp_path)} == {"styletalk"}
    assert {text.source for text in texts.read(tmp_path, tmp_path, ["meld"])} == {"meld"}
    with pytest.raises(DualSLMError, match="unknown source"):
        texts.read(tmp_path, tmp_path, ["friends"])


# ---------------------------------------------------------------------- voices


def test_a_longer_tract_moves_resonances_down() -> None:
    spectrum = np.zeros((voices.BINS, 2), np.float32)
    spectrum[240] = 1.0
    assert voices.longer_tract(spectrum, 1.2)[:, 0].argmax() == 200
    assert np.allclose(voices.longer_tract(spectrum, 1.0), spectrum)


def test_another_pitch_keeps_what_has_no_voice() -> None:
    speaker = voices.Speaker(1, 120, 1, 1, 0, 0, 0)
    pitch = voices.other_pitch(np.array([0, 200, 220, 0], np.float32), speaker, random.Random(0))
    assert pitch[0] == pitch[3] == 0
    assert 110 < pitch[1] < pitch[2] < 135


def test_a_missing_voice_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    (tmp_path / "texts.jsonl").write_text("")
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(DualSLMError, match="hibari-tts") as raised:
        voices.speak(tmp_path / "texts.jsonl", tmp_path / "voices")
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- manifests


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A corpus of twelve speakers to learn from, a tested child and a tested adult, and two acted emotions."""
    folder = tmp_path / "data" / "voices"
    rows: list[dict[str, Any]] = []
    for number in range(14):
        split = "train" if number < 12 else "test"
        for take in range(2):
            about = {"corpus": "people", "split": split, "speaker": f"s{number}", "sex": "mf"[number % 2]}
            age = 8 if number == 13 else 30
            rows.append(
                {**about, "path": f"{number}-{take}.wav", "age": age, "text": "THE BOYS MET ANNA", "emotion": ""}
            )
    for speaker, emotion in (("01", "anger"), ("13", "calm")):
        about = {"corpus": "ravdess", "split": "", "speaker": speaker, "sex": "F", "age": ""}
        rows.append({**about, "path": f"acted-{speaker}.wav", "text": "So we met Anna.", "emotion": emotion})
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in rows:
        soundfile.write(folder / row["path"], 0.1 * rng.standard_normal(24_000), 16_000)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "seconds"])
        writer.writeheader()
        writer.writerows({**row, "seconds": 1.5} for row in rows)
    return tmp_path / "data"


def manifest(work: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "manifests" / f"{name}.jsonl").read_text().splitlines()]


def test_manifests_of_a_list_of_recordings(data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    corpora.write(data, work)
    training, validation = manifest(work, "words-train"), manifest(work, "words-validation")
    people = {row["speaker"] for row in training if row["corpus"] == "people"}
    assert len(people) == 11
    assert {row["speaker"] for row in validation}.isdisjoint(people)
    assert {row["speaker"] for row in manifest(work, "words-test-people")} == {"people/s12"}
    assert {row["speaker"] for row in manifest(work, "words-test-people-children")} == {"people/s13"}
    # Held out means not altered either.
    assert {row["speaker"] for row in manifest(work, "words-altered")} == {row["speaker"] for row in training}
    assert training[0]["turns"][0]["parts"][0]["transcript"] == " the boys met Anna"
    tested = manifest(work, "words-test-people")[0]
    assert tested["turns"][0]["parts"][0]["transcript"] == "The boys met Anna"
    # Acted sentences are for P alone: what learns from them may not be shipped.
    assert {row["corpus"] for row in training} == {"people"}
    (acted,) = manifest(work, "tone-train-ravdess")
    assert acted["turns"][0]["parts"][0]["labels"] == {"gender": "female", "emotion": "angry"}
    assert acted["turns"][0]["parts"][0]["choices"] == {"emotion": ["angry", "calm"]}
    assert [row["speaker"] for row in manifest(work, "tone-test-ravdess")] == ["ravdess/13"]
    assert not any("emotion" in row["tasks"] for row in manifest(work, "tone-train"))
    toned, altered = manifest(work, "tone-train"), manifest(work, "tone-altered")
    assert {f"{row['id']}-altered" for row in toned} == {row["id"] for row in altered}
    assert all("pitch" not in row["turns"][0]["parts"][0]["labels"] for row in altered), "it is measured anew"
    assert Examples([work / "manifests" / "words-train.jsonl"]).count("linguistic") == len(training)
    assert not any(Path(measure.clip(row)["audio"]).is_relative_to(work) for row in training)


def test_a_speaker_in_two_splits_is_refused(data: Path, tmp_path: Path) -> None:
    file = data / "voices" / "labels.csv"
    file.write_text(file.read_text().replace("test,s12", "test,s1"))
    with pytest.raises(DualSLMError, match="speakers in two splits"):
        corpora.write(data, tmp_path / "work")


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(("name", "learns"), [("words", {"ling"}), ("tone", {"para"})])
def test_recipes_load_and_say_where_numbers_come_from(name: str, learns: set[str]) -> None:
    file = ROOT / "studies" / "pocket" / "recipes" / f"{name}.toml"
    read = recipe.load(file)
    (stage,) = read.stages
    assert (stage.objective, stage.learns) == ("align", learns)
    assert recipe.parse(recipe.to_toml(read)) == read
    for line in file.read_text().splitlines():
        value = re.sub(r'"[^"]*"', "", line.partition("#")[0])
        assert not re.search(r"\d", value) or TAG.search(line), line


def test_tone_begins_from_the_adapters_of_words() -> None:
    words, tone = (recipe.load(ROOT / "studies/pocket/recipes" / f"{name}.toml") for name in ("words", "tone"))
    assert words.model.linguistic == tone.model.linguistic
    assert words.model.paralinguistic == tone.model.paralinguistic
    assert tone.model.adapters == f"runs/pocket/words/{words.stages[0].name}"


# ---------------------------------------------------------------------- measures


def test_a_rate_of_words_has_an_interval_over_speakers() -> None:
    pytest.importorskip("whisper_normalizer")
    found = measure.word_rate(["Good morning!", "um"], ["good evening", "two"], ["a", "b"])
    assert (found.value, found.n) == (50.0, 1)


def test_words_lost_are_those_of_the_same_recordings(tmp_path: Path) -> None:
    pytest.importorskip("whisper_normalizer")
    model = aligned_model(tmp_path / "parts")
    said = [WORD, f"{WORD} {WORD}"]
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.zeros(16000), 16000)
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for name in ("words-train", "windows-train", *words_lost.SETS):
        rows = [
            {"speaker": f"{number % 3}", "turns": [{"parts": [{"audio": str(wav), "transcript": text}]}]}
            for number, text in enumerate(said * 3)
        ]
        (manifests / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    saved = model.save_pretrained(tmp_path / "saved")
    trained = dict.fromkeys(words_lost.WINDOWS, saved)
    words_lost.measure_skipping(tmp_path, saved, 9, tmp_path / "lost.json")
    words_lost.measure_windows(tmp_path, trained, 9, tmp_path / "lost.json")
    found = json.loads((tmp_path / "lost.json").read_text())
    for what in ("short windows", "skipping"):
        assert found[what]["all"]["with"]["value"] == pytest.approx(100 / 3), "a word of three"
        assert found[what]["all"]["more"]["value"] == 0.0
        assert found[what]["all"]["with"]["n"] == 18


def test_an_own_voice_is_tested_on_sentences_that_it_did_not_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("whisper_normalizer")
    saved = str(aligned_model(tmp_path / "parts").save_pretrained(tmp_path / "saved"))
    wav = tmp_path / "a.wav"
    soundfile.write(wav, np.zeros(16000), 16000)
    (tmp_path / "manifests").mkdir()
    # The first sentence of each speaker is said twice: where one of the two is learnt, the other is no test.
    rows = [
        {
            "speaker": f"a/{speaker}",
            "turns": [{"parts": [{"audio": str(wav), "transcript": f"{WORD} {max(1, number)}"}]}],
        }
        for speaker in range(own_voice.SPEAKERS)
        for number in range(20)
    ]
    (tmp_path / "manifests" / f"{own_voice.SET}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learnt: list[recipe.Recipe] = []

    def train(made: recipe.Recipe, out: Path, *, resume: bool) -> Path:
        learnt.append(made)
        return Path(saved)

    monkeypatch.setattr(own_voice, "train", train)
    own_voice.run(tmp_path, saved, tmp_path / "own.json", 0)
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["before"]["value"] == found["after"]["value"] == pytest.approx(50.0), "the word, and not the number"
    assert {made.model.adapters for made in learnt} == {saved}
    texts = [Path(made.data.train[0]).read_text() for made in learnt]
    assert [text.count("\n") for text in texts] == [own_voice.LEARNT] * own_voice.SPEAKERS
    split = sum(text.count(f'"{WORD} 1"') == 1 for text in texts)
    assert found["before"]["n"] == 5 * own_voice.SPEAKERS - split


# ---------------------------------------------------------------------- page and command


def test_the_page_shows_what_the_result_file_holds() -> None:
    results = ROOT / "docs" / "results"
    assert page.write(results / "pocket.json", check=True) == 0, "run python -m studies.pocket page"
    assert page.write_stages(results / "pocket_stages.json", check=True) == 0, "run python -m studies.pocket page"
    assert page.write_start(results / "pocket_start.json", check=True) == 0, "run python -m studies.pocket page"


def test_the_checkpoint_that_training_goes_on_from_fits_the_recipes() -> None:
    card = read_card(ship.ADAPTERS)
    assert not [name for name in ship.UNSHIPPABLE if name in json.dumps(card.recipe).lower()]
    for name in ("words", "tone", "talk"):
        settings = recipe.load(ROOT / "studies" / "pocket" / "recipes" / f"{name}.toml").model
        same = {key: value for key, value in asdict(settings.linguistic).items() if key in card.linguistic}
        assert same == card.linguistic, name
        same = {key: value for key, value in asdict(settings.paralinguistic).items() if key in card.paralinguistic}
        assert same == card.paralinguistic, name


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["corpora", "--data", str(tmp_path), "--work", str(tmp_path / "work")]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
