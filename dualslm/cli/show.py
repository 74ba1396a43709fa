"""A rendered prompt to look at: text, P and L slots with their lengths, what is learnt (paper Fig. 2).

`describe` gives it as data, `text_of` as a plain string, `show` in colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.text import Text as Line

from dualslm.prompt import Prompt, Slot, special_ids

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

SlotLength: TypeAlias = Callable[[Slot], int]

LETTER = {"para": "P", "ling": "L"}
STYLE = {"para": "bold magenta", "ling": "bold cyan", "special": "yellow", "text": "", "loss": "bold green"}


def describe(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, slot_length: SlotLength) -> list[dict[str, Any]]:
    """The segments in order, ready for JSON.

    Args:
        prompt: prompt from `dualslm.prompt.render`.
        tokenizer: tokenizer of the LLM.
        slot_length: function that gives the number of embeddings of a slot.

    Returns:
        Per text its `ids`, `text` and whether it carries `loss`; per slot its `channel`, `clip`, `detached`;
        for both the `kind` ("text" or "slot") and the `length` in tokens.
    """
    rows: list[dict[str, Any]] = []
    for segment in prompt.segments:
        if isinstance(segment, Slot):
            row = {"kind": "slot", "channel": segment.channel, "clip": segment.clip, "detached": segment.detached}
            rows.append(row | {"length": slot_length(segment)})
        else:
            ids = list(segment.ids)
            text = _decode(tokenizer, ids)
            rows.append({"kind": "text", "text": text, "ids": ids, "loss": segment.loss, "length": len(ids)})
    return rows


def text_of(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as a string, with ▮P0 or ▮L0 for the slots of clip 0."""
    return "".join(
        f"▮{LETTER[segment.channel]}{segment.clip}" if isinstance(segment, Slot) else _decode(tokenizer, segment.ids)
        for segment in prompt.segments
    )


def show(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, slot_length: SlotLength, console: Console) -> None:
    """Prints the prompt in colour, and a legend with the count of each kind of token."""
    rows = describe(prompt, tokenizer, slot_length)
    line = Line()
    for row in rows:
        if row["kind"] == "text":
            _append_text(line, row, tokenizer)
            continue
        # a single clip needs no number; with a tone of its own a turn has two
        clip = f"#{row['clip']}" if len(prompt.clips) > 1 else ""
        detached = " detached" if row["detached"] else ""
        slot = f"▮{LETTER[row['channel']]}{clip}×{row['length']}{detached}"  # noqa: RUF001 - a count
        line.append(slot, STYLE[row["channel"]] + (" dim" if row["detached"] else ""))
    # a `Text`, not a string: rich would take [brackets] in the prompt for markup
    console.print(line, soft_wrap=True)
    console.print(_legend(rows))


def _append_text(line: Line, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Appends text, its special tokens in a style of their own."""
    special = special_ids(tokenizer)
    for is_special, ids in groupby(row["ids"], special.__contains__):
        style = STYLE["loss" if row["loss"] else "special" if is_special else "text"]
        line.append(_decode(tokenizer, list(ids)), style)


def _legend(rows: Sequence[dict[str, Any]]) -> Line:
    """Each kind of token that the prompt has, in its style, and how many of them."""
    entries = [
        ("text", "text", [row for row in rows if row["kind"] == "text" and not row["loss"]]),
        ("▮P how it is said", "para", [row for row in rows if row.get("channel") == "para"]),
        ("▮L what is said", "ling", [row for row in rows if row.get("channel") == "ling"]),
        ("learnt", "loss", [row for row in rows if row.get("loss")]),
    ]
    parts = [Line(f"{name} {sum(row['length'] for row in own)}", STYLE[style]) for name, style, own in entries if own]
    total = Line(f"{sum(row['length'] for row in rows)} tokens: ", "dim")
    return Line.assemble("\n", total, Line(" · ").join(parts))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids in the middle of a text."""
    # some tokenizers drop a space at the very beginning: so the ids are decoded behind a line break, which is then
    # cut off
    before = tokenizer.encode("\n", add_special_tokens=False)
    whole, start = (
        tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for some in ([*before, *ids], before)
    )
    return str(whole).removeprefix(str(start))
