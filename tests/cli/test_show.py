"""The prompt to look at: slots with their lengths, special tokens, what is learnt, what is detached."""

from __future__ import annotations

import io
import json

from rich.console import Console
from support.templates import tokenizer

from dualslm.cli.show import describe, show, text_of
from dualslm.conversation import Conversation, Speech, View
from dualslm.prompt import Prompt, Slot, render

TOKENIZER = tokenizer("chatml")
CONVERSATION = Conversation("Be [bold]kind[/bold].").user(Speech(b"", caption="sad")).assistant("Oh no!")


def prompt(learns: str = "para") -> Prompt:
    return render(CONVERSATION, TOKENIZER, supervise="last", learns=frozenset({learns}))  # type: ignore[arg-type]


def length(slot: Slot) -> int:
    return {"para": 16, "ling": 23}[slot.channel]


def printed(colour: bool, shown: Prompt) -> str:
    out = io.StringIO()
    show(shown, TOKENIZER, length, Console(file=out, force_terminal=colour, width=200, no_color=not colour))
    return out.getvalue()


def test_the_page_shows_text_slots_and_a_legend() -> None:
    lines = printed(False, prompt()).splitlines()
    assert lines[:6] == [
        "<|im_start|>system",
        "Be [bold]kind[/bold].<|im_end|>",
        "<|im_start|>user",
        "▮P×16▮L×23 detached<|im_end|>",  # noqa: RUF001 - a count
        "<|im_start|>assistant",
        "Oh no!<|im_end|>",
    ]
    rows = describe(prompt(), TOKENIZER, length)
    total, loss = sum(row["length"] for row in rows), sum(row["length"] for row in rows if row.get("loss"))
    text = total - loss - 16 - 23
    assert lines[-1] == f"{total} tokens: text {text} · ▮P how it is said 16 · ▮L what is said 23 · learnt {loss}"


def test_colours_tell_kinds_apart() -> None:
    page = printed(True, prompt())
    assert "\x1b[33m<|im_start|>" in page  # special: yellow
    assert "\x1b[1;32mOh no!" in page  # learnt: green
    assert "\x1b[1;35m▮P" in page
    assert "\x1b[1;2;36m▮L" in page  # detached: dim


def test_two_clips_are_numbered() -> None:
    swapped = Speech(b"").in_the_tone_of(Speech(b""))
    page = printed(False, render(Conversation().user(swapped), TOKENIZER))
    assert "▮P#0×16▮L#1×23" in page  # noqa: RUF001 - a count


def test_the_description_is_json_and_complete() -> None:
    rows = describe(prompt(), TOKENIZER, length)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["length"] for row in rows if row["kind"] == "slot"] == [16, 23]
    assert [row["detached"] for row in rows if row["kind"] == "slot"] == [False, True]
    assert "".join(row["text"] for row in rows if row.get("loss")) == "Oh no!<|im_end|>"


def test_text_of_is_one_string() -> None:
    assert text_of(prompt(), TOKENIZER).endswith("user\n▮P0▮L0<|im_end|>\n<|im_start|>assistant\nOh no!<|im_end|>")
    only = render(Conversation().user(Speech(None, transcript="hello")), TOKENIZER, View("none", "text"))
    assert text_of(only, TOKENIZER) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
