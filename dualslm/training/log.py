"""What a training run reports: tables before the first step, metrics.jsonl, trackers, progress, curves (ours)."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, wait_for_everyone
from rich import box
from rich.markup import escape
from rich.table import Table

from dualslm.conversation import SOURCES
from dualslm.data.progress import Progress
from dualslm.errors import new_console, one_line
from dualslm.files import naming, replacing
from dualslm.model.dualslm import DualSLM
from dualslm.model.loss import Loss
from dualslm.recipe import Recipe, Stage
from dualslm.training.dataset import StageDataset, TrainingSample

LOG_EVERY = 10  # steps
TRACKERS = ("tensorboard", "wandb")


@dataclass
class LossSums:
    """Sums over some samples, from which means are made.

    Attributes:
        nll: negative log-likelihood of all labels, in nats.
        labels: number of labels.
        samples: number of samples.
    """

    nll: float = 0.0
    labels: float = 0.0
    samples: int = 0

    def add(self, other: LossSums) -> None:
        """Adds the sums of other samples."""
        self.nll += other.nll
        self.labels += other.labels
        self.samples += other.samples


@dataclass
class StageStats:
    """Counts of one stage: those of all processes since its start, and those of this process since the last log line.

    Attributes:
        stage: name of the stage.
        steps_before: number of optimizer steps of the stages before it.
        samples: number of samples learnt from so far.
        skipped: number of examples whose recording could not be read.
        realised: number of samples by kind and view.
        sums: losses since the last log line, by kind and view.
        faults: skipped examples since the last log line, with the reason.
        since: time of the last log line, in seconds of a monotonic clock.
    """

    stage: str
    steps_before: int = 0
    samples: int = 0
    skipped: int = 0
    realised: Counter[str] = field(default_factory=Counter)
    sums: dict[str, LossSums] = field(default_factory=lambda: defaultdict(LossSums))
    faults: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def update(self, samples: Sequence[TrainingSample], loss: Loss) -> None:
        """Counts some samples and their losses."""
        # One copy from the GPU for each tensor: reading number by number would wait for it every time.
        values = zip(samples, loss.nll_B.tolist(), loss.tokens_B.tolist(), strict=True)
        for sample, nll, labels in values:
            self.sums[f"{sample.kind} {sample.view}"].add(LossSums(nll, labels, 1))
            self.faults += [{"talk": conversation, "reason": reason} for conversation, reason in sample.skipped]


class RunLog:
    """Writes metrics into the run folder and to the trackers, and shows progress on the terminal.

    Args:
        out: run folder.
        active: whether this process writes; the others only hand over their counts.
    """

    def __init__(self, out: Path, *, active: bool) -> None:
        self.metrics_file = out / "metrics.jsonl"
        self.skipped_file = out / "skipped.jsonl"
        self.curves_file = out / "curves.png"
        self.active = active

    def start_stage(self, stage: Stage, steps: int, done: int) -> StageStats:
        """Begins a stage, or resumes it after `done` steps.

        Lines of later steps are deleted: they were written after the last state was saved, and will be written again.
        """
        if self.active:
            for file in (self.metrics_file, self.skipped_file):
                _keep_lines(file, lambda row: row["stage"] != stage.name or row["step"] <= done)
        self.progress = Progress(stage.name, steps, done, active=self.active)
        self.progress.start()
        wait_for_everyone()  # every process reads the file below, and must not see a line that is to be deleted
        rows = list(_rows(self.metrics_file))
        last_steps = {row["stage"]: row["step"] for row in rows if row["stage"] != stage.name}
        stats = StageStats(stage.name, steps_before=sum(last_steps.values()))
        for row in rows:
            if row["stage"] == stage.name and "realised" in row:
                stats.realised.update(row["realised"])
                stats.samples += sum(row["realised"].values())
                stats.skipped += row.get("skipped", 0)
        return stats

    def log_step(self, stats: StageStats, step: int, lr: float, accelerator: Accelerator, *, force: bool) -> None:
        """Shows a step; writes a line of metrics at every tenth step, and where `force` says so."""
        self.progress.update(step)
        if step % LOG_EVERY and not force:
            return
        row = self._gather(stats, step, lr)
        if self.active:
            _append(self.metrics_file, [row])
            named = {f"{stats.stage}/{key}": value for key, value in row.items()}
            scalars = {key: float(value) for key, value in named.items() if isinstance(value, (int, float))}
            scalars |= {f"{stats.stage}/loss/{key}": value for key, value in row["loss_by_view"].items()}
            accelerator.log(scalars, step=stats.steps_before + step)
            losses = "  ".join(f"{kind} {value:.3f}" for kind, value in row["loss"].items())
            self.progress.update(step, label=f"{stats.stage}  {losses}")

    def _gather(self, stats: StageStats, step: int, lr: float) -> dict[str, Any]:
        """One line of metrics from the counts of all processes since the last line."""
        faults = gather_object(list(stats.faults))
        sums: dict[str, LossSums] = defaultdict(LossSums)
        for of_process in gather_object([dict(stats.sums)]):
            for key, own in of_process.items():
                sums[key].add(own)
        seconds = time.monotonic() - stats.since
        realised = {key: one.samples for key, one in sorted(sums.items())}
        stats.realised.update(realised)
        stats.samples += sum(realised.values())
        stats.skipped += len(faults)
        if self.active:
            _append(self.skipped_file, [{"stage": stats.stage, "step": step, **fault} for fault in faults])
        stats.sums.clear()
        stats.faults.clear()
        stats.since = time.monotonic()
        return {
            "stage": stats.stage,
            "step": step,
            "lr": lr,
            "loss": _mean_losses(sums, lambda key: key.split()[0]),
            "loss_by_view": _mean_losses(sums, lambda key: key),
            "realised": realised,
            "skipped": len(faults),
            "target_tokens_per_s": round(sum(one.labels for one in sums.values()) / seconds, 1),
            "samples_per_s": round(sum(realised.values()) / seconds, 2),
            "memory_gb": peak_memory_gb(),
        }

    def log_validation(self, stats: StageStats, step: int, loss: float) -> None:
        """Writes a validation loss."""
        if self.active:
            _append(self.metrics_file, [{"stage": stats.stage, "step": step, "validation_loss": loss}])

    def finish_stage(self, stats: StageStats) -> None:
        """Ends a stage: closes its progress bar, prints its mixture, draws the curves."""
        self.progress.stop()
        if not self.active:
            return
        new_console(stderr=True).print(mixture(stats))
        draw_curves(list(_rows(self.metrics_file)), self.curves_file)


def trackers() -> list[str]:
    """The trackers that are installed, of TensorBoard and W&B."""
    return [name for name in TRACKERS if find_spec(name) is not None]


def peak_memory_gb() -> float:
    """Most memory in use so far, in GB: on the GPU, or by this process where there is none."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    import resource  # not on Windows, and not needed beside a GPU

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


# ---------------------------------------------------------------------- tables and curves


def overview(recipe: Recipe, model: DualSLM, datasets: Sequence[StageDataset]) -> list[Table]:
    """The weights that learn and those that are frozen, and what each stage draws."""
    return [_weights_table(model), _stages_table(recipe, datasets)]


def _weights_table(model: DualSLM) -> Table:
    parts = {
        f"encoder {escape(model.encoder.name)}": (model.encoder, "frozen"),  # brackets in a name are no markup
        f"LLM {escape(model.llm.name)}": (model.llm, "frozen"),
        "paralinguistic adapter": (model.para, "learns"),
        "linguistic adapter": (model.ling, "learns"),
    }
    table = Table("part", "weights", "", title="what learns", title_justify="left")
    for name, (part, status) in parts.items():
        weights = sum(weight.numel() for weight in part.parameters())
        table.add_row(name, f"{weights / 1e6:,.2f} M", status)
    return table


def _stages_table(recipe: Recipe, datasets: Sequence[StageDataset]) -> Table:
    left_out = {why: count for dataset in datasets for why, count in dataset.examples.left_out.items()}
    caption = "any: text, speech or nothing, equally often (equivalence replacement)"
    caption += "".join(f"\nleft out: {count} examples, {why}" for why, count in left_out.items())
    columns = ("stage\nsteps x batch", "kind", "samples", "examples", "epochs", "learns", "P, L from")
    table = Table(*columns, title="what it learns from", title_justify="left", caption=caption, box=box.SIMPLE)
    for stage, dataset in zip(recipe.stages, datasets, strict=True):
        head = f"[bold]{stage.name}[/]\n{dataset.steps} x {stage.batch}\nlr {stage.lr:g}"
        shares = sum(kind.share for kind in stage.kinds.values())
        for name, kind in stage.kinds.items():
            samples = round(dataset.steps * stage.batch * kind.share / shares)
            examples = dataset.examples.count(name)
            table.add_row(
                head,
                name,
                str(samples),
                str(examples),
                f"{samples / examples:.2g}",
                " ".join(kind.learns),
                f"{_sources(kind.view.para)}, {_sources(kind.view.ling)}",
            )
            head = ""  # a stage is named in the first of its rows alone
    return table


def _sources(drawn: Sequence[str]) -> str:
    return "any" if set(drawn) == set(SOURCES) else " ".join(drawn)


def mixture(stats: StageStats) -> Table:
    """The share of each kind and view among the samples of a stage, as it was drawn."""
    table = Table("kind", "P from, L from", "samples", "%", title=f"stage {stats.stage}, as it was drawn")
    total = sum(stats.realised.values()) or 1
    for key, count in sorted(stats.realised.items()):
        table.add_row(*key.split(), str(count), f"{100 * count / total:.1f}")
    return table


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the losses of all stages side by side into a picture, if Matplotlib is installed."""
    if find_spec("matplotlib") is None:
        print(f"{one_line(path)}: not drawn without Matplotlib; pip install 'dualslm[train]'", file=sys.stderr)
        return
    import matplotlib

    matplotlib.use("Agg")  # a training machine has no display
    from matplotlib import pyplot

    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axes = pyplot.subplots(1, len(stages), figsize=(4.5 * len(stages), 3.2), squeeze=False, sharey=True)
    for axis, stage in zip(axes[0], stages, strict=True):
        own = [row for row in rows if row["stage"] == stage]
        for kind in sorted({kind for row in own for kind in row.get("loss", {})}):
            points = [(row["step"], row["loss"][kind]) for row in own if kind in row.get("loss", {})]
            axis.plot(*zip(*points, strict=True), label=kind, linewidth=1)
        if validation := [(row["step"], row["validation_loss"]) for row in own if "validation_loss" in row]:
            axis.plot(*zip(*validation, strict=True), "k.", label="validation")
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("loss per target token, nats")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)  # pyplot keeps every figure until it is closed


def _mean_losses(sums: Mapping[str, LossSums], group_of: Callable[[str], str]) -> dict[str, float]:
    """Loss per label, in nats, by the group of each key."""
    groups: dict[str, LossSums] = defaultdict(LossSums)
    for key, own in sorted(sums.items()):
        groups[group_of(key)].add(own)
    # Beyond eight digits a sum of float32 losses says nothing.
    return {group: round(total.nll / total.labels, 8) for group, total in groups.items()}


# ---------------------------------------------------------------------- JSON lines


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """The lines of a log that are whole: a run that was killed may leave half a last one, a bad disk any."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
                yield row


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:  # no empty file where nothing was skipped
        with naming(path), path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _keep_lines(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrites a file with the wanted lines alone."""
    if path.exists():
        lines = [json.dumps(row) + "\n" for row in _rows(path) if wanted(row)]  # byte for byte as they were written
        with replacing(path) as partial:
            partial.write_text("".join(lines))
