"""A recipe is one experiment as one strict TOML file: model, stages, optimizer (paper §III-C, §IV-C).

The dataclasses below are the whole format: a table is a dataclass, a key is a field. A key that they do not have is
an error that names the full key, so that a typing mistake never trains with a default. Values are checked when a
dataclass is created, from TOML or in Python. `metadata["was"]` is the key's name in earlier versions (`toml.py`).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tomli_w

from dualslm import toml
from dualslm.conversation import CHANNELS, Channel, History, Source, View
from dualslm.errors import DualSLMError
from dualslm.files import read_text

TaskKind: TypeAlias = Literal["linguistic", "paralinguistic", "dual"]
Quantize: TypeAlias = Literal["int8", "nf4"]
RUN_RECIPE = "recipe.toml"  # file name in the folder of a run, above the checkpoints of its stages
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
# Far above what anybody trains. The card of a checkpoint is read by the same classes, and one from elsewhere must not
# fill the memory.
MAX_LAYERS = 64
MAX_WIDTH = 131_072
MAX_STEPS = 1_000_000_000
MAX_BATCH = 1_000_000  # examples in one step, or drawn together
MAX_SHARE = 1_000_000  # of a kind or a manifest among the others; as small a part of one at least
MAX_NAME = 60  # letters of a stage's name
MAX_COUNT = 4096  # of heads, soft prompt tokens, frames


# The checks name the bare key; `toml.py` puts the path of its table before it.


def _require(holds: bool, key: str, got: object, do: str) -> None:
    if not holds:
        raise DualSLMError(f"{key} makes no sense", got=got, do=do)


def _at_least(low: int, *, most: float = math.inf, **values: float | None) -> None:
    do = f"give {low} or more" + (f", and at most {most}" if most < math.inf else "")
    for key, value in values.items():
        # Written so that NaN, for which every comparison is false, fails as well.
        _require(value is None or (low <= value < math.inf and value <= most), key, value, do)


def _above_zero(**values: float) -> None:
    for key, value in values.items():
        _require(0 < value < math.inf, key, value, "give a number above 0")


def _a_share(key: str, value: float) -> None:
    # Sums and products of others overflow when a batch is drawn, or draw nothing.
    do = f"give a number above 0, from 1 / {MAX_SHARE} to {MAX_SHARE}"
    _require(1 / MAX_SHARE <= value <= MAX_SHARE, key, value, do)


@dataclass(frozen=True, kw_only=True)
class Paralinguistic:
    """The paralinguistic adapter (paper eq. 4): the arguments of `ParalinguisticAdapter`."""

    layers: int = 1
    """Number of transformer layers; 0 pools the encoder's frames directly (beyond the paper)."""
    heads: int = 8
    """Number of attention heads; a divisor of the encoder's width."""
    dropout: float = 0.1
    tokens: int = 16
    """m, the number of soft-prompt embeddings of a recording."""
    feedforward: int | None = None
    """Width of the feed-forward block; four times the encoder's width unless given."""
    layer: int | None = None
    """Encoder layer to read, where 0 is the output of the convolutions; the last layer unless given."""
    mix: bool = False
    """Read a learned weighted sum of all encoder layers instead of the last one (beyond the paper)."""
    standardize: bool = field(default=False, metadata={"was": "standardise"})
    """Scale every channel of the frames to mean 0 and deviation 1 over the training recordings (beyond the paper)."""
    deviations: bool = False
    """Pool standard deviations beside means (beyond the paper)."""

    def __post_init__(self) -> None:
        _at_least(0, most=MAX_LAYERS, layers=self.layers)
        _at_least(0, most=MAX_COUNT, layer=self.layer)
        _at_least(1, most=MAX_COUNT, heads=self.heads, tokens=self.tokens)
        _at_least(1, most=MAX_WIDTH, feedforward=self.feedforward)
        _require(not self.mix or self.layer is None, "layer", self.layer, "give a layer or a mix of all, not both")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "give 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class Linguistic:
    """The linguistic adapter (paper eq. 5): the arguments of `LinguisticAdapter`."""

    stack: int = 5
    """k, the number of 50 Hz frames that are concatenated into one embedding."""
    hidden: int = 2048
    """Width between the two linear layers."""
    around: int = 0
    """Number of neighbouring groups of frames on either side that are read with each (beyond the paper)."""
    layers: int = 0
    """Number of transformer layers over the groups, before the linear ones (beyond the paper)."""
    heads: int = 8
    """Their attention heads; they must divide the encoder's width."""
    convolutions: int = 0
    """Number of convolutions over the groups, between the linear layers (beyond the paper)."""
    dropout: float = 0.0
    """In these layers and convolutions, and of whole channels of the frames (beyond the paper)."""
    mask: float = 0.0
    """Share of the frames that training hides, in stretches (beyond the paper)."""
    standardize: bool = False
    """Every channel of the frames has mean 0 and deviation 1 over the training recordings (beyond the paper)."""
    skip: bool = False
    """Silent groups are left out of the prompt, and neighbours that say the same are merged (beyond the paper)."""

    def __post_init__(self) -> None:
        _at_least(1, most=MAX_COUNT, stack=self.stack, heads=self.heads)
        _at_least(1, most=MAX_WIDTH, hidden=self.hidden)
        _at_least(0, most=MAX_COUNT, around=self.around)
        _at_least(0, most=MAX_LAYERS, layers=self.layers, convolutions=self.convolutions)
        for key in ("dropout", "mask"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "give 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Two frozen models and two adapters."""

    encoder: str
    """Speech encoder: hub id or folder."""
    llm: str
    """LLM: hub id, folder, or GGUF file (a path, or org/repo:file.gguf)."""
    window: Literal["full", "clip"] = "full"
    """What a clip is padded to: the encoder's window, or the smallest of a few that holds it (beyond the paper)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the frozen parts; bfloat16 on a GPU and float32 on a CPU unless given."""
    quantize: Quantize | None = field(default=None, metadata={"was": "quantise"})
    """Quantization of the LLM's layers: "int8", or "nf4" (4 bits) for a GPU with little memory."""
    adapters: str | None = None
    """Trained adapters to start from, by hub id or folder; their shapes must equal those given below."""
    paralinguistic: Paralinguistic = Paralinguistic()
    linguistic: Linguistic = Linguistic()


@dataclass(frozen=True, kw_only=True)
class ViewDraw:
    """The sources of each channel; one is drawn per example, uniformly (paper §III-C)."""

    para: tuple[Source, ...] = ("speech",)
    ling: tuple[Source, ...] = ("speech",)

    def __post_init__(self) -> None:
        for channel in CHANNELS:
            _require(bool(getattr(self, channel)), channel, "no source", "name at least one")

    def draw(self, rng: random.Random) -> View:
        """Draws one view.

        Args:
            rng: random numbers of the example.
        """
        return View(rng.choice(self.para), rng.choice(self.ling))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a stage trains on one kind of task."""

    learns: tuple[Channel, ...]
    """Channels whose adapters are trained; the embeddings of the other channel are detached."""
    view: ViewDraw = ViewDraw()
    share: float = 1.0
    """Weight of this kind in the stage's mixture, relative to the other kinds."""
    together: int = 1
    """Number of neighbouring examples of a manifest drawn together; examples of one dialogue share a prefix."""

    def __post_init__(self) -> None:
        _require(bool(self.learns), "learns", "no channel", 'name "para", "ling" or both')
        _a_share("share", self.share)
        _at_least(1, most=MAX_BATCH, together=self.together)
        for channel in self.learns:
            # An adapter gets a gradient only where its channel is read from speech.
            sources = getattr(self.view, channel)
            _require("speech" in sources, f"view.{channel}", list(sources), "a channel learns from speech")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the training, whose length is given in epochs or in steps."""

    name: str
    lr: float
    """Peak learning rate, reached after the warm-up; from there it decays linearly to zero."""
    batch: int
    """Examples per optimizer step, summed over all processes."""
    objective: Literal["reply", "align"] = "reply"
    """The loss: cross-entropy of the reply through the LLM, or alignment to its input embeddings (`align.py`)."""
    min_token_count: int = 0
    """Of L's alignment: tokens that the transcripts hold fewer times are spelled by commoner ones (`spelling.py`)."""
    warmup: int = 0
    """Length of the warm-up in optimizer steps."""
    epochs: int | None = None
    """Passes over the examples of the kind with the largest share; of the larger kind where shares are equal."""
    steps: int | None = None
    """Length of the stage in optimizer steps."""
    history: tuple[History, ...] = ("text",)
    """How spoken turns before the last one are given, drawn for each example: read as text (paper eq. 3), or heard."""
    also: tuple[str, ...] = ()
    """Manifests for this stage alone, in addition to those under [data]."""
    linguistic: Kind | None = None
    paralinguistic: Kind | None = None
    dual: Kind | None = None

    def __post_init__(self) -> None:
        # The name of a folder, which file systems hold to 255 bytes.
        fits = self.name.isidentifier() and len(self.name) <= MAX_NAME
        _require(fits, "name", repr(self.name), f"use letters, digits and _, at most {MAX_NAME} of them")
        _above_zero(lr=self.lr)
        _at_least(1, most=MAX_BATCH, batch=self.batch)
        _at_least(1, most=MAX_STEPS, epochs=self.epochs, steps=self.steps)
        _at_least(0, most=MAX_STEPS, warmup=self.warmup)
        _at_least(0, min_token_count=self.min_token_count)
        length = f"epochs {self.epochs} and steps {self.steps}"
        _require((self.epochs is None) != (self.steps is None), "length", length, "give one of the two")
        _require(bool(self.history), "history", "none", 'name "text", "speech" or both')
        _require(bool(self.kinds), "mixture", "no task", f"give one of {', '.join(TASK_KINDS)}")
        if self.objective == "align":
            self._check_align()

    def _check_align(self) -> None:
        # An alignment loss is defined for one adapter, on its own kind of task and from speech (`align.py`).
        alone = {"linguistic": {"ling"}, "paralinguistic": {"para"}}
        fits = len(self.kinds) == 1 and self.learns == alone.get(next(iter(self.kinds)))
        given = " ".join([*self.kinds, *sorted(self.learns)])
        _require(fits, "objective", given, 'align ["ling"] on linguistic tasks alone, or ["para"]')
        drawn = [list(getattr(kind.view, channel)) for kind in self.kinds.values() for channel in kind.learns]
        spoken = all(sources == ["speech"] for sources in drawn)
        _require(spoken, "view", drawn, 'align from ["speech"] alone')

    @property
    def kinds(self) -> dict[TaskKind, Kind]:
        """The kinds of task of the stage, in the order of `TASK_KINDS`."""
        return {name: kind for name in TASK_KINDS if (kind := getattr(self, name)) is not None}

    def steps_over(self, conversations: Mapping[TaskKind, int]) -> int:
        """The number of optimizer steps of the stage.

        Args:
            conversations: number of examples of each kind in an epoch.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        shares = {name: kind.share for name, kind in self.kinds.items()}
        share, count = max((share, conversations[name]) for name, share in shares.items())
        # The kind with the largest share fills share / sum(shares) of every batch, and its examples are passed over
        # `epochs` times.
        return max(1, round(self.epochs * count * sum(shares.values()) / share / self.batch))

    @property
    def learns(self) -> set[Channel]:
        """The channels that are trained on any of the kinds."""
        return {channel for kind in self.kinds.values() for channel in kind.learns}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (paper §IV-C)."""

    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    paralinguistic_lr: float = 1.0
    """Factor on the learning rate of the paralinguistic adapter."""

    def __post_init__(self) -> None:
        _at_least(0, weight_decay=self.weight_decay)
        _above_zero(clip=self.clip, paralinguistic_lr=self.paralinguistic_lr)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Manifests and cached features; paths are relative to the working directory."""

    train: tuple[str, ...] = ()
    """Training manifests."""
    weights: tuple[float, ...] = ()
    """Times that an epoch holds the examples of each training manifest, 1 unless given; 0.5 is half of them."""
    validation: tuple[str, ...] = ()
    """Validation manifests, by whose loss the best checkpoint is chosen."""
    features: str = "runs/features"
    """Folder of cached encoder frames; missing ones are computed before training."""
    unreadable: float = 0.05
    """Largest share of examples with recordings that cannot be read; beyond it the training stops."""

    def __post_init__(self) -> None:
        given = f"{len(self.weights)} for {len(self.train)} manifests"
        _require(len(self.weights) in (0, len(self.train)), "weights", given, "give one for each under data.train")
        for weight in self.weights:
            _a_share("weights", weight)  # a manifest of weight 0 should not be listed at all
        _require(0 <= self.unreadable <= 1, "unreadable", self.unreadable, "give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the steps are computed; nothing here changes the result beyond rounding."""

    max_tokens: int = field(default=8192, metadata={"was": "positions"})
    """Padded tokens in one forward pass; a batch is split into micro-batches of similar length."""
    workers: int = 0
    """Number of data loader processes."""
    activation_checkpointing: bool = field(default=False, metadata={"was": "checkpointing"})
    """Recompute the activations of the LLM's layers in the backward pass: less memory, a third more compute."""
    compile: bool = False
    """Compile the LLM's layers; the first step is slow."""
    fsdp: bool = field(default=False, metadata={"was": "shard"})
    """Shard the LLM's layers over all processes (FSDP) instead of one whole LLM in each."""
    bf16_alignment: bool = False
    """Matrix products of aligning stages in bfloat16: half the time where the machine has them."""
    save_every: int = 200
    """Steps between two saved states, from which a stopped run resumes."""
    validate_every: int = 500
    """Steps between two validations; the last step of a stage validates too."""
    validation_batches: int = 8
    """Number of batches of a validation."""

    def __post_init__(self) -> None:
        _at_least(1, max_tokens=self.max_tokens, save_every=self.save_every, validate_every=self.validate_every)
        _at_least(1, validation_batches=self.validation_batches)
        _at_least(0, workers=self.workers)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    model: ModelRecipe
    stages: tuple[Stage, ...] = field(metadata={"key": "stage"})
    optimizer: Optimizer = field(default=Optimizer(), metadata={"was": "optimiser"})
    data: Data = Data()
    loop: Loop = Loop()
    seed: int = 0

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        _require(bool(names), "stage", "no stage", "add a [[stage]] table")
        _require(len(set(names)) == len(names), "stage", " ".join(names), "name each stage differently")
        _at_least(0, seed=self.seed)


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file.

    Args:
        path: a TOML file.
        overrides: changes of single keys, such as "stage.1.lr=1e-5"; stages are counted from 1.

    Raises:
        DualSLMError: the file cannot be read, or a key or value is not one that a recipe may have; the error names
            the full key.
    """
    text = read_text(Path(path), "the recipe", "give a TOML file; dualslm recipes copies a shipped one")
    return parse(text, overrides, name=str(path))


def parse(text: str, overrides: Iterable[str] = (), *, name: str = "the recipe") -> Recipe:
    """Reads a recipe from TOML text; see `load`."""
    return toml.read(Recipe, text, overrides, name=name)


def to_toml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as TOML that `parse` reads back."""
    return tomli_w.dumps(toml.plain(recipe))
