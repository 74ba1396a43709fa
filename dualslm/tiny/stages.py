"""The three training stages on the tiny world (paper §III-C), from the stages of a recipe.

What learns, and from which sources the channels come, is read from the recipe: nothing here knows of ERR. Each
lesson is a conversation and a view, drawn from the lesson's own number, so that the same seed gives the same
lessons in any number of worker processes.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from dualslm.conversation import Conversation, View
from dualslm.model import DualSLM
from dualslm.prompt import Prompt, Text, render
from dualslm.recipe import Optimiser, Stage, TaskKind
from dualslm.tiny import world
from dualslm.tiny.recordings import Recordings, Take
from dualslm.train import optimiser_of

AT_ONCE = 8  # lessons in one forward pass
SLOT = 16  # tokens: about what a slot becomes


@dataclass(frozen=True)
class Lesson:
    """One training example.

    Attributes:
        kind: linguistic, paralinguistic or dual.
        view: the sources that were drawn for it.
        prompt: rendered, with its targets.
    """

    kind: str
    view: View
    prompt: Prompt


class Lessons(Dataset[Lesson]):
    """The lessons of a stage, in order; lesson i depends on the seed and i alone.

    Args:
        stage: of the recipe.
        takes: what may be heard.
        talks: conversations with the LLM's own replies, for the dual kind.
        tokenizer: of the frozen LLM.
        seed: of every draw.
    """

    def __init__(
        self, stage: Stage, takes: Sequence[Take], talks: Sequence[Conversation], tokenizer: object, seed: int
    ) -> None:
        self.stage, self.takes, self.talks, self.tokenizer, self.seed = stage, takes, talks, tokenizer, seed
        self.kinds = list(stage.kinds.items())
        self.sentences = [take for take in takes if take.utterance.kind != "soup"] or takes
        self.soups = [take for take in takes if take.utterance.kind == "soup"] or takes

    def __len__(self) -> int:
        assert self.stage.steps is not None
        return self.stage.steps * self.stage.batch

    def __getitem__(self, index: int) -> Lesson:
        rng = random.Random(f"{self.seed}/{self.stage.name}/{index}")
        name, kind = rng.choices(self.kinds, [kind.share for _, kind in self.kinds])[0]
        view = kind.view.draw(rng)
        prompt = render(
            self._talk(name, rng),
            self.tokenizer,
            view,
            learns=frozenset(kind.learns),
            supervise="all" if name == "paralinguistic" else "last",
        )
        return Lesson(name, view, prompt)

    def _talk(self, kind: TaskKind, rng: random.Random) -> Conversation:
        if kind == "dual":
            return rng.choice(self.talks)
        if kind == "linguistic":
            # Random words make every word as frequent as any other, but until L can be read they only teach hedging.
            pools = (self.sentences,) if "para" in self.stage.kinds[kind].learns else (self.sentences, self.soups)
            return world.transcription(rng.choice(rng.choice(pools)).speech, rng)
        return world.questions(rng.choice(self.takes).speech, rng)


def train_stage(
    model: DualSLM,
    stage: Stage,
    recordings: Recordings,
    talks: Sequence[Conversation],
    *,
    optimiser: Optimiser,
    seed: int,
    workers: int,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Runs one stage; the adapters of `model` are changed in place.

    Returns:
        The mean loss of each kind over the last tenth of the stage.
    """
    lessons = Lessons(stage, recordings.takes, talks, model.llm.tokenizer, seed)
    loader = DataLoader(lessons, batch_size=stage.batch, num_workers=workers, collate_fn=list, persistent_workers=False)
    torch.manual_seed(seed)
    assert stage.steps is not None
    adamw, schedule = optimiser_of(model, stage, optimiser, stage.steps)
    model.train()
    losses: dict[str, list[float]] = defaultdict(list)
    start = time.monotonic()
    for step, batch in enumerate(loader):
        adamw.zero_grad()
        tokens = sum(_backward(model, recordings, some, losses) for some in _alike(batch))
        for weight in model.adapters.parameters():
            if weight.grad is not None:
                weight.grad /= tokens
        torch.nn.utils.clip_grad_norm_(model.adapters.parameters(), optimiser.clip)
        adamw.step()
        schedule.step()
        if step % 100 == 99 or step + 1 == stage.steps:
            say(_progress(stage, step + 1, time.monotonic() - start, losses))
    model.eval()
    return {kind: _recent(values) for kind, values in sorted(losses.items())}


def write_targets(model: DualSLM, talks: Sequence[Conversation], path: Path, batch: int = 256) -> list[Conversation]:
    """The frozen LLM's own replies to styled transcripts: what a conversation is trained towards (§III-B).

    They are kept in `path`, one JSON line each, with the LLM's fingerprint; a second call reads them.
    """
    oracle = View("text", "text")
    if not path.exists():
        lines = []
        for start in range(0, len(talks), batch):
            lines += model.replies(talks[start : start + batch], view=oracle)
        path.write_text("".join(json.dumps({"reply": line}) + "\n" for line in lines))
    replies = [json.loads(line)["reply"] for line in path.read_text().splitlines()]
    return [talk.copy().assistant(reply) for talk, reply in zip(talks, replies, strict=True)]


def _alike(batch: Sequence[Lesson]) -> Iterator[list[Lesson]]:
    """The batch in parts of like lengths, so that little is padded."""
    ordered = sorted(batch, key=_length)
    for start in range(0, len(ordered), AT_ONCE):
        yield ordered[start : start + AT_ONCE]


def _length(lesson: Lesson) -> int:
    return sum(len(segment.ids) if isinstance(segment, Text) else SLOT for segment in lesson.prompt.segments)


def _backward(model: DualSLM, recordings: Recordings, batch: Sequence[Lesson], losses: dict[str, list[float]]) -> int:
    """Adds the gradient of the summed loss of some lessons; returns their target tokens."""
    loss = model([lesson.prompt for lesson in batch], recordings.hear)
    loss.nll_B.sum().backward()
    per_token = (loss.nll_B.detach() / loss.tokens_B).tolist()
    for lesson, value in zip(batch, per_token, strict=True):
        losses[lesson.kind].append(value)
    return int(loss.tokens_B.sum())


def _recent(values: Sequence[float]) -> float:
    return round(_mean(values[-max(1, len(values) // 10) :]), 4)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _progress(stage: Stage, step: int, seconds: float, losses: dict[str, list[float]]) -> str:
    assert stage.steps is not None
    left = seconds / step * (stage.steps - step)
    shown = "  ".join(f"{kind} {_mean(values[-500:]):.3f}" for kind, values in sorted(losses.items()))
    return f"{stage.name:<12} {step:>5}/{stage.steps}  {shown}  {seconds / step * 1000:.0f} ms/step  {left:.0f} s left"
