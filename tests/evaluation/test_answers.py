"""The parser of answers: sentences, denials, two labels, echoes of the list, words inside words."""

from __future__ import annotations

import pytest

from dualslm.evaluation.metrics.answers import lenient, strict

MELD = ("neutral", "joy", "sadness", "anger", "surprise", "fear", "disgust")
TINY = ("neutral", "happy", "sad", "angry", "afraid")
OURS = ("neutral", "happy", "sad", "angry", "surprised", "fearful", "disgusted", "contemptuous")
STYLES = ("neutral", "friendly", "unfriendly", "cheerful", "sad")
GENDER = ("male", "female")
LEVELS = ("low", "normal", "high")
TEMPO = ("slow", "normal", "fast")
QUIET = ("quiet", "moderate", "loud")
NONE = "unparsed"
BOTH = "ambiguous"

# task, choices, answer, strict, lenient
FIXTURES = [
    ("emotion", TINY, "The speaker sounds sad.", "sad", "sad"),
    ("emotion", TINY, "sad", "sad", "sad"),
    ("emotion", TINY, "SAD.", "sad", "sad"),
    ("emotion", TINY, "**Sad**", "sad", "sad"),
    ("emotion", TINY, '"sad"', "sad", "sad"),
    (
        "emotion",
        TINY,
        "The speaker sounds \N{LEFT DOUBLE QUOTATION MARK}afraid\N{RIGHT DOUBLE QUOTATION MARK}.",
        "afraid",
        "afraid",
    ),
    ("emotion", TINY, "\N{FULLWIDTH LATIN SMALL LETTER S}ad", "sad", "sad"),
    ("emotion", TINY, "", NONE, NONE),
    ("emotion", TINY, "I cannot tell.", NONE, NONE),
    ("emotion", TINY, "I lost my umbrella at the station.", NONE, NONE),
    ("emotion", MELD, "The emotion is joy.", "joy", "joy"),
    ("emotion", MELD, "The speaker is happy.", NONE, "joy"),
    ("emotion", MELD, "She seems joyful", NONE, "joy"),
    ("emotion", MELD, "He sounds scared.", NONE, "fear"),
    ("emotion", MELD, "He sounds very angry.", NONE, "anger"),
    ("emotion", MELD, "There is no emotion in it.", NONE, "neutral"),
    ("emotion", MELD, "The tone is calm.", NONE, "neutral"),
    ("emotion", MELD, "Surprised!", NONE, "surprise"),
    ("emotion", MELD, "The emotion: 'Anger'", "anger", "anger"),
    ("emotion", MELD, "The emotion is neutral, joy, anger or sadness.", BOTH, BOTH),
    ("emotion", MELD, "neutral, joy, sadness, anger, surprise, fear, disgust", BOTH, BOTH),
    ("emotion", MELD, "It is neutral or sadness.", BOTH, BOTH),
    ("emotion", MELD, "Of neutral, joy and anger, the emotion is anger.", BOTH, "anger"),
    ("emotion", MELD, "It sounds like joy, not sadness.", BOTH, "joy"),
    ("emotion", MELD, "There is no sadness in the voice, it sounds joyful.", "sadness", "joy"),
    ("emotion", MELD, "unhappy", NONE, "sadness"),
    ("emotion", OURS, "The speaker sounds fearful.", "fearful", "fearful"),
    ("emotion", OURS, "The speaker sounds afraid.", NONE, "fearful"),
    ("emotion", OURS, "A tone of contempt.", NONE, "contemptuous"),
    ("emotion", OURS, "disgust", NONE, "disgusted"),
    ("emotion", TINY, "Neutral, happy, sad, angry or afraid? The speaker sounds afraid.", BOTH, "afraid"),
    ("emotion", TINY, "neutral, happy, sad, angry or afraid.", BOTH, BOTH),
    ("emotion", TINY, "The speaker is not sad but happy.", BOTH, "happy"),
    ("emotion", TINY, "The speaker is not sad, she is happy.", BOTH, "happy"),
    ("emotion", TINY, "The speaker isn't angry.", "angry", NONE),
    ("emotion", TINY, "I would choose happy, rather than sad.", BOTH, "happy"),
    ("emotion", TINY, "Angry instead of sad.", BOTH, "angry"),
    ("emotion", TINY, "not happy or sad", BOTH, NONE),
    ("emotion", TINY, "neither happy nor sad; angry", BOTH, "angry"),
    ("emotion", TINY, "not only sad but angry", BOTH, BOTH),
    ("emotion", TINY, "The speaker is happy and sad.", BOTH, BOTH),
    ("emotion", TINY, "Among happy and sad, the answer is **sad**.", BOTH, "sad"),
    ("emotion", TINY, "Happy or sad? I would say sad.", BOTH, "sad"),
    ("emotion", TINY, "sad, sad, sad", "sad", "sad"),
    ("emotion", STYLES, "The speaker sounds friendly.", "friendly", "friendly"),
    ("emotion", STYLES, "The speaker sounds unfriendly.", "unfriendly", "unfriendly"),
    ("emotion", STYLES, "cheerful", "cheerful", "cheerful"),
    ("emotion", STYLES, "happy", NONE, "cheerful"),
    ("gender", GENDER, "The speaker is female.", "female", "female"),
    ("gender", GENDER, "The speaker is male.", "male", "male"),
    ("gender", GENDER, "It is a woman.", NONE, "female"),
    ("gender", GENDER, "It is a man's voice.", NONE, "male"),
    ("gender", GENDER, "A woman, not a man.", NONE, "female"),
    ("gender", GENDER, "male or female", BOTH, BOTH),
    ("gender", GENDER, "The woman is not male.", "male", "female"),
    ("gender", GENDER, "The human speaks.", NONE, NONE),
    ("pitch", LEVELS, "The pitch of the voice is low.", "low", "low"),
    ("pitch", LEVELS, "It is a deep voice.", NONE, "low"),
    ("pitch", LEVELS, "A high-pitched voice.", "high", "high"),
    ("pitch", LEVELS, "The pitch is medium.", NONE, "normal"),
    ("pitch", LEVELS, "The speaker talks slowly and quietly.", NONE, NONE),
    ("tempo", TEMPO, "The user speaks quickly.", NONE, "fast"),
    ("tempo", TEMPO, "The tempo of the speech is slow.", "slow", "slow"),
    ("tempo", TEMPO, "At a moderate pace.", NONE, "normal"),
    ("tempo", TEMPO, "A quiet voice.", NONE, NONE),
    ("energy", QUIET, "The energy is loud.", "loud", "loud"),
    ("energy", QUIET, "The energy is low.", NONE, "quiet"),
    ("energy", QUIET, "The user speaks softly.", NONE, "quiet"),
    ("energy", LEVELS, "The energy of the voice is high.", "high", "high"),
    ("energy", LEVELS, "loud", NONE, "high"),
    ("colour", ("red", "dark red"), "It is dark red.", "dark red", "dark red"),
]


def test_there_are_enough() -> None:
    assert len(FIXTURES) >= 60
    assert len({(choices, answer) for _, choices, answer, _, _ in FIXTURES}) == len(FIXTURES)


@pytest.mark.parametrize(("task", "choices", "answer", "plainly", "kindly"), FIXTURES)
def test_answers(task: str, choices: tuple[str, ...], answer: str, plainly: str, kindly: str) -> None:
    read = strict(answer, choices)
    assert (read.choice or read.status) == plainly
    read = lenient(answer, choices, task)
    assert (read.choice or read.status) == kindly
    assert (read.status == "ok") == (read.choice is not None)


def test_every_answer_of_our_own_tasks_is_read() -> None:
    from dualslm.data.tasks.attributes import ATTRIBUTES

    for attribute in ATTRIBUTES.values():
        for value in attribute.values:
            said = attribute.sentence.format(value=value)
            assert strict(said, attribute.values).choice == value
            assert lenient(said, attribute.values, attribute.name).choice == value
