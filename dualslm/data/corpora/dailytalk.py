"""DailyTalk: everyday dialogues of two voices, cut at many points (paper §IV-A: conversation).

Every user turn that is followed by an answer ends a conversation of its own, so that contexts are of every length and
the embeddings of P and L occur at varying positions. The user is the speaker who begins, or with `--roles both` each
of the two in turn. Successive utterances of one speaker are one turn of several recordings.
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
    AudioInfo,
    Corpus,
    Entry,
    Option,
    Raw,
    Row,
    Turn,
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
    """One utterance.

    Attributes:
        name: name of its recording, without the suffix.
        speaker: "0" or "1".
        words: text of the utterance, "" where it is missing.
        path: path of its recording.
        labels: our labels by attribute.
        info: result of probing the recording, or why the utterance cannot be used.
    """

    name: str
    speaker: str
    words: str
    path: Path
    labels: Mapping[str, str]
    info: AudioInfo


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each utterance; a conversation belongs to the entry of its last utterance."""
    root = first_folder(raw.root, ("", "dailytalk", "DailyTalk"), "metadata.json", "DailyTalk")
    dialogues = metadata(root / "metadata.json")
    listed = held_out(raw.options["validation-list"])
    raw.total = sum(map(len, dialogues.values()))
    raw.notes |= {"dialogues": len(dialogues), "same speaker twice in a row": {}}
    for name, lines in dialogues.items():
        split = split_of(name, raw.seed) if listed is None else "validation" if name in listed else "train"
        utterances = [_utterance(raw, root, name, key, row) for key, row in lines.items()]
        if breaks := [one.name for one, two in pairwise(utterances) if one.speaker == two.speaker]:
            raw.notes["same speaker twice in a row"][name] = len(breaks)
        yield from _dialogue(raw, split, name, utterances)


def metadata(path: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The utterances of every dialogue, in order.

    Args:
        path: path of metadata.json.

    Raises:
        DualSLMError: the file is not DailyTalk's metadata.json.
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
    return dict(sorted(rows.items(), key=lambda pair: int(pair[0])))  # as text, "10" would stand before "2"


def held_out(path: str | None) -> frozenset[str] | None:
    """The numbers of the dialogues in a list, or None where there is no list.

    Args:
        path: path of a text file whose lines are each a number, or a line of the repository's val_frame.txt.
    """
    if path is None:
        return None
    lines = text_of(Path(path), "check the path").splitlines()
    found = [re.match(r"(?:\d+_[01]_d)?(\d+)(?:\||$)", line) for line in lines]
    if not found or not all(found):
        raise DualSLMError(f"{path} is no list of dialogues", got="a line of another kind", do="give a number a line")
    return frozenset(match[1] for match in found if match)


def _utterance(raw: Raw, root: Path, dialogue: str, key: str, row: Mapping[str, Any]) -> Utterance:
    stem = f"{key}_{row['speaker']}_d{dialogue}"
    labels, unknown = translate({"emotion": row["emotion"], "gender": str(row["speaker"])}, LABELS)
    words = " ".join(str(row["text"]).split())
    path = root / "data" / dialogue / f"{stem}.wav"
    info = raw.probe(path)  # whatever the labels are: the log of probes is read in the order of the utterances
    if unknown:
        info = AudioInfo(reason=LABEL_UNKNOWN, detail=unknown)
    elif not words:
        info = AudioInfo(reason=NO_TRANSCRIPT)
    return Utterance(stem, str(row["speaker"]), words, path, labels, info)


def _dialogue(raw: Raw, split: str, name: str, utterances: Sequence[Utterance]) -> Iterator[Entry]:
    """The entries of a dialogue's utterances."""
    turns = [list(group) for _, group in groupby(utterances, key=lambda one: one.speaker)]
    step = 2 if raw.options["roles"] == "first" else 1
    # The last turn has no answer, so no conversation ends with it.
    conversations = {
        turns[index][-1].name: _conversation(raw, name, turns, index) for index in range(0, len(turns) - 1, step)
    }
    for one in utterances:
        conversation = conversations.get(one.name)
        rows = (conversation,) if conversation else ()
        yield Entry(split, one.name, one.info.reason, one.info.detail, one.info.seconds or 0.0, rows)


def _conversation(raw: Raw, name: str, turns: Sequence[Sequence[Utterance]], index: int) -> Row | None:
    """The dialogue up to a turn whose speaker is the user; None where the turn is not usable or fits no task."""
    last = turns[index]
    answer = " ".join(one.words for one in turns[index + 1])
    parts = [_part(raw, one) for one in last]
    # Earlier turns may lack their recordings, because their words can stand for them, but never their words.
    if not all(one.words for turn in turns[: index + 2] for one in turn) or any(one.info.reason for one in last):
        return None
    tasks = [task for task in raw.tasks if all(possible([task], part) for part in parts)]
    if not tasks:
        return None
    return {
        "id": last[-1].name,
        "corpus": raw.corpus,
        "tasks": tasks,
        "turns": [_turn(raw, turn, user=(index - number) % 2 == 0) for number, turn in enumerate(turns[: index + 1])],
        "seconds": round(sum(one.info.seconds or 0.0 for one in last), 3),
        "dialogue": name,
        "reference": answer,
        "source": "metadata.json",
    }


def _turn(raw: Raw, utterances: Sequence[Utterance], *, user: bool) -> Turn:
    if user:
        return {"role": "user", "parts": [_part(raw, one) for one in utterances]}
    return {"role": "assistant", "parts": [" ".join(one.words for one in utterances)]}


def _part(raw: Raw, one: Utterance) -> Any:
    """An utterance of the user: its recording, or its words where the recording cannot be used."""
    if one.info.reason is not None:
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
        Option(
            "roles",
            "who begins is the user, or each in turn: twice the conversations",
            "first",
            ("first", "both"),
        ),
        Option("validation-list", "dialogues to hold out, for example the repository's val_frame.txt", metavar="FILE"),
    ),
)
