"""What there is to learn from: the examples of a recipe's manifests, and what `prepare` makes where there is none yet.

Counts follow weights and kinds as training does. Lengths of recordings are those that lines state, else those of their
files' headers. The number of tokens of a text is guessed from its characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from dualslm.audio import FRAMES_PER_SECOND, duration
from dualslm.data.manifest_index import TARGETS, rows
from dualslm.data.tasks import finished, waiting
from dualslm.errors import DualSLMError
from dualslm.recipe import TASK_KINDS, Recipe, TaskKind

CHARACTERS_PER_TOKEN = 4.0  # of English text
SECONDS_PER_CHARACTER = 0.065  # about 15 characters of transcript a second
TEMPLATE_TOKENS = 8  # of a chat template around each turn
PROBED = 2000  # recordings whose headers are read where lines do not state lengths: a second or less
Clips: TypeAlias = Sequence[tuple[float, float]]
"""Recordings as pairs of a length in seconds and a number of recordings of that length."""


@dataclass(frozen=True)
class Lengths:
    """Average lengths of one example of a kind.

    Attributes:
        context: tokens before the speech that is answered.
        seconds: duration of that speech in seconds.
        after: tokens between the speech and the last reply, earlier replies that are learnt among them.
        reply: tokens of the last reply, which are learnt.
        shared: number of examples in a batch that begin alike and share one prefix.
        heard: embeddings that earlier recordings add to the context where they are heard and not read; may be negative.
    """

    context: float
    seconds: float
    after: float
    reply: float
    shared: float = 1.0
    heard: float = 0.0


PAPER_LENGTHS: Mapping[TaskKind, Lengths] = MappingProxyType(
    {
        "linguistic": Lengths(20, 12.3, 4, 36),
        "paralinguistic": Lengths(20, 4.0, 30, 12),
        "dual": Lengths(150, 4.0, 4, 30),
    }
)
TINY_LENGTHS: Mapping[TaskKind, Lengths] = MappingProxyType(
    {
        "linguistic": Lengths(20, 2.5, 4, 10),
        "paralinguistic": Lengths(20, 2.5, 30, 8),
        "dual": Lengths(40, 2.5, 4, 10),
    }
)


@dataclass(frozen=True)
class Corpus:
    """The examples that `prepare`, or the build of the tiny world, makes of one split.

    Attributes:
        examples: number of examples of each kind.
        recordings: number of recordings.
        seconds: their average length.
        lengths: average lengths of the examples.
    """

    examples: Mapping[TaskKind, int]
    recordings: int
    seconds: float
    lengths: Mapping[TaskKind, Lengths] = field(default_factory=lambda: PAPER_LENGTHS)


# By folder and name of the manifest, as `prepare` writes them by default. Conversations wait for their replies, which a
# file of targets then holds: they are counted once.
CORPORA: Mapping[tuple[str, str], Corpus] = MappingProxyType(
    {
        ("librispeech", "train"): Corpus({"linguistic": 281_241}, 281_241, 12.3),
        ("librispeech", "validation"): Corpus({"linguistic": 5_567}, 5_567, 7.0),
        # Five questions for each recording, of which the paper's recipes weigh each a fifth.
        ("textrolspeech", "train"): Corpus({"paralinguistic": 5 * 212_598}, 212_598, 4.0),
        ("textrolspeech", "validation"): Corpus({"paralinguistic": 5 * 11_811}, 11_811, 4.0),
        ("meld", "train"): Corpus({"paralinguistic": 9_988}, 9_988, 3.6),
        ("meld", "validation"): Corpus({"paralinguistic": 1_108}, 1_108, 3.6),
        # Each with its three turns of context, and cut at its three midpoints.
        ("styletalk", "train"): Corpus({"dual": 4 * 1_746}, 1_746, 4.0),
        ("styletalk", "validation"): Corpus({"dual": 4 * 92}, 92, 4.0),
        # Every user turn that is answered: nearly half of 23,773 utterances, of which a twentieth is validation.
        ("dailytalk", "train"): Corpus({"dual": 10_100}, 10_100, 4.0),
        ("dailytalk", "validation"): Corpus({"dual": 560}, 560, 4.0),
        ("talks", "train"): Corpus(
            {"linguistic": 11_912, "paralinguistic": 16_000, "dual": 11_912}, 16_000, 2.5, TINY_LENGTHS
        ),
        ("talks", "more"): Corpus(
            {"linguistic": 23_666, "paralinguistic": 32_000, "dual": 23_666}, 32_000, 2.5, TINY_LENGTHS
        ),
        # Random words, of recordings that the questions of the manifest beside it ask about too.
        ("talks", "train-soups"): Corpus({"linguistic": 4_088}, 0, 2.5, TINY_LENGTHS),
        ("talks", "more-soups"): Corpus({"linguistic": 8_334}, 0, 2.5, TINY_LENGTHS),
        ("talks", "validation"): Corpus(
            {"linguistic": 212, "paralinguistic": 300, "dual": 212}, 300, 2.5, TINY_LENGTHS
        ),
    }
)
# LibriSpeech, TextrolSpeech and MELD, StyleTalk and DailyTalk: where nothing tells what a recipe learns from.
PAPER = Corpus({"linguistic": 281_241, "paralinguistic": 222_586, "dual": 17_084}, 515_673, 8.5)


@dataclass
class Sums:
    """Sums over the examples of one kind: their number, tokens of text, seconds of speech."""

    examples: float = 0.0
    context: float = 0.0
    seconds: float = 0.0
    after: float = 0.0
    reply: float = 0.0
    heard: float = 0.0

    def add(self, other: Sums, weight: float) -> None:
        """Adds weighted sums; of a manifest's examples a whole number, as an epoch holds."""
        count = round(weight * other.examples)
        share = count / other.examples if other.examples else 0.0
        self.examples += count
        self.context += share * other.context
        self.seconds += share * other.seconds
        self.after += share * other.after
        self.reply += share * other.reply
        self.heard += share * other.heard

    @property
    def lengths(self) -> Lengths:
        """Average lengths."""
        count = self.examples
        return Lengths(
            self.context / count,
            self.seconds / count,
            self.after / count,
            self.reply / count,
            heard=self.heard / count,
        )


@dataclass
class Manifest:
    """What a manifest holds.

    Attributes:
        kinds: sums over the examples of each kind.
        waiting: sums over the examples whose replies are not written yet.
        answers: number of replies that `dualslm targets` has written.
        clips: lengths of the recordings of its examples, by path; None where no line states it.
        guessed: lengths guessed from transcripts, by path.
        unnamed: recordings that are assumed.
        assumed: whether the manifest is not here.
    """

    kinds: dict[TaskKind, Sums] = field(default_factory=dict)
    waiting: Sums = field(default_factory=Sums)
    answers: int = 0
    clips: dict[str, float | None] = field(default_factory=dict)
    guessed: dict[str, float] = field(default_factory=dict)
    unnamed: Clips = ()
    assumed: bool = False


def manifest(path: Path) -> Manifest | None:
    """A manifest, or what is assumed of one that is not here; None where nothing is known of it."""
    if path.exists():
        return _read(path)
    corpus = CORPORA.get((path.parent.name, path.stem))
    return None if corpus is None else assumed(corpus)


def assumed(corpus: Corpus) -> Manifest:
    """A corpus as the manifest that is made of it."""
    found = Manifest(unnamed=[(corpus.seconds, corpus.recordings)], assumed=True)
    for kind, count in corpus.examples.items():
        one = corpus.lengths[kind]
        sums = (one.context, one.seconds, one.after, one.reply)
        found.kinds[kind] = Sums(count, *(count * length for length in sums))
    return found


def counted(manifests: Sequence[tuple[Manifest, float]]) -> dict[TaskKind, Sums]:
    """The examples of an epoch of weighted manifests.

    Args:
        manifests: manifests with their weights.
    """
    kinds: dict[TaskKind, Sums] = {}
    waiting = Sums()
    for one, weight in manifests:
        for kind, sums in one.kinds.items():
            kinds.setdefault(kind, Sums()).add(sums, weight)
        waiting.add(one.waiting, weight)
    # Lines that ask for replies and the replies themselves are the same examples: what is not written yet is expected.
    answers = sum(one.answers for one, _ in manifests)
    if waiting.examples > answers:
        kinds.setdefault("dual", Sums()).add(waiting, (waiting.examples - answers) / waiting.examples)
    return {kind: kinds[kind] for kind in TASK_KINDS if kind in kinds and kinds[kind].examples}


def clips(manifests: Sequence[Manifest]) -> list[tuple[float, float]]:
    """The recordings of some manifests, each once."""
    stated: dict[str, float | None] = {}
    guessed: dict[str, float] = {}
    for one in manifests:
        for path, seconds in one.clips.items():
            stated[path] = seconds if stated.get(path) is None else stated[path]
        guessed |= one.guessed
    found = [(seconds, 1.0) for seconds in stated.values() if seconds is not None]
    unknown = [path for path, seconds in stated.items() if seconds is None]
    some = unknown[:: max(1, -(-len(unknown) // PROBED))]
    probed = [seconds for path in some if (seconds := _probed(path)) is not None]
    # Recordings that are not on this machine have the length of their words.
    lengths = probed or [guessed[path] for path in some]
    found += [(seconds, len(unknown) / len(lengths)) for seconds in lengths]
    return found + [clip for one in manifests for clip in one.unnamed if clip[1]]


def of_stages(recipe: Recipe) -> tuple[list[tuple[str, Manifest]], Mapping[str, Sequence[tuple[Manifest, float]]]]:
    """The manifests of a recipe by path, those for validation last, and the weighted ones of each stage."""
    weights = recipe.data.weights or [1.0] * len(recipe.data.train)
    listed = [*recipe.data.train, *(path for stage in recipe.stages for path in stage.also), *recipe.data.validation]
    known = {path: found for path in dict.fromkeys(listed) if (found := manifest(Path(path))) is not None}
    for path, found in known.items():
        targets = known.get(str(Path(path).with_suffix(TARGETS)))
        # Once the replies of a manifest are written, what still waits in it was left out as no target.
        if targets is not None and not targets.assumed:
            found.waiting = Sums()
            targets.answers = 0
    train = [(known[path], weight) for path, weight in zip(recipe.data.train, weights, strict=True) if path in known]
    stages = {
        stage.name: [*train, *((known[path], 1.0) for path in stage.also if path in known)] for stage in recipe.stages
    }
    if not any(stages.values()):
        paper = assumed(PAPER)
        return [("", paper)], {stage.name: [(paper, 1.0)] for stage in recipe.stages}
    return list(known.items()), stages


# ---------------------------------------------------------------------- line by line


def _probed(path: str) -> float | None:
    try:
        return duration(Path(path))
    except DualSLMError:
        return None


def _read(path: Path) -> Manifest:
    found = Manifest()
    reply = "x" * round(PAPER_LENGTHS["dual"].reply * CHARACTERS_PER_TOKEN)
    spoken: list[tuple[Sums, str]] = []  # the speech that each example is about, whose length is added at the end
    for _, row in rows(path):
        found.answers += "provenance" in row
        made = list(finished(row))
        for example in made:
            sums = found.kinds.setdefault(example["kind"], Sums())
            spoken.append((sums, _add(found, sums, example, path.parent)))
        asked = waiting(row)
        if asked is not None:
            turns = [*asked["turns"], {"role": "assistant", "parts": [reply]}]
            spoken.append((found.waiting, _add(found, found.waiting, {**asked, "turns": turns}, path.parent)))
    unknown = [name for name, seconds in found.clips.items() if seconds is None]
    some = unknown[:: max(1, -(-len(unknown) // PROBED))]
    probed = {name: seconds for name in some if (seconds := _probed(name)) is not None}
    mean = sum(probed.values()) / len(probed) if probed else None
    for sums, name in spoken:
        seconds = found.clips.get(name) or probed.get(name) or mean
        sums.seconds += found.guessed.get(name, 0.0) if seconds is None else seconds
    return found


def _add(found: Manifest, sums: Sums, example: Mapping[str, Any], folder: Path) -> str:
    """Adds an example but the length of its speech, and gives the path of that speech.

    Args:
        found: manifest whose recordings the example's are added to.
        sums: sums of the example's kind.
        example: example, whose last turn is the reply.
        folder: folder of the manifest.
    """
    before = float(len(example.get("system") or ""))
    after = 0.0
    heard = 0.0
    last = ""
    words = ""  # of that speech
    *turns, answer = example["turns"]
    for turn in turns:
        for part in turn["parts"]:
            if isinstance(part, str):
                after += len(part)
                continue
            # An earlier speech counts as context, by its words; heard, its five frames become an embedding, as long as
            # a token is.
            before += after + len(words)
            heard += found.guessed.get(last, 0.0) * FRAMES_PER_SECOND / 5 - len(words) / CHARACTERS_PER_TOKEN
            after = 0.0
            last = str(folder / part["audio"]) if part.get("audio") else ""
            words = part.get("transcript") or ""
            found.guessed[last] = len(words) * SECONDS_PER_CHARACTER
            if last:
                found.clips.setdefault(last, None)
    recordings = [part for part in turns[-1]["parts"] if not isinstance(part, str)] if turns else []
    # The field is the length of the recording, or of all recordings, of the user's last turn.
    if last in found.clips and len(recordings) == 1 and example.get("seconds"):
        found.clips[last] = float(example["seconds"])
    sums.examples += 1
    sums.context += before / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    sums.heard += heard
    sums.after += after / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    sums.reply += sum(len(part) for part in answer["parts"] if isinstance(part, str)) / CHARACTERS_PER_TOKEN
    return last


def missing(recipe: Recipe) -> Iterator[str]:
    """The training manifests that are not here."""
    listed = [*recipe.data.train, *(path for stage in recipe.stages for path in stage.also)]
    yield from (path for path in dict.fromkeys(listed) if not Path(path).exists())
