"""`dualslm demo`: what the embedded model hears, and how it answers, in half a minute and offline.

The clips are part of the package. No part of the model was trained on their voices, nor on their sentences, except the
small talk in the third part.
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
from dualslm.errors import new_console
from dualslm.model.dualslm import DualSLM
from dualslm.tiny import CLIPS, load, world
from dualslm.tiny.style import ATTRIBUTES

COLORS = {"neutral": "white", "happy": "yellow", "sad": "blue", "angry": "red", "afraid": "magenta"}


@dataclass(frozen=True)
class Clip:
    """A shipped recording and the truth about it.

    Attributes:
        path: the wav file.
        text: the words that are said.
        style: how they are said: a value for each attribute.
    """

    path: Path
    text: str
    style: dict[str, str]

    @property
    def speech(self) -> Speech:
        """The recording without its transcript and labels: the model must hear them."""
        return Speech(self.path)


def clips() -> dict[str, list[Clip]]:
    """The shipped clips, by part of the demo: "hear", "tones" and "memory"."""
    listed = json.loads((CLIPS / "clips.json").read_text())
    return {
        part: [Clip(CLIPS / item["file"], item["text"], item["style"]) for item in items]
        for part, items in listed.items()
    }


def main(console: Console | None = None) -> None:
    """Runs the model on the clips, part by part, and prints what it hears and replies."""
    show = console or new_console(highlight=False)
    parts = clips()
    # The progress goes to standard error, so that the demo's own output can be redirected to a file.
    with new_console(stderr=True).status("loading the embedded model"):
        model = load()
    show.print("\n[bold]A frozen chat LLM that hears[/] - words through L, tone through P\n")
    _show_descriptions(show, model, parts["hear"])
    show.rule("[bold]2  the same words in three tones", align="left")
    show.print(f'[dim]said three times:[/] "{parts["tones"][0].text}"')
    _show_replies(show, model, [(clip.style["emotion"], clip.speech) for clip in parts["tones"]])
    _show_conversation(show, model, parts["memory"])
    _show_swap(show, model, parts["tones"][0], parts["tones"][1])
    _show_next_steps(show)


def words(model: DualSLM, speeches: Sequence[Speech]) -> list[str]:
    """The words of some recordings, from L alone."""
    return model.reply([Conversation(world.TRANSCRIBE).user(speech) for speech in speeches], view=L_ONLY)


def attributes(model: DualSLM, speech: Speech) -> dict[str, str]:
    """The attributes of a recording, from P alone: each is asked for in words."""
    system = world.ASK_PROMPTS[0]
    rng = random.Random(0)  # the same wording in every run: README.md shows this output
    asked = [Conversation(system).user(speech, world.question(name, rng)) for name in ATTRIBUTES]
    answers = model.reply(asked, view=P_ONLY)
    return {name: world.chosen(answer, name) or "?" for name, answer in zip(ATTRIBUTES, answers, strict=True)}


def _show_descriptions(show: Console, model: DualSLM, recordings: list[Clip]) -> None:
    show.rule("[bold]1  what it hears", align="left")
    for clip, text in zip(recordings, words(model, [clip.speech for clip in recordings]), strict=True):
        reply = model.reply(Conversation(world.LISTEN).user(clip.speech))
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]said[/]", _quoted(clip))
        table.add_row("[dim]words, from L alone[/]", text)
        table.add_row("[dim]tone, from P alone[/]", _compared(attributes(model, clip.speech), clip.style))
        table.add_row("[dim]reply[/]", f"[bold green]{reply}[/]")
        show.print(table, "")


def _show_conversation(show: Console, model: DualSLM, recordings: list[Clip]) -> None:
    show.rule("[bold]3  a talk: the last reply uses what was said two turns before", align="left")
    conversation = Conversation(world.LISTEN)
    for clip in recordings:
        reply = model.reply(conversation.user(clip.speech))
        conversation.assistant(reply)
        show.print(Text.assemble("  you    ", _quoted(clip)))
        show.print(f"  model  [bold green]{reply}[/]")
    show.print()


def _show_swap(show: Console, model: DualSLM, words_clip: Clip, tone_clip: Clip) -> None:
    show.rule("[bold]4  source swap: P of one clip, L of another", align="left")
    emotion = words_clip.style["emotion"]
    other = tone_clip.style["emotion"]
    show.print(f"[dim]the words of the {emotion} clip, in the tone of the {other} one[/]")
    swapped = words_clip.speech.in_the_tone_of(tone_clip.speech)
    _show_replies(show, model, [(f"{emotion} -> {other}", swapped)])


def _show_replies(show: Console, model: DualSLM, asked: Sequence[tuple[str, Speech]]) -> None:
    """A table of replies; the last word of each heading is an emotion, whose color it gets."""
    table = Table.grid(padding=(0, 2))
    for emotion, speech in asked:
        reply = model.reply(Conversation(world.LISTEN).user(speech))
        table.add_row(f"  [{COLORS.get(emotion.split()[-1], 'white')}]{emotion}[/]", f"[bold green]{reply}[/]")
    show.print(table, "")


def _show_next_steps(show: Console) -> None:
    show.rule("[bold]next", align="left")
    first = clips()["hear"][0].path
    show.print(f"the clips        {CLIPS}", soft_wrap=True)
    show.print(f"ask about one    dualslm ask {first}", soft_wrap=True)
    show.print("your own voice   dualslm ask hello.wav   [dim](the tiny world knows some 600 words)[/]")
    show.print(
        "real parts       dualslm ask hello.wav --encoder openai/whisper-large-v3 --llm Qwen/Qwen2.5-7B-Instruct"
    )
    show.print("                 [dim]adapters between parts of your own begin untrained[/]\n")


def _quoted(clip: Clip) -> Text:
    emotion = clip.style["emotion"]
    return Text.assemble(f'"{clip.text}" ', (f"({emotion})", COLORS[emotion]))


def _compared(answered: dict[str, str], truth: dict[str, str]) -> Text:
    """The answered attributes; a wrong one is red, with the truth beside it."""
    line = Text()
    for name, value in answered.items():
        if value == truth[name]:
            line.append(value)
        else:
            line.append(f"{value} (in truth {truth[name]})", "red")
        line.append("  ")
    return line
