"""The verbs that talk: `chat` and `serve`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dualslm.cli.options import add_model, context_of, model_of, new_conversation, questions_of
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.chat.microphone import Microphone
    from dualslm.conversation import View


CAPTURE = "decode with captured steps: quicker tokens on a GPU, after a slow start"


def add_chat(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    add = parser.add_argument
    add("--load", metavar="FOLDER", help="go on with a talk that /save wrote")
    add("--view", metavar="P,L", help="source of each channel of what you say: speech, text or none")
    add("--past", metavar="P,L", help="the same for earlier turns, for example text,text (default: as --view)")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="longest reply")
    add("--capture", action="store_true", help=CAPTURE)
    add_model(parser)
    parser.set_defaults(verb=_chat)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add("--port", type=int, default=8000)
    add("--vllm", metavar="URL", help="let this vLLM server run the LLM, for example http://localhost:8001/v1")
    add("--vllm-model", metavar="NAME", help="as vLLM calls it (default: its first)")
    add("--name", default="dualslm", help="what requests call this model")
    add("--api-key", metavar="KEY", help="that requests must bring (default: DUALSLM_API_KEY, else none is asked for)")
    add("--max-body", type=int, default=32, metavar="MIB", help="longest request")
    add("--max-audio", type=float, default=120, metavar="S", help="longest recording")
    add("--max-speech", type=float, default=1800, metavar="S", help="most seconds of recordings in a request")
    add("--max-turns", type=int, default=128, metavar="N", help="longest talk")
    add("--running", type=int, default=32, metavar="N", help="requests that are answered at once")
    add("--waiting", type=int, default=128, metavar="N", help="requests that wait; more are refused with 429")
    add("--timeout", "--patience", type=float, default=300, metavar="S", help="longest time for one request")
    add("--keep", type=int, default=512, metavar="MIB", help="keys and values to keep of talks, lest they be read anew")
    add("--no-page", action="store_true", help="no web page at /")
    add("--capture", action="store_true", help=f"{CAPTURE}; while one talk is alone")
    add_model(parser)
    parser.set_defaults(verb=_serve)


def _serve(args: argparse.Namespace) -> int:
    try:
        from dualslm.serve.run import Settings, listen, run
    except ModuleNotFoundError as error:
        raise DualSLMError(
            "serving needs more packages", got=f"no {error.name}", do="pip install 'dualslm[serve]'"
        ) from error
    from dualslm.serve.limits import Limits
    from dualslm.tiny import CLIPS

    for name in ("max_body", "max_audio", "max_speech", "max_turns", "running", "timeout", "keep"):
        if (value := getattr(args, name)) <= 0:
            raise DualSLMError(f"--{name.replace('_', '-')} makes no sense", got=value, do="give more than 0")
    if args.waiting < 0:
        raise DualSLMError("--waiting makes no sense", got=args.waiting, do="give 0 or more")
    limits = Limits(
        body=args.max_body * 2**20,
        audio=args.max_audio,
        speech=args.max_speech,
        turns=args.max_turns,
        running=args.running,
        waiting=args.waiting,
        timeout=args.timeout,
    )
    settings = Settings(
        name=args.name,
        limits=limits,
        key=args.api_key or os.environ.get("DUALSLM_API_KEY") or None,
        page=not args.no_page,
        keep=args.keep * 2**20,
        clips=CLIPS,
        vllm=args.vllm,
        vllm_model=args.vllm_model,
        vllm_key=os.environ.get("DUALSLM_VLLM_KEY") or None,
    )
    if args.capture and args.vllm is not None:
        raise DualSLMError("vLLM runs the LLM in its own way", got="--capture", do="leave it out")
    listening = listen(args.host, args.port)
    model = model_of(args, load_llm=args.vllm is None)
    if args.capture:
        model.llm.enable_cuda_graphs()
    system = new_conversation(args).system
    run(model, settings, listening, questions=questions_of(args), context=context_of(args), system=system)
    return 0


def _chat(args: argparse.Namespace) -> int:
    from dualslm.chat.saved import restore

    conversation, settings = restore(Path(args.load)) if args.load else (new_conversation(args), {})
    if args.load and args.system is not None:
        raise DualSLMError("a loaded talk has its own system text", got="--system", do="leave one of them out")
    view, past = _view(args.view or settings.get("view")), _view(args.past or settings.get("past"))
    microphone, why = _microphone()
    model = model_of(args)
    if args.capture:
        model.llm.enable_cuda_graphs()
    from rich.console import Console

    from dualslm.chat.terminal import Chat
    from dualslm.conversation import View
    from dualslm.inference.session import Session
    from dualslm.model.generation import GenerationSettings

    session = Session(
        model,
        conversation,
        view=view or View(),
        past=past,
        generation=GenerationSettings(max_new_tokens=args.max_new_tokens),
        context=context_of(args),
        questions=questions_of(args),
    )
    return Chat(session, Console(highlight=False), microphone, why).run()


def _view(text: str | None) -> View | None:
    from dualslm.conversation import View

    return None if text is None else View.parse(text)


def _microphone() -> tuple[Microphone | None, str]:
    """The microphone, or why there is none; nobody speaks into a pipe."""
    from dualslm.chat.microphone import Microphone

    if not sys.stdin.isatty():
        return None, ""
    try:
        return Microphone(), ""
    except DualSLMError as error:
        return None, str(error)
