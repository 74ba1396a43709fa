"""What a training run tells: the table before the first step, metrics.jsonl, trackers, a bar, curves (ours)."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, wait_for_everyone
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dualslm.conversation import SOURCES
from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.model.loss import Loss
from dualslm.recipe import Recipe, Stage
from dualslm.training.dataset import StageDataset, TrainingSample

LOG_EVERY = 10  # steps
TRACKERS = ("tensorboard", "wandb")


@dataclass
class StageStats:
    """Counts of one stage, of this process since the last line, and of all processes since the start.

    Attributes:
        stage: its name.
        before: steps of the stages before it.
        lessons: learnt from so far.
        skipped: lessons whose recording could not be read.
        realised: lessons by kind and view.
    """

    stage: str
    before: int = 0
    samples: int = 0
    skipped: int = 0
    realised: Counter[str] = field(default_factory=Counter)
    window: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))
    faults: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, samples: Sequence[TrainingSample], loss: Loss) -> None:
        """Counts some lessons and their losses."""
        values = zip(samples, loss.nll_B.tolist(), loss.tokens_B.tolist(), strict=True)
        for sample, nll, tokens in values:
            cell = self.window[f"{sample.kind} {sample.view}"]
            for place, value in enumerate((nll, tokens, 1)):
                cell[place] += value
            self.faults += [{"talk": conversation, "reason": reason} for conversation, reason in sample.skipped]


class RunLog:
    """Writes what happens into the run folder and on the terminal.

    Args:
        out: the run folder.
        active: whether this process writes; the others only hand over their counts.
    """

    def __init__(self, out: Path, *, active: bool) -> None:
        self.metrics, self.skipped, self.curves = out / "metrics.jsonl", out / "skipped.jsonl", out / "curves.png"
        self.active = active
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True), disable=not active
        )

    def start(self, stage: Stage, steps: int, done: int) -> StageStats:
        """Begins a stage, or goes on in it: lines beyond the step it goes on from are taken back."""
        if self.active:
            for path in (self.metrics, self.skipped):
                _keep(path, lambda row: row["stage"] != stage.name or row["step"] <= done)
            self.bar.start()
            self.task = self.bar.add_task(stage.name, total=steps, completed=done)
        wait_for_everyone()  # all read what is left
        last = {row["stage"]: row["step"] for row in _rows(self.metrics) if row["stage"] != stage.name}
        stats = StageStats(stage.name, before=sum(last.values()))
        for row in _rows(self.metrics):
            if row["stage"] == stage.name and "realised" in row:
                stats.realised.update(row["realised"])
                stats.samples += sum(row["realised"].values())
                stats.skipped += row["skipped"]
        return stats

    def step(self, stats: StageStats, step: int, lr: float, accelerator: Accelerator, *, due: bool) -> None:
        """After each step; every tenth one is written down, and one that is `due`: saved, or the last."""
        if self.active:
            self.bar.update(self.task, completed=step)
        if step % LOG_EVERY and not due:
            return
        row = self._gathered(stats, step, lr)
        if self.active:
            _append(self.metrics, [row])
            accelerator.log(_flat(row), step=stats.before + step)
            loss = "  ".join(f"{kind} {value:.3f}" for kind, value in row["loss"].items())
            self.bar.update(self.task, description=f"{stats.stage}  {loss}")

    def _gathered(self, stats: StageStats, step: int, lr: float) -> dict[str, Any]:
        """One line of metrics from the counts of all processes."""
        windows = gather_object([{key: list(cell) for key, cell in stats.window.items()}])
        faults = gather_object(list(stats.faults))
        cells: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for window in windows:
            for key, cell in window.items():
                cells[key] = [a + b for a, b in zip(cells[key], cell, strict=True)]
        seconds = time.monotonic() - stats.since
        realised = {key: int(cell[2]) for key, cell in sorted(cells.items())}
        stats.realised.update(realised)
        stats.samples += sum(realised.values())
        stats.skipped += len(faults)
        if self.active:
            _append(self.skipped, [{"stage": stats.stage, "step": step, **fault} for fault in faults])
        stats.window.clear()
        stats.faults.clear()
        stats.since = time.monotonic()
        return {
            "stage": stats.stage,
            "step": step,
            "lr": lr,
            "loss": _by(cells, lambda key: key.split()[0]),
            "loss_by_view": _by(cells, lambda key: key),
            "realised": realised,
            "skipped": len(faults),
            "target_tokens_per_s": round(sum(cell[1] for cell in cells.values()) / seconds, 1),
            "lessons_per_s": round(sum(realised.values()) / seconds, 2),
            "memory_gb": memory_gb(),
        }

    def validated(self, stats: StageStats, step: int, loss: float) -> None:
        """Writes down a validation loss."""
        if self.active:
            _append(self.metrics, [{"stage": stats.stage, "step": step, "validation_loss": loss}])

    def finish(self, stats: StageStats) -> None:
        """Closes a stage: the bar, the mixture as it came out, the curves."""
        if not self.active:
            return
        self.bar.stop()
        self.bar.remove_task(self.task)
        Console(stderr=True).print(mixture(stats))
        draw_curves(list(_rows(self.metrics)), self.curves)


def trackers() -> list[str]:
    """TensorBoard, and W&B where it is installed."""
    return [name for name in TRACKERS if find_spec(name) is not None]


def memory_gb() -> float:
    """The most memory used so far: on the GPU, or by this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e9, 2)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2)


# ---------------------------------------------------------------------- tables and curves


def overview(recipe: Recipe, model: DualSLM, stages: Sequence[StageDataset]) -> list[Table]:
    """What is trained, what is frozen, and what each stage draws."""
    return [_parts_table(model), _stages_table(recipe, stages)]


def _parts_table(model: DualSLM) -> Table:
    table = Table("part", "weights", "", title="what learns", title_justify="left")
    for name, part in (("encoder", model.encoder), ("LLM", model.llm)):
        table.add_row(f"{name} {part.name}", _count(part), "frozen")
    table.add_row("paralinguistic adapter", _count(model.para), "learns")
    table.add_row("linguistic adapter", _count(model.ling), "learns")
    return table


def _stages_table(recipe: Recipe, stages: Sequence[StageDataset]) -> Table:
    columns = ("stage\nsteps x batch", "kind", "lessons", "talks", "epochs", "learns", "P, L from")
    caption = "any: text, speech or nothing, equally often (equivalence replacement)"
    left_out = {why: count for samples in stages for why, count in samples.examples.left_out.items()}
    caption += "".join(f"\nleft out: {count} talks, {why}" for why, count in left_out.items())
    table = Table(*columns, title="what it learns from", title_justify="left", caption=caption, box=box.SIMPLE)
    for stage, samples in zip(recipe.stages, stages, strict=True):
        head = f"[bold]{stage.name}[/]\n{samples.steps} x {stage.batch}\nlr {stage.lr:g}"
        for name, kind in stage.kinds.items():
            drawn = round(samples.steps * stage.batch * kind.share / sum(k.share for k in stage.kinds.values()))
            examples = samples.examples.count(name)
            sources = f"{_sources(kind.view.para)}, {_sources(kind.view.ling)}"
            table.add_row(
                head, name, f"{drawn}", f"{examples}", f"{drawn / examples:.2g}", " ".join(kind.learns), sources
            )
            head = ""
    return table


def _sources(drawn: Sequence[str]) -> str:
    return "any" if set(drawn) == set(SOURCES) else " ".join(drawn)


def mixture(stats: StageStats) -> Table:
    """The kinds and views as they came out."""
    table = Table("kind", "P from, L from", "lessons", "%", title=f"stage {stats.stage}, as it came out")
    total = sum(stats.realised.values()) or 1
    for key, count in sorted(stats.realised.items()):
        table.add_row(*key.split(), str(count), f"{100 * count / total:.1f}")
    return table


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The losses of all stages side by side, as a picture, where Matplotlib is there."""
    if find_spec("matplotlib") is None:
        print(f"{path}: not drawn without Matplotlib; pip install 'dualslm[train]'", file=sys.stderr)
        return
    import matplotlib

    matplotlib.use("Agg")
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
    pyplot.close(figure)


def _count(part: torch.nn.Module) -> str:
    return f"{sum(weight.numel() for weight in part.parameters()) / 1e6:,.2f} M"


def _by(cells: dict[str, list[float]], name: Any) -> dict[str, float]:
    """Loss per target token, by whatever `name` makes of a cell's key."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, (nll, tokens, _) in sorted(cells.items()):
        sums[name(key)][0] += nll
        sums[name(key)][1] += tokens
    return {key: round(nll / tokens, 8) for key, (nll, tokens) in sums.items()}


def _flat(row: dict[str, Any]) -> dict[str, float]:
    stage = row["stage"]
    numbers = {f"{stage}/{key}": float(value) for key, value in row.items() if isinstance(value, (int, float))}
    return numbers | {f"{stage}/loss/{key}": value for key, value in row["loss_by_view"].items()}


# ---------------------------------------------------------------------- lines


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _keep(path: Path, wanted: Any) -> None:
    """Rewrites a file of lines without those that are not wanted, and without a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if wanted(row):
            kept.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(kept))
