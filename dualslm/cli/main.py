"""The command line: its parser, the verbs `ask`, `show`, `prepare`, `train`, `plan` and `demo`, and `--version`.

Nothing heavy is imported before a verb needs it, so `dualslm --help` answers at once. A mistake of the user's is one
line on standard error and exit status 2; a traceback is a fault of ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dualslm.cli.ask import add_ask, add_show
from dualslm.cli.chat import add_chat
from dualslm.cli.completion import add_completion
from dualslm.cli.corpora import add_prepare
from dualslm.cli.data import add_features, add_label, add_targets
from dualslm.cli.demo import add_demo
from dualslm.cli.encoding import tolerate
from dualslm.cli.evaluation import add_eval
from dualslm.cli.options import (
    print_json,
    start_torch,
)
from dualslm.cli.recipes import add_recipes
from dualslm.cli.record import add_record
from dualslm.cli.serve import add_serve
from dualslm.cli.version import show_versions
from dualslm.errors import DualSLMError, Visible, new_console, one_line
from dualslm.files import system_error

if TYPE_CHECKING:
    pass


VISIBLE = Visible()  # of the warnings that a user reads

WITHOUT_JSON = ("chat", "serve", "demo", "completion")  # verbs that print no result
EPILOG = """\
examples:
  dualslm demo                                     hear and see what it does, offline
  dualslm ask hello.wav                            reply to a recording
  dualslm chat                                     talk to it: speak, type or name recordings
  dualslm chat --model pocket                      the small model of real parts, fetched once
  dualslm serve                                    OpenAI's API on http://127.0.0.1:8000/v1
  arecord -d 5 -f cd | dualslm ask -               reply to the microphone
  dualslm ask --say "I lost my umbrella at the bank." --style sad,slow   a made voice (needs dualslm[voices])
  dualslm ask a.wav --tone b.wav                   the words of a.wav in the tone of b.wav
  dualslm ask a.wav --view none,speech             the words alone, as if their tone could not be heard
  dualslm recipes                                  the shipped recipes; dualslm recipes small copies one
  dualslm prepare librispeech LibriSpeech          make manifests of a downloaded corpus
  dualslm ask a.wav --encoder openai/whisper-tiny.en --llm Qwen/Qwen2.5-0.5B-Instruct
  dualslm label in.jsonl out.jsonl --by-gender     pitch, energy and tempo of speech that nobody annotated
  dualslm targets recipes/small.toml               the frozen LLM writes the answers to learn from
  dualslm eval                                     the paper's tables in miniature, on the embedded model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 2 for a mistake that the user can mend."""
    tolerate()
    logging.getLogger("dualslm").addFilter(VISIBLE)
    parser = _parser()
    try:
        args = parser.parse_args(argv)
        verb: Callable[[argparse.Namespace], int] | None = getattr(args, "verb", None)
        if args.version:
            verb = show_versions
        elif verb is None:
            parser.print_help()
            return 0
        elif args.json and args.name_of_verb in WITHOUT_JSON:
            do = "leave --json out"
            raise DualSLMError(f"{args.name_of_verb} prints no result that could be JSON", got="--json", do=do)
        status = verb(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        # Python flushes standard output once more at its exit, and would print the same error there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as a shell reports it
    except DualSLMError as error:
        print("dualslm: error:", one_line(error), file=sys.stderr)
        return 2
    except OSError as error:  # of a disk, a folder, a connection: nothing that a traceback explains
        print("dualslm: error:", one_line(system_error(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, like all our errors, and `hf:NAME` read as `hf NAME`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Splits the corpus `hf:NAME` in two, because argparse finds a corpus's parser by its exact name."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            words += ["hf", word.removeprefix("hf:")] if word.startswith("hf:") else [word]
        return super().parse_known_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse takes a full disk for nothing: help that was not written would be a success
        stream = file or sys.stderr
        stream.write(message)
        stream.flush()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dualslm: error: {one_line(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dualslm",
        description="Speak to a frozen chat LLM: it hears what is said and how it is said.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print every version that a bug report needs")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="name_of_verb")
    add_ask(verbs.add_parser("ask", help="reply to recordings"))
    add_serve(verbs.add_parser("serve", help="OpenAI's HTTP interface to it, and a page where that is installed"))
    add_chat(verbs.add_parser("chat", help="talk in the terminal: type, name recordings, or speak"))
    add_record(verbs.add_parser("record", help="record sentences that you read aloud, to train on your own voice"))
    add_show(verbs.add_parser("show", help="print in colour the prompt that the LLM reads"))
    add_prepare(verbs.add_parser("prepare", help="make manifests of a downloaded corpus"), _prepare)
    _add_train(verbs.add_parser("train", help="train the adapters by a recipe"))
    add_features(verbs.add_parser("features", help="encode a recipe's recordings, before training or in shards"))
    _add_plan(verbs.add_parser("plan", help="what a recipe will take, before anything is loaded"))
    add_targets(verbs.add_parser("targets", help="the frozen LLM writes the answers to learn from"))
    add_label(verbs.add_parser("label", help="measure pitch, energy and tempo of a manifest's recordings"))
    add_eval(verbs.add_parser("eval", help="ask, measure, compare, report: the paper's tables"))
    add_recipes(verbs.add_parser("recipes", help="list the shipped recipes, or copy one"))
    add_demo(verbs.add_parser("demo", help="play through the shipped clips, offline"))
    add_completion(verbs.add_parser("completion", help="a script that completes commands in a shell"), _parser)
    for name, verb in verbs.choices.items():
        if name not in WITHOUT_JSON and "--json" not in verb._option_string_actions:
            # on either side of the verb: without SUPPRESS this default would overwrite what stands before it
            about = "print results as JSON"
            verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=about)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file; dualslm recipes lists those that are shipped")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/ and the recipe's name)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in the folder was stopped")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example stage.1.lr=1e-5")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
    parser.set_defaults(verb=_train)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file; dualslm recipes lists those that are shipped")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example stage.1.lr=1e-5")
    parser.add_argument("--card", metavar="NAME", help="hours on this one, for example H100; all that are known")
    parser.set_defaults(verb=_plan)


# ---------------------------------------------------------------------- verbs


def _prepare(args: argparse.Namespace) -> int:
    from dualslm.cli.corpora import run
    from dualslm.data.manifest_index import indexed

    for manifest in run(args):
        indexed(manifest)  # now, so that training starts at once
    return 0


def _train(args: argparse.Namespace) -> int:
    from pathlib import Path

    from dualslm.recipe import load

    recipe = load(args.recipe, args.set)  # a mistake in it is reported before torch is imported
    start_torch()
    from dualslm.training.train import train

    out = Path(args.out or Path("runs") / Path(args.recipe).stem)
    checkpoint = train(recipe, out, resume=args.resume, device=args.device)
    if args.json:
        print_json({"checkpoint": str(checkpoint)})
    else:
        print(one_line(checkpoint))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from dualslm.recipe import load
    from dualslm.training import estimate

    recipe = load(args.recipe, args.set)
    found = estimate.estimate(recipe)
    times = dict(estimate.hours(found, args.card))
    if args.json:
        from dataclasses import asdict

        print_json({**asdict(found), "flops": found.flops, "hours": times})
        return 0
    for table in estimate.tables(recipe, found, times):
        new_console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
