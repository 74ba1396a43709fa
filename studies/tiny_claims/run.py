"""The study: which claims of the paper hold in the tiny world (paper §III, §IV; Tables I, III and IV in miniature).

    python -m studies.tiny_claims [--out runs/study] [--minutes 180] [--seed 0]

Trains and examines, on the embedded default and one core: the three stages; the same without equivalence
replacement (ERR); without context randomness (histories of one length in stage 3); one adapter of equal size for
both kinds of information; m = 1, 4, 8, 16; the last encoder layer or a mix of all; and stage 1 without the
alignment of L that the tiny recipe puts before it. Each leg is one stage from one parent: what two rows have in
common is trained once. A leg that is done is kept, so the command goes on where it was stopped, and with
`--minutes` it begins no leg after so long. Every time it writes docs/results/study.json and from it docs/study.md.

The stages are shorter than the recipe's, so figures are lower than the shipped model's: rows are to be compared
with each other.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn

from dualslm.conversation import Source
from dualslm.data.manifest import Examples, recordings
from dualslm.data.manifest_index import rows
from dualslm.files import replacing
from dualslm.model.checkpoint import WEIGHTS as ADAPTERS
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import Kind, Recipe, Stage, ViewDraw, load
from dualslm.tiny import WEIGHTS, world
from dualslm.tiny.build import conversations
from dualslm.tiny.build.recordings import Recordings, record
from dualslm.tiny.build.run import without_err
from dualslm.training import feature_cache
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.trainer import Trainer
from studies.tiny_claims import page
from studies.tiny_claims.exam import Marks, context, examine

SIZES = {"train": 6000, "validation": 240}  # recordings
TESTED = 100  # utterances of a figure
FIXED = 2  # exchanges before the last turn, where histories have one length
STAGES = ("align", "joint", "disentangle", "respond")
LENGTHS = {  # shorter than recipes/tiny.toml: the whole study in some hours on one core
    "align": {"steps": 300, "batch": 64},
    "joint": {"steps": 200, "batch": 16, "lr": 5e-4, "warmup": 20},
    "disentangle": {"steps": 150, "batch": 16, "warmup": 20},
    "respond": {"steps": 200, "batch": 16},
}
UNALIGNED = {"steps": 600, "lr": 1e-3}  # stage 1 where L must find the words by itself


@dataclass(frozen=True)
class Variant:
    """One row of the study.

    Attributes:
        name: of the row; its legs' folders end with it.
        first: the first stage that differs from the full row; the ones before are shared with `base`.
        base: the row that it branches off.
        seeds: it is trained with.
        examined: the stages after which it is examined.
    """

    name: str
    first: str
    base: str = "full"
    seeds: tuple[int, ...] = (0,)
    examined: tuple[str, ...] = ("respond",)


THREE = (0, 1, 2)
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("full", "align", seeds=THREE, examined=("joint", "disentangle", "respond")),
        Variant("without-err", "disentangle", seeds=THREE, examined=("disentangle", "respond")),
        Variant("single", "align", seeds=THREE),
        Variant("unaligned", "joint", examined=("joint", "disentangle", "respond")),
        Variant("unaligned-without-err", "disentangle", base="unaligned", examined=("disentangle", "respond")),
        Variant("fixed-history", "respond"),
        Variant("m-1", "joint"),
        Variant("m-4", "joint"),
        Variant("m-8", "joint"),
        Variant("mix", "joint"),
    )
}


@dataclass(frozen=True)
class Leg:
    """One stage of one row with one seed."""

    variant: str
    stage: str
    seed: int

    @property
    def parent(self) -> Leg | None:
        """The leg whose adapters it begins with; None begins afresh."""
        before = STAGES.index(self.stage) - 1
        if before < 0 or (self.variant == "unaligned" and self.stage == "joint"):
            return None
        variant = VARIANTS[self.variant]
        return Leg(variant.base if self.stage == variant.first else self.variant, STAGES[before], self.seed)

    @property
    def chain(self) -> list[Leg]:
        """The legs up to this one, in order."""
        return [*(self.parent.chain if self.parent else ()), self]

    def folder(self, out: Path) -> Path:
        """Where it is trained."""
        return out / f"seed-{self.seed}" / self.variant / self.stage


def order() -> Iterator[Leg]:
    """The legs to be examined, the weightiest first: the main rows, then what is asked once, then more seeds."""
    for seed, main in ((0, True), (1, True), (0, False), (2, True)):
        for variant in VARIANTS.values():
            if seed in variant.seeds and (len(variant.seeds) > 1) == main:
                yield from (Leg(variant.name, stage, seed) for stage in variant.examined)


# ---------------------------------------------------------------------- recipes


def recipe_of(leg: Leg) -> Recipe:
    """The tiny recipe as the leg's row changes it, cut to the leg's stage."""
    tiny = load("recipes/tiny.toml")
    stages = tuple(replace(stage, also=(), **LENGTHS[stage.name]) for stage in tiny.stages)
    recipe = replace(tiny, stages=stages, seed=leg.seed, loop=replace(tiny.loop, save_every=10**6))
    name = leg.variant
    if "without-err" in name:
        recipe = without_err(recipe)
    if name == "single":
        recipe = replace(recipe, stages=tuple(map(_one_channel, recipe.stages)))
    if name == "unaligned" and leg.stage == "joint":
        recipe = replace(recipe, stages=tuple(replace(stage, **UNALIGNED) for stage in recipe.stages))
    if name.startswith("m-") or name == "mix":
        para = recipe.model.paralinguistic
        para = replace(para, mix=True) if name == "mix" else replace(para, tokens=int(name[2:]))
        recipe = replace(recipe, model=replace(recipe.model, paralinguistic=para))
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.name == leg.stage))


def _one_channel(stage: Stage) -> Stage:
    """Everything through L alone: where ERR would replace L, it cannot, for then nothing would be heard."""

    def alone(kind: Kind | None) -> Kind | None:
        silent: tuple[Source, ...] = ("none",)
        return kind and replace(kind, learns=("ling",), view=ViewDraw(para=silent))

    kinds = {name: alone(kind) for name, kind in stage.kinds.items()}
    return replace(stage, **kinds)


def one_adapter(model: DualSLM) -> None:
    """Puts P's transformer layer in front of L's two linear layers: as many weights, one sequence at 10 Hz."""
    layers = copy.deepcopy(model.para.layers)  # P itself is left as it is, and asked for nothing
    model.adapters["ling"].add_module("layers", layers)

    def attend(_: nn.Module, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        frames_BTS, lengths_B = given[0].float(), given[1]
        outside_BT = torch.arange(frames_BTS.shape[1]) >= lengths_B[:, None]
        for layer in layers:
            frames_BTS = layer(frames_BTS, src_key_padding_mask=outside_BT)
        return frames_BTS, lengths_B

    model.adapters["ling"].register_forward_pre_hook(attend)


# ---------------------------------------------------------------------- legs


@dataclass
class Study:
    """The frozen parts, the talks and the frames that all legs share."""

    out: Path

    @cached_property
    def parts(self) -> DualSLM:
        """The frozen parts, under adapters that nobody uses."""
        return DualSLM.from_parts(str(WEIGHTS / "encoder"), str(WEIGHTS / "llm"), dtype=torch.float32, device="cpu")

    @cached_property
    def conversations(self) -> dict[str, Examples]:
        """What each stage learns from; `fixed-history` has a stage 3 of its own."""
        folder = self.out / "talks"
        conversations.write(self.parts, folder, SIZES, 1)
        fixed = folder / "train-fixed.jsonl"
        if not fixed.exists():
            _keep_fixed(folder / "train.jsonl", fixed)
        train = Examples([folder / "train.jsonl"])
        aligned = Examples([folder / "train.jsonl", folder / "train-soups.jsonl"])
        return {**dict.fromkeys(STAGES, train), "align": aligned, "fixed-history": Examples([fixed])}

    @cached_property
    def cache(self) -> FrameCache:
        """Every layer of every recording, so that one cache serves all rows."""
        heard, folder = recordings(self.conversations["align"]), self.out / "frames"
        feature_cache.build(self.parts.encoder, heard, folder, every_layer=True)
        return FrameCache(folder, Rule.of(self.parts.encoder, every_layer=True))

    @cached_property
    def tested(self) -> Recordings:
        """Sentences never heard, in voices of training."""
        draw = partial(world.sample_utterance, held_out=True, kinds=("event",))
        voices: dict[str, Any] = {"held_out_voices": False, "processes": 1, "every_layer": True}
        return record(self.parts.encoder, "seen", TESTED, draw, **voices)

    def model(self, leg: Leg, recipe: Recipe) -> DualSLM:
        """Fresh adapters of the leg's shape, drawn by its seed."""
        torch.manual_seed(leg.seed)
        shapes = {
            "paralinguistic": asdict(recipe.model.paralinguistic),
            "linguistic": asdict(recipe.model.linguistic),
        }
        model = DualSLM(self.parts.encoder, self.parts.llm, **shapes)
        if leg.variant == "single":
            one_adapter(model)
        return model

    def trained(self, leg: Leg) -> DualSLM:
        """The leg's model, trained where it is not yet."""
        recipe, folder = recipe_of(leg), leg.folder(self.out)
        model = self.model(leg, recipe)
        if not (folder / leg.stage / ADAPTERS).exists():
            if leg.parent:
                _begin(model, self.trained(leg.parent), shared=leg.parent.stage == "align")
            given = {leg.stage: self.conversations.get(leg.variant, self.conversations[leg.stage])}
            folder.mkdir(parents=True, exist_ok=True)
            Trainer(recipe, model, folder, given, None, self.cache, Accelerator(cpu=True)).run()
        model.adapters.load_state_dict(read_weights(folder / leg.stage, "cpu"))
        return model.eval()

    def marks(self, leg: Leg) -> Marks:
        """What the leg's model did with every test utterance, measured where it is not yet."""
        file = leg.folder(self.out) / "marks.json"
        if not file.exists():
            model = self.trained(leg)
            found = examine(model, self.tested, single=leg.variant == "single")
            if leg.stage == "respond" and leg.variant in ("full", "fixed-history") and leg.seed == 0:
                found |= context(model, self.tested)
            with replacing(file) as partial_file:
                partial_file.write_text(json.dumps(found))
        read: Marks = json.loads(file.read_text())
        return read


def _begin(model: DualSLM, parent: DualSLM, *, shared: bool) -> None:
    """Takes the parent's adapters; after the alignment those of L alone, since P has not learnt and may differ."""
    if shared:
        model.adapters["ling"].load_state_dict(parent.adapters["ling"].state_dict())
    else:
        model.adapters.load_state_dict(parent.adapters.state_dict())


def _keep_fixed(source: Path, target: Path) -> None:
    """Of the conversations, those with the fixed number of exchanges before the last turn; the tasks all."""
    kept = [row for _, row in rows(source) if row["kind"] != "dual" or len(row["turns"]) == 2 * FIXED + 2]
    with replacing(target) as partial_file:
        partial_file.write_text("".join(json.dumps(row) + "\n" for row in kept))


# ---------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, examines and writes, leg after leg."""
    parser = argparse.ArgumentParser(description="the study of the paper's claims in the tiny world")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no leg after so long")
    parser.add_argument("--seed", type=int, action="append", help="this seed alone: two may run side by side")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study, began = Study(asked.out), time.monotonic()
    for leg in (leg for leg in order() if asked.seed is None or leg.seed in asked.seed):
        if (time.monotonic() - began) / 60 > asked.minutes:
            break
        took = time.process_time()
        study.marks(leg)
        print(
            f"--- {leg.variant} {leg.stage} seed {leg.seed}: {time.process_time() - took:.0f} CPU seconds", flush=True
        )
        write(asked.out)


def write(out: Path) -> None:
    """Writes docs/results/study.json with what there is, and docs/study.md from it."""
    done = {leg: leg.folder(out) / "marks.json" for leg in order()}
    result = {
        "command": "python -m studies.tiny_claims",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "n": TESTED,
        "recordings": SIZES["train"],
        "lengths": LENGTHS,
        "unaligned": UNALIGNED,
        "fixed": FIXED,
        "missing": [f"{leg.variant} {leg.stage} seed {leg.seed}" for leg, file in done.items() if not file.exists()],
        "marks": {
            f"{leg.variant}/{leg.stage}/{leg.seed}": json.loads(file.read_text())
            for leg, file in done.items()
            if file.exists()
        },
    }
    with replacing(page.RESULT) as partial_file:
        partial_file.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    page.write()


if __name__ == "__main__":
    main()
