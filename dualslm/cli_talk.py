"""The verbs that talk: `chat`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dualslm.cli_model import add_model, context_of, model_of, new_talk, questions_of
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.conversation import View
    from dualslm.mic import Microphone


def add_chat(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    add = parser.add_argument
    add("--load", metavar="FOLDER", help="go on with a talk that /save wrote")
    add("--view", metavar="P,L", help="source of each channel of what you say: speech, text or none")
    add("--past", metavar="P,L", help="the same for earlier turns, for example text,text (default: as --view)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="longest reply")
    add_model(parser)
    parser.set_defaults(verb=_chat)


def _chat(args: argparse.Namespace) -> int:
    from dualslm.saved import restore

    talk, settings = restore(Path(args.load)) if args.load else (new_talk(args), {})
    if args.load and args.system is not None:
        raise DualSLMError("a loaded talk has its own system text", got="--system", do="leave one of them out")
    view, past = _view(args.view or settings.get("view")), _view(args.past or settings.get("past"))
    microphone, why = _microphone()
    model = model_of(args)
    from rich.console import Console

    from dualslm.chat import Chat
    from dualslm.conversation import View
    from dualslm.llm import Decoding
    from dualslm.session import Session

    session = Session(
        model,
        talk,
        view=view or View(),
        past=past,
        how=Decoding(max_new_tokens=args.max_new_tokens),
        context=context_of(args),
        questions=questions_of(args),
    )
    return Chat(session, Console(highlight=False), microphone, why).run()


def _view(text: str | None) -> View | None:
    from dualslm.conversation import View

    return None if text is None else View.parse(text)


def _microphone() -> tuple[Microphone | None, str]:
    """The microphone, or why there is none; nobody speaks into a pipe."""
    from dualslm.mic import Microphone

    if not sys.stdin.isatty():
        return None, ""
    try:
        return Microphone(), ""
    except DualSLMError as error:
        return None, str(error)
