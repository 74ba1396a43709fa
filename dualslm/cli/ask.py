"""`dualslm ask` and `dualslm show`: recordings, sentences and tones that are named on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

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
    questions_of,
    start_torch,
    tone_of,
)
from dualslm.errors import DualSLMError, new_console, one_line, visible

if TYPE_CHECKING:
    from dualslm.conversation import Speech
    from dualslm.inference.voice_activity import NoSpeechError
    from dualslm.model.dualslm import DualSLM


@dataclass(frozen=True)
class Utterance:
    """A recording to be answered.

    Attributes:
        name: name of the recording in the output.
        speech: the recording.
    """

    name: str
    speech: Speech


def add_ask(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ask`."""
    _add_speech(parser)
    parser.add_argument("--conversation", action="store_true", help="the FILEs are the turns of one conversation")
    add_old_name(parser, "--talk", "--conversation", nargs=0, const=True)
    parser.add_argument("--heard", action="store_true", help="also print the words and the tone that were heard")
    add_generation(parser)
    add_any_sound(parser)
    parser.set_defaults(verb=_ask)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `show`."""
    _add_speech(parser)
    parser.set_defaults(verb=_show)


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
        heard = _heard(args, model, utterance.speech) if args.heard else {}
        if args.json:
            reply = model.reply(conversation, view=view, generation=generation)
            result = {"said": utterance.name, "view": str(view), **heard, "reply": reply}
            print_json(result)
        else:
            if len(utterances) > 1:
                print(f"{one_line(utterance.name)}: ", end="")
            if heard:
                tone = ", ".join(f"{name}: {value or '?'}" for name, value in heard["tone"].items())
                print(f"[{visible(heard['words'] or 'no words')}] [{visible(tone or 'no tone')}]")
            reply = ""
            for piece in model.stream(conversation, view=view, generation=generation):
                print(visible(piece), end="", flush=True)
                reply += piece
            print()
        conversation.assistant(reply)
    return 0


def _heard(args: argparse.Namespace, model: DualSLM, speech: Speech) -> dict[str, Any]:
    """The words of a recording from L alone, and its attributes from P alone."""
    from dualslm.inference.audio_cache import AudioCache
    from dualslm.inference.describe import describe

    found = describe(AudioCache(model), speech, questions_of(args))
    return {"words": found.words, "tone": dict(found.attributes)}


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
