"""TextrolSpeech: captioned speech from several corpora, with gender, pitch, tempo, energy, emotion (paper §IV-A).

The caption files name recordings by paths that are seldom those on the user's disk: old prefixes, VCTK in another
release, folders spelled in two ways, or names with "-" for "/". So every path, in the files and on the disk, is
reduced to a key of the parts that do not vary, and keys are compared. The splits are our own: by speaker, or by clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from dualslm.data.corpora.base import (
    DUPLICATE,
    KNOWN_BAD,
    LABEL_UNKNOWN,
    Corpus,
    Entry,
    Option,
    Raw,
    look_into,
    split_of,
    table,
    translate,
    walk,
)
from dualslm.errors import DualSLMError

SUFFIXES = (".wav", ".flac")
# Our name of a column → its names in caption files and scripts of TextrolSpeech and of its sibling VccmDataset.
COLUMNS = {
    "path": ("wav_fp", "wav_path", "item_name"),
    "caption": ("style_prompt", "caption"),
    "transcript": ("content_prompt", "txt", "text"),
    "gender": ("gender",),
    "pitch": ("pitch",),
    "tempo": ("tempo", "dur", "speed"),
    "energy": ("energy", "volume"),
    "emotion": ("emotion",),
    "speaker": ("spk", "speaker"),
}
REQUIRED = ("path", "caption")

# Values: README and dataprocess.py of github.com/jishengpeng/TextrolSpeech at aeb4676, whose tempo counts seconds a
# word below a threshold as "high", so high is fast. No emotion is written nan or None there and means neutral.
EMOTIONS = ("neutral", "sad", "surprised", "angry", "happy", "fear", "contempt", "disgusted")
LEVELS = {"low": "low", "normal": "normal", "high": "high"}
LABELS = {
    "gender": {"m": "male", "f": "female", "male": "male", "female": "female"},
    "pitch": LEVELS,
    "tempo": {"low": "slow", "normal": "normal", "high": "fast"},
    "energy": LEVELS,
    "emotion": {name: name for name in EMOTIONS} | dict.fromkeys(("", "nan", "none"), "neutral"),
}

# Source: lhotse, recipe libritts.
BAD = {"1092_134562_000013_000004": "a damaged file of LibriTTS"}

LIBRITTS = re.compile(r"(?:.*-)?((\d+)_\d+_\d{6}_\d{6})")
VCTK = re.compile(r"(?:.*-)?(([ps]\d+)_\d+)(?:_mic\d)?")  # release 0.92 has a file for each microphone
# Folders of the emotional corpora, in letters and digits alone, and how a speaker is found in what follows.
FOLDERS = {
    "esd": (r"esd|emotion(al)?speechdataset(esd)?", r"(\d{4})"),
    "mead": (r"mead", r"([mw]\d{3})"),
    "mess": (r"mess(compressed)?", r"()"),
    "tess": (r"tess(torontoemotionalspeechsetdata)?", r"(oaf|yaf)"),
    "savee": (r"savee", r"(?:all)?(dc|je|jk|kl)"),
    "cremad": (r"cremad", r"(?:audiowav)?(\d{4})"),
    "ravdess": (r"ravdess", r"(actor\d\d)"),
}


def rows(raw: Raw) -> Iterator[Entry]:
    """One entry for each row of the caption files."""
    files = captions(raw)
    raw.notes["caption files"] = ", ".join(path.name for path in files)
    raw.total = sum(look_into(path)[1] - 1 for path in files)
    index = index_of(raw.root)
    seen: set[int] = set()  # keys as hashes: there are hundreds of thousands
    for path in files:
        for line in table(path, ()):
            yield _entry(raw, _columns(line, path), index, seen, path.name)


def captions(raw: Raw) -> list[Path]:
    """The caption files: those of `--captions`, else every CSV file of the folder `caption`, else of the root."""
    if named := raw.options["captions"]:
        return [Path(name) for name in named]
    if not raw.root.is_dir():
        raise DualSLMError(f"{raw.root} is not a folder", got="no such folder", do="give the folder of TextrolSpeech")
    for folder in (raw.root / "caption", raw.root / "textrolspeech" / "caption", raw.root):
        if found := sorted(path for path in folder.glob("*.csv") if not path.name.startswith(".")):
            return found
    raise DualSLMError(
        f"no caption file in {raw.root}",
        got="no caption/*.csv",
        do="download the text archive, or name it by --captions",
    )


def key_of(path: str) -> str:
    """The key of a recording: the parts of its path or name that do not vary.

    Args:
        path: path in a caption file or on the disk.

    >>> key_of("VCTK-Corpus/wav48/p307/p307_129.wav"), key_of("wav48_silence_trimmed/p307/p307_129_mic1.flac")
    ('p307_129', 'p307_129')
    >>> key_of("MEAD-W028-audio-happy-level_2-020"), key_of("old/emotion_dataset/MEAD/W028/audio/happy/level_2/020.wav")
    ('mead/w028audiohappylevel2020', 'mead/w028audiohappylevel2020')
    """
    # CREMA-D alone has a "-" within its name, where names without "/" are split.
    pure = PurePosixPath(path.strip().replace("\\", "/").replace("CREMA-D", "CREMAD"))
    if pure.suffix.lower() in SUFFIXES:
        pure = pure.with_suffix("")
    for pattern in (LIBRITTS, VCTK):
        if match := pattern.fullmatch(pure.name):
            return match[1]
    names = pure.parts if len(pure.parts) > 1 else pure.name.split("-")
    parts = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    # From the innermost folder on: ESD's archive has two nested folders of its name, of which copies keep one.
    for depth in reversed(range(len(parts) - 1)):
        for name, (folder, _) in FOLDERS.items():
            if re.fullmatch(folder, parts[depth]):
                return f"{name}/{''.join(parts[depth + 1 :])}"
    return "/".join(parts[-2:])


def speaker_of(key: str) -> str:
    """The speaker of a key; a corpus whose names do not show the speaker counts as one speaker."""
    for name, pattern in (("libritts", LIBRITTS), ("vctk", VCTK)):
        if match := pattern.fullmatch(key):
            return f"{name}-{match[2]}"
    corpus, _, rest = key.partition("/")
    if corpus in FOLDERS and (match := re.match(FOLDERS[corpus][1], rest)) and match[1]:
        return f"{corpus}-{match[1]}"
    return corpus


def index_of(root: Path) -> dict[str, str]:
    """The path of every recording below a folder by its key; of several files of one, the first by `_rank`."""
    index: dict[str, str] = {}
    for path in walk(root, SUFFIXES):
        name = str(path)
        key = key_of(name[len(str(root)) + 1 :])  # ten times as fast as relative_to
        if key not in index or _rank(name) < _rank(index[key]):
            index[key] = name
    return index


def _rank(path: str) -> tuple[bool, bool, str]:
    # Wav before flac, microphone 1 before 2, and VCTK's older release, which has one microphone, before both.
    return ("_mic" in path, path.endswith(".flac"), path)


def _columns(line: Mapping[str, str], path: Path) -> dict[str, str]:
    """A row under our names of columns; columns that the file does not have are left out."""
    found = {ours: next((line[name] for name in names if name in line), None) for ours, names in COLUMNS.items()}
    for name in REQUIRED:
        if found[name] is None:
            do = f"it needs a column {' or '.join(COLUMNS[name])}"
            raise DualSLMError(f"{path} is no caption file", got=", ".join(line)[:80] or "no columns", do=do)
    return {name: value.strip() for name, value in found.items() if value is not None}


def _entry(raw: Raw, row: Mapping[str, str], index: Mapping[str, str], seen: set[int], source: str) -> Entry:
    key = key_of(row["path"])
    speaker = row.get("speaker") or speaker_of(key)
    split = split_of(f"{speaker}" if raw.options["split-by"] == "speaker" else key, raw.seed)
    if hash(key) in seen:
        return Entry(split, key, DUPLICATE, "this clip has a caption already")
    seen.add(hash(key))
    if key in BAD:
        return Entry(split, key, KNOWN_BAD, BAD[key])
    values = {name: row[name].lower() for name in LABELS if name in row}
    # Not by `translate`, for which an empty value is unknown: an empty emotion is neutral here.
    emotion = values.pop("emotion", None)
    labels, unknown = translate(values, LABELS)
    if emotion is not None and emotion not in LABELS["emotion"]:
        unknown = f"emotion {emotion!r}"
    if unknown:
        return Entry(split, key, LABEL_UNKNOWN, unknown)
    if emotion is not None:
        labels["emotion"] = LABELS["emotion"][emotion]
    part = {"transcript": row.get("transcript", ""), "caption": row["caption"], "labels": labels}
    path = Path(index[key]) if key in index else None
    return raw.spoken(split, key, path, part=part, row={"speaker": speaker, "source": source})


CORPUS = Corpus(
    name="textrolspeech",
    about="captioned speech (jishengpeng/TextrolSpeech), for gender, pitch, tempo, energy and emotion",
    rows=rows,
    tasks=("gender", "pitch", "tempo", "energy", "emotion"),
    labels=LABELS,
    apart=lambda options: ("clip", "speaker") if options["split-by"] == "speaker" else ("clip",),
    options=(
        Option("split-by", "what stays in one split as a whole", "speaker", ("speaker", "clip")),
        Option("captions", "caption file; may be repeated (default: caption/*.csv)", (), metavar="FILE"),
    ),
)
