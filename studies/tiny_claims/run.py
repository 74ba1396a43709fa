"""The study: which claims of the paper hold in the tiny world (paper §III, §IV; Tables I, III and IV in miniature).

    python -m studies.tiny_claims [--out runs/study] [--minutes 180] [--seed 0]

Trains and tests, on the embedded default and one core: the three stages; the same without equivalence replacement
(ERR); without context randomness (histories of one length in stage 3); one adapter of equal size for both kinds of
information; m = 1, 4, 8, 16; the last encoder layer or a mix of all; and stage 1 without the alignment of L that the
tiny recipe puts before it. Each leg is one stage that starts from its parent's adapters: what two rows have in common
is trained once. A finished leg is not done again, and one that was stopped goes on where it was saved; with `--minutes`
no leg begins after that time. After each leg docs/results/study.json is written, and from it docs/study.md.

The stages are shorter than the recipe's, so figures are lower than the shipped model's: compare rows with each other.
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

# Before torch is imported, which reads it once: two seeds may run side by side on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn

from dualslm.data.manifest import Examples, recordings
from dualslm.data.manifest_index import rows
from dualslm.errors import DualSLMError
from dualslm.files import locked, replacing
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import Recipe, Stage, ViewDraw, load
from dualslm.tiny import WEIGHTS, world
from dualslm.tiny.build import conversations
from dualslm.tiny.build.recordings import Recordings, record
from dualslm.tiny.build.run import without_err
from dualslm.training import feature_cache
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.run_folder import held, read_state
from dualslm.training.trainer import Trainer, TrainerState
from studies.tiny_claims import page
from studies.tiny_claims.exam import Counts, context, examine

SIZES = {"train": 6000, "validation": 240}  # recordings
TEST_UTTERANCES = 100
FIXED_EXCHANGES = 2  # before the last turn, where histories have one length
STAGES = ("align", "joint", "disentangle", "respond")
# Shorter than in recipes/tiny.toml, so that the whole study takes some hours on one core.
LENGTHS: dict[str, dict[str, Any]] = {
    "align": {"steps": 300, "batch": 64},
    "joint": {"steps": 200, "batch": 16, "lr": 5e-4, "warmup": 20},
    "disentangle": {"steps": 150, "batch": 16, "warmup": 20},
    "respond": {"steps": 200, "batch": 16},
}
# The paper's own method: no alignment, so that L must find the words through the LLM in stage 1; one rate for both
# adapters, and histories as text (eq. 3).
UNALIGNED: dict[str, Any] = {"steps": 2400, "batch": 16, "lr": 1e-3, "warmup": 100}


@dataclass(frozen=True)
class Variant:
    """One row of the study.

    Attributes:
        name: name of the row, which also names its legs' folders.
        first: first stage that differs from `base`; the stages before it are shared.
        base: name of the row that it branches off.
        seeds: seeds that it is trained with.
        examined: stages after which it is tested.
    """

    name: str
    first: str
    base: str = "full"
    seeds: tuple[int, ...] = (0,)
    examined: tuple[str, ...] = ("respond",)


THREE = (0, 1, 2)  # for the rows that most claims are about
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("full", "align", seeds=THREE, examined=("joint", "disentangle", "respond")),
        Variant("without-err", "disentangle", seeds=THREE, examined=("disentangle", "respond")),
        Variant("single", "align", seeds=THREE),
        Variant("unaligned", "joint", seeds=THREE, examined=("joint", "disentangle", "respond")),
        Variant("unaligned-without-err", "disentangle", "unaligned", seeds=THREE, examined=("disentangle", "respond")),
        Variant("unaligned-heard-history", "respond", "unaligned", seeds=THREE),
        Variant("unaligned-plain-views", "respond", "unaligned", seeds=THREE),
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
        """The leg whose adapters it starts from; None where it starts from untrained ones."""
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
        """The folder in which it is trained."""
        return out / f"seed-{self.seed}" / self.variant / self.stage


def order() -> Iterator[Leg]:
    """The legs to be tested, the most important first."""
    # A stopped study has the main rows at least: they come first with two seeds, then the others, then a third seed.
    for seed, main in ((0, True), (1, True), (0, False), (2, True)):
        for variant in VARIANTS.values():
            if seed in variant.seeds and (len(variant.seeds) > 1) == main:
                yield from (Leg(variant.name, stage, seed) for stage in variant.examined)


# ---------------------------------------------------------------------- recipes


def recipe_of(leg: Leg) -> Recipe:
    """The tiny recipe as the leg's row changes it, with the leg's stage alone."""
    tiny = load("recipes/tiny.toml")
    stages = tuple(replace(stage, also=(), **LENGTHS[stage.name]) for stage in tiny.stages)
    # A leg that is stopped loses some minutes: the longest takes an hour.
    recipe = replace(tiny, stages=stages, seed=leg.seed, loop=replace(tiny.loop, save_every=400))
    name = leg.variant
    if "without-err" in name:
        recipe = without_err(recipe)
    if name == "single":
        recipe = replace(recipe, stages=tuple(map(_one_channel, recipe.stages)))
    if name.startswith("unaligned"):
        recipe = _as_the_paper(recipe)
    if name == "unaligned-heard-history":
        recipe = replace(recipe, stages=tuple(replace(stage, history=("speech",)) for stage in recipe.stages))
    if name == "unaligned-plain-views":
        recipe = replace(recipe, stages=tuple(map(_plain_views, recipe.stages)))
    if name.startswith("m-") or name == "mix":
        para = recipe.model.paralinguistic
        para = replace(para, mix=True) if name == "mix" else replace(para, tokens=int(name[2:]))
        recipe = replace(recipe, model=replace(recipe.model, paralinguistic=para))
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.name == leg.stage))


def _as_the_paper(recipe: Recipe) -> Recipe:
    """The recipe without what the tiny recipe does otherwise than the paper: its rate of P and its spoken histories."""
    changed = {"joint": UNALIGNED, "respond": {"history": ("text",)}}
    stages = tuple(replace(stage, **changed.get(stage.name, {})) for stage in recipe.stages)
    return replace(recipe, stages=stages, optimizer=replace(recipe.optimizer, paralinguistic_lr=1.0))


def _plain_views(stage: Stage) -> Stage:
    """The stage with its simple tasks from speech alone, as in stage 1, by the adapter that each teaches."""
    kinds = {name: kind if name == "dual" else replace(kind, view=ViewDraw()) for name, kind in stage.kinds.items()}
    return replace(stage, **kinds)


def _one_channel(stage: Stage) -> Stage:
    """The stage with everything through L alone, and without ERR: with L replaced, no speech would be left."""
    kinds: dict[str, Any] = {
        name: replace(kind, learns=("ling",), view=ViewDraw(para=("none",))) for name, kind in stage.kinds.items()
    }
    return replace(stage, **kinds)


def one_adapter(model: DualSLM) -> None:
    """Puts P's transformer layer in front of L's two linear layers: as many weights, and one sequence at 10 Hz."""
    layers = copy.deepcopy(model.para.layers)  # P itself stays as it is, and no prompt has a slot for it
    model.adapters["ling"].add_module("transformer", layers)  # trained and saved with L; "layers" is its own name

    def attend(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        frames_BTS = inputs[0].float()
        lengths_B = inputs[1]
        outside_BT = torch.arange(frames_BTS.shape[1]) >= lengths_B[:, None]
        for layer in layers:
            frames_BTS = layer(frames_BTS, src_key_padding_mask=outside_BT)
        return frames_BTS, lengths_B

    model.adapters["ling"].register_forward_pre_hook(attend)


# ---------------------------------------------------------------------- legs


@dataclass
class Study:
    """The frozen parts, the conversations and the frames that all legs share.

    Attributes:
        out: folder of everything that the study makes.
    """

    out: Path

    @cached_property
    def parts(self) -> DualSLM:
        """Encoder and LLM, with untrained adapters that nobody uses."""
        return DualSLM.from_parts(str(WEIGHTS / "encoder"), str(WEIGHTS / "llm"), dtype=torch.float32, device="cpu")

    @cached_property
    def conversations(self) -> dict[str, Examples]:
        """The training examples of each stage; `fixed-history` has its own in stage 3."""
        folder = self.out / "talks"
        conversations.write(self.parts, folder, SIZES, 1)
        fixed = folder / "train-fixed.jsonl"
        if not fixed.exists():
            # Tasks stay; of the conversations, those with the fixed number of exchanges before the last turn.
            turns = 2 * FIXED_EXCHANGES + 2
            all_rows = (row for _, row in rows(folder / "train.jsonl"))
            chosen = [row for row in all_rows if row["kind"] != "dual" or len(row["turns"]) == turns]
            with replacing(fixed) as partial_file:
                partial_file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
        train = Examples([folder / "train.jsonl"])
        aligned = Examples([folder / "train.jsonl", folder / "train-soups.jsonl"])
        return {**dict.fromkeys(STAGES, train), "align": aligned, "fixed-history": Examples([fixed])}

    @cached_property
    def cache(self) -> FrameCache:
        """Every layer of every recording, so that one cache serves all rows."""
        folder = self.out / "frames"
        spoken = recordings(self.conversations["align"])  # which has the recordings of all other stages too
        feature_cache.build(self.parts.encoder, spoken, folder, every_layer=True)
        return FrameCache(folder, Rule.of(self.parts.encoder, every_layer=True))

    @cached_property
    def tested(self) -> Recordings:
        """The test set: held-out sentences in voices of the training data."""
        draw = partial(world.sample_utterance, held_out=True, kinds=("event",))
        settings: dict[str, Any] = {"held_out_voices": False, "processes": 1, "every_layer": True}
        return record(self.parts.encoder, "seen", TEST_UTTERANCES, draw, **settings)

    def model(self, leg: Leg, recipe: Recipe) -> DualSLM:
        """A model with untrained adapters of the leg's shape, drawn by its seed."""
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
        recipe = recipe_of(leg)
        folder = leg.folder(self.out)
        model = self.model(leg, recipe)
        trained = folder / "trained"  # adapters alone may be those of the best validation so far
        if not trained.exists():
            if leg.parent:
                parent = self.trained(leg.parent).adapters
                if leg.parent.stage == "align":
                    # L alone: P has learnt nothing yet, and may have another shape in this row.
                    model.adapters["ling"].load_state_dict(parent["ling"].state_dict())
                else:
                    model.adapters.load_state_dict(parent.state_dict())
            examples = {leg.stage: self.conversations.get(leg.variant, self.conversations[leg.stage])}
            with held(folder):
                trainer = Trainer(recipe, model, folder, examples, None, self.cache, Accelerator(cpu=True))
                if (state := read_state(folder)) is not None:
                    trainer.state = TrainerState(state["stage"], state["step"], state["best"])
                trainer.run()
                trained.touch()
        model.adapters.load_state_dict(read_weights(folder / leg.stage, "cpu"))
        return model.eval()

    def counts(self, leg: Leg) -> Counts:
        """The counts of the leg's model by test utterance, measured where they are not yet."""
        file = leg.folder(self.out) / "marks.json"
        if not file.exists():
            model = self.trained(leg)
            counts = examine(model, self.tested, single=leg.variant == "single")
            if leg.stage == "respond" and leg.variant in ("full", "fixed-history") and leg.seed == 0:
                counts |= context(model, self.tested)
            with replacing(file) as partial_file:
                partial_file.write_text(json.dumps(counts))
        stored: Counts = json.loads(file.read_text())
        return stored


# ---------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, tests and writes the page, leg after leg."""
    parser = argparse.ArgumentParser(description="the study of the paper's claims in the tiny world")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time after which no leg begins")
    parser.add_argument("--seed", type=int, action="append", help="only this seed: two may run side by side")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(args.out)
    began = time.monotonic()
    for leg in (leg for leg in order() if args.seed is None or leg.seed in args.seed):
        if (time.monotonic() - began) / 60 > args.minutes:
            break
        before = time.process_time()
        try:
            study.counts(leg)
        except DualSLMError as error:
            raise SystemExit(f"error: {error}") from error
        took = time.process_time() - before
        print(f"--- {leg.variant} {leg.stage} seed {leg.seed}: {took:.0f} CPU seconds", flush=True)
        with locked(args.out / "page.lock", lambda: None):  # seeds side by side write one page
            write(args.out)


def write(out: Path) -> None:
    """Writes docs/results/study.json with the finished legs, and docs/study.md from it."""
    files = {leg: leg.folder(out) / "marks.json" for leg in order()}
    result = {
        "command": "python -m studies.tiny_claims",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "n": TEST_UTTERANCES,
        "recordings": SIZES["train"],
        "lengths": LENGTHS,
        "unaligned": UNALIGNED,
        "fixed": FIXED_EXCHANGES,
        "missing": [f"{leg.variant} {leg.stage} seed {leg.seed}" for leg, file in files.items() if not file.exists()],
        "marks": {
            f"{leg.variant}/{leg.stage}/{leg.seed}": json.loads(file.read_text())
            for leg, file in files.items()
            if file.exists()
        },
    }
    with replacing(page.RESULT) as partial_file:
        partial_file.write_text(json.dumps(result, separators=(",", ":")) + "\n")
    page.write()


if __name__ == "__main__":
    main()
