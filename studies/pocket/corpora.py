"""Real recordings → manifests: words for L, labels for P; who is held out is decided by speaker.

A corpus is a folder with a `labels.csv`, one recording a line: path, corpus, split, seconds, speaker, sex, age, text,
emotion. Columns that a corpus lacks may be missing, and RAVDESS' own names of them are read too. LibriSpeech is read
as it is published, and is for tests alone.

| corpus | licence, as its publisher states it |
|---|---|
| speechocean762 | CC BY 4.0 |
| wuw2_phone | CC BY-SA 4.0 |
| precise_community, ljspeech_part | public domain |
| asterisk_allison | CC BY-SA 3.0 |
| speech_commands_mini, librispeech | CC BY 4.0 |
| ravdess | CC BY-NC-SA 4.0: not for a model that is shipped |

A split that is `test` in the list is held out as a whole. Beside it a few speakers of each large corpus are held out
for validation; none of their recordings is learnt from, and no test recording is altered or copied.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from dualslm import audio
from dualslm.audio import SAMPLE_RATE, load
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from studies.pocket.texts import LISTS, for_alignment, names_in, sentence_case
from studies.pocket.voices import other_speed, recorded

ADULT = 16  # years; below it a voice tells little of its speaker's sex
MAX_SECONDS = 20.0  # of a recording that is learnt from or tested on
TONE_SECONDS = (1.0, 12.0)  # of a recording from which pitch and tempo can be told
VALIDATION_SHARE = 0.1  # of the training speakers of a corpus, for validation
MIN_SPEAKERS = 10  # of a corpus from which some are held out: of fewer, each is too large a part
UNSAID = (LISTS, "wordnet")  # sources of texts that nobody would reply to
TALK_WORDS = (4, 22)  # of a recording that the LLM replies to
TALK_SECONDS = 8.0  # of it at most: a step through the LLM costs what its prompt is long
TALKS = 4_000  # such recordings: the LLM writes some 40 words a second on one core
# Recordings of one speaker for P, so that a corpus of few speakers is not most of what it hears, or is tested on.
TONE_PER_SPEAKER = {"train": 25, "validation": 5, "test": 5}
COLUMNS = {"path": ("path", "flac"), "seconds": ("seconds", "duration"), "speaker": ("speaker", "actor")}
COLUMNS |= {"sex": ("sex", "gender")}
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female"}
EMOTIONS = {"surprise": "surprised", "fear": "fearful", "disgust": "disgusted", "anger": "angry"}
RAVDESS_TEST = frozenset(f"{actor:02d}" for actor in range(13, 19))  # as in the study of real voices


@dataclass(frozen=True)
class Recording:
    """One recording of a corpus.

    Attributes:
        id: unique among all corpora.
        audio: absolute path.
        corpus: name of the corpus.
        split: "train", "validation" or "test".
        seconds: length.
        speaker: unique among all corpora.
        text: transcript as its corpus has it.
        gender: "male" or "female"; "" where it is not known or the speaker is a child.
        emotion: "" where it is not known.
        is_adult: False only where an age is given that is below `ADULT`.
    """

    id: str
    audio: str
    corpus: str
    split: str
    seconds: float
    speaker: str
    text: str
    gender: str = ""
    emotion: str = ""
    is_adult: bool = True


def read(data: Path, seed: int = 0) -> list[Recording]:
    """All recordings that the corpora below a folder list, split by speaker.

    Raises:
        DualSLMError: no `labels.csv` there.
    """
    lists = _below(data, "labels.csv")
    found = [recording for file in lists for recording in _listed(file)] + list(_librispeech(data))
    if not found:
        raise DualSLMError(f"no recordings in {data}", got="no labels.csv", do="give the folder of the corpora")
    held = _validation_speakers(found, seed)
    return [replace(one, split="validation") if one.split == "train" and one.speaker in held else one for one in found]


def _listed(file: Path) -> Iterator[Recording]:
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            own = {name: row.get(next((key for key in keys if key in row), ""), "") for name, keys in COLUMNS.items()}
            corpus = row.get("corpus") or file.parent.name
            held_out = corpus == "ravdess" and own["speaker"] in RAVDESS_TEST
            age = row.get("age") or ""
            is_adult = not age.isdigit() or int(age) >= ADULT
            if not row.get("text"):
                continue  # nothing to be aligned with, and nothing to be counted
            yield Recording(
                id=f"{corpus}_{Path(own['path']).with_suffix('').as_posix().replace('/', '_')}",
                audio=str((file.parent / own["path"]).resolve()),
                corpus=corpus,
                split=row.get("split") or ("test" if held_out else "train"),
                seconds=float(own["seconds"]),
                speaker=f"{corpus}/{own['speaker']}",
                text=row["text"].replace("_", " "),
                gender=SEXES.get(own["sex"].lower(), "") if is_adult else "",
                emotion=EMOTIONS.get(row.get("emotion") or "", row.get("emotion") or ""),
                is_adult=is_adult,
            )


def _librispeech(data: Path) -> Iterator[Recording]:
    for listing in _below(data, ".trans.txt"):
        sexes = _librispeech_sexes(listing.parents[3])
        for line in listing.read_text().splitlines():
            name, _, text = line.partition(" ")
            path = listing.parent / f"{name}.flac"
            # Scraps of the corpus are enough, so a transcript may lack its recording.
            if path.exists():
                speaker = name.split("-")[0]
                yield Recording(
                    name,
                    str(path.resolve()),
                    "librispeech",
                    "test",
                    audio.duration(path),
                    f"librispeech/{speaker}",
                    text,
                    sexes.get(speaker, ""),
                )


def _below(data: Path, ending: str) -> list[Path]:
    """Files by the end of their names, in linked folders too: corpora are large, and seldom lie where they are used."""
    found = [Path(folder) / name for folder, _, names in os.walk(data, followlinks=True) for name in names]
    return sorted(path for path in found if path.name.endswith(ending))


def _librispeech_sexes(root: Path) -> dict[str, str]:
    file = root / "SPEAKERS.TXT"
    if not file.exists():
        return {}
    lines = [line.split("|") for line in file.read_text().splitlines() if line and not line.startswith(";")]
    return {fields[0].strip(): SEXES[fields[1].strip().lower()] for fields in lines}


def _validation_speakers(found: Sequence[Recording], seed: int) -> set[str]:
    """Training speakers that are held out for validation; a speaker with a test recording is none."""
    speakers: dict[str, set[str]] = defaultdict(set)
    for one in found:
        if one.split == "train":
            speakers[one.corpus].add(one.speaker)
    held: set[str] = set()
    for corpus, own in sorted(speakers.items()):
        if len(own) >= MIN_SPEAKERS:
            count = max(1, round(VALIDATION_SHARE * len(own)))
            held |= set(random.Random(f"{seed}/{corpus}").sample(sorted(own), count))
    return held


# ---------------------------------------------------------------------- manifests


def write(data: Path, work: Path, seed: int = 0) -> None:
    """Writes all manifests below `work/manifests`, altered copies of what is learnt from, and says how much it is."""
    found = read(data, seed)
    # Speakers who are both tested and learnt from would make every figure of the test one of memory.
    known = {one.speaker for one in found if one.split == "train"}
    if both := sorted(known & {one.speaker for one in found if one.split != "train"}):
        raise DualSLMError("speakers in two splits", got=", ".join(both[:3]), do="correct the column split")
    capitals = names_in(one.text for one in found) | _names(work)
    out = work / "manifests"
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    # Acted corpora hold a few sentences over and over, which would teach L to expect them; they are for P alone.
    spoken = [one for one in found if one.seconds <= MAX_SECONDS and not one.emotion]
    for one in spoken:
        set_name = f"words-{one.split}" if one.split != "test" else f"words-test-{_test_set(one)}"
        files[set_name].append(words_row(one, capitals))
    training = [one for one in spoken if one.split == "train"]
    altered = {one.id: copy for one, copy in zip(training, _altered(training, work / "altered", seed), strict=True)}
    files["words-altered"] = [words_row(one, capitals) for one in altered.values()]
    synthetic = list(_synthetic(work / "voices"))
    files["words-synthetic"] = [words_row(one, capitals) for one in synthetic]
    validation = [one for one in spoken if one.split == "validation"]
    for name, candidates in (("train", training + synthetic), ("validation", validation)):
        files[f"talk-{name}"] = [talk_row(one, capitals) for one in _for_talk(candidates, seed)]
    emotions: dict[str, set[str]] = defaultdict(set)
    for one in found:
        emotions[one.corpus] |= {one.emotion} - {""}
    for one in _for_tone(found, seed):
        if one.split == "train" and not one.emotion:
            # Its labels are measured anew: speed moves pitch and tempo.
            files["tone-altered"].append(tone_row(altered[one.id], capitals, set()))
        # A corpus of acted emotions has manifests of its own: what learns from RAVDESS may not be shipped.
        name = f"tone-{one.split}-{one.corpus}" if one.emotion else f"tone-{one.split}"
        files[name].append(tone_row(one, capitals, emotions[one.corpus]))
    for name, rows in sorted(files.items()):
        hours = sum(row["seconds"] for row in rows) / 3600
        print(f"{name}: {len(rows)} recordings, {len({row['speaker'] for row in rows})} speakers, {hours:.2f} h")
        with replacing(out / f"{name}.jsonl") as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words_row(one: Recording, capitals: set[str]) -> dict[str, Any]:
    """A line for L: as alignment needs its transcript, and as a reader would write it in a test."""
    written = sentence_case if one.split == "test" else for_alignment
    return _row(one, {"audio": one.audio, "transcript": written(one.text, capitals)}, ["asr"])


def tone_row(one: Recording, capitals: set[str], emotions: set[str]) -> dict[str, Any]:
    """A line for P, to which `label` adds pitch, energy and tempo."""
    labels = {name: value for name, value in (("gender", one.gender), ("emotion", one.emotion)) if value}
    part: dict[str, Any] = {"audio": one.audio, "transcript": sentence_case(one.text, capitals), "labels": labels}
    if one.emotion:
        # The corpus' own emotions: with those of the product's task, calm would be no choice.
        part["choices"] = {"emotion": sorted(emotions)}
    return _row(one, part, [*labels, "asr"])


def talk_row(one: Recording, capitals: set[str]) -> dict[str, Any]:
    """A line for the stages that run the LLM: it replies to the words and to how they are said."""
    labels = {"gender": one.gender} if one.gender else {}
    part = {"audio": one.audio, "transcript": sentence_case(one.text, capitals), "labels": labels}
    return _row(one, part, [*labels, "asr", "respond"])


def _row(one: Recording, part: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    turns = [{"role": "user", "parts": [part]}]
    about = {"seconds": one.seconds, "speaker": one.speaker}
    return {"id": one.id, "corpus": one.corpus, "tasks": list(tasks), "turns": turns, **about}


def _test_set(one: Recording) -> str:
    """Children are a test of their own: no one of their age is learnt from in numbers."""
    return one.corpus if one.is_adult else f"{one.corpus}-children"


def _for_tone(found: Sequence[Recording], seed: int) -> list[Recording]:
    """The recordings for P: a few of each speaker, and all that are acted."""
    low, high = TONE_SECONDS
    fitting = [one for one in found if low <= one.seconds <= high and one.is_adult]
    random.Random(f"{seed}/tone").shuffle(fitting)
    count = Counter[str]()
    out = []
    for one in fitting:
        count[one.speaker] += 1
        if one.emotion or count[one.speaker] <= TONE_PER_SPEAKER[one.split]:
            out.append(one)
    return out


def _for_talk(found: Sequence[Recording], seed: int) -> list[Recording]:
    """Recordings of a sentence that somebody may say: neither lists of words nor a dictionary's examples."""
    low, high = TALK_WORDS
    fitting = [
        one
        for one in found
        if low <= len(one.text.split()) <= high and one.seconds <= TALK_SECONDS and not one.id.startswith(UNSAID)
    ]
    return random.Random(f"{seed}/talk").sample(fitting, min(TALKS, len(fitting)))


def _altered(training: Iterable[Recording], folder: Path, seed: int) -> Iterator[Recording]:
    """A copy of each recording at another speed, in another room and with noise."""
    for one in training:
        rng = random.Random(f"{seed}/{one.id}")
        path = folder / f"{one.id}.flac"
        if not path.exists():
            samples = recorded(other_speed(load(one.audio), rng), rng)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                soundfile.write(partial, np.asarray(samples, np.float32), SAMPLE_RATE, format="FLAC")
        seconds = round(audio.duration(path), 2)
        yield replace(one, id=f"{one.id}-altered", audio=str(path.resolve()), seconds=seconds)


def _synthetic(folder: Path) -> Iterator[Recording]:
    for listing in sorted(folder.glob("part-*.jsonl")):
        for row in map(json.loads, listing.read_text().splitlines()):
            path = str((folder / row["audio"]).resolve())
            # Every clip is a speaker of its own: its voice was drawn for it.
            speaker = f"{row['voice']}/{row['id']}"
            yield Recording(row["id"], path, row["voice"], "train", row["seconds"], speaker, row["text"])


def _names(work: Path) -> set[str]:
    file = work / "names.json"
    return set(json.loads(file.read_text())) if file.exists() else set()


# ---------------------------------------------------------------------- labels of P


def label(folder: Path) -> int:
    """Adds pitch, energy and tempo by `dualslm label`: `tone-X.jsonl` → `tone-X-labelled.jsonl`, `talk-X` likewise.

    What is low or high is measured among the training recordings alone, and used for all others.

    Returns:
        The exit status.
    """
    from dualslm.cli.main import main

    first = folder / "tone-train-labelled.jsonl"
    if status := main(["label", str(folder / "tone-train.jsonl"), str(first), "--ask", "--by-gender"]):
        return status
    report = json.loads(first.with_suffix(".report.json").read_text())
    options = [
        f"--{name}={'' if group == 'any' else f'{group}:'}{low},{high}"
        for name, groups in report["thresholds"].items()
        for group, (low, high) in groups.items()
    ]
    for file in sorted([*folder.glob("tone-*.jsonl"), *folder.glob("talk-*.jsonl")]):
        if file.stem == "tone-train" or file.stem.endswith("-labelled"):
            continue
        labelled = file.with_name(f"{file.stem}-labelled.jsonl")
        if status := main(["label", str(file), str(labelled), "--ask", *options]):
            return status
    return 0
