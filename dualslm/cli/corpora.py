"""`dualslm prepare CORPUS RAW`: the options of every corpus, and the run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dualslm.cli.options import print_json
from dualslm.data.corpora import CORPORA
from dualslm.data.corpora.base import Corpus, Option
from dualslm.data.corpora.schema import TASKS
from dualslm.errors import DualSLMError, new_console

if TYPE_CHECKING:
    from dualslm.data.corpora.clips import NoSpeechRule

Verb: TypeAlias = Callable[[argparse.Namespace], int]


def add_prepare(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """Gives `prepare` a parser for each corpus, so that its help shows its own options.

    Args:
        parser: parser of `prepare`.
        verb: function that runs it.
    """
    names = parser.add_subparsers(title="corpora", metavar="CORPUS", required=True)
    for corpus in CORPORA.values():
        _add_corpus(names.add_parser(corpus.name, help=corpus.about), corpus, verb)


def run(args: argparse.Namespace) -> list[Path]:
    """Prepares the corpus that the arguments name, prints the report and gives the manifests."""
    from dualslm.data.corpora.prepare import prepare  # numpy, which --help must not load

    corpus: Corpus = args.corpus
    no_speech: NoSpeechRule | None = None
    if args.verify:
        from dualslm.inference import voice_activity  # with torch, which reading headers does not need

        no_speech = voice_activity.no_speech
    out = Path(args.out or Path("data") / corpus.name)
    values = {option.name: getattr(args, option.name.replace("-", "_")) for option in corpus.options}
    # argparse collects repeated options in lists; a corpus knows them as tuples
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    report = prepare(
        corpus,
        Path(args.raw),
        out,
        options=options,
        tasks=tasks(args.tasks),
        verify=args.verify,
        no_speech=no_speech,
        max_seconds=args.max_seconds,
        seed=args.seed,
        again=args.again,
    )
    if args.json:
        print_json(report)
    else:
        from dualslm.data.corpora.report import table

        new_console().print(table(report))
    return [out / f"{split}.jsonl" for split in report["splits"]]


def tasks(text: str) -> list[str]:
    """The tasks that a text such as "asr,gender" names, in the order of `TASKS`.

    Raises:
        DualSLMError: an unknown task.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TASKS]:
        raise DualSLMError("unknown task", got=unknown[0], do=f"choose some of {', '.join(TASKS)}")
    return [name for name in TASKS if name in names]


def _add_corpus(parser: argparse.ArgumentParser, corpus: Corpus, verb: Verb) -> None:
    add = parser.add_argument
    add("raw", metavar="RAW", help="the downloaded folder" + (", or a file" if corpus.name == "jsonl" else ""))
    add("--out", metavar="FOLDER", help=f"for the manifests (default: data/{corpus.name})")
    add("--verify", action="store_true", help="decode every recording, and leave out those without speech")
    add("--tasks", metavar="A,B", default="", help=f"some of {','.join(TASKS)} (default: {','.join(corpus.tasks)})")
    add("--max-seconds", type=float, default=30.0, metavar="S", help="leave out longer recordings (default: 30)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the splits that we draw (default: 0)")
    add("--again", action="store_true", help="prepare again what is complete")
    # `dualslm --json prepare` works too: without SUPPRESS this default would overwrite what stands there
    add("--json", action="store_true", default=argparse.SUPPRESS, help="print the report as JSON")
    for option in corpus.options:
        _add_option(parser, option)
    parser.set_defaults(verb=verb, corpus=corpus)


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """An option of a corpus; the type of its default says how it is given."""
    name = f"--{option.name}"
    if isinstance(option.default, bool):
        parser.add_argument(name, action="store_true", help=option.help)
    elif isinstance(option.default, tuple):
        parser.add_argument(name, action="append", default=[], metavar=option.metavar, help=option.help)
    else:
        shown = option.help + (f" (default: {option.default})" if option.default is not None else "")
        choices = option.choices or None
        parser.add_argument(name, default=option.default, choices=choices, metavar=option.metavar, help=shown)
