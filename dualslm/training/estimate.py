"""What a recipe will take, before anything is loaded: examples, tokens, FLOPs, memory, disk, hours (ours).

Costs follow from sizes (`shapes.py`) and from the manifests (`expected.py`). Where a manifest is not there yet, what
`prepare` makes of its corpus is assumed, and the table says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich import box
from rich.table import Table

from dualslm.audio import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME, frame_count, layers_kept, window_for
from dualslm.conversation import Channel
from dualslm.errors import DualSLMError
from dualslm.recipe import Linguistic, ModelRecipe, Paralinguistic, Quantize, Recipe, Stage, TaskKind
from dualslm.training import expected
from dualslm.training.expected import PAPER_LENGTHS as PAPER_LENGTHS
from dualslm.training.expected import Lengths as Lengths
from dualslm.training.shapes import EncoderShape, LLMShape, encoder_shape, llm_shape

GROUPS_CONVOLVED = 5  # by `group_convolution.BESIDE` on either side of each
ALIGNMENT_CLASSES = 3000  # `align.MAX_NEGATIVES`, which stands beside PyTorch
DISK_OVERHEAD = 1.02  # safetensors headers and lists take 2 % beside the frames, as in `feature_cache.py`
REACHED = 0.4  # share of a card's dense bfloat16 rate that a step is assumed to reach
CARDS: Mapping[str, float] = MappingProxyType(  # dense bfloat16 TFLOP/s by the makers' data sheets
    {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "4090": 165.0, "3090": 71.0}
)
BYTES_PER_WEIGHT: Mapping[Quantize | None, float] = MappingProxyType({None: 2.0, "int8": 1.0, "nf4": 0.57})
TABLE_STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE}


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
        assumed: whether all counts and lengths are assumed, because no manifest is there.
        steps: optimizer steps of each stage.
        stage_flops: FLOPs of each stage.
        encoder_flops: FLOPs of encoding all recordings, those for validation too, once.
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
    manifests, of_stage = expected.of_stages(recipe)
    steps = {}
    stage_flops = {}
    for stage in recipe.stages:
        sums = expected.counted(of_stage[stage.name])
        lengths = _lengths(recipe, stage, sums)
        steps[stage.name] = stage.steps_over(
            {kind: round(sums[kind].examples) if kind in sums else 0 for kind in lengths}
        )
        shares = sum(kind.share for kind in stage.kinds.values())
        flops = 0.0
        for name, kind in stage.kinds.items():
            samples = steps[stage.name] * stage.batch * kind.share / shares
            shared = replace(lengths[name], shared=kind.together)
            aligned = kind.learns[0] if stage.objective == "align" else None
            flops += samples * sample_cost(recipe, encoder, llm, shared, aligned=aligned).total
        stage_flops[stage.name] = flops
    # Of all stages, each manifest once: with those that one stage alone has.
    every = expected.counted(
        list({id(one): (one, weight) for some in of_stage.values() for one, weight in some}.values())
    )
    clips = expected.clips([one for _, one in manifests])
    frames = sum(count * frame_count(round(seconds * SAMPLE_RATE)) for seconds, count in clips)
    para = recipe.model.paralinguistic
    layers = len(layers_kept(encoder.layers + 1, every_layer=para.mix, layer=para.layer))
    lengths = {kind: one.lengths for kind, one in every.items()}
    return Estimate(
        examples={kind: round(one.examples) for kind, one in every.items()},
        lengths=lengths,
        assumed=all(one.assumed for some in of_stage.values() for one, _ in some),
        steps=steps,
        stage_flops=stage_flops,
        encoder_flops=sum(count * encoding_flops(encoder, seconds, recipe.model) for seconds, count in clips),
        cache_bytes=frames * layers * encoder.width * 2 * DISK_OVERHEAD,
        memory_bytes=_memory(recipe, encoder, llm, lengths or PAPER_LENGTHS),
    )


def _lengths(recipe: Recipe, stage: Stage, sums: Mapping[TaskKind, expected.Sums]) -> dict[TaskKind, Lengths]:
    """The lengths of the examples of a stage by kind; the paper's for kinds of manifests that are not here.

    Raises:
        DualSLMError: all manifests are here, and none has an example of a kind that the stage trains on.
    """
    lengths = {}
    for kind in stage.kinds:
        if kind not in sums and not any(expected.missing(recipe)):
            manifests = ", ".join((*recipe.data.train, *stage.also))
            got = f"none in {manifests}"
            raise DualSLMError(f"stage {stage.name} has no {kind} examples", got=got, do="add some")
        found = sums[kind].lengths if kind in sums else PAPER_LENGTHS[kind]
        share_heard = stage.history.count("speech") / len(stage.history)
        lengths[kind] = replace(found, context=found.context + share_heard * found.heard)
    return lengths


def encoding_flops(encoder: EncoderShape, seconds: float, model: ModelRecipe) -> float:
    """FLOPs of encoding a recording: of whole windows, because a clip is padded to one.

    Args:
        encoder: sizes of the speech encoder.
        seconds: length of the recording.
        model: model whose window rule holds.
    """
    whole = encoder.window * SAMPLES_PER_FRAME
    full, rest = divmod(max(1, round(seconds * SAMPLE_RATE)), whole)
    sizes = {whole: full}
    if rest:
        last = window_for(rest, whole, model.window)
        sizes[last] = sizes.get(last, 0) + 1
    frames = {size // SAMPLES_PER_FRAME: count for size, count in sizes.items()}
    return sum(count * (encoder.flops(size) + encoder.mel_flops(size)) for size, count in frames.items())


def sample_cost(
    recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Lengths, *, aligned: Channel | None = None
) -> Cost:
    """FLOPs of learning from one sample: frames from the cache, prefix without gradient, logits at labels alone.

    Args:
        recipe: recipe with the shapes of both adapters.
        encoder: sizes of the speech encoder.
        llm: sizes of the LLM.
        lengths: lengths of the sample.
        aligned: the adapter that is aligned with the LLM's token embeddings instead, without the LLM.
    """
    frames = lengths.seconds * FRAMES_PER_SECOND
    groups = -(-frames // recipe.model.linguistic.stack)
    para = _para_work(recipe.model.paralinguistic, encoder, llm, frames)
    ling = _ling_work(recipe.model.linguistic, encoder, llm, groups)
    if aligned == "para":
        return Cost(0.0, 0.0, para.learning)
    if aligned == "ling":
        # The classes are frozen: two FLOPs forward and two backward towards L, for each number of their embeddings.
        compared = 4 * groups * min(ALIGNMENT_CLASSES, llm.vocabulary) * llm.width
        return Cost(0.0, 0.0, ling.learning + compared)
    suffix = recipe.model.paralinguistic.tokens + groups + lengths.after + lengths.reply
    keys = lengths.context + suffix
    prefix = llm.forward(lengths.context, lengths.context) / lengths.shared
    # Two FLOPs for each weight of the head forward, and two backward towards its input: the head itself is frozen.
    head = 4 * llm.head * lengths.reply
    through_llm = llm.forward(suffix, keys) + llm.backward(suffix, keys) + head
    return Cost(prefix, through_llm, para.learning + ling.learning)


@dataclass(frozen=True)
class Work:
    """What an adapter takes for one clip.

    Attributes:
        weights: number of its weights.
        products: multiplications with them in one forward pass.
        first: those of them that need no gradient towards what they read, the frames.
    """

    weights: float
    products: float
    first: float

    @property
    def learning(self) -> float:
        """FLOPs of a forward pass and both gradients."""
        return 6 * self.products - 2 * self.first


def _para_work(para: Paralinguistic, encoder: EncoderShape, llm: LLMShape, frames: float) -> Work:
    ffn = para.feedforward or 4 * encoder.width
    layer = 4 * encoder.width**2 + 2 * encoder.width * ffn
    width = encoder.width * (2 if para.deviations else 1)
    in_layers = para.layers * (frames * layer + 2 * frames**2 * encoder.width)
    pooled = para.tokens * frames * width
    project = width * llm.width
    # Queries, keys and values of the first layer; without layers frames are pooled and projected.
    first = frames * 3 * encoder.width**2 if para.layers else pooled + para.tokens * project
    return Work(para.layers * layer + project, in_layers + pooled + para.tokens * project, first)


def _ling_work(ling: Linguistic, encoder: EncoderShape, llm: LLMShape, groups: float) -> Work:
    read = (2 * ling.around + 1) * ling.stack * encoder.width
    first = read * (encoder.width if ling.layers else ling.hidden)
    # Where there are layers, frames are narrowed to the encoder's width, which the layers keep, and widened again.
    layers = ling.layers * 12 * encoder.width**2 + (encoder.width * ling.hidden if ling.layers else 0)
    inner = ling.hidden // 2
    layers += ling.convolutions * (GROUPS_CONVOLVED * ling.hidden * inner + inner * ling.hidden)
    weights = first + layers + ling.hidden * llm.width
    attention = ling.layers * 2 * groups**2 * encoder.width
    return Work(weights, groups * weights + attention, groups * first)


def _memory(recipe: Recipe, encoder: EncoderShape, llm: LLMShape, lengths: Mapping[TaskKind, Lengths]) -> float:
    """Bytes of one process: frozen weights, adapters and their optimizer, and a micro-batch's activations."""
    para = _para_work(recipe.model.paralinguistic, encoder, llm, 0.0)
    ling = _ling_work(recipe.model.linguistic, encoder, llm, 0.0)
    # Of each layer what its backward pass reads, in bfloat16; with checkpointing one layer's, and every layer's input.
    per_token = 2.0 * (4 * llm.width + 3 * llm.ffn + 3 * llm.heads * llm.head_width)
    if recipe.loop.activation_checkpointing:
        per_token += 2 * llm.layers * llm.width
    else:
        per_token *= llm.layers
    frozen = 2 * (encoder.weights + llm.weights - llm.stored) + BYTES_PER_WEIGHT[recipe.model.quantize] * llm.stored
    labels = max(one.reply for one in lengths.values()) * max(stage.batch for stage in recipe.stages)
    logits = labels * llm.vocabulary * 10.0  # bytes: bfloat16, float32 and its gradient
    # An adapter's weight has a gradient and AdamW's two moments beside it: four float32 numbers.
    return frozen + 16 * (para.weights + ling.weights) + per_token * recipe.loop.max_tokens + logits


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
    missing = list(expected.missing(recipe))
    if found.assumed:
        known = expected.manifest(Path(missing[0])) if missing else None
        what = "what prepare or the build would make" if known else "the paper's corpora"
        return f"assumed, {what}: {'no' if not missing else missing[0] + ', no'} manifest is here"
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
