"""`dualslm eval`: asks systems, measures their answers, writes the report (docs/evaluation.md).

The three steps are `_predict`, `_score` and `_report`; `--only` runs one of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualslm import __version__
from dualslm.cli.options import add_ray, print_json, start_torch
from dualslm.data.progress import Progress
from dualslm.errors import DualSLMError, new_console, one_line

if TYPE_CHECKING:
    from dualslm.conversation import View
    from dualslm.evaluation.items import Exam
    from dualslm.evaluation.predict import Answered, Plan
    from dualslm.evaluation.systems.item import Item, System

EMBEDDED = "tiny"  # name of the embedded model among the systems, and of its corpus
STEPS = ("predict", "score", "report")
PACKAGES = ("numpy", "torch", "transformers", "whisper-normalizer")
OUT = Path("runs/eval")
DIAGNOSTICS_FILE = "diagnostics.json"


def add_eval(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `eval`."""
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders, checkpoints or hub ids (default: the embedded model)")
    add(
        "--on",
        action="append",
        default=[],
        metavar="F.jsonl",
        help="a manifest; may be repeated (default: one of the tiny world)",
    )
    add("--task", action="append", default=[], metavar="NAME", help="only this task; may be repeated")
    add("--view", action="append", default=[], metavar="P,L", help="only this view; may be repeated")
    # Named here and not imported: a verb's help waits for no module.
    add(
        "--prompts",
        action="append",
        choices=["trained", "unseen"],
        help="prompts of lines with tasks; named twice, the later for a second figure (default: trained, then unseen)",
    )
    add(
        "--history",
        action="append",
        choices=["speech", "text"],
        help="earlier spoken turns as speech or as text; named twice, the later for a second figure (default: both)",
    )
    add("--system", action="append", default=[], metavar="KIND,KEY=VALUE", help="another system, for example majority")
    add("--likelihoods", action="store_true", help="also the likelihood of every choice")
    add("--instruments", action="store_true", help="also measure what each channel of every RUN carries and should not")
    add(
        "--only",
        choices=STEPS,
        help="this step alone; `score` needs no model, `report` joins the reports that RUN names",
    )
    add("--predictions", action="append", default=[], metavar="F.jsonl", help="measure these too; may be repeated")
    add("--out", type=Path, default=None, metavar="FOLDER", help=f"for predictions and report (default: {OUT})")
    add("--batch", type=int, default=40, metavar="N", help="items that are answered at once")
    add("--limit", type=int, metavar="N", help="at most so many items of each task and manifest")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="a longer answer is cut off")
    add("--seed", type=int, default=0, metavar="N", help="seed of questions and resamples (default: 0)")
    add("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
    add_ray(parser)
    _add_judges(parser.add_argument_group("judges of replies (docs/judges.md)"))
    parser.set_defaults(verb=_eval)


def _add_judges(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--judge", action="append", default=[], metavar="SPEC", help="name=...,base_url=...,model=...; may be repeated")
    add(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME",
        help="protocol of the judges (default: cs-words and egs-words; cs and egs also tell how the user speaks)",
    )
    add(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="times that each verdict is asked for, to see whether a judge agrees with itself",
    )
    add("--pair", action="append", default=[], metavar="A:B", help="also compare two systems, in both orders")
    add("--controls", action="store_true", help="also judge the references, shuffled ones, and a generic reply")
    add(
        "--judge-cache",
        metavar="FILE",
        help="raw answers; one file for all runs saves most requests (default: one in --out)",
    )
    add("--sanity", action="store_true", help="only try the judges, on the shipped calibration items")


def _eval(args: argparse.Namespace) -> int:
    from dualslm.evaluation.predict import PREDICTIONS

    out = args.out or OUT
    for key in ("batch", "limit", "max_new_tokens"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise DualSLMError(f"--{key.replace('_', '-')} makes no sense", got=value, do="give 1 or more")
    if args.sanity:
        return _sanity(args, out)
    if args.only == "report":
        return _report(args, out)
    if args.only != "score":
        _predict(args, out)
        # of several processes the first alone goes on: it has everybody's answers
        if args.only == "predict" or int(os.environ.get("RANK", "0")):
            return 0
    # without --predictions a missing file is an error; with them, what the folder has is added if it is there
    own = [out / PREDICTIONS] if (out / PREDICTIONS).exists() or not args.predictions else []
    return _score(args, out, [*own, *map(Path, args.predictions)])


# ---------------------------------------------------------------------- the three steps


def _predict(args: argparse.Namespace, out: Path) -> None:
    """Asks every system and writes the predictions."""
    from dualslm.conversation import View
    from dualslm.evaluation import predict
    from dualslm.evaluation.metrics import wer

    views = [View.parse(text) for text in args.view]
    manifests = [Path(path) for path in args.on] or _tiny_manifests(out, args)
    exam = _exam(args, manifests)
    if args.only != "predict" and any(item.task == "asr" for item in exam.items):
        wer.require_whisper()  # now, and not after hours of answers
    if args.ray is not None:
        _predict_on_cluster(args, out)
    else:
        start_torch()
        _use_own_gpu()
        asked, settings = _questions(args, views, exam, manifests)
        with Progress("asking", None) as progress:
            predict.run(out, asked, settings, command=command(), versions=versions(), show=progress.update)
    if args.instruments and not int(os.environ.get("RANK", "0")):
        _run_diagnostics(args, out, manifests)


def _exam(args: argparse.Namespace, manifests: Sequence[Path]) -> Exam:
    from dualslm.evaluation import items

    return items.read(manifests, tasks=args.task, limit=args.limit, seed=args.seed, **_figures(args))


def _figures(args: argparse.Namespace) -> dict[str, Any]:
    """The prompts and histories asked with: two figures unless one is asked for, as wording is part of the result."""
    from dualslm.evaluation import items

    prompts = list(dict.fromkeys(args.prompts or items.PROMPTS))
    return {"prompts": prompts, "history": list(dict.fromkeys(args.history or ["speech", "text"]))}


def _questions(
    args: argparse.Namespace, views: Sequence[View], exam: Exam, manifests: Sequence[Path]
) -> tuple[Plan, dict[str, Any]]:
    """The jobs of the systems that the options name, which are loaded for it, and what they follow from."""
    from dualslm.evaluation import predict

    settings = {
        "manifests": predict.manifests(manifests),
        "views": [str(view) for view in views],
        "tasks": args.task,
        **_figures(args),
        **{key: getattr(args, key) for key in ("limit", "seed", "batch")},
    }
    return predict.plan(exam, _systems(args, exam.items), views, args.batch), settings


def _predict_on_cluster(args: argparse.Namespace, out: Path) -> None:
    """The same as tasks of a cluster, one for each that runs at a time, because each loads the systems."""
    from dualslm.data.cluster import Cluster
    from dualslm.evaluation import predict

    with Cluster(args.ray, args.device) as cluster, Progress("asking: shares", cluster.slots) as progress:
        share = partial(_answer_share, argparse.Namespace(**{**vars(args), "device": cluster.device}), out)
        done = []
        for answered in cluster.map(share, [(index, cluster.slots) for index in range(cluster.slots)]):
            done.append(answered)
            progress.advance()
    predict.assemble(out, done, command=command(), versions=versions())


def _answer_share(args: argparse.Namespace, out: Path, share: tuple[int, int]) -> Answered:
    """A task: one share of the jobs."""
    from dualslm.conversation import View
    from dualslm.evaluation import predict

    views = [View.parse(text) for text in args.view]
    manifests = [Path(path) for path in args.on]
    asked, settings = _questions(args, views, _exam(args, manifests), manifests)
    return predict.answer(out, asked, settings, share)


def _run_diagnostics(args: argparse.Namespace, out: Path, manifests: Sequence[Path]) -> None:
    """Runs the diagnostics on every run and writes them for the report."""
    import json

    from dualslm import tiny
    from dualslm.evaluation.diagnostics import run as diagnostics
    from dualslm.evaluation.systems.named import checkpoint_of
    from dualslm.files import replacing
    from dualslm.model.dualslm import DualSLM

    def progress(text: str) -> None:
        print(one_line(text), file=sys.stderr)

    results = {}
    for run in args.runs or [EMBEDDED]:
        model = DualSLM.from_pretrained(tiny.ADAPTERS if run == EMBEDDED else checkpoint_of(run), device=args.device)
        limit = args.limit or diagnostics.LIMIT
        for name, result in diagnostics.run(model, manifests, limit=limit, seed=args.seed, say=progress).items():
            results[f"{run}: {name}"] = {**result, "title": f"{result['title']} ({run})"}
    with replacing(out / DIAGNOSTICS_FILE) as partial:
        partial.write_text(json.dumps(results, indent=1) + "\n")


def _score(args: argparse.Namespace, out: Path, files: Sequence[Path]) -> int:
    """Measures predictions and writes the report and its pages; 1 where too few verdicts came back."""
    from dualslm.evaluation import score
    from dualslm.files import read_json

    judged, enough = _judged(args, out, files)
    # of this run or of an earlier one: with --only score they are read again, not measured again
    diagnostics_path = out / DIAGNOSTICS_FILE
    diagnostics = None
    if diagnostics_path.exists():
        diagnostics = read_json(diagnostics_path, "what was measured inside,", "delete it, or measure again")
    report = score.score(
        files, seed=args.seed, command=command(), versions=versions(), judged=judged, diagnostics=diagnostics
    )
    score.write(report, out)
    _pages(report, out, as_json=args.json)
    return 0 if enough else 1


def _report(args: argparse.Namespace, out: Path) -> int:
    """Writes the pages of reports that exist already; several are joined."""
    from dualslm.evaluation import score

    names = args.runs or [str(out)]
    report = score.merged([score.read(Path(name)) for name in names])
    if args.out is not None or len(names) > 1:  # else the report is the one that was read
        score.write(report, out)
    _pages(report, out, as_json=args.json)
    return 0


def _pages(report: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    """Writes the pages of a report, and prints the paper's tables and the names of the pages; as JSON all of it."""
    from dualslm.evaluation.report import terminal
    from dualslm.evaluation.report.pages import write

    html, markdown = write(report, out)
    if as_json:
        print_json(report)
        return
    for table in terminal.tables(report):
        new_console().print(table)
    print(f"{one_line(html)}\n{one_line(markdown)}")


# ---------------------------------------------------------------------- systems and manifests


def _systems(args: argparse.Namespace, asked: Sequence[Item]) -> list[System]:
    """The systems that the options name, to be asked these items."""
    from dualslm import tiny
    from dualslm.evaluation.systems.named import Means, opened

    specs = [*args.runs, *args.system]
    if not args.runs and (not args.system or not args.on):
        specs.insert(0, EMBEDDED)
        # a table of one row means little: the majority answer is what any system has to beat
        specs += [] if "majority" in specs else ["majority"]
    embedded = f"dualslm,model={tiny.ADAPTERS},name={EMBEDDED}"
    means = Means(asked, args.device, args.max_new_tokens, args.likelihoods)
    # the embedded model is so small that a GPU would not make it quicker
    on_cpu = Means(asked, args.device or "cpu", args.max_new_tokens, args.likelihoods)
    return [opened(embedded, on_cpu) if spec == EMBEDDED else opened(spec, means) for spec in specs]


def _use_own_gpu() -> None:
    """Gives each of several processes on a machine a GPU of its own."""
    # LOCAL_RANK is set by torchrun and accelerate
    if (rank := os.environ.get("LOCAL_RANK")) is not None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(rank) % torch.cuda.device_count())


def _tiny_manifests(out: Path, args: argparse.Namespace) -> list[Path]:
    """Manifests of the tiny world's test set, whose recordings are synthesized now."""
    from dualslm.tiny import testset

    # several processes would write the same files at once
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 or args.ray is not None:
        got = f"{count} processes" if args.ray is None else "a cluster"
        raise DualSLMError("one process speaks the tiny test set", got=got, do="start one, or give --on")
    return testset.write(out / "talks", seed=args.seed, processes=min(4, os.cpu_count() or 1))


# ---------------------------------------------------------------------- judges


def _sanity(args: argparse.Namespace, out: Path) -> int:
    """Tries the judges on the calibration items and prints the outcome; 1 where one of them cannot be trusted."""
    from dualslm.cli.judges import order
    from dualslm.evaluation.judges import panel

    wanted = order(args)
    assert wanted is not None, "--sanity without --judge is refused by order()"
    found = panel.run(wanted, out, seed=args.seed)
    if args.json:
        print_json(found.report)
    else:
        print("\n".join(map(one_line, found.lines)))
    return int(not all(row["usable"] for row in found.report["trust"]))


def _judged(args: argparse.Namespace, out: Path, files: Sequence[Path]) -> tuple[dict[str, Any] | None, bool]:
    """The judges' summary, with the outcome of their trial, and whether enough verdicts came back.

    Where no judge is named, the tiny world's own rule judges replies to its conversations.
    """
    from dualslm.cli.judges import order
    from dualslm.evaluation.judges import panel
    from dualslm.evaluation.predict import META, records
    from dualslm.files import read_json

    wanted = order(args)
    rows = [row for path in files for row in records(path) if row["task"] == "respond"]
    if wanted is None and rows and {row["corpus"] for row in rows} == {EMBEDDED}:
        from dualslm.tiny import judge as rule

        with Progress("judging", None) as progress:
            found = rule.judged(rows, out, seed=args.seed, show=progress.update)
    elif wanted is None:
        return None, True
    else:
        # the systems' cards name their LLMs, so that none of them judges itself
        metas = [path.with_name(META) for path in files]
        cards = [
            card
            for meta in metas
            if meta.exists()  # not beside predictions that somebody else made
            for card in read_json(meta, "the record of the predictions,", "run predict again")["settings"]["systems"]
        ]
        found = panel.run(wanted, out, rows, cards, seed=args.seed)
    print("\n".join(map(one_line, found.lines)), file=sys.stderr)
    return found.report, found.enough


def command() -> str:
    """The command line, without the folder that the program lies in."""
    return shlex.join(["dualslm", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions that a report states."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"dualslm": __version__, "python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # whisper-normalizer is optional
            continue
    return found
