"""StyleTalk: short dialogues whose last two turns are spoken in a style (paper §IV-A: conversation).

A row is three turns of text, then the current turn and the response, each with a recording and its style. The
current speaker is the user. `test-reversed` is the test set with the roles swapped: the response is the user's last
turn, and what the assistant would answer is not in the corpus, so there is no reference. Rows of one dialogue say
the same words in several styles; `group` links them.

To learn from, a dialogue is also cut at each of its midpoints (paper §IV-A). Its recordings are of the last turns
alone, so what is left out are the turns before the midpoint: the contexts have every length, none included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from dualslm.data.corpora.base import (
    LABEL_UNKNOWN,
    NO_TRANSCRIPT,
    Corpus,
    Entry,
    Option,
    Raw,
    Turn,
    first_folder,
    split_of,
    table,
    translate,
)
from dualslm.errors import DualSLMError

COLUMNS = ("diag_id", "context", "curr_audio_id", "res_audio_id", "curr_text", "res_text")
STYLE = {"emotion": "emotion", "tempo": "speed", "energy": "volume"}  # our attribute → the corpus's
ALL_COLUMNS = (*COLUMNS, *(f"{turn}_{style}" for turn in ("curr", "res") for style in STYLE.values()))
SPEAKER = re.compile(r"(?:(?<=\s)|^)([AB])\s*:\s*")
VALIDATION = {"validation": 0.05}  # share of the training dialogues; the corpus has no such split

# Every value of train.csv and eval.csv in github.com/DanielLin94144/StyleTalk at 79daed3.
EMOTIONS = ("neutral", "friendly", "unfriendly", "cheerful", "sad", "excited", "hopeful")
LABELS = {
    "emotion": {name: name for name in EMOTIONS},
    "tempo": {"slow": "slow", "normal": "normal", "fast": "fast"},
    "energy": {"quiet": "low", "normal": "normal", "loud": "high"},
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each row of train.csv, and two, forward and reversed, for each row of eval.csv."""
    root = first_folder(raw.root, ("", "styletalk", "StyleTalk"), "train.csv", "StyleTalk")
    train = list(table(root / "train.csv", ALL_COLUMNS))
    test = list(table(root / "eval.csv", ALL_COLUMNS))
    raw.total = len(train) + 2 * len(test)
    # The role of a speaker follows from the current turn, so contexts may begin with either; the report counts them.
    raw.notes["begins with B"] = {
        name: sum(row["context"].lstrip().startswith("B") for row in lines)
        for name, lines in (("train.csv", train), ("eval.csv", test))
    }
    for row in train:
        yield _entry(raw, root, split_of(row["diag_id"], raw.seed, VALIDATION), row)
    for row in test:
        yield _entry(raw, root, "test", row)
    for row in test:
        yield _entry(raw, root, "test-reversed", row, reverse=True)


def turns(context: str) -> list[tuple[str, str]]:
    """The turns of a context, each as its speaker, A or B, and its words."""
    pieces = SPEAKER.split(context)[1:]  # the split keeps the speakers: "", A, words, B, words, ...
    return [(who, " ".join(words.split())) for who, words in zip(pieces[::2], pieces[1::2], strict=True)]


def _entry(raw: Raw, root: Path, split: str, row: Mapping[str, str], *, reverse: bool = False) -> Entry:
    """A row as a conversation that ends with its current turn, or, reversed, with its response."""
    side = "res" if reverse else "curr"
    name = row[f"{side}_audio_id"].removesuffix(".wav")
    labels, unknown = translate({ours: row[f"{side}_{theirs}"] for ours, theirs in STYLE.items()}, LABELS)
    if unknown:
        return Entry(split, name, LABEL_UNKNOWN, unknown)
    history = turns(row["context"])
    response = " ".join(row["res_text"].split())
    (speaker, words), *more = turns(row["curr_text"]) or [("", "")]
    if more or not all((words, response, history, *(text for _, text in history))):
        return Entry(split, name, NO_TRANSCRIPT, "a turn without words or speaker")
    user = speaker
    transcript = words
    reference = response
    if reverse:
        user = "A" if speaker == "B" else "B"
        transcript = response
        reference = ""
        history.append((speaker, words))
    if history[-1][0] == user:
        raise DualSLMError(
            f"row {name} has {user} speak twice in a row", got=row["context"][:60], do="download it again"
        )
    source = "train.csv" if split in ("train", "validation") else "eval.csv"
    before: list[Turn] = [{"role": "user" if who == user else "assistant", "parts": [text]} for who, text in history]
    audio = row[f"{side}_audio_id"]
    inside = root / "audio" / audio  # the archive unpacks to `audio`, or beside the CSV files
    whole = raw.spoken(
        split,
        name,
        inside if inside.exists() else root / audio,
        part={"transcript": transcript, "labels": labels},
        before=before,
        row={"dialogue": row["diag_id"], "group": row["diag_id"], "reference": reference, "source": source},
    )
    if source == "eval.csv" or raw.options["contexts"] == "whole":
        return whole
    # The conversation, and what is left of it from each midpoint on; the id says how many turns were before.
    cuts = [
        {**row, "id": f"{row['id']}-from{start}", "turns": row["turns"][start:]}
        for row in whole.conversations
        for start in range(1, len(row["turns"]))
    ]
    return replace(whole, conversations=(*whole.conversations, *cuts))


CORPUS = Corpus(
    name="styletalk",
    about="dialogues spoken in styles (DanielLin94144/StyleTalk), for respond",
    rows=rows,
    tasks=("respond",),
    labels=LABELS,
    apart=lambda _: ("clip", "dialogue"),  # the corpus does not name its speakers
    options=(
        Option("contexts", "training dialogues also cut at their midpoints, or as they are", "cut", ("cut", "whole")),
    ),
)
