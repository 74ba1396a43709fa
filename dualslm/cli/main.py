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
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dualslm.cli.chat import add_chat
from dualslm.cli.completion import add_completion
from dualslm.cli.corpora import add_prepare
from dualslm.cli.data import add_features, add_label, add_targets
from dualslm.cli.encoding import tolerate
from dualslm.cli.evaluation import add_eval
from dualslm.cli.options import (
    add_any_sound,
    add_generation,
    add_model,
    add_old_name,
    embedded,
    generation_of,
    model_of,
    new_conversation,
    print_json,
    start_torch,
    tone_of,
)
from dualslm.cli.recipes import add_recipes
from dualslm.cli.record import add_record
from dualslm.cli.serve import add_serve
from dualslm.cli.version import show_versions
from dualslm.errors import DualSLMError, Visible, new_console, one_line, visible
from dualslm.files import system_error

if TYPE_CHECKING:
    from dualslm.conversation import Speech
    from dualslm.inference.voice_activity import NoSpeechError


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


@dataclass(frozen=True)
class Utterance:
    """A recording to be answered.

    Attributes:
        name: name of the recording in the output.
        speech: the recording.
    """

    name: str
    speech: Speech


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
    _add_ask(verbs.add_parser("ask", help="reply to recordings"))
    add_serve(verbs.add_parser("serve", help="OpenAI's HTTP interface to it, and a page where that is installed"))
    add_chat(verbs.add_parser("chat", help="talk in the terminal: type, name recordings, or speak"))
    add_record(verbs.add_parser("record", help="record sentences that you read aloud, to train on your own voice"))
    show = verbs.add_parser("show", help="print in colour the prompt that the LLM reads")
    _add_speech(show)
    show.set_defaults(verb=_show)
    add_prepare(verbs.add_parser("prepare", help="make manifests of a downloaded corpus"), _prepare)
    _add_train(verbs.add_parser("train", help="train the adapters by a recipe"))
    add_features(verbs.add_parser("features", help="encode a recipe's recordings, before training or in shards"))
    _add_plan(verbs.add_parser("plan", help="what a recipe will take, before anything is loaded"))
    add_targets(verbs.add_parser("targets", help="the frozen LLM writes the answers to learn from"))
    add_label(verbs.add_parser("label", help="measure pitch, energy and tempo of a manifest's recordings"))
    add_eval(verbs.add_parser("eval", help="ask, measure, compare, report: the paper's tables"))
    add_recipes(verbs.add_parser("recipes", help="list the shipped recipes, or copy one"))
    demo = verbs.add_parser("demo", help="play through the shipped clips, offline")
    demo.set_defaults(verb=_demo)
    add_completion(verbs.add_parser("completion", help="a script that completes commands in a shell"), _parser)
    for name, verb in verbs.choices.items():
        if name not in WITHOUT_JSON and "--json" not in verb._option_string_actions:
            # on either side of the verb: without SUPPRESS this default would overwrite what stands before it
            about = "print results as JSON"
            verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=about)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    _add_speech(parser)
    parser.add_argument("--conversation", action="store_true", help="the FILEs are the turns of one conversation")
    add_old_name(parser, "--talk", "--conversation", nargs=0, const=True)
    add_generation(parser)
    add_any_sound(parser)
    parser.set_defaults(verb=_ask)


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


def _add_speech(parser: argparse.ArgumentParser) -> None:
    """Options that `ask` and `show` share: what is said, the view and the model."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="wav, flac, mp3 or ogg; - reads standard input")
    add("--say", metavar="TEXT", help="a made voice says this (needs dualslm[voices])")
    add("--style", default="", metavar="WORDS", help="how --say says it, for example sad,slow")
    add("--transcript", metavar="TEXT", help="the words of FILE, for views that read L as text")
    add("--caption", metavar="TEXT", help="how FILE is said, for views that read P as text")
    add("--tone", metavar="FILE|WORDS", help="take how it is said from this recording, or from words such as sad,slow")
    add("--view", default="speech,speech", metavar="P,L", help="source of each channel: speech, text or none")
    add_model(parser)


# ---------------------------------------------------------------------- verbs


def _ask(args: argparse.Namespace) -> int:
    from dualslm.conversation import View

    # both before the model is loaded: a mistyped view or a bad file is reported at once
    view = View.parse(args.view)
    utterances = _utterances(args)
    unspoken = {} if args.any_sound or "speech" not in (view.para, view.ling) else _without_speech(utterances)
    if unspoken and not args.json:
        raise next(iter(unspoken.values()))
    for name, error in unspoken.items():
        result = {"said": name, "view": str(view), "reply": None, "no_speech": error.reason}
        print_json(result)
    utterances = [utterance for utterance in utterances if utterance.name not in unspoken]
    if not utterances:  # no model is loaded to say nothing
        return 0
    model = model_of(args)
    generation = generation_of(args, model)
    conversation = new_conversation(args)
    for utterance in utterances:
        if not args.conversation:
            conversation = new_conversation(args)
        conversation.user(utterance.speech)
        if args.json:
            reply = model.reply(conversation, view=view, generation=generation)
            result = {"said": utterance.name, "view": str(view), "reply": reply}
            print_json(result)
        else:
            if len(utterances) > 1:
                print(f"{one_line(utterance.name)}: ", end="")
            reply = ""
            for piece in model.stream(conversation, view=view, generation=generation):
                print(visible(piece), end="", flush=True)
                reply += piece
            print()
        conversation.assistant(reply)
    return 0


def _show(args: argparse.Namespace) -> int:
    from dualslm.conversation import View

    view = View.parse(args.view)
    utterances = _utterances(args)
    model = model_of(args)
    from dualslm.cli.show import describe, show
    from dualslm.prompt import render

    for utterance in utterances:
        prompt = render(new_conversation(args).user(utterance.speech), model.llm.tokenizer, view)
        slot_length = partial(model.slot_lengths.slot, prompt=prompt, frames=model.frames)
        if args.json:
            print_json({"said": utterance.name, "segments": describe(prompt, model.llm.tokenizer, slot_length)})
            continue
        show(prompt, model.llm.tokenizer, slot_length, new_console())
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


def _demo(args: argparse.Namespace) -> int:
    start_torch()
    from dualslm.tiny import demo

    demo.main()
    return 0


# ---------------------------------------------------------------------- what is said


def _utterances(args: argparse.Namespace) -> list[Utterance]:
    """Everything that is said, decoded."""
    known = {name: text for name in ("transcript", "caption") if (text := getattr(args, name)) is not None}
    if known and len(args.files) != 1:
        do = "give one FILE with --transcript and --caption"
        raise DualSLMError("a text of which recording?", got=f"{len(args.files)} files", do=do)
    if args.style and args.say is None:
        raise DualSLMError("--style is how --say says something", got="no --say", do="leave it out, or give --say TEXT")
    utterances = []
    for file in args.files:
        utterance = _recording(file)
        utterances.append(Utterance(utterance.name, replace(utterance.speech, **known)))
    if args.say is not None:
        utterances.append(_synthesized(args.say, args.style))
    if not utterances:
        raise DualSLMError("nothing to hear", got="neither a FILE nor --say", do="name a recording")
    if args.tone is None:
        return utterances
    tone = _tone(args)
    return [Utterance(utterance.name, utterance.speech.in_the_tone_of(tone)) for utterance in utterances]


def _tone(args: argparse.Namespace) -> Speech:
    """The tone that --tone names: a recording where there is one, else a description."""
    from pathlib import Path

    # what is spelt like a file is one, so that a mistyped name is not taken for a description
    if args.tone == "-" or Path(args.tone).exists() or "/" in args.tone or "." in args.tone:
        return _recording(args.tone).speech
    return tone_of(args.tone, in_made_world=embedded(args))


def _without_speech(utterances: Sequence[Utterance]) -> dict[str, NoSpeechError]:
    """The recordings in which nobody speaks, by name, each with the error that says so."""
    start_torch()
    from dualslm.inference.voice_activity import NoSpeechError, require_speech

    found = {}
    for utterance in utterances:
        try:
            require_speech(utterance.speech, utterance.name)
        except NoSpeechError as error:
            found[utterance.name] = error
    return found


def _recording(file: str) -> Utterance:
    """A recording from a file, or from standard input for "-"."""
    from dualslm.audio import load
    from dualslm.conversation import Speech

    if file != "-":
        return Utterance(file, Speech(load(file)))
    if sys.stdin.isatty():  # it would wait for ever for the end of what somebody types
        raise DualSLMError("no audio on standard input", got="a terminal", do="pipe one in: cat a.wav | dualslm ask -")
    return Utterance("standard input", Speech(load(sys.stdin.buffer.read())))


def _synthesized(text: str, style: str) -> Utterance:
    """A sentence said by the synthesizer, with its words and its style as text too."""
    from dualslm.conversation import Speech
    from dualslm.tiny.style import parse_style
    from dualslm.tiny.voices import say
    from dualslm.tiny.world import caption

    words = style.split()
    return Utterance(text, Speech(say(text, words), transcript=text, caption=caption(parse_style(words))))


if __name__ == "__main__":
    sys.exit(main())
