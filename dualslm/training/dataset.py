"""Talks → batches of lessons (paper §III-B, §III-C): seeded, stateless, counted.

The talks are those of `examples.py`. What stands at place p of a stage follows from the seed, the stage and p alone:
the kind, the talk, the sources. So a run may stop anywhere, and have any number of worker processes, and sees
the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from dualslm.conversation import Conversation, Source, Speech, View
from dualslm.data.manifest import Example, Examples, permuted
from dualslm.errors import DualSLMError
from dualslm.model.encoder import Frames
from dualslm.prompt import Prompt, SlotLengths, Text, render
from dualslm.recipe import Kind, Stage, TaskKind, ViewDraw
from dualslm.training.feature_cache import FrameCache

BLOCK = 1000  # lessons after which the kinds stand exactly in their shares
TRIES = 100  # talks tried at one place before the data are called unusable


@dataclass(frozen=True)
class TrainingSample:
    """One training example.

    Attributes:
        kind: of its task.
        view: the sources that were drawn for it.
        prompt: rendered, with its targets.
        conversation: the id of its talk.
        skipped: talks that stood here but have a recording that cannot be read: id and reason.
    """

    kind: TaskKind
    view: View
    prompt: Prompt
    conversation: str
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return sum(len(segment.ids) for segment in self.prompt.segments if isinstance(segment, Text) and segment.loss)


@dataclass(frozen=True)
class Batch:
    """One process's part of one optimizer step.

    Attributes:
        lessons: in order of length.
        lengths: about how many positions the prompt of each takes.
        frames: of their recordings, each (N, T, D), by path.
    """

    samples: list[TrainingSample]
    lengths: list[int]
    frames: Mapping[str, Tensor]

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some of its recordings, in place of `DualSLM.hear`."""
        return Frames.stack([self.frames[str(clip.audio)] for clip in clips])


class StageDataset(Dataset[Batch]):
    """The batches of a stage; item s is this process's part of step s.

    Args:
        stage: of the recipe.
        examples: to learn from.
        cache: frames of their recordings.
        tokenizer: of the frozen LLM.
        seed: of every draw.
        lengths: number of embeddings of a recording in each channel, which bounds the memory of a part of a batch.
        rank: of this process.
        world: number of processes.
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
        world: int = 1,
    ) -> None:
        self.stage, self.examples, self.cache, self.tokenizer, self.seed = stage, examples, cache, tokenizer, seed
        self.lengths, self.rank, self.world = lengths, rank, world
        self.pattern = _pattern(stage)
        for kind in stage.kinds:
            if not examples.count(kind):
                where = ", ".join(map(str, examples.paths))
                out = "".join(f"; {count} {why}" for why, count in examples.left_out.items())
                raise DualSLMError(
                    f"stage {stage.name} has no {kind} talks", got=f"none in {where}{out}", do="add some"
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.stage.steps_over({kind: self.examples.count(kind) for kind in self.stage.kinds})

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        samples = [self.sample(step * self.stage.batch + place) for place in range(self.stage.batch)]
        own = sorted(samples, key=self.length)[self.rank :: self.world]
        paths = {str(clip.audio) for sample in own for clip in sample.prompt.clips}
        return Batch(
            own, [self.length(sample) for sample in own], {path: self.cache.get(path) for path in sorted(paths)}
        )

    def sample(self, place: int) -> TrainingSample:
        """The lesson at a place of the stage."""
        rng = random.Random(f"{self.seed}/{self.stage.name}/{place}")
        block, within = divmod(place, BLOCK)
        order = _shuffled(self.pattern, f"{self.seed}/{self.stage.name}/{block}")
        name = order[within]
        turn = block * self.pattern.count(name) + order[:within].count(name)
        kind = self.stage.kinds[name]
        told, skipped = self._usable(name, turn)
        view = _sources(kind, told.conversation).draw(rng)
        prompt = render(
            told.conversation,
            self.tokenizer,
            view,
            learns=frozenset(kind.learns),
            supervise="all" if name == "paralinguistic" else "last",
            cut_off=told.cut_off,
        )
        return TrainingSample(name, view, prompt, told.id, skipped)

    def length(self, sample: TrainingSample) -> int:
        """The positions that its prompt takes."""
        return self.lengths.prompt(sample.prompt, lambda speech: self.cache.frames(str(speech.audio)))

    def _usable(self, kind: TaskKind, turn: int) -> tuple[Example, tuple[tuple[str, str], ...]]:
        """The talk whose turn it is, or the next one whose recordings can be read."""
        skipped: list[tuple[str, str]] = []
        count = self.examples.count(kind)
        for ahead in range(min(count, TRIES)):
            epoch, place = divmod(turn + ahead, count)
            together = self.stage.kinds[kind].together
            index = int(permuted(count, together, f"{self.seed}/{self.stage.name}/{kind}/{epoch}")[place])
            told = self.examples.get(kind, index, epoch)
            fault = self._fault(told.conversation)
            if fault is None:
                return told, tuple(skipped)
            skipped.append((told.id, fault))
        raise DualSLMError(f"{len(skipped)} {kind} talks in a row cannot be used", got=skipped[0], do="check the audio")

    def _fault(self, conversation: Conversation) -> str | None:
        paths = [
            str(speech.audio) for turn in conversation.turns for speech in turn.speeches if speech.audio is not None
        ]
        return next((self.cache.faults[path] for path in paths if path in self.cache.faults), None)


# ---------------------------------------------------------------------- draws


def _pattern(stage: Stage) -> tuple[TaskKind, ...]:
    """The kinds of a block of lessons, exactly in their shares; each has one at least, which the largest gives up."""
    shares = {name: kind.share for name, kind in stage.kinds.items()}
    edges = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * BLOCK).astype(int)
    counts = np.maximum(np.diff(edges, prepend=0), 1)
    counts[counts.argmax()] -= counts.sum() - BLOCK
    return tuple(name for name, count in zip(shares, counts, strict=True) for _ in range(int(count)))


@lru_cache(64)
def _shuffled(pattern: tuple[TaskKind, ...], seed: str) -> tuple[TaskKind, ...]:
    order = list(pattern)
    random.Random(seed).shuffle(order)
    return tuple(order)


def _sources(kind: Kind, conversation: Conversation) -> ViewDraw:
    """The sources that a talk has: without a caption or transcript, "text" is not among those that are drawn."""
    clips = [clip for turn in conversation.turns if turn.role == "user" for clip in turn.speeches]
    known = {"para": all(clip.caption for clip in clips), "ling": all(clip.transcript for clip in clips)}

    def left(channel: str, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        return tuple(one for one in sources if one != "text" or known[channel]) or sources

    return ViewDraw(para=left("para", kind.view.para), ling=left("ling", kind.view.ling))
