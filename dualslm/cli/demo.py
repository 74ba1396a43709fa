"""`dualslm demo`: the shipped clips, played through the embedded model, or people's through the pocket model.

The people of the second are of test sets: the adapters have never heard them. Which of their recordings are shipped was
drawn by chance (`studies/pocket/ship.py`), so that what it hears wrong is seen too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dualslm import pocket
from dualslm.cli.options import fetch_parts, print_limits, start_torch
from dualslm.errors import DualSLMError, new_console

if TYPE_CHECKING:
    from rich.console import Console

    from dualslm.model.dualslm import DualSLM

FRIEND = "You are a warm friend. Answer in one or two short sentences."
MAX_NEW_TOKENS = 40  # two short sentences


@dataclass(frozen=True)
class Clip:
    """A shipped recording of a person.

    Attributes:
        path: the recording.
        text: the words that are said.
        corpus: where it comes from.
    """

    path: Path
    text: str
    corpus: str


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `demo`."""
    about = "real people by the small model of real parts, which is fetched once (default: the embedded tiny model)"
    parser.add_argument("--model", choices=[pocket.NAME], help=about)
    parser.set_defaults(verb=_demo, encoder=None, llm=None)


def clips() -> list[Clip]:
    """The shipped recordings of people.

    Raises:
        DualSLMError: this build has none.
    """
    listed = pocket.RECORDINGS / "clips.json"
    if not listed.exists():
        raise DualSLMError("no recordings of people", got=f"no {listed}", do="install dualslm from PyPI or a checkout")
    return [
        Clip(pocket.RECORDINGS / item["file"], item["text"], item["corpus"]) for item in json.loads(listed.read_text())
    ]


def _demo(args: argparse.Namespace) -> int:
    if args.model is None:
        start_torch()
        from dualslm.tiny import demo

        demo.main()
        return 0
    recordings = clips()
    fetch_parts(args)
    start_torch()
    from dualslm.model.dualslm import DualSLM

    with new_console(stderr=True).status("loading the model"):
        model = DualSLM.from_pretrained(pocket.NAME)
    print_limits(model)
    show = new_console(highlight=False)
    _show_heard(show, model, recordings)
    _show_words_in_two_tones(show, model, recordings[:2])
    return 0


def _show_heard(show: Console, model: DualSLM, recordings: Sequence[Clip]) -> None:
    """What is heard of each recording, and the replies to it and to its words as text."""
    from rich.table import Table
    from rich.text import Text

    from dualslm.conversation import Conversation, Speech
    from dualslm.inference.audio_cache import AudioCache
    from dualslm.inference.describe import ASKED, describe

    show.print("\n[bold]People whom the adapters never heard[/] - words through L, tone through P\n")
    for clip in recordings:
        heard = describe(AudioCache(model), Speech(clip.path), ASKED)
        reply = model.reply(clip.path, system=FRIEND, max_new_tokens=MAX_NEW_TOKENS)
        by_text = model.reply(Conversation(FRIEND).user(clip.text), max_new_tokens=MAX_NEW_TOKENS)
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]said[/]", Text.assemble(f'"{clip.text}"  ', (f"({clip.corpus})", "dim")))
        table.add_row("[dim]words, from L alone[/]", Text(heard.words))
        table.add_row("[dim]tone, from P alone[/]", Text(heard.caption or ""))
        table.add_row("[dim]reply[/]", Text(reply, "bold green"))
        table.add_row("[dim]the LLM's to the text[/]", Text(by_text, "green"))
        show.print(table, "")


def _show_words_in_two_tones(show: Console, model: DualSLM, recordings: Sequence[Clip]) -> None:
    """The first recording's words with the second one's voice: the source of each channel can be exchanged."""
    from rich.text import Text

    from dualslm.conversation import Speech

    show.rule("[bold]source swap: P of one recording, L of another", align="left")
    swapped = Speech(recordings[0].path).in_the_tone_of(Speech(recordings[1].path))
    show.print(f'[dim]the words of the first, in the voice of the second:[/] "{recordings[0].text}"')
    reply = model.reply(swapped, system=FRIEND, max_new_tokens=MAX_NEW_TOKENS)
    show.print(Text.assemble("  ", (reply, "bold green")), "")
