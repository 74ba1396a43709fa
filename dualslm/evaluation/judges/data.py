"""Makes the text of systems under test safe to show to a judge: it is data, never an instruction.

Special tokens of chat templates are removed, and the rest becomes one JSON string on one line whose angle brackets are
escaped: nothing in it can end a turn, begin one, or close the block that it stands in.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Some servers turn these into control tokens even inside a message: a reply could then speak as the system.
SPECIAL = re.compile(
    r"<\|[^<>|\n]{0,60}\|>"  # ChatML, Llama 3, Phi, GPT
    r"|<\uff5c[^<>\uff5c\n]{0,60}\uff5c>"  # DeepSeek, whose bars are full-width
    r"|<</?SYS>>|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"  # Llama 2, Mistral
    r"|</?(?:s|bos|eos|pad|unk|think|tool_call|start_of_turn|end_of_turn|start_of_image)>",  # Gemma, Qwen
    re.IGNORECASE,
)
# Control characters but tab, newline and return; zero-width characters and those that turn the direction of writing,
# with which a token could be hidden from the pattern above.
INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def clean(text: str) -> str:
    """The text without special tokens and invisible characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    # Repeated, because removing one token can join two halves of another: "<|im_<|x|>end|>".
    while (less := SPECIAL.sub(" ", INVISIBLE.sub("", text))) != text:
        text = less
    return text.strip()


def block(name: str, value: Any) -> str:
    """A named block whose content is JSON on one line; strings in it are cleaned."""
    text = json.dumps(_cleaned(value), ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f"<{name}>\n{text}\n</{name}>"


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if isinstance(value, dict):
        return {key: _cleaned(one) for key, one in value.items()}
    return value
