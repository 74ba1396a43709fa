"""LibriSpeech: read books with transcripts, by official splits (paper §IV-A: ASR).

The transcripts are walked, not the audio files, so that a line whose recording is missing is counted. train-*
becomes `train`, dev-* `validation`, and each test-* a split of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dualslm.data.corpora.base import NO_TRANSCRIPT, Corpus, Entry, Option, Raw, first_folder, text_of
from dualslm.errors import DualSLMError

SIDES = {"train": "train", "dev": "validation"}
LABELS = {"gender": {"M": "male", "F": "female"}}  # SPEAKERS.TXT, column SEX

# Readers whose sex in SPEAKERS.TXT is wrong by the ear of another listener. Source: the copy of SPEAKERS.TXT in
# github.com/oscarknagg/raw-audio-gender-classification, compared with the official file.
SEX_CORRECTIONS = {
    "2053": "M",
    "2078": "F",
    "3989": "F",
    "5123": "F",
    "6686": "F",
    "7085": "F",
    "7117": "M",
    "7976": "F",
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each line of every transcript file."""
    root = first_folder(raw.root, ("", "LibriSpeech"), "SPEAKERS.TXT", "LibriSpeech")
    sexes = speakers(root / "SPEAKERS.TXT")
    if raw.options["sex-corrections"]:
        sexes |= SEX_CORRECTIONS
    wanted = parts(root, raw.options["part"])
    chapters = [(part, path) for part in wanted for path in sorted((root / part).glob("*/*/*.trans.txt"))]
    lines = [(part, path, text_of(path).splitlines()) for part, path in chapters]
    raw.total = sum(len(found) for _, _, found in lines)
    raw.notes["parts"] = ", ".join(dict.fromkeys(part for part, _, _ in lines))
    for part, path, found in lines:
        for line in found:
            yield _entry(raw, part, path.parent, line, sexes)


def speakers(path: Path) -> dict[str, str]:
    """M or F by reader, from SPEAKERS.TXT."""
    rows = (line for line in text_of(path).splitlines() if line.strip() and not line.startswith(";"))
    # Four splits at most: the last column is the reader's name, and one of them, |CBW|Simon, holds the separator.
    cells = [[cell.strip() for cell in line.split("|", maxsplit=4)] for line in rows]
    if bad := next((row for row in cells if len(row) < 2 or row[1] not in LABELS["gender"]), None):
        raise DualSLMError(f"{path} is not LibriSpeech's", got=" | ".join(bad)[:60], do="unpack it again")
    return {row[0]: row[1] for row in cells}


def parts(root: Path, wanted: tuple[str, ...]) -> list[str]:
    """The wanted parts, or all that exist when none is named."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and "-" in path.name and path.name[0] != ".")
    known = [name for name in found if name.split("-")[0] in ("train", "dev", "test")]
    if unknown := [name for name in wanted if name not in known]:
        raise DualSLMError(f"no part {unknown[0]} in {root}", got=", ".join(known) or "none", do="name one of these")
    return [name for name in known if not wanted or name in wanted]


def _entry(raw: Raw, part: str, folder: Path, line: str, sexes: Mapping[str, str]) -> Entry:
    name, _, words = line.strip().partition(" ")
    side = part.split("-")[0]
    split = SIDES.get(side, part)
    speaker = name.split("-")[0]
    if not words.strip():
        return Entry(split, name, NO_TRANSCRIPT)
    labels = {"gender": LABELS["gender"][sexes[speaker]]} if speaker in sexes else {}
    # An LLM's tokenizer cuts words in capitals into many more tokens than the same words in lower case.
    transcript = words.strip() if raw.options["capitals"] else words.strip().lower()
    part_of_turn = {"transcript": transcript, "labels": labels}
    path = folder / f"{name}.flac"
    return raw.spoken(split, name, path, part=part_of_turn, row={"speaker": speaker, "source": part})


CORPUS = Corpus(
    name="librispeech",
    about="read books with transcripts (openslr.org/12), for asr; gender too when asked",
    rows=rows,
    tasks=("asr",),
    labels=LABELS,
    apart=lambda _: ("clip", "speaker"),
    options=(
        Option("part", "use this part alone, for example dev-clean; may be repeated", (), metavar="NAME"),
        Option("sex-corrections", "correct the sex of 8 readers", False),
        Option("capitals", "keep the transcripts in capitals", False),
    ),
)
