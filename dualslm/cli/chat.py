"""The verb `chat`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dualslm.cli.options import (
    add_any_sound,
    add_cuda_graphs,
    add_generation,
    add_llama_cpp,
    add_model,
    check_one_engine,
    context_of,
    embedded,
    generation_of,
    model_of,
    new_conversation,
    questions_of,
    start_torch,
    tone_of,
)
from dualslm.errors import DualSLMError, new_console

if TYPE_CHECKING:
    from dualslm.chat.microphone import Microphone


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `chat`."""
    add = parser.add_argument
    add("--load", metavar="FOLDER", help="go on with a conversation that /save wrote")
    add("--view", metavar="P,L", help="source of each channel of what you say: speech, text or none")
    add("--past", metavar="P,L", help="the same for earlier turns, for example text,text (default: as --view)")
    add("--speak", action="store_true", help="read replies aloud, by espeak-ng or what the system has")
    add_generation(parser)
    add_any_sound(parser)
    add_llama_cpp(parser)
    add_cuda_graphs(parser)
    add_model(parser)
    parser.set_defaults(verb=_chat)


def _chat(args: argparse.Namespace) -> int:
    from dualslm.chat.saved import restore
    from dualslm.chat.voice import Voice
    from dualslm.conversation import View

    check_one_engine(args)
    conversation = new_conversation(args)
    settings: dict[str, str | None] = {}
    if args.load:
        if args.system is not None:
            do = "leave one of them out"
            raise DualSLMError("a loaded conversation has its own system text", got="--system", do=do)
        conversation, settings = restore(Path(args.load))
    # an option wins over what was saved; views and the microphone are checked before the model is loaded
    view_text = args.view or settings.get("view")
    past_text = args.past or settings.get("past")
    view = View() if view_text is None else View.parse(view_text)
    past = None if past_text is None else View.parse(past_text)
    voice = Voice() if args.speak else None
    start_torch()
    microphone, no_microphone = _microphone()
    model = model_of(args)
    if args.cuda_graphs:
        model.llm.enable_cuda_graphs()
    from dualslm.chat.terminal import Chat
    from dualslm.inference.session import Session

    batch = None
    if args.llama_cpp:
        from dualslm.inference.llama_cpp import LlamaCppBatch

        batch = LlamaCppBatch.of(model.llm, context=context_of(args), size=1)
    session = Session(
        model,
        conversation,
        view=view,
        past=past,
        generation=generation_of(args, model),
        context=context_of(args),
        questions=questions_of(args),
        batch=batch,
    )
    console = new_console(highlight=False)
    return Chat(
        session,
        console,
        microphone,
        no_microphone,
        any_sound=args.any_sound,
        voice=voice,
        tone_of=partial(tone_of, in_made_world=embedded(args)),
    ).run()


def _microphone() -> tuple[Microphone | None, str]:
    """The microphone, or the reason why there is none."""
    from dualslm.chat.microphone import Microphone

    if not sys.stdin.isatty():  # lines come from a pipe: an empty one is no wish to speak
        return None, ""
    try:
        return Microphone(), ""
    except DualSLMError as error:
        return None, str(error)
