"""What a recipe will take, before anything is loaded: examples, tokens, FLOPs, memory, disk, hours (ours).

Counts follow from sizes (`shapes.py`) and from the manifests. Where no manifest is there yet, they follow from the
paper's corpora and the lengths below, and the table says so. The number of tokens of a text is guessed from its
characters.
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
from dualslm.recipe import TASK_KINDS, Quantize, Recipe, TaskKind
from dualslm.training.shapes import EncoderShape, LLMShape, encoder_shape, llm_shape

FRAMES_PER_SECOND = 50  # as in dualslm.audio, which is not imported for it: a plan loads no audio library
CHARACTERS_PER_TOKEN = 4.0  # of English text
SECONDS_PER_CHARACTER = 0.065  # about 15 characters of transcript a second
TEMPLATE_TOKENS = 8  # of a chat template around each turn
REACHED = 0.4  # share of a card's dense bfloat16 rate that a step is assumed to reach
CARDS: Mapping[str, float] = MappingProxyType(  # dense bfloat16 TFLOP/s by the makers' data sheets
    {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "4090": 165.0, "3090": 71.0}
)
BYTES_PER_WEIGHT: Mapping[Quantize | None, float] = MappingProxyType({None: 2.0, "int8": 1.0, "nf4": 0.57})
TABLE_STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE}


@dataclass(frozen=True)
class Lengths:
    """Average lengths of one example of a kind.

    Attributes:
        context: tokens before the speech that is answered.
        seconds: duration of that speech in seconds.
        after: tokens between the speech and the last reply, earlier replies that are learnt among them.
        reply: tokens of the last reply, which are learnt.
        shared: number of examples in a batch that begin alike and share one prefix.
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
PAPER_EXAMPLES: Mapping[TaskKind, int] = MappingProxyType(
    # LibriSpeech; TextrolSpeech's training split, a question for each recording, and MELD; StyleTalk and DailyTalk,
    # all turns (paper §IV-A)
    {"linguistic": 281_241, "paralinguistic": 212_598 + 9_988, "dual": 26_000}
)


@dataclass(frozen=True)
class Cost:
    """FLOPs of one training sample.

    Attributes:
        prefix: reading its part of a shared prefix, forward alone.
        llm: the LLM on what follows the prefix, forward and backward.
        adapters: the adapters, forward and backward.
    """

    prefix: float
    llm: float
    adapters: float

    @property
    def total(self) -> float:
        """All three; the encoder's frames come from the cache."""
        return self.prefix + self.llm + self.adapters


@dataclass(frozen=True)
class Estimate:
    """A recipe's cost.

    Attributes:
        examples: number of examples of each kind.
        lengths: average lengths of each kind.
        assumed: whether counts and lengths are the paper's, because no manifest is there.
        steps: optimizer steps of each stage.
        stage_flops: FLOPs of each stage.
        encoder_flops: FLOPs of encoding all recordings, once.
        cache_bytes: bytes of their frames on disk.
        memory_bytes: most bytes in use on the card.
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
    encoder = encoder_shape(recipe.model.encoder)
    llm = llm_shape(recipe.model.llm)
    train = recipe.data.train
    weights = dict(zip(train, recipe.data.weights or [1.0] * len(train), strict=True))
    weights |= {path: 1.0 for stage in recipe.stages for path in stage.also}
    weights = {path: weight for path, weight in weights.items() if Path(path).exists()}
    assumed = not weights
    if assumed:
        examples: Mapping[TaskKind, int] = dict(PAPER_EXAMPLES)
        lengths: Mapping[TaskKind, Lengths] = dict(PAPER_LENGTHS)
        seconds = sum(count * lengths[kind].seconds for kind, count in examples.items())
    else:
        examples, lengths, seconds = _counted(weights)
    steps = {stage.name: stage.steps_over(examples) for stage in recipe.stages}
    stage_flops = {}
    for stage in recipe.stages:
        align = stage.objective == "align"
        shares = sum(kind.share for kind in stage.kinds.values())
        flops = 0.0
        for name, kind in stage.kinds.items():
            samples = steps[stage.name] * stage.batch * kind.share / shares
            shared = replace(lengths[name], shared=kind.together)
            flops += samples * sample_cost(recipe, encoder, llm, shared, align=align).total
        stage_flops[stage.name] = flops
    windows = seconds * FRAMES_PER_SECOND / encoder.window
    if assumed:  # how many recordings the paper's corpora have is not known: taken to be half as many as examples
        windows = max(windows, sum(examples.values()) / 2)
    return Estimate(
        examples=examples,
        lengths=lengths,
        assumed=assumed,
        steps=steps,
        stage_flops=stage_flops,
        encoder_flops=windows * encoder.flops(),
        cache_bytes=seconds * FRAMES_PER_SECOND * encoder.width * 2,
        memory_bytes=_memory(recipe, encoder, llm, lengths),
    )


def sample_cost(recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Lengths, *, align: bool = False) -> Cost:
    """FLOPs of learning from one sample: frames from the cache, prefix without gradient, logits at labels alone.

    Args:
        recipe: recipe with the shapes of both adapters.
        encoder: sizes of the speech encoder.
        llm: sizes of the LLM.
        lengths: lengths of the sample.
        align: whether L is aligned with the LLM's token embeddings instead, without the LLM.
    """
    para = recipe.model.paralinguistic
    ling = recipe.model.linguistic
    frames = lengths.seconds * FRAMES_PER_SECOND
    groups = -(-frames // ling.stack)
    ling_first = groups * ling.stack * encoder.width * ling.hidden
    ling_products = ling_first + groups * ling.hidden * llm.width
    if align:
        return Cost(0.0, 0.0, _learning_flops(ling_products, ling_first))
    ffn = para.feedforward or 4 * encoder.width
    layer = frames * (4 * encoder.width**2 + 2 * encoder.width * ffn) + 2 * frames**2 * encoder.width
    pooling = para.tokens * (frames * encoder.width + encoder.width * llm.width)
    para_products = para.layers * layer + pooling
    para_first = frames * 3 * encoder.width**2  # queries, keys and values of the first layer
    suffix = para.tokens + groups + lengths.after + lengths.reply
    keys = lengths.context + suffix
    prefix = llm.forward(lengths.context, lengths.context) / lengths.shared
    # Two FLOPs for each weight of the head forward, and two backward towards its input: the head itself is frozen.
    head = 4 * llm.head * lengths.reply
    through_llm = llm.forward(suffix, keys) + llm.backward(suffix, keys) + head
    return Cost(prefix, through_llm, _learning_flops(ling_products + para_products, para_first + ling_first))


def _learning_flops(products: float, first: float) -> float:
    """FLOPs of multiplications with weights that learn: forward, and both gradients.

    Args:
        products: multiplications in one forward pass.
        first: those of first layers, which need no gradient towards the frames that they read.
    """
    return 6 * products - 2 * first


def _memory(recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Mapping[TaskKind, Lengths]) -> float:
    """Bytes of one process: frozen weights, adapters and their optimizer, and a micro-batch's activations."""
    para = recipe.model.paralinguistic
    ling = recipe.model.linguistic
    ffn = para.feedforward or 4 * encoder.width
    adapters = para.layers * (4 * encoder.width**2 + 2 * encoder.width * ffn) + encoder.width * llm.width
    adapters += ling.stack * encoder.width * ling.hidden + ling.hidden * llm.width
    # Of each layer what its backward pass reads, in bfloat16; with checkpointing one layer's, and every layer's input.
    per_token = 2.0 * (4 * llm.width + 3 * llm.ffn + 3 * llm.heads * llm.head_width)
    if recipe.loop.activation_checkpointing:
        per_token += 2 * llm.layers * llm.width
    else:
        per_token *= llm.layers
    frozen = 2 * (encoder.weights + llm.weights - llm.body) + BYTES_PER_WEIGHT[recipe.model.quantize] * llm.body
    labels = max(one.reply for one in lengths.values()) * max(stage.batch for stage in recipe.stages)
    logits = labels * llm.vocabulary * 10.0  # bytes: bfloat16, float32 and its gradient
    # An adapter's weight has a gradient and AdamW's two moments beside it: four float32 numbers.
    return frozen + 16 * adapters + per_token * recipe.loop.max_tokens + logits


def tables(recipe: Recipe, found: Estimate, times: Mapping[str, float]) -> Iterator[Table]:
    """What there is to learn from, what each stage does, and what all of it takes.

    Args:
        recipe: recipe of the estimate.
        found: its estimate.
        times: hours on each card, from `hours`.
    """
    examples = Table(
        "kind", "examples", "tokens before", "speech, s", "reply, tokens", title=_source(recipe, found), **TABLE_STYLE
    )
    for kind, count in found.examples.items():
        one = found.lengths[kind]
        examples.add_row(kind, f"{count:,}", f"{one.context:.0f}", f"{one.seconds:.1f}", f"{one.reply:.0f}")
    yield examples
    stages = Table("stage", "steps", "batch", "PFLOP", title="stages; frames are cached", **TABLE_STYLE)
    for stage in recipe.stages:
        petaflop = found.stage_flops[stage.name] / 1e15
        stages.add_row(stage.name, f"{found.steps[stage.name]:,}", str(stage.batch), f"{petaflop:,.3g}")
    stages.add_row("encoder, once", "", "", f"{found.encoder_flops / 1e15:,.3g}")
    stages.add_row("in all", "", "", f"{found.flops / 1e15:,.3g}")
    yield stages
    needs = Table("it needs", "", title=f"hours at {REACHED:.0%} of a card's dense bfloat16 rate", **TABLE_STYLE)
    needs.add_row("memory on the card", f"about {found.memory_bytes / 1e9:,.1f} GB")
    needs.add_row("disk for the frames", f"{found.cache_bytes / 1e9:,.1f} GB")
    for card, duration in times.items():
        needs.add_row(f"one {card}", f"{duration:,.1f} h")
    yield needs


def _source(recipe: Recipe, found: Estimate) -> str:
    """Where the counts of examples come from."""
    manifests = [*recipe.data.train, *(path for stage in recipe.stages for path in stage.also)]
    missing = [path for path in manifests if not Path(path).exists()]
    if found.assumed:
        return f"assumed, the paper's corpora: {'no' if not missing else missing[0] + ', no'} manifest is here"
    return "from the manifests; tokens are guessed" + "".join(f"; {path} is not here yet" for path in missing)


def hours(found: Estimate, card: str | None) -> Iterator[tuple[str, float]]:
    """Hours on a card, or on each known card when None, at the assumed share of its rate.

    Raises:
        DualSLMError: a card whose rate is not known.
    """
    if card is not None and card not in CARDS:
        raise DualSLMError("unknown card", got=repr(card), do=f"choose from {', '.join(CARDS)}")
    for name in [card] if card else list(CARDS):
        yield name, found.flops / (CARDS[name] * 1e12 * REACHED) / 3600


# ---------------------------------------------------------------------- what there is to learn from


@dataclass
class _Sums:
    """Weighted sums over the examples of one kind: their number, characters of text, seconds of speech."""

    examples: float = 0.0
    before: float = 0.0
    seconds: float = 0.0
    after: float = 0.0
    reply: float = 0.0

    @property
    def lengths(self) -> Lengths:
        """Average lengths in tokens."""
        return Lengths(
            context=self.before / self.examples / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS,
            seconds=self.seconds / self.examples,
            after=self.after / self.examples / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS,
            reply=self.reply / self.examples / CHARACTERS_PER_TOKEN,
        )


def _counted(weights: Mapping[str, float]) -> tuple[Mapping[TaskKind, int], Mapping[TaskKind, Lengths], float]:
    """Number and average lengths of the examples of weighted manifests, and seconds of their recordings, each once."""
    sums: dict[TaskKind | Literal["waiting"], _Sums] = {}
    recordings: dict[str, float] = {}
    for name, row, weight in _weighted_rows(weights):
        before, seconds, after, reply = _measured(row["turns"], recordings)
        one = sums.setdefault(name, _Sums())
        one.examples += weight
        one.before += weight * (before + len(row.get("system") or ""))
        one.seconds += weight * seconds
        one.after += weight * after
        one.reply += weight * reply
    by_kind: dict[TaskKind, _Sums] = {kind: sums[kind] for kind in TASK_KINDS if kind in sums}
    # Where targets are written, the lines that asked for them would count the same examples twice.
    if "waiting" in sums:
        by_kind.setdefault("dual", sums["waiting"])
    examples = {kind: round(one.examples) for kind, one in by_kind.items()}
    return examples, {kind: one.lengths for kind, one in by_kind.items()}, sum(recordings.values())


def _weighted_rows(
    weights: Mapping[str, float],
) -> Iterator[tuple[TaskKind | Literal["waiting"], Mapping[str, Any], float]]:
    """Every example with its kind and weight; one whose reply is not yet written gets a reply of the paper's length."""
    reply = "x" * round(PAPER_LENGTHS["dual"].reply * CHARACTERS_PER_TOKEN)
    for path, weight in weights.items():
        for _, row in rows(Path(path)):
            yield from ((made["kind"], made, weight) for made in finished(row))
            if (example := waiting(row)) is not None:
                turns = [*example["turns"], {"role": "assistant", "parts": [reply]}]
                yield "waiting", {**example, "turns": turns}, weight


def _measured(turns: Sequence[Mapping[str, Any]], recordings: dict[str, float]) -> tuple[float, float, float, float]:
    """Characters before the last speech, its seconds, characters after it, and characters of the last reply.

    Args:
        turns: turns of an example, the last of which is the reply.
        recordings: seconds by path, to which those of the example are added.
    """
    before = seconds = after = 0.0
    for turn in turns[:-1]:
        for part in turn["parts"]:
            if isinstance(part, str):
                after += len(part)
            else:
                # An earlier speech counts as context: five frames become an embedding, as long as a token is.
                before = before + after + seconds * FRAMES_PER_SECOND / 5 * CHARACTERS_PER_TOKEN
                after = 0.0
                # By its transcript: to open every recording for its duration would take hours.
                seconds = len(part.get("transcript") or "") * SECONDS_PER_CHARACTER
                recordings[str(part.get("audio"))] = seconds
    return before, seconds, after, float(sum(len(part) for part in turns[-1]["parts"]))
