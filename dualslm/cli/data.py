"""The verbs that make training data: `label`, `targets` and `features`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from dualslm.cli.options import add_ray, print_json, start_torch
from dualslm.errors import DualSLMError, one_line

if TYPE_CHECKING:
    from dualslm.recipe import ModelRecipe, Recipe
    from dualslm.training.teacher import Teacher

SHARDS = 4  # of features for each task that a cluster runs at a time: the first to end take what is left


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `targets`."""
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a TOML file, whose manifests have lines that ask for respond")
    add("--out", metavar="F.jsonl", help="one file for all training manifests (default: one beside each manifest)")
    add("--server", metavar="URL", help="an OpenAI-compatible server, for example http://localhost:8000/v1")
    add("--model", metavar="NAME", help="the LLM as the server calls it (default: the recipe's)")
    add("--batch", type=int, default=16, metavar="N", help="conversations that are answered at once")
    add("--limit", type=int, metavar="N", help="at most so many conversations of each file")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, takes the likeliest token")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="a longer reply is cut off")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for example model.quantize=nf4")
    add("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
    add_ray(parser)
    parser.set_defaults(verb=_targets)


def add_label(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `label`."""
    add = parser.add_argument
    add("source", metavar="IN.jsonl", help="a manifest")
    add("out", metavar="OUT.jsonl", help="the manifest with labels; OUT.report.json stands beside it")
    for name, unit in (("pitch", "Hz"), ("energy", "dB"), ("tempo", "syllables/s")):
        add(f"--{name}", action="append", default=[], metavar="LOW,HIGH", help=f"{unit}; else the manifest's terciles")
    add("--like", metavar="REPORT.json", help="thresholds of an earlier run, for example of the training manifest's")
    add("--by-gender", action="store_true", help="terciles of pitch for each gender on its own")
    add("--ask", action="store_true", help="add the three to the tasks of lines that have tasks")
    add("--workers", type=int, default=1, metavar="N", help="processes that measure")
    add_ray(parser)
    parser.set_defaults(verb=_label)


def add_features(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `features`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file; dualslm recipes lists those that are shipped")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="part I of N, each on a machine of its own")
    parser.add_argument("--check", action="store_true", help="encode again what was replaced on disk since, by SHA-256")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example data.features=...")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
    add_ray(parser)
    parser.set_defaults(verb=_features)


def _targets(args: argparse.Namespace) -> int:
    from dualslm.recipe import load

    # whatever can be wrong is checked before the LLM is loaded, which may take minutes
    recipe = load(args.recipe, args.set)
    for key in ("batch", "limit"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise DualSLMError(f"--{key} makes no sense", got=value, do="give 1 or more")
    if args.model is not None and args.server is None:
        raise DualSLMError("--model names an LLM of a server", got="no --server", do="give --server URL")
    if args.ray is not None and args.server is not None:
        raise DualSLMError("a server has machines of its own", got="--ray and --server", do="leave one of them out")
    start_torch()
    from dualslm.training import targets

    jobs = targets.jobs_of(recipe, args.out)
    with _cluster(args) as cluster:
        if cluster is not None:
            args.device = cluster.device
        teacher = _teacher(args, recipe.model)
        each = map if cluster is None else cluster.map
        for job in jobs:
            report = targets.write(job, teacher, seed=recipe.seed, batch=args.batch, limit=args.limit, each=each)
            if args.json:
                print_json({"out": str(job.out), **report})
                continue
            reasons = [f"{count} {why}" for part in ("dropped", "not_asked") for why, count in report[part].items()]
            without = f"; without: {', '.join(reasons)}" if reasons else ""
            thoughts = f", {report['thoughts']} after a thought that was left out" if report.get("thoughts") else ""
            print(one_line(f"{job.out}: {report['written']} targets, {report['cut_off']} cut off{thoughts}{without}"))
    return 0


def _label(args: argparse.Namespace) -> int:
    from pathlib import Path

    from dualslm.data.label import MEASURED, Labelling, label, thresholds, thresholds_of

    given = thresholds_of(Path(args.like)) if args.like else {}
    given |= {name: thresholds(texts, name) for name in MEASURED if (texts := getattr(args, name))}
    if args.ray is not None and args.workers != 1:
        raise DualSLMError("Ray starts the processes", got="--ray and --workers", do="leave one of them out")
    labelling = Labelling(given, by_gender=args.by_gender)
    with _cluster(args, device="cpu") as cluster:
        each = None if cluster is None else cluster.map
        report = label(Path(args.source), Path(args.out), labelling, workers=args.workers, ask=args.ask, each=each)
    # JSON either way: the report is nested, and --json only puts it on one line
    print_json(report, indent=None if args.json else 1)
    return 0


def _features(args: argparse.Namespace) -> int:
    from dualslm.recipe import load

    recipe = load(args.recipe, args.set)
    number, _, count = args.shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise DualSLMError("this is no shard", got=repr(args.shard), do="give for example --shard 2/8")
    shard = (int(number), int(count))
    if args.ray is not None and shard != (1, 1):
        raise DualSLMError("Ray shares out the shards", got="--ray and --shard", do="leave one of them out")
    with _cluster(args) as cluster:
        if cluster is None:
            start_torch()
            counts = _encode(recipe, args.check, args.device, shard)
        else:
            shards = [(index + 1, SHARDS * cluster.slots) for index in range(SHARDS * cluster.slots)]
            counts = Counter()
            encode = partial(_encode, recipe, args.check, cluster.device)
            for (index, total), found in zip(shards, cluster.map(encode, shards), strict=True):
                counts += found
                counted = f"shard {index} of {total}, {found.total()} recordings"
                print(one_line(f"features: {counted}"), file=sys.stderr, flush=True)
    if args.json:
        print_json(counts)
    else:
        print(one_line(", ".join(f"{count} {reason}" for reason, count in counts.items())))
    return 0


def _encode(recipe: Recipe, check: bool, device: str | None, shard: tuple[int, int]) -> Counter[str]:
    """Encodes a shard of a recipe's recordings, here or as a task."""
    from dualslm.training.train import encode

    return encode(recipe, shard=shard, check=check, device=device)


def _cluster(args: argparse.Namespace, device: str | None = None) -> Any:
    """The cluster that the options name, for a `with` block; None where they name none."""
    if args.ray is None:
        return nullcontext()
    from dualslm.data.cluster import Cluster

    return Cluster(args.ray, device or args.device)


def _teacher(args: argparse.Namespace, model: ModelRecipe) -> Teacher:
    """The recipe's LLM in this process, or behind a server."""
    from dualslm.model.generation import GenerationSettings
    from dualslm.training.teacher import DeferredTeacher, ServerTeacher

    generation = GenerationSettings(max_new_tokens=args.max_new_tokens, temperature=args.temperature)
    if args.server is not None:
        return ServerTeacher(args.server, args.model or model.llm, generation)
    return DeferredTeacher(model.llm, model.quantize, args.device, generation)
