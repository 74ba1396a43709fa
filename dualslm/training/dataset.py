"""Examples of manifests → batches of training samples (paper §III-B, §III-C): seeded, stateless, counted.

The examples are those of `dualslm.data.manifest`. The sample at an index of a stage (its kind, example, sources, and
the system text, choices and caption drawn for it) follows from the seed, the stage and the index alone. So a run may
stop anywhere, and have any number of worker processes, and sees the same. A recording that comes again, in the next
epoch or stage, comes with another draw of them all (paper §I, §III-C): the adapters must not learn one wording.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from dualslm.conversation import Conversation, Source, Speech, View, history_view
from dualslm.data.manifest import Example, Examples, permuted
from dualslm.data.tasks import Seed
from dualslm.errors import DualSLMError
from dualslm.model.encoder import Frames
from dualslm.model.inputs import SlotLengths
from dualslm.prompt import Prompt, Text, render
from dualslm.recipe import Kind, Stage, TaskKind, ViewDraw
from dualslm.training.feature_cache import FrameCache

BLOCK = 1000  # samples, within which every kind has exactly its share
MAX_TRIES = 100  # examples with unreadable recordings in a row, after which the data are called unusable


@dataclass(frozen=True)
class TrainingSample:
    """One training example.

    Attributes:
        kind: kind of its task.
        view: sources that were drawn for it.
        prompt: rendered prompt with its labels.
        conversation: id of its example.
        skipped: examples that were due but have a recording that cannot be read: id and reason.
    """

    kind: TaskKind
    view: View
    prompt: Prompt
    conversation: str
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def label_count(self) -> int:
        """The number of tokens that are learnt."""
        return sum(len(segment.ids) for segment in self.prompt.segments if isinstance(segment, Text) and segment.loss)


@dataclass(frozen=True)
class Batch:
    """One process's part of one optimizer step.

    Attributes:
        samples: its samples, shortest prompt first.
        lengths: positions that the prompt of each takes.
        frames: encoder frames (N, T, D) of their recordings, by path.
    """

    samples: list[TrainingSample]
    lengths: list[int]
    frames: Mapping[str, Tensor]

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some of its recordings, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])

    def split(self, max_tokens: int) -> Iterator[list[TrainingSample]]:
        """Micro-batches of samples of like lengths, each of at most `max_tokens` padded positions, or of one sample."""
        micro_batch: list[TrainingSample] = []
        for sample, length in zip(self.samples, self.lengths, strict=True):
            # Lengths ascend, so all would be padded to this one.
            if micro_batch and (len(micro_batch) + 1) * length > max_tokens:
                yield micro_batch
                micro_batch = []
            micro_batch.append(sample)
        if micro_batch:
            yield micro_batch


class StageDataset(Dataset[Batch]):
    """The batches of a stage; item s is this process's part of step s.

    Args:
        stage: stage of the recipe.
        examples: examples to learn from.
        cache: encoder frames of their recordings.
        tokenizer: tokenizer of the frozen LLM.
        seed: seed of every draw.
        lengths: number of embeddings of a recording in each channel, which bounds the memory of a micro-batch.
        rank: index of this process.
        world_size: number of processes.

    Raises:
        DualSLMError: no example of a kind that the stage trains on.
    """

    def __init__(
        self,
        stage: Stage,
        examples: Examples,
        cache: FrameCache,
        tokenizer: Any,
        seed: int,
        *,
        lengths: SlotLengths,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.stage = stage
        self.examples = examples
        self.cache = cache
        self.tokenizer = tokenizer
        self.seed = seed
        self.lengths = lengths
        self.rank = rank
        self.world_size = world_size
        self.block_kinds = _block_kinds(stage)
        for kind in stage.kinds:
            if not examples.count(kind):
                manifests = ", ".join(map(str, examples.paths))
                left_out = "".join(f"; {count} {why}" for why, count in examples.left_out.items())
                raise DualSLMError(
                    f"stage {stage.name} has no {kind} examples", got=f"none in {manifests}{left_out}", do="add some"
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.stage.steps_over({kind: self.examples.count(kind) for kind in self.stage.kinds})

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        samples = [self.sample(step * self.stage.batch + number) for number in range(self.stage.batch)]
        # Every process draws the whole batch and takes every n-th sample in order of length: all have like work.
        own = sorted(samples, key=self.length)[self.rank :: self.world_size]
        paths = {str(clip.audio) for sample in own for clip in sample.prompt.clips}
        frames = {path: self.cache.get(path) for path in sorted(paths)}
        return Batch(own, [self.length(sample) for sample in own], frames)

    def sample(self, index: int) -> TrainingSample:
        """The sample at an index of the stage."""
        seed = self.seed_of(index)
        rng = random.Random(seed)
        block, within = divmod(index, BLOCK)
        kinds = _shuffled(self.block_kinds, f"{self.seed}/{self.stage.name}/{block}")
        name = kinds[within]
        # How many samples of its kind come before it: those of whole blocks, and those of its own.
        turn = block * self.block_kinds.count(name) + kinds[:within].count(name)
        kind = self.stage.kinds[name]
        example, skipped = self._readable_example(name, turn, seed)
        view = _available_sources(kind, example.conversation).draw(rng)
        prompt = render(
            example.conversation,
            self.tokenizer,
            view,
            history=history_view(rng.choice(self.stage.history), view),
            learns=frozenset(kind.learns),
            supervise="all" if name == "paralinguistic" else "last",
            cut_off=example.cut_off,
        )
        return TrainingSample(name, view, prompt, example.id, skipped)

    def seed_of(self, index: int) -> str:
        """The seed of all that is drawn for the sample at an index: its sources, prompt, choices and caption."""
        return f"{self.seed}/{self.stage.name}/{index}"

    def length(self, sample: TrainingSample) -> int:
        """The positions that a sample takes: of its prompt, or where no LLM reads that, of its recordings in L."""
        if self.stage.objective == "align":
            return sum(self.lengths.ling(self._frames(clip)) for clip in sample.prompt.clips)
        return self.lengths.prompt(sample.prompt, self._frames)

    def _frames(self, speech: Speech) -> int:
        return self.cache.frames(str(speech.audio))

    def _readable_example(self, kind: TaskKind, turn: int, seed: Seed) -> tuple[Example, tuple[tuple[str, str], ...]]:
        """The example that is due, or the next one whose recordings can be read, and those that were skipped."""
        skipped: list[tuple[str, str]] = []
        count = self.examples.count(kind)
        together = self.stage.kinds[kind].together
        for ahead in range(min(count, MAX_TRIES)):
            epoch, position = divmod(turn + ahead, count)
            order = permuted(count, together, f"{self.seed}/{self.stage.name}/{kind}/{epoch}")
            example = self.examples.get(kind, int(order[position]), epoch, seed=seed)
            fault = self._fault(example.conversation)
            if fault is None:
                return example, tuple(skipped)
            skipped.append((example.id, fault))
        raise DualSLMError(
            f"{len(skipped)} {kind} examples in a row cannot be used", got=skipped[0], do="check the audio"
        )

    def _fault(self, conversation: Conversation) -> str | None:
        """Why the first unreadable recording of a conversation cannot be read; None where all can."""
        clips = [clip for turn in conversation.turns for clip in turn.speeches if clip.audio is not None]
        return next(
            (self.cache.faults[str(clip.audio)] for clip in clips if str(clip.audio) in self.cache.faults), None
        )


# ---------------------------------------------------------------------- draws


def _block_kinds(stage: Stage) -> tuple[TaskKind, ...]:
    """The kinds of the samples of a block, in order of the recipe, each exactly as often as its share says."""
    shares = {name: kind.share for name, kind in stage.kinds.items()}
    # Differences of rounded sums add up to a block, which rounded shares need not.
    edges = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * BLOCK).astype(int)
    counts = np.maximum(np.diff(edges, prepend=0), 1)  # a tiny share is not rounded away
    counts[counts.argmax()] -= counts.sum() - BLOCK
    return tuple(name for name, count in zip(shares, counts, strict=True) for _ in range(int(count)))


@lru_cache(64)  # all samples of a block ask for the same order
def _shuffled(kinds: tuple[TaskKind, ...], seed: str) -> tuple[TaskKind, ...]:
    order = list(kinds)
    random.Random(seed).shuffle(order)
    return tuple(order)


def _available_sources(kind: Kind, conversation: Conversation) -> ViewDraw:
    """The kind's sources that a conversation has: without a caption (or transcript), P (or L) is not drawn as text."""
    clips = [clip for turn in conversation.turns if turn.role == "user" for clip in turn.speeches]
    has_text = {"para": all(clip.caption for clip in clips), "ling": all(clip.transcript for clip in clips)}

    def available(channel: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(source for source in sources if source != "text" or has_text[channel]) or sources

    return ViewDraw(para=available("para", kind.view.para), ling=available("ling", kind.view.ling))
