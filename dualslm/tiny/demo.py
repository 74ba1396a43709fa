"""`dualslm demo`: what the embedded model hears, and how it answers, in half a minute and offline.

The clips lie in the package; they were spoken by a voice that no part of the model was trained on, and say
sentences that it was never trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dualslm.conversation import L_ONLY, P_ONLY, Conversation, Speech
from dualslm.model.dualslm import DualSLM
from dualslm.tiny import CLIPS, load, world
from dualslm.tiny.style import ATTRIBUTES

COLOURS = {"neutral": "white", "happy": "yellow", "sad": "blue", "angry": "red", "afraid": "magenta"}


@dataclass(frozen=True)
class Clip:
    """A shipped recording and the truth about it.

    Attributes:
        path: the wav file.
        text: what is said.
        style: how, by attribute.
    """

    path: Path
    text: str
    style: dict[str, str]

    @property
    def speech(self) -> Speech:
        """The recording alone: the model is told nothing else."""
        return Speech(self.path)


def clips() -> dict[str, list[Clip]]:
    """The shipped clips by the part of the demo that they belong to."""
    listed = json.loads((CLIPS / "clips.json").read_text())
    return {
        part: [Clip(CLIPS / item["file"], item["text"], item["style"]) for item in items]
        for part, items in listed.items()
    }


def main(console: Console | None = None) -> None:
    """Plays through the clips and prints what was heard and answered."""
    show = console or Console(highlight=False)
    with Console(stderr=True).status("loading the embedded model"):
        model, parts = load(), clips()
    show.print("\n[bold]A frozen chat LLM that hears[/] - words through L, tone through P\n")
    _hear(show, model, parts["hear"])
    _tones(show, model, parts["tones"])
    _memory(show, model, parts["memory"])
    _swap(show, model, parts["tones"])
    _next(show)


def words(model: DualSLM, speeches: Sequence[Speech]) -> list[str]:
    """What the model hears through L alone."""
    return model.reply([Conversation(world.TRANSCRIBE).user(speech) for speech in speeches], view=L_ONLY)


def attributes(model: DualSLM, speech: Speech) -> dict[str, str]:
    """What the model hears through P alone: each attribute asked in words."""
    system, rng = world.ASK_PROMPTS[0], random.Random(0)
    asked = [Conversation(system).user(speech, world.question(name, rng)) for name in ATTRIBUTES]
    answers = model.reply(asked, view=P_ONLY)
    return {name: world.chosen(answer, name) or "?" for name, answer in zip(ATTRIBUTES, answers, strict=True)}


def _hear(show: Console, model: DualSLM, heard: list[Clip]) -> None:
    show.rule("[bold]1  what it hears", align="left")
    for clip, text in zip(heard, words(model, [clip.speech for clip in heard]), strict=True):
        reply = model.reply(Conversation(world.LISTEN).user(clip.speech))
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]said[/]", _said(clip.text, clip.style["emotion"]))
        table.add_row("[dim]words, from L alone[/]", text)
        table.add_row("[dim]tone, from P alone[/]", _compared(attributes(model, clip.speech), clip.style))
        table.add_row("[dim]reply[/]", f"[bold green]{reply}[/]")
        show.print(table, "")


def _tones(show: Console, model: DualSLM, said: list[Clip]) -> None:
    show.rule("[bold]2  the same words in three tones", align="left")
    show.print(f'[dim]said three times:[/] "{said[0].text}"')
    _answers(show, model, [(clip.style["emotion"], clip.speech) for clip in said])


def _memory(show: Console, model: DualSLM, said: list[Clip]) -> None:
    show.rule("[bold]3  a talk: the last reply uses what was said two turns before", align="left")
    conversation = Conversation(world.LISTEN)
    for clip in said:
        reply = model.reply(conversation.user(clip.speech))
        conversation.assistant(reply)
        show.print(Text.assemble("  you    ", _said(clip.text, clip.style["emotion"])))
        show.print(f"  model  [bold green]{reply}[/]")
    show.print()


def _swap(show: Console, model: DualSLM, said: list[Clip]) -> None:
    show.rule("[bold]4  source swap: P of one clip, L of another", align="left")
    first, other = said[0], said[1]
    show.print(
        f"[dim]the words of the {first.style['emotion']} clip, in the tone of the {other.style['emotion']} one[/]"
    )
    swapped = first.speech.in_the_tone_of(other.speech)
    _answers(show, model, [(f"{first.style['emotion']} -> {other.style['emotion']}", swapped)])


def _answers(show: Console, model: DualSLM, said: Sequence[tuple[str, Speech]]) -> None:
    table = Table.grid(padding=(0, 2))
    for emotion, speech in said:
        reply = model.reply(Conversation(world.LISTEN).user(speech))
        table.add_row(f"  [{COLOURS.get(emotion.split()[-1], 'white')}]{emotion}[/]", f"[bold green]{reply}[/]")
    show.print(table, "")


def _next(show: Console) -> None:
    show.rule("[bold]next", align="left")
    first = clips()["hear"][0].path
    show.print(f"the clips        {CLIPS}", soft_wrap=True)
    show.print(f"ask about one    dualslm ask {first}", soft_wrap=True)
    show.print("your own voice   dualslm ask hello.wav   [dim](the tiny world knows some 600 words)[/]")
    show.print(
        "real parts       dualslm ask hello.wav --encoder openai/whisper-large-v3 --llm Qwen/Qwen2.5-7B-Instruct"
    )
    show.print("                 [dim]adapters between parts of your own begin untrained[/]\n")


def _said(text: str, emotion: str) -> Text:
    return Text.assemble(f'"{text}" ', (f"({emotion})", COLOURS[emotion]))


def _compared(heard: dict[str, str], truth: dict[str, str]) -> Text:
    """The attributes heard; one that is wrong is struck out beside the truth."""
    line = Text()
    for name, value in heard.items():
        line.append(
            value if value == truth[name] else f"{value} (in truth {truth[name]})",
            "" if value == truth[name] else "red",
        )
        line.append("  ")
    return line
