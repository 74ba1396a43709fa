"""The verbs that make training data: `label`, `targets` and `features`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dualslm.cli.options import print_json, quiet_transformers
from dualslm.errors import DualSLMError, one_line

if TYPE_CHECKING:
    from dualslm.recipe import ModelRecipe
    from dualslm.training.teacher import Teacher


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
    parser.set_defaults(verb=_label)


def add_features(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `features`."""
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file; dualslm recipes lists those that are shipped")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="part I of N, each on a machine of its own")
    parser.add_argument("--check", action="store_true", help="encode again what was replaced on disk since, by SHA-256")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example data.features=...")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
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
    quiet_transformers()
    from dualslm.training import targets

    jobs = targets.jobs_of(recipe, args.out)
    teacher = _teacher(args, recipe.model)
    for job in jobs:
        report = targets.write(job, teacher, seed=recipe.seed, batch=args.batch, limit=args.limit)
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
    labelling = Labelling(given, by_gender=args.by_gender)
    report = label(Path(args.source), Path(args.out), labelling, workers=args.workers, ask=args.ask)
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
    quiet_transformers()
    from dualslm.training.train import encode

    counts = encode(recipe, shard=shard, check=args.check, device=args.device)
    if args.json:
        print_json(counts)
    else:
        print(one_line(", ".join(f"{count} {reason}" for reason, count in counts.items())))
    return 0


def _teacher(args: argparse.Namespace, model: ModelRecipe) -> Teacher:
    """The recipe's LLM in this process, or behind a server."""
    from dualslm.model.execution import resolve_device
    from dualslm.model.generation import GenerationSettings
    from dualslm.model.llm import FrozenLM
    from dualslm.training.teacher import LocalTeacher, ServerTeacher

    generation = GenerationSettings(max_new_tokens=args.max_new_tokens, temperature=args.temperature)
    if args.server is not None:
        return ServerTeacher(args.server, args.model or model.llm, generation)
    # the dtype of inference: no gradient flows through the teacher
    device, dtype = resolve_device(args.device, None)
    llm = FrozenLM.from_pretrained(model.llm, dtype=dtype, device=device, quantize=model.quantize)
    return LocalTeacher(llm, generation)
