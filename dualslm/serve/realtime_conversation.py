"""The turns of a realtime session, which the server keeps while the connection lasts (ours)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dualslm.conversation import Conversation, Part
from dualslm.serve.caller import CALLER
from dualslm.serve.errors import RefusedError
from dualslm.serve.limits import Limits
from dualslm.serve.openai_schema import UserMessage
from dualslm.serve.recordings import Recordings, check_speech
from dualslm.serve.responses import InputItem


@dataclass
class Item:
    """A turn of the conversation.

    Attributes:
        id: as the client knows it.
        role: of the one who speaks.
        parts: text and recordings.
        ended: whether the turn is whole; False for a reply that was interrupted.
        held: bytes of the client's share of the memory that it takes; see `caller.Caller.take`.
    """

    id: str
    role: str
    parts: list[Part]
    ended: bool = True
    held: int = 0

    def json(self) -> dict[str, Any]:
        """As OpenAI writes it; recordings are not sent back."""
        kind = "output_text" if self.role == "assistant" else "input_text"
        content: list[dict[str, Any]] = [
            {"type": kind, "text": part} if isinstance(part, str) else {"type": "input_audio", "transcript": None}
            for part in self.parts
        ]
        status = "completed" if self.ended else "incomplete"
        about = {"id": self.id, "object": "realtime.item", "type": "message", "status": status}
        return {**about, "role": self.role, "content": content}


def item_of(data: dict[str, Any], limits: Limits) -> Item:
    """A turn that a client writes, its recordings decoded.

    Args:
        data: as OpenAI writes it.
        limits: limits of recordings.

    Raises:
        ValidationError: fields that are not understood.
        RefusedError: a recording of somebody else's than the user's, or one over a limit.
        DualSLMError: a recording that cannot be used.
    """
    message = InputItem.model_validate(data).message()
    given = data.get("id")
    item = Item(given if isinstance(given, str) else new_id("item"), message.role, [])
    if not isinstance(message, UserMessage):
        content = message.content or ""
        texts = [content] if isinstance(content, str) else [part.text for part in content]
        _add_text(item, "\n".join(texts))
        return item
    recordings = Recordings(limits)
    for part in message.content:
        if isinstance(part, str) or part.type == "text":
            _add_text(item, part if isinstance(part, str) else part.text)
        else:
            speech = recordings.load(part.input_audio)
            item.held += speech.audio.nbytes  # type: ignore[union-attr]
            check_speech(speech, limits)
            item.parts.append(speech)
    return item


def _add_text(item: Item, text: str) -> None:
    size = len(text.encode(errors="replace"))
    CALLER.get().take(size)
    item.held += size
    item.parts.append(text)


def conversation_of(items: Sequence[Item], instructions: str | None) -> Conversation:
    """What was said so far, to be answered; system texts among the turns join the instructions."""
    system = [str(part) for item in items if item.role in ("system", "developer") for part in item.parts]
    conversation = Conversation("\n".join(filter(None, [instructions, *system])) or None)
    for item in items:
        if item.role == "user":
            conversation.user(*item.parts)
        elif item.role == "assistant":
            conversation.assistant("".join(map(str, item.parts)))
    return conversation


def find(items: Sequence[Item], item_id: str) -> Item:
    """The turn of this id.

    Raises:
        RefusedError: there is none.
    """
    found = next((item for item in items if item.id == item_id), None)
    if found is None:
        raise RefusedError(404, f"item_id: no item {item_id!r} in this conversation.", "item_not_found")
    return found


def new_id(kind: str) -> str:
    """An id as OpenAI's look."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"
