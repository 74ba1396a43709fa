"""What a recipe will take, before anything is loaded: examples, tokens, FLOPs, memory, disk, hours (ours).

Counts follow from sizes (`shapes.py`) and from the manifests where they are there; where they are not, from the
paper's corpora and the lengths below, and the table says so. The lengths of text are guessed from characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from rich import box
from rich.table import Table

from dualslm.data.manifest_index import rows
from dualslm.data.tasks import finished, waiting
from dualslm.errors import DualSLMError
from dualslm.recipe import TASK_KINDS, Quantize, Recipe, Stage, TaskKind
from dualslm.training.shapes import EncoderShape, LLMShape, encoder_shape, llm_shape

CHARACTERS_A_TOKEN = 4.0
FRAMES_A_SECOND = 50
SPEECH_A_CHARACTER = 0.065  # s: about 15 characters of transcript a second
SPARE_TOKENS = 8  # of a chat template around each turn
REACHED = 0.4  # share of a card's dense bfloat16 rate that a step is assumed to reach
CARDS: Mapping[str, float] = MappingProxyType(  # dense bfloat16 TFLOP/s by the makers' data sheets
    {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "4090": 165.0, "3090": 71.0}
)
BYTES: Mapping[Quantize | None, float] = MappingProxyType({None: 2.0, "int8": 1.0, "nf4": 0.57})  # of a weight
LOOK: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE}


@dataclass(frozen=True)
class Lengths:
    """What one talk of a kind is made of, on average.

    Attributes:
        context: tokens before the speech that is answered.
        seconds: of that speech.
        after: tokens between the speech and the reply, and of earlier replies that are learnt.
        reply: tokens that are learnt.
        shared: talks that begin alike and stand in one batch.
    """

    context: float
    seconds: float
    after: float
    reply: float
    shared: float = 1.0


PAPER_LENGTHS: Mapping[TaskKind, Lengths] = MappingProxyType(
    {
        "linguistic": Lengths(20, 12.3, 4, 36),
        "paralinguistic": Lengths(20, 4.0, 30, 12),
        "dual": Lengths(150, 4.0, 4, 30),
    }
)
PAPER_TALKS: Mapping[TaskKind, int] = MappingProxyType(
    # LibriSpeech; TextrolSpeech's training split, a question for each recording, and MELD; StyleTalk and DailyTalk,
    # all turns (paper §IV-A)
    {"linguistic": 281_241, "paralinguistic": 212_598 + 9_988, "dual": 26_000}
)


@dataclass(frozen=True)
class Cost:
    """FLOPs of one lesson, by part."""

    prefix: float
    llm: float
    adapters: float

    @property
    def total(self) -> float:
        """All of it; the encoder's frames come from the cache."""
        return self.prefix + self.llm + self.adapters


@dataclass(frozen=True)
class Estimate:
    """A recipe's cost.

    Attributes:
        examples: how many of each kind.
        lengths: of each kind.
        assumed: the manifests are not there.
        steps: of each stage.
        stage_flops: of each stage.
        encoder_flops: of all recordings, once.
        cache_bytes: of their frames.
        memory_bytes: the most on the card.
    """

    examples: Mapping[TaskKind, int]
    lengths: Mapping[TaskKind, Lengths]
    assumed: bool
    steps: Mapping[str, int]
    stage_flops: Mapping[str, float]
    encoder_flops: float
    cache_bytes: float
    memory_bytes: float

    @property
    def flops(self) -> float:
        """All stages and the encoder."""
        return self.encoder_flops + sum(self.stage_flops.values())


def estimate(recipe: Recipe) -> Estimate:
    """The cost of a recipe.

    Raises:
        DualSLMError: a model whose sizes are not known here, or a manifest that is no manifest.
    """
    encoder, llm = encoder_shape(recipe.model.encoder), llm_shape(recipe.model.llm)
    train = recipe.data.train
    weights = dict(zip(train, recipe.data.weights or [1.0] * len(train), strict=True))
    weights |= {path: 1.0 for stage in recipe.stages for path in stage.also}
    weights = {path: weight for path, weight in weights.items() if Path(path).exists()}
    assumed = not weights
    examples, lengths, seconds = _assumed() if assumed else _counted(weights)
    steps = {stage.name: stage.steps_over(examples) for stage in recipe.stages}
    flops = {}
    for stage in recipe.stages:
        samples = _drawn(stage, steps[stage.name])
        flops[stage.name] = sum(
            count * lesson_cost(recipe, encoder, llm, spoken, align=stage.objective == "align").total
            for kind, count in samples.items()
            for spoken in [replace(lengths[kind], shared=stage.kinds[kind].together)]
        )
    windows = seconds * FRAMES_A_SECOND / encoder.window
    return Estimate(
        examples=examples,
        lengths=lengths,
        assumed=assumed,
        steps=steps,
        stage_flops=flops,
        encoder_flops=max(windows, sum(examples.values()) / 2 if assumed else windows) * encoder.flops(),
        cache_bytes=seconds * FRAMES_A_SECOND * encoder.width * 2,
        memory_bytes=_memory(recipe, encoder, llm, lengths),
    )


def lesson_cost(recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Lengths, *, align: bool = False) -> Cost:
    """FLOPs of learning from one talk: frames cached, prefix without gradient, logits at targets alone."""
    para, ling = recipe.model.paralinguistic, recipe.model.linguistic
    frames = lengths.seconds * FRAMES_A_SECOND
    groups = -(-frames // ling.stack)
    words = groups * (ling.stack * encoder.width * ling.hidden + ling.hidden * llm.width)
    if align:
        return Cost(0.0, 0.0, _learning(words, ling.stack * encoder.width * ling.hidden * groups))
    ffn = para.feedforward or 4 * encoder.width
    layer = frames * (4 * encoder.width**2 + 2 * encoder.width * ffn) + 2 * frames**2 * encoder.width
    pooled = para.tokens * (frames * encoder.width + encoder.width * llm.width)
    tone = para.layers * layer + pooled
    first = (frames * 3 * encoder.width**2) + groups * ling.stack * encoder.width * ling.hidden
    suffix = para.tokens + groups + lengths.after + lengths.reply
    keys = lengths.context + suffix
    prefix = llm.forward(lengths.context, lengths.context) / lengths.shared
    through = llm.forward(suffix, keys) + llm.backward(suffix, keys) + 4 * llm.head * lengths.reply
    return Cost(prefix, through, _learning(words + tone, first))


def _learning(products: float, first: float) -> float:
    """FLOPs of multiplications that learn: forward, both gradients; none towards what the first layer reads."""
    return 6 * products - 2 * first


def _drawn(stage: Stage, steps: int) -> dict[TaskKind, float]:
    whole = sum(kind.share for kind in stage.kinds.values())
    return {name: steps * stage.batch * kind.share / whole for name, kind in stage.kinds.items()}


def _memory(recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Mapping[TaskKind, Lengths]) -> float:
    """Frozen weights, adapters with their optimizer in float32, and what a part of a batch keeps; one process."""
    para, ling = recipe.model.paralinguistic, recipe.model.linguistic
    ffn = para.feedforward or 4 * encoder.width
    adapters = para.layers * (4 * encoder.width**2 + 2 * encoder.width * ffn) + encoder.width * llm.width
    adapters += ling.stack * encoder.width * ling.hidden + ling.hidden * llm.width
    a_token = 2.0 * (4 * llm.width + 3 * llm.ffn + 3 * llm.heads * llm.head_width)
    a_token = a_token + 2 * llm.layers * llm.width if recipe.loop.activation_checkpointing else a_token * llm.layers
    trunk = 2 * (encoder.weights + llm.weights - llm.body) + BYTES[recipe.model.quantize] * llm.body
    targets = max(one.reply for one in lengths.values()) * max(stage.batch for stage in recipe.stages)
    logits = targets * llm.vocabulary * 10.0
    return trunk + 16 * adapters + a_token * recipe.loop.max_tokens + logits


def tables(recipe: Recipe, found: Estimate, times: Mapping[str, float]) -> Iterator[Table]:
    """What there is to learn from, what each stage does, and what all of it takes."""
    source = _source(recipe, found)
    examples = Table("kind", "talks", "tokens before", "speech, s", "reply, tokens", title=source, **LOOK)
    for kind, count in found.examples.items():
        one = found.lengths[kind]
        examples.add_row(kind, f"{count:,}", f"{one.context:.0f}", f"{one.seconds:.1f}", f"{one.reply:.0f}")
    yield examples
    stages = Table("stage", "steps", "batch", "PFLOP", title="stages; frames are cached", **LOOK)
    for stage in recipe.stages:
        cells = (f"{found.steps[stage.name]:,}", str(stage.batch), f"{found.stage_flops[stage.name] / 1e15:,.3g}")
        stages.add_row(stage.name, *cells)
    stages.add_row("encoder, once", "", "", f"{found.encoder_flops / 1e15:,.3g}")
    stages.add_row("in all", "", "", f"{found.flops / 1e15:,.3g}")
    yield stages
    needs = Table("it needs", "", title=f"hours at {REACHED:.0%} of a card's dense bfloat16 rate", **LOOK)
    needs.add_row("memory on the card", f"about {found.memory_bytes / 1e9:,.1f} GB")
    needs.add_row("disk for the frames", f"{found.cache_bytes / 1e9:,.1f} GB")
    for card, long in times.items():
        needs.add_row(f"one {card}", f"{long:,.1f} h")
    yield needs


def _source(recipe: Recipe, found: Estimate) -> str:
    """Where the counts of talks come from."""
    named = [*recipe.data.train, *(path for stage in recipe.stages for path in stage.also)]
    missing = [path for path in named if not Path(path).exists()]
    if found.assumed:
        return f"assumed, the paper's corpora: {'no' if not missing else missing[0] + ', no'} manifest is here"
    return "from the manifests; tokens are guessed" + "".join(f"; {path} is not here yet" for path in missing)


def hours(found: Estimate, card: str | None) -> Iterator[tuple[str, float]]:
    """Hours on a card, or on each that is known, at the assumed share of its rate.

    Raises:
        DualSLMError: a card whose rate is not known.
    """
    if card is not None and card not in CARDS:
        raise DualSLMError("unknown card", got=repr(card), do=f"choose from {', '.join(CARDS)}")
    for name in [card] if card else list(CARDS):
        yield name, found.flops / (CARDS[name] * 1e12 * REACHED) / 3600


# ---------------------------------------------------------------------- what there is to learn from


def _assumed() -> tuple[Mapping[TaskKind, int], Mapping[TaskKind, Lengths], float]:
    seconds = sum(PAPER_TALKS[kind] * PAPER_LENGTHS[kind].seconds for kind in PAPER_TALKS)
    return dict(PAPER_TALKS), dict(PAPER_LENGTHS), seconds


def _counted(weights: Mapping[str, float]) -> tuple[Mapping[TaskKind, int], Mapping[TaskKind, Lengths], float]:
    """Counts and mean lengths of the talks in weighted manifests, and the seconds of their recordings, each once."""
    sums: dict[TaskKind | Literal["waiting"], list[float]] = {}
    recordings: dict[str, float] = {}
    for name, row, weight in _rows(weights):
        before, spoken, after, reply = _measured(row["turns"], recordings)
        cell = sums.setdefault(name, [0.0] * 5)
        for place, value in enumerate((1.0, before + len(row.get("system") or ""), spoken, after, reply)):
            cell[place] += weight * value
    written: dict[TaskKind, list[float]] = {kind: sums[kind] for kind in TASK_KINDS if kind in sums}
    if "waiting" in sums:
        written.setdefault("dual", sums["waiting"])
    lengths: dict[TaskKind, Lengths] = {
        kind: Lengths(
            context=context / count / CHARACTERS_A_TOKEN + SPARE_TOKENS,
            seconds=spoken / count,
            after=after / count / CHARACTERS_A_TOKEN + SPARE_TOKENS,
            reply=reply / count / CHARACTERS_A_TOKEN,
        )
        for kind, (count, context, spoken, after, reply) in written.items()
    }
    return {kind: round(cell[0]) for kind, cell in written.items()}, lengths, sum(recordings.values())


def _rows(weights: Mapping[str, float]) -> Iterator[tuple[TaskKind | Literal["waiting"], Mapping[str, Any], float]]:
    """Every talk by its kind with its weight, and those whose answer is yet to be written, with a stand-in for it."""
    stand_in = {"role": "assistant", "parts": ["x" * round(PAPER_LENGTHS["dual"].reply * CHARACTERS_A_TOKEN)]}
    for path, weight in weights.items():
        for _, row in rows(Path(path)):
            yield from ((made["kind"], made, weight) for made in finished(row))
            if (conversation := waiting(row)) is not None:
                yield "waiting", {**conversation, "turns": [*conversation["turns"], stand_in]}, weight


def _measured(turns: Sequence[Mapping[str, Any]], recordings: dict[str, float]) -> tuple[float, float, float, float]:
    """Characters before the last speech, its seconds, characters after it, and characters of the last reply."""
    before = spoken = after = 0.0
    for turn in turns[:-1]:
        for part in turn["parts"]:
            if isinstance(part, str):
                after += len(part)
            else:
                before, after = before + after + spoken * FRAMES_A_SECOND / 5 * CHARACTERS_A_TOKEN, 0.0
                spoken = len(part.get("transcript") or "") * SPEECH_A_CHARACTER
                recordings[str(part.get("audio"))] = spoken
    return before, spoken, after, float(sum(len(part) for part in turns[-1]["parts"]))
