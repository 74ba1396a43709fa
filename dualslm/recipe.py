"""A recipe is one experiment as one strict TOML file: model, stages, optimizer (paper §III-C, §IV-C).

The dataclasses below are the whole format: a table is a dataclass, a key is a field. What they do not name is
an error that tells the full key, so that no typing mistake ever trains a default. Values are checked where a
dataclass is made, whether it is made from TOML or in Python.
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
from dualslm.conversation import CHANNELS, Channel, Source, View
from dualslm.errors import DualSLMError

TaskKind: TypeAlias = Literal["linguistic", "paralinguistic", "dual"]
Quantize: TypeAlias = Literal["int8", "nf4"]
RUN_RECIPE = "recipe.toml"  # in the folder of a run, above the checkpoints of its stages
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)


def _require(holds: bool, key: str, got: object, do: str) -> None:
    if not holds:
        raise DualSLMError(f"{key} makes no sense", got=got, do=do)


def _at_least(low: int, **values: float | None) -> None:
    for key, value in values.items():
        _require(value is None or low <= value < math.inf, key, value, f"give {low} or more")


def _above_zero(**values: float) -> None:
    for key, value in values.items():
        _require(0 < value < math.inf, key, value, "give a number above 0")


@dataclass(frozen=True, kw_only=True)
class Paralinguistic:
    """The paralinguistic adapter (paper eq. 4): the arguments of `ParalinguisticAdapter`."""

    layers: int = 1
    """Transformer layers; 0 pools what the encoder gives as it is (beyond the paper)."""
    heads: int = 8
    """Attention heads; they must divide the encoder's width."""
    dropout: float = 0.1
    tokens: int = 16
    """m, the soft-prompt embeddings that a clip becomes."""
    feedforward: int | None = None
    """Width of the feed-forward block; four times the encoder's width where it is not given."""
    layer: int | None = None
    """Which encoder layer is read, counted from the convolutions as 0; the last one unless given."""
    mix: bool = False
    """Read a learned mix of the encoder's layers instead of the last one (beyond the paper)."""
    standardize: bool = field(default=False, metadata={"was": "standardise"})
    """Every channel of the frames has mean 0 and deviation 1 over the training recordings (beyond the paper)."""
    deviations: bool = False
    """Pooling keeps deviations beside means (beyond the paper)."""

    @property
    def every_layer(self) -> bool:
        """Whether it reads another layer than the last."""
        return self.mix or self.layer is not None

    def __post_init__(self) -> None:
        _at_least(0, layers=self.layers, layer=self.layer)
        _at_least(1, heads=self.heads, tokens=self.tokens, feedforward=self.feedforward)
        _require(not self.mix or self.layer is None, "layer", self.layer, "give a layer or a mix of all, not both")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "give 0 or more and less than 1")


@dataclass(frozen=True, kw_only=True)
class Linguistic:
    """The linguistic adapter (paper eq. 5): the arguments of `LinguisticAdapter`."""

    stack: int = 5
    """k, the 50 Hz frames in one embedding."""
    hidden: int = 2048
    """Width between the two linear layers."""

    def __post_init__(self) -> None:
        _at_least(1, stack=self.stack, hidden=self.hidden)


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Two frozen parts, by hub id or folder, and two adapters."""

    encoder: str
    llm: str
    quantize: Quantize | None = field(default=None, metadata={"was": "quantise"})
    """Load the LLM's layers in fewer bits: "int8", or "nf4" (4 bits) for a small card."""
    adapters: str | None = None
    """Begin from these trained adapters, by hub id or folder, instead of fresh ones; their shapes must stand below."""
    paralinguistic: Paralinguistic = Paralinguistic()
    linguistic: Linguistic = Linguistic()


@dataclass(frozen=True, kw_only=True)
class ViewDraw:
    """The sources of each channel, of which one is drawn per example, all equally likely (paper §III-C)."""

    para: tuple[Source, ...] = ("speech",)
    ling: tuple[Source, ...] = ("speech",)

    def __post_init__(self) -> None:
        for channel in CHANNELS:
            _require(bool(getattr(self, channel)), channel, "no source", "name at least one")

    def draw(self, rng: random.Random) -> View:
        """One view."""
        return View(rng.choice(self.para), rng.choice(self.ling))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a stage does with one kind of task."""

    learns: tuple[Channel, ...]
    """The adapters that learn from it; the other one's slots are detached."""
    view: ViewDraw = ViewDraw()
    share: float = 1.0
    """Its weight in the stage's mixture, relative to the other kinds."""
    together: int = 1
    """So many neighbours in a manifest are drawn together: cut from one dialogue, they share a prefix."""

    def __post_init__(self) -> None:
        _require(bool(self.learns), "learns", "no channel", 'name "para", "ling" or both')
        _above_zero(share=self.share)
        _at_least(1, together=self.together)
        for channel in self.learns:
            sources = getattr(self.view, channel)
            _require("speech" in sources, f"view.{channel}", list(sources), "a channel learns from speech")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training; its length is in epochs or in steps."""

    name: str
    lr: float
    """The largest learning rate, reached after the warm-up, from which it falls linearly to zero."""
    batch: int
    """Examples per optimizer step, over all processes."""
    objective: Literal["reply", "align"] = "reply"
    """What is learnt: the reply, through the LLM, or where the LLM's words are (`align.py`, without the LLM)."""
    warmup: int = 0
    """Optimizer steps."""
    epochs: int | None = None
    """Times through the talks of the kind with the largest share; the larger kind where shares are equal."""
    steps: int | None = None
    """Optimizer steps."""
    also: tuple[str, ...] = ()
    """Manifests that this stage alone learns from, beside those under [data]."""
    linguistic: Kind | None = None
    paralinguistic: Kind | None = None
    dual: Kind | None = None

    def __post_init__(self) -> None:
        _require(self.name.isidentifier(), "name", repr(self.name), "use letters, digits and _")
        _above_zero(lr=self.lr)
        _at_least(1, batch=self.batch, epochs=self.epochs, steps=self.steps)
        _at_least(0, warmup=self.warmup)
        length = f"epochs {self.epochs} and steps {self.steps}"
        _require((self.epochs is None) != (self.steps is None), "length", length, "give one of the two")
        _require(bool(self.kinds), "mixture", "no task", f"give one of {', '.join(TASK_KINDS)}")
        alone = {"linguistic": {"ling"}, "paralinguistic": {"para"}}
        fits = len(self.kinds) == 1 and self.learns == alone.get(next(iter(self.kinds)))
        given, do = (
            " ".join([*self.kinds, *sorted(self.learns)]),
            'align ["ling"] on linguistic tasks alone, or ["para"]',
        )
        _require(self.objective == "reply" or fits, "objective", given, do)
        drawn = [list(getattr(kind.view, learnt)) for kind in self.kinds.values() for learnt in kind.learns]
        spoken = all(sources == ["speech"] for sources in drawn)
        _require(self.objective == "reply" or spoken, "view", drawn, 'align from ["speech"] alone')

    @property
    def kinds(self) -> dict[TaskKind, Kind]:
        """The kinds of task that this stage trains on."""
        return {name: kind for name in TASK_KINDS if (kind := getattr(self, name)) is not None}

    def steps_over(self, conversations: Mapping[TaskKind, int]) -> int:
        """Its optimizer steps, with so many talks of each kind in an epoch."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        shares = {name: kind.share for name, kind in self.kinds.items()}
        share, count = max((share, conversations[name]) for name, share in shares.items())
        return max(1, round(self.epochs * count * sum(shares.values()) / share / self.batch))

    @property
    def learns(self) -> set[Channel]:
        """The channels that any of its kinds teaches."""
        return {channel for kind in self.kinds.values() for channel in kind.learns}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (paper §IV-C)."""

    weight_decay: float = 0.05
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    paralinguistic_lr: float = 1.0
    """Factor on the learning rate of the paralinguistic adapter."""

    def __post_init__(self) -> None:
        _at_least(0, weight_decay=self.weight_decay)
        _above_zero(clip=self.clip, paralinguistic_lr=self.paralinguistic_lr)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the talks and the frames are; paths count from the folder that the command is run in."""

    train: tuple[str, ...] = ()
    """Manifests to learn from."""
    weights: tuple[float, ...] = ()
    """How often an epoch has the talks of each training manifest; each once unless given, and 0.5 is half of them."""
    validation: tuple[str, ...] = ()
    """Manifests that choose the best checkpoint."""
    features: str = "runs/features"
    """The cache of encoder frames; what is missing in it is made before training."""
    unreadable: float = 0.05
    """A larger share of lessons with recordings that cannot be read stops the training."""

    def __post_init__(self) -> None:
        given = f"{len(self.weights)} for {len(self.train)} manifests"
        _require(len(self.weights) in (0, len(self.train)), "weights", given, "give one for each under data.train")
        for weight in self.weights:
            _above_zero(weights=weight)
        _require(0 <= self.unreadable <= 1, "unreadable", self.unreadable, "give a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How the steps are carried out; nothing here changes what is learnt beyond rounding."""

    max_tokens: int = field(default=8192, metadata={"was": "positions"})
    """Padded tokens in one forward pass: a batch is gone through in parts of like lengths."""
    workers: int = 0
    """Processes that draw batches ahead."""
    activation_checkpointing: bool = field(default=False, metadata={"was": "checkpointing"})
    """The LLM's layers compute their activations twice instead of keeping them: less memory, a third more work."""
    compile: bool = False
    """Compile the LLM's layers: the first step is slow."""
    fsdp: bool = field(default=False, metadata={"was": "shard"})
    """Spread the LLM's layers over all processes (FSDP) instead of a whole LLM in each."""
    save_every: int = 200
    """Steps from which a stopped run goes on."""
    validate_every: int = 500
    """Steps; the last step of a stage validates too."""
    validation_batches: int = 8

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
        overrides: one-off changes such as "stage.1.lr=1e-5"; stages are counted from 1.

    Raises:
        DualSLMError: the file, a key or a value is not what a recipe has; the full key is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DualSLMError(
            f"cannot read the recipe {path}",
            got=error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8 text",
            do="give a TOML file such as recipes/small.toml",
        ) from error
    return parse(text, overrides, name=str(path))


def parse(text: str, overrides: Iterable[str] = (), *, name: str = "the recipe") -> Recipe:
    """Reads a recipe from TOML text; see `load`."""
    return toml.read(Recipe, text, overrides, name=name)


def to_toml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as TOML that `parse` reads back."""
    return tomli_w.dumps(toml.plain(recipe))
