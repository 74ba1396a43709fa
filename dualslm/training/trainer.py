"""One loop for any stage, on Accelerate (paper §III-C, §IV-C). `Trainer.training_step` is one optimizer step.

What learns, from which sources, and in which shares is read from the recipe; this file knows no stage by name. A run
is a folder: `recipe.toml`, `metrics.jsonl`, `skipped.jsonl`, `curves.png`, one checkpoint for each stage (the best by
validation, from which the next stage starts), and `state.pt` (`run_folder.py`), from which a stopped run is resumed.
On a CPU a resumed run ends with the same bytes as a run that was never stopped: every draw, dropout's too, follows from
the seed, the stage and the step. A loss that is no number ends the run before it reaches a weight.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from dualslm.data.manifest import Examples, transcripts
from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.model.fingerprint import weights_hash
from dualslm.model.inputs import Hear
from dualslm.model.loss import MIN_SAVED_SHARE, NEVER_SHARE, Loss
from dualslm.prompt import Prompt
from dualslm.recipe import Optimizer, Recipe, Stage
from dualslm.training.align import aligned_after, alignment_loss, label_values, tone_loss
from dualslm.training.dataset import Batch, StageDataset, TrainingSample
from dualslm.training.feature_cache import FrameCache
from dualslm.training.log import RunLog, StageStats
from dualslm.training.run_folder import STATE_FILE, read_state, write_state
from dualslm.training.spelling import Spelling

MIN_UNREADABLE = 20  # samples: fewer say nothing about the share of unreadable recordings
NAMED_RECORDINGS = 5  # at most, in an error about a loss


@dataclass
class TrainerState:
    """How far a run has come.

    Attributes:
        stage: index of the stage in the recipe.
        step: number of optimizer steps done in the stage.
        best: lowest validation loss of the stage so far, in nats per label.
    """

    stage: int = 0
    step: int = 0
    best: float = float("inf")


@dataclass
class Trainer:
    """A run: its model, data and folder.

    Attributes:
        recipe: recipe of the run.
        model: model whose adapters learn.
        out: run folder.
        examples: examples to learn from, by stage.
        validation: examples that choose the best checkpoint; the last one is kept when None.
        cache: encoder frames of all recordings.
        accelerator: device and processes.
        state: how far the run has come.
        sources: hash of everything that the run learns from, by name, kept with the state.
    """

    recipe: Recipe
    model: DualSLM
    out: Path
    examples: Mapping[str, Examples]
    validation: Examples | None
    cache: FrameCache
    accelerator: Accelerator
    state: TrainerState = field(default_factory=TrainerState)
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = RunLog(self.out, active=self.accelerator.is_main_process)
        self.adapters = self.model.adapters
        self.weights = list(self.adapters.parameters())
        # Reading a shared prefix is one more forward. Under FSDP all processes must make equally many, or they wait for
        # each other for ever, and how many a process makes depends on its own prompts: so sharing is off there.
        self.min_saved_share = NEVER_SHARE if self.recipe.loop.fsdp else MIN_SAVED_SHARE

    def run(self) -> None:
        """Goes through the stages that are left."""
        before = self._frozen_weights()
        self._check_place()
        for index in range(self.state.stage, len(self.recipe.stages)):
            self._run_stage(self.recipe.stages[index])
            self.state = TrainerState(index + 1)
        if moved := [part for part, found in self._frozen_weights().items() if found != before[part]]:
            # Raised and not asserted: `python -O` drops assertions, and a run that moved the LLM must never pass.
            do = "discard this run, and report it as a fault of dualslm"
            raise DualSLMError("frozen weights moved during training", got=" and ".join(moved), do=do)

    def _check_place(self) -> None:
        """Refuses to resume beyond the end of a run or a stage: it would pass for one that is done."""
        steps = -1
        if self.state.stage < len(self.recipe.stages):
            stage = self.recipe.stages[self.state.stage]
            steps = self.samples(stage, self.examples[stage.name], self.recipe.seed).steps
        if self.state.step > steps:
            do = "copy it from elsewhere, or delete it to begin the run anew"
            got = f"step {self.state.step} of stage {self.state.stage + 1}, which the run does not have"
            raise DualSLMError(f"{self.out / STATE_FILE} is not of this run", got=got, do=do)

    def _frozen_weights(self) -> dict[str, str]:
        """Hashes of the weights that must not move."""
        return {"the LLM": weights_hash(self.model.llm), "the encoder": weights_hash(self.model.encoder)}

    def _run_stage(self, stage: Stage) -> None:
        dataset = self.samples(stage, self.examples[stage.name], self.recipe.seed)
        optimizer, scheduler = optimizer_and_schedule(self.model, stage, self.recipe.optimizer, dataset.steps)
        self._load_state(optimizer, scheduler)
        steps_left = range(self.state.step, dataset.steps)
        workers = self.recipe.loop.workers
        loader = DataLoader(
            Subset(dataset, steps_left),
            batch_size=None,  # an item of the dataset is a batch already
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="spawn" if workers else None,  # CUDA and threads do not survive a fork
        )
        stats = self.log.start_stage(stage, dataset.steps, self.state.step)
        self.model.train()
        for step, batch in zip(steps_left, loader, strict=True):
            self.training_step(stage, step, batch, optimizer, stats)
            scheduler.step()
            self.state.step = step + 1
            last = self.state.step == dataset.steps
            save = last or self.state.step % self.recipe.loop.save_every == 0
            # A saved step is logged too: a resumed run starts its counts anew and would lose those that were not.
            self.log.log_step(stats, self.state.step, float(scheduler.get_last_lr()[-1]), self.accelerator, force=save)
            self._refuse_unreadable(stats)
            if last or self.state.step % self.recipe.loop.validate_every == 0:
                self._validate(stage, stats)
            if save:  # after validation, so that the saved state knows the best loss
                self._save_state(optimizer, scheduler)
        self.log.finish_stage(stats)
        self._load_best(stage)

    # ------------------------------------------------------------------ a training step

    def training_step(
        self, stage: Stage, step: int, batch: Batch, optimizer: torch.optim.Optimizer, stats: StageStats
    ) -> None:
        """One optimizer step on the loss of all processes, summed and divided by the number of all their labels.

        Args:
            stage: stage of the recipe.
            step: index of the step in the stage.
            batch: this process's part of the step's batch.
            optimizer: optimizer of the adapters.
            stats: counts of the stage, to which the batch is added.
        """
        # No state of a random generator is saved: dropout's draws follow from the step.
        draws = f"{self.recipe.seed}/{stage.name}/{step}/{self.accelerator.process_index}"
        torch.manual_seed(random.Random(draws).getrandbits(63))
        # Both adapters begin at zero, not None: a gradient that an earlier stage left must not count in the norm, and
        # the sum over processes needs one of every weight, also where no sample of a process teaches it.
        self.adapters.zero_grad()
        gradients = [torch.zeros_like(weight) for weight in self.weights]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient  # backward adds to it in place

        for samples, counts in self._micro_batches(batch):
            prompts = [sample.prompt for sample in samples]
            if stage.objective == "align":
                loss = self._alignment_loss(stage, prompts, batch.hear)
            else:
                loss = self.model(prompts, batch.hear, min_saved_share=self.min_saved_share)
            (loss.nll_B.sum() * counts).backward()
            if counts:
                _refuse_no_number("loss", loss.nll_B, samples, stage, step)
                stats.update(samples, loss)

        labels = sum(sample.label_count for sample in batch.samples)
        self._average_gradients(gradients, labels)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.recipe.optimizer.clip)
        # A finite loss may have a gradient that is not; every process sees the same one here.
        _refuse_no_number("gradient", norm.expand(len(batch.samples)), batch.samples, stage, step)
        optimizer.step()

    def _average_gradients(self, gradients: Sequence[Tensor], labels: int) -> None:
        """Sums the gradients of all processes in place and divides them by the number of all labels."""
        count = torch.tensor(float(labels), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            # By hand, not by DistributedDataParallel: a process whose samples teach one adapter alone would hang there.
            # The adapters are small, so one flat tensor after the last backward costs little beside a step.
            count = self.accelerator.reduce(count, "sum")
            flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
            sums = flat.split([gradient.numel() for gradient in gradients])
            for gradient, total in zip(gradients, sums, strict=True):
                gradient.copy_(total.view_as(gradient))
        for gradient in gradients:
            gradient.div_(count)

    def _micro_batches(self, batch: Batch) -> list[tuple[list[TrainingSample], bool]]:
        """Parts of a batch that fit the memory, and whether the loss of each counts."""
        micro_batches = [(samples, True) for samples in batch.split(self.recipe.loop.max_tokens)]
        if self.recipe.loop.fsdp:
            if not micro_batches:
                raise DualSLMError("a process has no readable recording in a batch", got="none", do="enlarge the batch")
            # Every forward and backward gathers a layer from all processes, so all must make equally many. A process
            # with fewer micro-batches repeats its first one, whose loss does not count.
            count = torch.tensor([len(micro_batches)], device=self.accelerator.device)
            most = int(self.accelerator.gather(count).max())
            micro_batches += [(micro_batches[0][0], False)] * (most - len(micro_batches))
        return micro_batches

    def _alignment_loss(self, stage: Stage, prompts: Sequence[Prompt], hear: Hear) -> Loss:
        """The loss of a stage that aligns an adapter with the LLM's token embeddings, without the LLM."""
        if stage.learns == {"para"}:
            return tone_loss(self.model, prompts, self.attribute_values, hear)
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.recipe.loop.bf16_alignment):
            return alignment_loss(self.model, prompts, self.spellings[stage.min_token_count], hear)

    @cached_property
    def spellings(self) -> dict[int, Spelling]:
        """The tokens that all transcripts to learn from are aligned with, by a stage's `min_token_count`."""
        texts = [text for examples in self.examples.values() for text in transcripts(examples)]
        counts = {stage.min_token_count for stage in self.recipe.stages if stage.objective == "align"}
        return {count: Spelling(self.model.llm.tokenizer, texts, count) for count in counts}

    @cached_property
    def attribute_values(self) -> dict[str, list[str]]:
        """The values of every attribute among all recordings to learn from."""
        return label_values(speech for examples in self.examples.values() for speech in examples.speeches())

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
            world_size=self.accelerator.num_processes,
        )

    def _refuse_unreadable(self, stats: StageStats) -> None:
        share = stats.skipped / max(1, stats.skipped + stats.samples)
        if stats.skipped >= MIN_UNREADABLE and share > self.recipe.data.unreadable:
            raise DualSLMError(
                "too many recordings cannot be read",
                got=f"{share:.0%} of the samples so far, listed in {self.log.skipped_file}",
                do="repair the data, or raise data.unreadable",
            )

    # ------------------------------------------------------------------ validation and state

    @torch.no_grad()
    def _validate(self, stage: Stage, stats: StageStats) -> None:
        """Saves the adapters as the stage's checkpoint if they are the best so far, or if there is no validation."""
        if not all(bool(weight.isfinite().all()) for weight in self.weights):
            got = f"a weight that is no number after step {self.state.step} of stage {stage.name}"
            do = "lower the stage's learning rate and begin anew"
            raise DualSLMError("the adapters have left the numbers", got=got, do=do)
        loss = None if self.validation is None else self._validation_loss(stage, self.validation)
        if loss is None or loss < self.state.best:
            if loss is not None:
                self.state.best = loss
            if self.accelerator.is_main_process:
                self.model.recipe = asdict(self.recipe)
                self.model.metrics = {"stage": stage.name, "step": self.state.step}
                self.model.metrics |= {} if loss is None else {"validation_loss": loss}
                self.model.aligned = aligned_after(stage, self.model.aligned, lambda: self.attribute_values)
                self.model.save_pretrained(self.out / stage.name)
        if loss is not None:
            self.log.log_validation(stats, self.state.step, loss)
        self.accelerator.wait_for_everyone()

    def _validation_loss(self, stage: Stage, validation: Examples) -> float:
        """Loss per label over all processes, in nats, on the same batches each time."""
        dataset = self.samples(stage, validation, self.recipe.seed + 1)
        sums = torch.zeros(2, dtype=torch.float64)  # of nats and of labels
        self.model.eval()
        for step in range(min(self.recipe.loop.validation_batches, dataset.steps)):
            batch = dataset[step]
            for samples, counts in self._micro_batches(batch):
                prompts = [sample.prompt for sample in samples]
                if stage.objective == "align":
                    loss = self._alignment_loss(stage, prompts, batch.hear)
                else:
                    loss = self.model(prompts, batch.hear, min_saved_share=self.min_saved_share)
                _refuse_no_number("validation loss", loss.nll_B, samples, stage, self.state.step)
                sums += counts * torch.tensor([float(loss.nll_B.sum()), float(loss.tokens_B.sum())], dtype=sums.dtype)
        self.model.train()
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        sums = self.accelerator.reduce(sums.to(device, exact), "sum")
        return float(sums[0] / sums[1])

    def _save_state(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        if self.accelerator.is_main_process:
            learnt = {
                "adapters": self.adapters.state_dict(),
                "adamw": optimizer.state_dict(),
                "schedule": scheduler.state_dict(),
            }
            write_state(self.out, {**asdict(self.state), **learnt, "sources": dict(self.sources)})
        self.accelerator.wait_for_everyone()

    def _load_state(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Resumes in the middle of a stage; a stage that has not begun takes the adapters of the one before."""
        if self.state.step == 0:
            if self.state.stage:
                self._load_best(self.recipe.stages[self.state.stage - 1])
            return
        saved = read_state(self.out)
        assert saved is not None, "a state was read when the run began"
        # From the CPU: `load_state_dict` copies each tensor to where its weight is.
        try:
            stated = _settings(optimizer)
            self.adapters.load_state_dict(saved["adapters"])
            optimizer.load_state_dict(saved["adamw"])
            scheduler.load_state_dict(saved["schedule"])
            # what would go on without a word, and end elsewhere than the recipe says
            if scheduler.last_epoch != self.state.step:
                raise ValueError(f"the learning rate of step {scheduler.last_epoch} at step {self.state.step}")
            if _settings(optimizer) != stated:
                raise ValueError("settings of the optimizer that the recipe does not have")
            if not all(bool(weight.isfinite().all()) for weight in self.weights):
                raise ValueError("weights that are no numbers")
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            do = "copy it from elsewhere, or delete it to begin the run anew"
            got = (str(error) or type(error).__name__).splitlines()[0]
            raise DualSLMError(f"{self.out / STATE_FILE} is not of this run", got=got, do=do) from error

    def _load_best(self, stage: Stage) -> None:
        self.adapters.load_state_dict(read_weights(self.out / stage.name, str(self.accelerator.device)))


def _refuse_no_number(what: str, values_B: Tensor, samples: Sequence[TrainingSample], stage: Stage, step: int) -> None:
    """Ends a run whose loss or gradient is no number, before a weight is; names the step and the recordings.

    Args:
        what: what the values are, for the error.
        values_B: one for each sample.
        samples: samples that they belong to.
        stage: stage of the recipe.
        step: index of the step in the stage.
    """
    finite_B = values_B.isfinite().tolist()
    if all(finite_B):
        return
    bad = [sample for sample, finite in zip(samples, finite_B, strict=True) if not finite]
    paths = dict.fromkeys(str(clip.audio) for sample in bad for clip in sample.prompt.clips)
    more = f" and {len(paths) - NAMED_RECORDINGS} more" if len(paths) > NAMED_RECORDINGS else ""
    heard = ", ".join([*paths][:NAMED_RECORDINGS]) or "text alone"
    raise DualSLMError(
        f"the {what} is no number",
        got=f"step {step} of stage {stage.name}, recordings {heard}{more}",
        do="look at these recordings and their labels, lower the learning rate, then resume from the last state",
    )


def optimizer_and_schedule(
    model: DualSLM, stage: Stage, settings: Optimizer, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with warm-up, then linear decay to zero (paper §IV-C), over the adapters that the stage teaches."""
    max_lr = {"para": settings.paralinguistic_lr * stage.lr, "ling": stage.lr}
    # An adapter that nothing teaches is left out, or weight decay would shrink it.
    groups = [
        {"params": list(model.adapters[channel].parameters()), "lr": lr}
        for channel, lr in max_lr.items()
        if channel in stage.learns
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    factor = partial(learning_rate_factor, warmup=max(1, stage.warmup), steps=steps)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What the recipe says of each group of weights; the learning rate at hand follows from the step."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]


def learning_rate_factor(step: int, *, warmup: int, steps: int) -> float:
    """The share of the largest learning rate at a step: up linearly over the warm-up, then down linearly to zero."""
    return min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))
