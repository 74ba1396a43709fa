"""The command line: its verbs, `--version`, and how mistakes are told.

Nothing heavy is imported before a verb needs it, so `dualslm --help` answers at once. What a user can mend is
one line on standard error and exit status 2; a traceback is a fault of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dualslm import __version__
from dualslm.cli.data import add_features, add_label, add_targets
from dualslm.cli.evaluation import add_eval
from dualslm.cli.options import add_model, quiet_transformers
from dualslm.cli.options import model_of as _model
from dualslm.cli.options import new_conversation as _new_conversation
from dualslm.cli.talk import add_chat, add_serve
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.conversation import Conversation, Speech, View

PARTS = ["torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "soxr"]
EXTRAS = ["espeakng-loader", "praat-parselmouth", "scipy", "silero-vad", "sounddevice"]

EPILOG = """\
examples:
  dualslm demo                                     hear and see what it does, offline
  dualslm ask hello.wav                            reply to a recording
  dualslm chat                                     talk to it: speak, type or name recordings
  dualslm serve                                    OpenAI's API on http://127.0.0.1:8000/v1
  arecord -d 5 -f cd | dualslm ask -               reply to the microphone
  dualslm ask --say "i lost my keys" --style sad   reply to a made voice (needs dualslm[voices])
  dualslm ask a.wav --tone b.wav                   the words of a.wav in the tone of b.wav
  dualslm ask a.wav --view speech,none             what does it hear beyond words?
  dualslm prepare librispeech LibriSpeech          make manifests of a downloaded corpus
  dualslm ask a.wav --encoder openai/whisper-tiny.en --llm Qwen/Qwen2.5-0.5B-Instruct
  dualslm label in.jsonl out.jsonl --by-gender     pitch, energy and tempo of speech that nobody annotated
  dualslm targets recipes/small.toml               the frozen LLM writes the answers to learn from
  dualslm eval                                     the paper's tables in miniature, on the embedded model
"""


@dataclass(frozen=True)
class Utterance:
    """A recording to be answered and what to call it."""

    name: str
    speech: Speech


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 2 for a mistake that the user can mend."""
    parser = _parser()
    args = parser.parse_args(argv)
    verb: Callable[[argparse.Namespace], int] | None = getattr(args, "verb", None)
    try:
        if args.version:
            verb = _version
        elif verb is None:
            parser.print_help()
            return 0
        status = verb(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except DualSLMError as error:
        print("dualslm: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _spelt_out(word: str) -> list[str]:
    return ["hf", word.removeprefix("hf:")] if word.startswith("hf:") else [word]


class _Parser(argparse.ArgumentParser):
    """argparse, with its mistakes told in one line like all others, and `hf:NAME` read as `hf NAME`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Splits the corpus `hf:NAME` in two."""
        words = [part for word in (sys.argv[1:] if args is None else args) for part in _spelt_out(word)]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"dualslm: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dualslm",
        description="Speak to a frozen chat LLM: it hears what is said and how it is said.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print every version that a bug report needs")
    parser.add_argument("--json", action="store_true", help="print results as JSON")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_ask(verbs.add_parser("ask", help="reply to recordings"))
    add_serve(verbs.add_parser("serve", help="OpenAI's HTTP interface to it, and a page where that is installed"))
    add_chat(verbs.add_parser("chat", help="talk in the terminal: type, name recordings, or speak"))
    _add_show(verbs.add_parser("show", help="print in colour the prompt that the LLM reads"))
    _add_prepare(verbs.add_parser("prepare", help="make manifests of a downloaded corpus"))
    _add_train(verbs.add_parser("train", help="train the adapters by a recipe"))
    add_features(verbs.add_parser("features", help="encode a recipe's recordings, before training or in shards"))
    _add_plan(verbs.add_parser("plan", help="what a recipe will take, before anything is loaded"))
    add_targets(verbs.add_parser("targets", help="the frozen LLM writes the answers to learn from"))
    add_label(verbs.add_parser("label", help="measure pitch, energy and tempo of a manifest's recordings"))
    add_eval(verbs.add_parser("eval", help="ask, measure, compare, report: the paper's tables"))
    demo = verbs.add_parser("demo", help="play through the shipped clips, offline")
    demo.set_defaults(verb=_demo)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    _add_speech(parser)
    parser.add_argument("--talk", action="store_true", help="the FILEs are the turns of one talk")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest reply")
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print each reply as a line of JSON"
    )
    parser.set_defaults(verb=_ask)


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_speech(parser)
    parser.set_defaults(verb=_show)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    from dualslm.cli.corpora import add

    add(parser, _prepare)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file such as recipes/small.toml")
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/ and the recipe's name)")
    parser.add_argument("--resume", action="store_true", help="go on where the run in the folder was stopped")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example stage.1.lr=1e-5")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the GPU where there is one, unless given")
    parser.set_defaults(verb=_train)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file such as recipes/paper-qwen.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example stage.1.lr=1e-5")
    parser.add_argument("--card", metavar="NAME", help="hours on this one, for example H100; all that are known")
    parser.set_defaults(verb=_plan)


def _add_speech(parser: argparse.ArgumentParser) -> None:
    """What `ask` and `show` share: what is said, who hears it and how."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="wav, flac, mp3 or ogg; - reads standard input")
    add("--say", metavar="TEXT", help="a made voice says this (needs dualslm[voices])")
    add("--style", default="", metavar="WORDS", help="how --say says it, for example sad,slow")
    add("--transcript", metavar="TEXT", help="the words of FILE, for views that read L as text")
    add("--caption", metavar="TEXT", help="how FILE is said, for views that read P as text")
    add("--tone", metavar="FILE", help="take how it is said from this recording instead")
    add("--view", default="speech,speech", metavar="P,L", help="source of each channel: speech, text or none")
    add_model(parser)


# ---------------------------------------------------------------------- verbs


def _ask(args: argparse.Namespace) -> int:
    view, said = _view(args), _utterances(args)
    answer = _answerer(args, view)
    conversation = _new_conversation(args)
    for utterance in said:
        conversation = conversation if args.talk else _new_conversation(args)
        conversation.user(utterance.speech)
        if len(said) > 1 and not args.json:
            print(f"{utterance.name}: ", end="")
        reply = answer(conversation)
        conversation.assistant(reply)
        if args.json:
            result = {"said": utterance.name, "view": str(view), "reply": reply}
            print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console

    view, said = _view(args), _utterances(args)
    model = _model(args)
    from dualslm.cli.show import show
    from dualslm.prompt import render

    for utterance in said:
        prompt = render(_new_conversation(args).user(utterance.speech), model.llm.tokenizer, view)
        slot_length = partial(model.slot_lengths.slot, prompt=prompt, frames=model.frames)
        show(prompt, model.llm.tokenizer, slot_length, Console())
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from dualslm.cli.corpora import run
    from dualslm.data.manifest_index import indexed

    for manifest in run(args):
        indexed(manifest)  # now, so that training starts at once
    return 0


def _train(args: argparse.Namespace) -> int:
    from pathlib import Path

    from dualslm.recipe import load

    recipe = load(args.recipe, args.set)
    quiet_transformers()
    from dualslm.training.train import train

    out = Path(args.out or Path("runs") / Path(args.recipe).stem)
    print(train(recipe, out, resume=args.resume, device=args.device))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from rich.console import Console

    from dualslm.recipe import load
    from dualslm.training import estimate

    recipe = load(args.recipe, args.set)
    found = estimate.estimate(recipe)
    times = dict(estimate.hours(found, args.card))
    if args.json:
        from dataclasses import asdict

        print(json.dumps({**asdict(found), "flops": found.flops, "hours": times}))
        return 0
    for table in estimate.tables(recipe, found, times):
        Console().print(table)
    return 0


def _demo(args: argparse.Namespace) -> int:
    quiet_transformers()
    from dualslm.tiny import demo

    demo.main()
    return 0


def _version(args: argparse.Namespace) -> int:
    versions = {"dualslm": __version__, "python": platform.python_version()}
    versions |= {name: _installed(name) for name in (*PARTS, *EXTRAS)}
    versions["platform"] = platform.platform()
    if args.json:
        print(json.dumps(versions))
    else:
        print("\n".join(f"{name:16} {version}" for name, version in versions.items()))
    return 0


# ---------------------------------------------------------------------- their parts


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _view(args: argparse.Namespace) -> View:
    from dualslm.conversation import View

    return View.parse(args.view)


def _utterances(args: argparse.Namespace) -> list[Utterance]:
    """Everything that is said, decoded: a bad file is told before a model is loaded."""
    known = {name: text for name in ("transcript", "caption") if (text := getattr(args, name)) is not None}
    if known and len(args.files) != 1:
        do = "give one FILE with --transcript and --caption"
        raise DualSLMError("a text of which recording?", got=f"{len(args.files)} files", do=do)
    if args.style and args.say is None:
        raise DualSLMError("--style is how --say says something", got="no --say", do="leave it out, or give --say TEXT")
    said = [_recording(file) for file in args.files]
    said = [Utterance(one.name, replace(one.speech, **known)) for one in said]
    if args.say is not None:
        said.append(_made(args.say, args.style))
    if not said:
        raise DualSLMError("nothing to hear", got="neither a FILE nor --say", do="name a recording")
    if args.tone is None:
        return said
    tone = _recording(args.tone).speech
    return [Utterance(one.name, one.speech.in_the_tone_of(tone)) for one in said]


def _recording(file: str) -> Utterance:
    from dualslm.audio import load
    from dualslm.conversation import Speech

    if file != "-":
        return Utterance(file, Speech(load(file)))
    if sys.stdin.isatty():
        raise DualSLMError("no audio on standard input", got="a terminal", do="pipe one in: cat a.wav | dualslm ask -")
    return Utterance("standard input", Speech(load(sys.stdin.buffer.read())))


def _made(text: str, style: str) -> Utterance:
    """A sentence said by the synthesiser."""
    from dualslm.conversation import Speech
    from dualslm.tiny.style import parse_style
    from dualslm.tiny.voices import say
    from dualslm.tiny.world import caption

    told = caption(parse_style(style.split()))
    return Utterance(text, Speech(say(text, style.split()), transcript=text, caption=told))


def _answerer(args: argparse.Namespace, view: View) -> Callable[[Conversation], str]:
    """Gives the reply to a talk; unless it is wanted as JSON, prints it as it comes."""
    model = _model(args)
    from dualslm.model.generation import GenerationSettings

    generation = GenerationSettings(max_new_tokens=args.max_new_tokens)

    def answer(conversation: Conversation) -> str:
        if args.json:
            return model.reply(conversation, view=view, generation=generation)
        pieces = []
        for piece in model.stream(conversation, view=view, generation=generation):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
        return "".join(pieces)

    return answer


if __name__ == "__main__":
    sys.exit(main())
