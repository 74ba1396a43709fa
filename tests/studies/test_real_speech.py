"""The study on real voices: file names, splits that share no speaker, manifests, words, and the page from a result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.recipe import Recipe
from dualslm.tiny import WEIGHTS
from studies.real_speech import corpora, exam, llm, page, plans
from studies.real_speech.wording import EMOTIONS, SPEAKERS, digit, ravdess


@pytest.mark.parametrize(
    ("name", "speaker", "gender", "emotion", "word"),
    [
        ("03-01-01-01-01-01-07.wav", "actor07", "male", "neutral", "Kids"),
        ("03-01-02-02-02-02-24.flac", "actor24", "female", "calm", "Dogs"),
        ("03-01-08-01-01-01-19.wav", "actor19", "male", "surprised", "Kids"),
    ],
)
def test_a_ravdess_file_name_gives_all_fields(name: str, speaker: str, gender: str, emotion: str, word: str) -> None:
    fields = ravdess(Path(name))
    assert fields is not None
    assert (fields["speaker"], fields["labels"]) == (speaker, {"gender": gender, "emotion": emotion})
    assert fields["transcript"].startswith(word)


@pytest.mark.parametrize(
    "name", ["03-02-01-01-01-01-07.wav", "01-01-01-01-01-01-07.wav", "03-01-09-01-01-01-07.wav", "hello.wav"]
)
def test_songs_videos_and_strangers_are_no_spoken_clips(name: str) -> None:
    assert ravdess(Path(name)) is None


def test_a_digit_file_name() -> None:
    assert digit(Path("7_jackson_32.wav")) == ("seven", "jackson", 32)
    assert digit(Path("seven_jackson.wav")) is None


def record(path: Path, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds)), 16_000)


def test_actors_become_manifests_that_calm_keeps_its_name_in(tmp_path: Path) -> None:
    for emotion in ("02", "05"):
        record(tmp_path / "in" / "Actor_19" / f"03-01-{emotion}-01-01-01-19.wav")
    record(tmp_path / "in" / "Actor_19" / "03-02-05-01-01-01-19.wav")
    assert corpora.actors(tmp_path / "in", tmp_path / "out", copies=1) == ["actor19"]
    examples = Examples([tmp_path / "out" / "actor19.jsonl"])
    indices = range(examples.count("paralinguistic"))
    conversations = [examples.get("paralinguistic", index).conversation for index in indices]
    answers = {str(conversation.turns[-1].parts[0]) for conversation in conversations}
    assert answers == {"The speaker is male.", "The speaker sounds calm.", "The speaker sounds angry."}
    captions = {conversation.turns[0].speeches[0].caption or "" for conversation in conversations}
    # Our own emotion task has no "calm": the manifest's choices must win.
    assert any("calm" in caption for caption in captions)
    assert not any("neutral" in caption for caption in captions)
    assert len((tmp_path / "out" / "copy1" / "actor19-1.jsonl").read_text().splitlines()) == 2


def test_a_folder_without_ravdess_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "hello.wav")
    with pytest.raises(DualSLMError, match="no spoken clip of RAVDESS"):
        corpora.actors(tmp_path, tmp_path / "out")


def test_an_altered_copy_follows_from_its_name() -> None:
    samples = np.random.default_rng(1).standard_normal(8000).astype(np.float32)
    once = corpora.alter(samples, "a-1")
    again = corpora.alter(samples, "a-1")
    other = corpora.alter(samples, "a-2")
    assert np.array_equal(once, again)
    assert len(once) != len(other)
    assert np.abs(once).max() <= 1.0


ARMS = (plans.CHOSEN, *plans.TONE, *plans.WHOLE, *plans.ROTATED)


def recipes() -> list[Recipe]:
    return [plans.recipe_of(arm, Path("w"), plans.TUNED_WITH, 0, 1.0) for arm in ARMS]


def test_no_test_speaker_is_in_the_training_data() -> None:
    assert not {*plans.TUNED_WITH} & {*plans.REPORTED}
    for arm, recipe in zip(ARMS, recipes(), strict=True):
        named = " ".join(recipe.data.train)
        assert not any(one in named for one in (*plans.REPORTED, *arm.held))
        assert recipe.data.validation == ()  # the last step is used: no speaker chooses a checkpoint


def test_every_speaker_of_digits_is_reported_once() -> None:
    held = [speaker for arm in (plans.CHOSEN, *plans.ROTATED) for speaker in arm.held]
    assert sorted(held) == sorted(SPEAKERS)


def test_arms_differ_from_the_chosen_setting_in_what_they_name() -> None:
    found = dict(zip([arm.name for arm in ARMS], recipes(), strict=True))
    steps = {name: [stage.steps for stage in recipe.stages] for name, recipe in found.items()}
    # Same steps for all, so that only the named setting differs.
    (whole,) = {tuple(steps[arm.name]) for arm in plans.TONE if arm.aligned}
    assert {tuple(steps[arm.name]) for arm in plans.TONE if not arm.aligned} == {whole[1:]}
    assert found["without ERR"].stages[2].learns == {"para", "ling"}
    assert found["single adapter"].stages[2].learns == {"ling"}
    assert found["learned mix of layers"].model.paralinguistic.mix


def test_every_word_of_the_study_is_one_token_and_ids_stay() -> None:
    tokenizer = llm.extend(WEIGHTS / "llm", sorted(llm.spoken_words()))
    before = type(tokenizer).from_pretrained(WEIGHTS / "llm")
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in (*EMOTIONS, "Kids", "seven"))
    text = "Write down what the speaker says."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # Ids that moved would give the shipped weights the embeddings of other words.
    assert before.get_vocab().items() <= tokenizer.get_vocab().items()


def test_an_answer_names_one_choice_or_none() -> None:
    assert exam.named("The speaker sounds calm.", EMOTIONS) == "calm"
    assert exam.named("Calm or sad.", EMOTIONS) is None
    assert exam.named("The speaker sounds like a door.", EMOTIONS) is None
    rows = exam.confusion([("angry", "angry"), ("angry", None), ("calm", "sad")])
    assert sum(map(sum, rows)) == 3
    assert rows[EMOTIONS.index("angry")][-1] == 1


@pytest.fixture
def result(root: Path) -> Path:
    return root / "docs" / "results" / "real_speech.json"


def test_the_page_is_that_of_the_result_file(result: Path) -> None:
    assert page.write(result, check=True) == 0, "run python -m studies.real_speech --page"


def test_figures_that_are_missing_leave_their_table_out(result: Path) -> None:
    found = json.loads(result.read_text())
    del found["figures"]["probe"]
    assert "yardstick" not in page.tables(found)
