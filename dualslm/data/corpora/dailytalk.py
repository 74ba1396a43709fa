"""DailyTalk: everyday dialogues of two voices, cut at many points (paper §IV-A: conversation).

Every user turn that is followed by an answer ends a talk of its own, so that contexts are of every length, which
is what places P and L at changing positions. Who is the user follows from the turn, not from the speaker: the
user begins, or both readings are taken. Turns of one speaker in a row are one turn of two recordings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from dualslm.data.corpora.base import (
    LABEL_UNKNOWN,
    NO_TRANSCRIPT,
    Corpus,
    Entry,
    Heard,
    Option,
    Raw,
    Talk,
    first_folder,
    possible,
    split_of,
    text_of,
    translate,
)
from dualslm.errors import DualSLMError

# Emotions: metadata.json of github.com/keonlee9420/DailyTalk; "no emotion" is "none" in its lists. Speakers: lhotse's
# recipe daily_talk, 0 is the male voice.
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")
LABELS = {
    "emotion": {"no emotion": "neutral", "none": "neutral", **{name: name for name in EMOTIONS}},
    "gender": {"0": "male", "1": "female"},
}
FIELDS = ("speaker", "emotion", "text")


@dataclass(frozen=True)
class Utterance:
    """One utterance and what a look at it gave."""

    name: str
    speaker: str
    words: str
    path: Path
    labels: Mapping[str, str]
    heard: Heard


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry an utterance; talks hang on the utterance that they end with."""
    root = first_folder(raw.root, ("", "dailytalk", "DailyTalk"), "metadata.json", "DailyTalk")
    dialogues = metadata(root / "metadata.json")
    listed = held_out(raw.options["validation-list"])
    raw.total = sum(map(len, dialogues.values()))
    raw.notes |= {"dialogues": len(dialogues), "same speaker twice in a row": {}}
    for name, lines in dialogues.items():
        split = split_of(name, raw.seed) if listed is None else "validation" if name in listed else "train"
        said = [_utterance(raw, root, name, key, row) for key, row in lines.items()]
        if breaks := [one.name for one, two in pairwise(said) if one.speaker == two.speaker]:
            raw.notes["same speaker twice in a row"][name] = len(breaks)
        yield from _dialogue(raw, split, name, said)


def metadata(path: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The utterances of every dialogue, in their order; JSON keys are text, and "10" stands before "2".

    Raises:
        DualSLMError: not that file.
    """
    text = text_of(path)
    try:
        found = json.loads(text)
        ordered = {name: _by_number(rows) for name, rows in _by_number(found).items()}
        for name, rows in ordered.items():
            for key, row in rows.items():
                if missing := [field for field in FIELDS if field not in row]:
                    raise KeyError(f"no {missing[0]} in utterance {key} of dialogue {name}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DualSLMError(f"{path} is not DailyTalk's", got=str(error)[:80], do="unpack it again") from error
    return ordered


def _by_number(rows: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(rows.items(), key=lambda pair: int(pair[0])))


def held_out(path: str | None) -> frozenset[str] | None:
    """The dialogues of a list, one a line: a number, or a line of the repository's val_frame.txt."""
    if path is None:
        return None
    found = [
        re.match(r"(?:\d+_[01]_d)?(\d+)(?:\||$)", line) for line in text_of(Path(path), "check the path").splitlines()
    ]
    if not found or not all(found):
        raise DualSLMError(f"{path} is no list of dialogues", got="a line of another kind", do="give a number a line")
    return frozenset(match[1] for match in found if match)


def _utterance(raw: Raw, root: Path, dialogue: str, key: str, row: Mapping[str, Any]) -> Utterance:
    stem = f"{key}_{row['speaker']}_d{dialogue}"
    labels, unknown = translate({"emotion": row["emotion"], "gender": str(row["speaker"])}, LABELS)
    words = " ".join(str(row["text"]).split())
    path = root / "data" / dialogue / f"{stem}.wav"
    heard = raw.hear(path)
    if unknown:
        heard = Heard(reason=LABEL_UNKNOWN, detail=unknown)
    elif not words:
        heard = Heard(reason=NO_TRANSCRIPT)
    return Utterance(stem, str(row["speaker"]), words, path, labels, heard)


def _dialogue(raw: Raw, split: str, name: str, said: Sequence[Utterance]) -> Iterator[Entry]:
    """The entries of a dialogue's utterances."""
    spans = [list(group) for _, group in groupby(said, key=lambda one: one.speaker)]
    step = 2 if raw.options["roles"] == "first" else 1
    conversations = {
        spans[place][-1].name: _conversation(raw, name, spans, place) for place in range(0, len(spans) - 1, step)
    }
    for one in said:
        conversation = conversations.get(one.name)
        yield Entry(
            split,
            one.name,
            one.heard.reason,
            one.heard.detail,
            one.heard.seconds or 0.0,
            (conversation,) if conversation else (),
        )


def _conversation(raw: Raw, name: str, spans: Sequence[Sequence[Utterance]], place: int) -> Talk | None:
    """The dialogue up to a turn whose speaker is the user; None where that turn cannot be heard or asked about."""
    last, answer = spans[place], " ".join(one.words for one in spans[place + 1])
    parts = [_part(raw, one) for one in last]
    if not all(one.words for span in spans[: place + 2] for one in span) or any(one.heard.reason for one in last):
        return None
    tasks = [task for task in raw.tasks if all(possible([task], part) for part in parts)]
    if not tasks:
        return None
    return {
        "id": last[-1].name,
        "corpus": raw.corpus,
        "tasks": tasks,
        "turns": [_turn(raw, span, user=(place - number) % 2 == 0) for number, span in enumerate(spans[: place + 1])],
        "seconds": round(sum(one.heard.seconds or 0.0 for one in last), 3),
        "dialogue": name,
        "reference": answer,
        "source": "metadata.json",
    }


def _turn(raw: Raw, span: Sequence[Utterance], *, user: bool) -> Talk:
    if user:
        return {"role": "user", "parts": [_part(raw, one) for one in span]}
    return {"role": "assistant", "parts": [" ".join(one.words for one in span)]}


def _part(raw: Raw, one: Utterance) -> Any:
    """What the user says: a recording, or its text where that cannot be used."""
    if one.heard.reason is not None:
        return one.words
    return raw.speech(one.path, transcript=one.words, labels=one.labels)


CORPUS = Corpus(
    name="dailytalk",
    about="everyday dialogues (keonlee9420/DailyTalk), for respond",
    rows=rows,
    tasks=("respond",),
    labels=LABELS,
    apart=lambda _: ("clip", "dialogue"),  # the same two voices speak in every split
    options=(
        Option("roles", "who begins is the user, or each in turn: twice the talks", "first", ("first", "both")),
        Option("validation-list", "dialogues to hold out, for example the repository's val_frame.txt", metavar="FILE"),
    ),
)
