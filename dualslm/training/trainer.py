"""One loop for any stage, on Accelerate (paper §III-C, §IV-C).

What learns, from which sources, and in which shares is read from the recipe; this file knows of no stage by
name. A run is a folder: `recipe.toml`, `metrics.jsonl`, `skipped.jsonl`, `curves.png`, one checkpoint for each
stage (the best by validation, from which the next stage starts), and `state.pt`, from which a stopped run goes
on. On a CPU it then ends with the same bytes as a run that was never stopped: every draw, dropout's too,
follows from the seed, the stage and the step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dualslm.data.manifest import Examples, transcripts
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.model.llm import weights_hash
from dualslm.model.loss import MIN_SAVED_SHARE, NEVER_SHARE, Loss
from dualslm.recipe import Optimizer, Recipe, Stage
from dualslm.training.align import alignment_loss, label_values, spoken_tokens, tone_loss
from dualslm.training.dataset import Batch, StageDataset, TrainingSample
from dualslm.training.feature_cache import FrameCache
from dualslm.training.log import RunLog, StageStats

STATE = "state.pt"


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        stage: index of the stage.
        step: optimizer steps done in it.
        best: the lowest validation loss of the stage so far.
    """

    stage: int = 0
    step: int = 0
    best: float = float("inf")


@dataclass
class Trainer:
    """A run: its model, data and folder.

    Attributes:
        recipe: of the run.
        model: whose adapters learn.
        out: the run folder.
        examples: to learn from, by stage.
        checks: talks that choose the best checkpoint; none keeps the last one.
        cache: frames of all recordings.
        accelerator: device and processes.
    """

    recipe: Recipe
    model: DualSLM
    out: Path
    examples: Mapping[str, Examples]
    validation: Examples | None
    cache: FrameCache
    accelerator: Accelerator
    at: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.log = RunLog(self.out, active=self.accelerator.is_main_process)
        self.adapters = self.model.adapters
        self.weights = list(self.adapters.parameters())

    @cached_property
    def spoken(self) -> Tensor:
        """The tokens of all transcripts to learn from."""
        return spoken_tokens(
            self.model, (text for examples in self.examples.values() for text in transcripts(examples))
        )

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """The values of every attribute among all recordings to learn from."""
        return label_values(speech for examples in self.examples.values() for speech in examples.speeches())

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Goes through the stages that are left."""
        before = weights_hash(self.model.llm)
        for index in range(self.at.stage, len(self.recipe.stages)):
            self._stage(self.recipe.stages[index])
            self.at = Position(index + 1)
        assert weights_hash(self.model.llm) == before, "a frozen weight moved"

    def _stage(self, stage: Stage) -> None:
        samples = self.samples(stage, self.examples[stage.name], self.recipe.seed)
        adamw, schedule = optimizer_of(self.model, stage, self.recipe.optimizer, samples.steps)
        self._load_state(adamw, schedule)
        stats = self.log.start(stage, samples.steps, self.at.step)
        self.model.train()
        for step, batch in self._batches(samples):
            self._step(stage, step, batch, adamw, stats)
            schedule.step()
            self.at.step = step + 1
            last = self.at.step == samples.steps
            saved = last or self.at.step % self.recipe.loop.save_every == 0
            self.log.step(stats, self.at.step, float(schedule.get_last_lr()[-1]), self.accelerator, due=saved)
            self._refuse_unreadable(stats)
            if last or self.at.step % self.recipe.loop.validate_every == 0:
                self._validate(stage, stats)
            if saved:
                self._save_state(adamw, schedule)
        self.log.finish(stats)
        self._load_best(stage)

    def _batches(self, samples: StageDataset) -> Iterator[tuple[int, Batch]]:
        left = range(self.at.step, samples.steps)
        workers = self.recipe.loop.workers
        loader = DataLoader(
            Subset(samples, left),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="spawn" if workers else None,
        )
        yield from zip(left, loader, strict=True)

    def _step(self, stage: Stage, step: int, batch: Batch, adamw: torch.optim.Optimizer, stats: StageStats) -> None:
        """One optimizer step: the summed loss of all processes, by the number of all their target tokens."""
        torch.manual_seed(_seed(self.recipe.seed, stage.name, step, self.accelerator.process_index))
        self.adapters.zero_grad(set_to_none=False)  # of both: what the stage before left in one must not count here
        for weight in self.weights:  # an adapter that no lesson teaches has a gradient of zero, not none
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        for part, counts in self._parts(batch):
            loss = self._loss(stage, part, batch)
            (loss.nll_B.sum() * counts).backward()
            if counts:
                stats.add(part, loss)
        targets = sum(sample.targets for sample in batch.samples)
        self._share_gradients(targets)
        torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.optimizer.clip)
        adamw.step()

    def _loss(self, stage: Stage, part: Sequence[TrainingSample], batch: Batch) -> Loss:
        prompts = [sample.prompt for sample in part]
        if stage.objective == "align":
            if stage.learns == {"para"}:
                return tone_loss(self.model, prompts, self.values, batch.hear)
            return alignment_loss(self.model, prompts, self.spoken, batch.hear)
        share = NEVER_SHARE if self.recipe.loop.fsdp else MIN_SAVED_SHARE
        loss: Loss = self.model(prompts, batch.hear, min_saved_share=share)
        return loss

    def _parts(self, batch: Batch) -> Iterator[tuple[list[TrainingSample], bool]]:
        """The parts of a batch and whether each counts: all processes of a sharded LLM call it equally often."""
        own = list(parts(batch, self.recipe.loop.max_tokens))
        yield from ((part, True) for part in own)
        if self.recipe.loop.fsdp:
            if not own:
                raise DualSLMError("a process has no readable recording in a batch", got="none", do="enlarge the batch")
            most = self.accelerator.gather(torch.tensor([len(own)], device=self.accelerator.device)).max()
            yield from [(own[0], False)] * (int(most) - len(own))

    def _share_gradients(self, targets: int) -> None:
        """Sums the gradients of all processes and divides them by the number of all target tokens."""
        count = torch.tensor(float(targets), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            count = self.accelerator.reduce(count, "sum")
            flat = self.accelerator.reduce(torch.cat([_grad(weight).flatten() for weight in self.weights]), "sum")
            for weight, part in zip(self.weights, flat.split([w.numel() for w in self.weights]), strict=True):
                weight.grad = part.view_as(weight)
        for weight in self.weights:
            _grad(weight).div_(count)

    def samples(self, stage: Stage, examples: Examples, seed: int) -> StageDataset:
        """This process's part of a stage's batches."""
        return StageDataset(
            stage,
            examples,
            self.cache,
            self.model.llm.tokenizer,
            seed,
            lengths=self.model.slot_lengths,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )

    def _refuse_unreadable(self, stats: StageStats) -> None:
        share = stats.skipped / max(1, stats.skipped + stats.samples)
        if stats.skipped >= 20 and share > self.recipe.data.unreadable:
            raise DualSLMError(
                "too many recordings cannot be read",
                got=f"{share:.0%} of the lessons so far, listed in {self.log.skipped}",
                do="mend the data, or raise data.unreadable",
            )

    # ------------------------------------------------------------------ validation and state

    @torch.no_grad()
    def _validate(self, stage: Stage, stats: StageStats) -> None:
        """Keeps the adapters as the stage's checkpoint where they are the best so far."""
        loss = None if self.validation is None else self._validation_loss(stage, self.validation)
        if loss is None or loss < self.at.best:
            self.at.best = self.at.best if loss is None else loss
            if self.accelerator.is_main_process:
                self.model.recipe = asdict(self.recipe)
                self.model.metrics = {"stage": stage.name, "step": self.at.step}
                self.model.metrics |= {} if loss is None else {"validation_loss": loss}
                self.model.save_pretrained(self.out / stage.name)
        if loss is not None:
            self.log.validated(stats, self.at.step, loss)
        self.accelerator.wait_for_everyone()

    def _validation_loss(self, stage: Stage, validation: Examples) -> float:
        samples = self.samples(stage, validation, self.recipe.seed + 1)
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        for number in range(min(self.recipe.loop.validation_batches, samples.steps)):
            batch = samples[number]
            for part, counts in self._parts(batch):
                loss = self._loss(stage, part, batch)
                both = [float(loss.nll_B.sum()), float(loss.tokens_B.sum())]
                sums += counts * torch.tensor(both, dtype=torch.float64)
        self.model.train()
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no other
        sums = self.accelerator.reduce(sums.to(device, exact), "sum")
        return float(sums[0] / sums[1])

    def _save_state(self, adamw: torch.optim.Optimizer, schedule: Any) -> None:
        if self.accelerator.is_main_process:
            state = {**asdict(self.at), "adapters": self.adapters.state_dict()}
            state |= {"adamw": adamw.state_dict(), "schedule": schedule.state_dict()}
            with replacing(self.out / STATE) as partial:
                torch.save(state, partial)
        self.accelerator.wait_for_everyone()

    def _load_state(self, adamw: torch.optim.Optimizer, schedule: Any) -> None:
        """Goes on in the middle of a stage; a stage that has not begun needs the adapters of the one before."""
        if self.at.step == 0:
            if self.at.stage:
                self._load_best(self.recipe.stages[self.at.stage - 1])
            return
        state = torch.load(self.out / STATE, map_location="cpu", weights_only=True)  # goes where the weights are
        self.adapters.load_state_dict(state["adapters"])
        adamw.load_state_dict(state["adamw"])
        schedule.load_state_dict(state["schedule"])

    def _load_best(self, stage: Stage) -> None:
        self.adapters.load_state_dict(read_weights(self.out / stage.name, str(self.accelerator.device)))


def parts(batch: Batch, positions: int) -> Iterator[list[TrainingSample]]:
    """A batch in parts of like lengths, each at most so many padded positions (or one lesson)."""
    part: list[TrainingSample] = []
    for sample, length in zip(batch.samples, batch.lengths, strict=True):
        if part and (len(part) + 1) * length > positions:
            yield part
            part = []
        part.append(sample)
    if part:
        yield part


def _grad(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _seed(*parts: object) -> int:
    return random.Random("/".join(map(str, parts))).getrandbits(63)


def optimizer_of(
    model: DualSLM, stage: Stage, settings: Optimizer, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with warm-up, then linear decay to zero (paper §IV-C); an adapter that nothing teaches is left alone."""
    rates = {"para": settings.paralinguistic_lr * stage.lr, "ling": stage.lr}
    groups = [
        {"params": list(model.adapters[channel].parameters()), "lr": rate}
        for channel, rate in rates.items()
        if channel in stage.learns
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    warmup = max(1, stage.warmup)

    def rate(step: int) -> float:
        return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))

    return adamw, torch.optim.lr_scheduler.LambdaLR(adamw, rate)
