"""The page at `/` of `dualslm serve`: speak, see what was heard, read the reply, swap the tone (ours).

Plain HTML, CSS and JavaScript from this package: no build step, and nothing is loaded from elsewhere, which the
content security policy also forbids. Replies come from the same `/v1/chat/completions` that any client uses; the page
adds three things of its own: what it is talking to, what was heard of a recording, and what a reply rests on.
"""

from __future__ import annotations

import json
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import Body, FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from dualslm.conversation import Conversation, Speech, View
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from dualslm.heard import Heard, Questions
    from dualslm.likelihood import Degrees, Influence

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}

Hear: TypeAlias = "Callable[[Speech], Awaitable[tuple[Heard, Mapping[str, Degrees]]]]"
Weigh: TypeAlias = "Callable[[Conversation, str, View], Awaitable[Influence]]"
Read: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], Conversation]

PARTS = {"hear": "Three voices", "tones": "The same words, three tones", "memory": "A talk that remembers"}


@dataclass(frozen=True)
class Host:
    """What the page needs of the server that it is part of.

    Attributes:
        model: what to call the model.
        system: the system text of a new talk.
        questions: by which the LLM is asked for what it heard.
        talk: messages of the API → a Conversation.
        hear: what was heard of a recording, and the degrees where they can be told; None where neither can.
        weigh: what the reply to a talk rests on; None where that cannot be told.
    """

    model: str
    system: str | None
    questions: Questions
    talk: Read
    hear: Hear | None
    weigh: Weigh | None


def mount(app: FastAPI, host: Host) -> None:
    """Adds the page and what it asks for to a server."""
    _add_files(app)

    @app.get("/page/about", include_in_schema=False)
    async def about() -> dict[str, Any]:
        can = {"heard": host.hear is not None, "influence": host.weigh is not None}
        return {"model": host.model, "system": host.system, "clips": clips(), "can": can}

    if host.hear is not None:
        _add_heard(app, host.hear, host.questions)
    if host.weigh is not None:
        _add_influence(app, host.weigh, host.talk)


def _add_files(app: FastAPI) -> None:
    from dualslm.tiny import CLIPS

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    app.mount("/page/clips", StaticFiles(directory=CLIPS))

    @app.get("/page/{name}.{kind}", include_in_schema=False)
    async def file(name: str, kind: str) -> FileResponse:
        path = STATIC / f"{name}.{kind}"
        if path.parent != STATIC or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers=HEADERS)


def _add_heard(app: FastAPI, hear: Hear, questions: Questions) -> None:
    @app.post("/page/heard", include_in_schema=False)
    async def heard(audio: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        found, degrees = await hear(Speech(_bytes(audio)))
        return told(found, degrees, questions)


def _add_influence(app: FastAPI, weigh: Weigh, talk_of: Read) -> None:
    @app.post("/page/influence", include_in_schema=False)
    async def influence(
        messages: Annotated[list[dict[str, Any]], Body()], view: Annotated[str, Body()]
    ) -> dict[str, Any]:
        talk = talk_of(messages)
        if not talk.turns or talk.turns[-1].role != "assistant":
            raise DualSLMError("no reply to weigh", got="a talk that ends with the user", do="add the reply")
        reply = "".join(part for part in talk.turns.pop().parts if isinstance(part, str))
        return asdict(await weigh(talk, reply, View.parse(view)))


def told(heard: Heard, degrees: Mapping[str, Degrees], questions: Questions) -> dict[str, Any]:
    """What was heard, as the page shows it, with the captions of the same voice in each other emotion."""
    attributes = {name: {"value": value, "degrees": degrees.get(name)} for name, value in heard.attributes.items()}
    known = {name: value for name, value in heard.attributes.items() if value is not None}
    emotions = questions.attributes["emotion"].values if "emotion" in questions.attributes else ()
    captions = {value: questions.caption({**known, "emotion": value}) for value in emotions}
    return {"words": heard.words, "caption": heard.caption, "attributes": attributes, "captions": captions}


def clips() -> list[dict[str, str]]:
    """The shipped clips: the file, what it says, its tone, and the group that it belongs to."""
    from dualslm.tiny import CLIPS

    listed = json.loads((CLIPS / "clips.json").read_text())
    return [
        {"part": PARTS[part], "file": item["file"], "text": item["text"], "tone": item["style"]["emotion"]}
        for part, items in listed.items()
        for item in items
    ]


def _bytes(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (BadBase64, ValueError) as error:
        raise DualSLMError("the audio is not base64", got=str(error), do="encode the bytes of the file") from error
