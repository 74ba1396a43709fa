"""The model that a verb's options name: the embedded one, trained adapters, or any two parts."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.conversation import Conversation
    from dualslm.inference.describe import Questions
    from dualslm.model.dualslm import DualSLM


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that name a model, and its system text."""
    add = parser.add_argument
    add("--system", metavar="TEXT", help="system text of the talk")
    add("--model", metavar="PATH_OR_ID", help="trained adapters (default: the embedded tiny model)")
    add("--encoder", metavar="PATH_OR_ID", help="speech encoder; without --model, with untrained adapters")
    add("--llm", metavar="PATH_OR_ID", help="chat LLM; without --model, with untrained adapters")


def embedded(args: argparse.Namespace) -> bool:
    """Whether the options name the embedded model."""
    return args.model is None and args.llm is None


def new_conversation(args: argparse.Namespace) -> Conversation:
    """An empty talk; the embedded LLM knows no talk without a system text, so it gets the one of a listener."""
    from dualslm.conversation import Conversation
    from dualslm.tiny.world import LISTEN

    return Conversation(LISTEN if embedded(args) and args.system is None else args.system)


def questions_of(args: argparse.Namespace) -> Questions:
    """How the model is asked for what it heard: each as it learnt to be asked."""
    from dualslm.inference.describe import ASKED
    from dualslm.tiny.questions import ASKED as TINY

    return TINY if embedded(args) else ASKED


def context_of(args: argparse.Namespace) -> int | None:
    """Positions of a talk; the embedded LLM has learnt from short talks."""
    from dualslm.tiny import CONTEXT

    return CONTEXT if embedded(args) else None


def model_of(args: argparse.Namespace, *, load_llm: bool = True) -> DualSLM:
    """The model that the options name: embedded, trained, or any two parts with fresh adapters.

    Without `load_llm`, no more of its LLM is loaded than the token embeddings.
    """
    from rich.console import Console

    if args.model is None and (args.encoder is None) != (args.llm is None):
        missing = "--llm" if args.llm is None else "--encoder"
        raise DualSLMError("half a model", got=f"no {missing}", do="give both, or neither")
    with Console(stderr=True).status("loading the model"):
        return _load(args.model, args.encoder, args.llm, load_llm)


def _load(name: str | None, encoder: str | None, llm: str | None, load_llm: bool) -> DualSLM:
    quiet_transformers()
    from dualslm import tiny
    from dualslm.model.dualslm import DualSLM

    if name is not None:
        return DualSLM.from_pretrained(name, encoder=encoder, llm=llm, load_llm=load_llm)
    if encoder is None or llm is None:
        return tiny.load(load_llm=load_llm)
    print("dualslm: warning: these adapters are untrained, so the reply means nothing yet", file=sys.stderr)
    return DualSLM.from_parts(encoder=encoder, llm=llm)


def quiet_transformers() -> None:
    """No warnings and bars of transformers among our lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
