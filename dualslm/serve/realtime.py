"""OpenAI's `/v1/realtime` over WebSocket: sound is appended as it is spoken, replies come as text (ours).

The server finds where turns begin and end, answers each, and stops answering when somebody speaks into the reply,
which then stands in the conversation as far as it was sent. With `turn_detection: null` the client commits turns
itself. Replies are text: whoever wants to hear them speaks them on the client's side.
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from dualslm.audio import SAMPLE_RATE, Samples
from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.inference.backend import Piece
from dualslm.serve.caller import CALLER
from dualslm.serve.errors import RefusedError, openai_error
from dualslm.serve.fairness import ONE_CLIENT
from dualslm.serve.json_body import parse_json
from dualslm.serve.openai_reply import usage
from dualslm.serve.realtime_conversation import Item, conversation_of, find, item_of, new_id
from dualslm.serve.realtime_schema import SessionSettings
from dualslm.serve.recordings import check_speech, from_base64
from dualslm.serve.responses import announced, opened, output_text
from dualslm.serve.service import Ask
from dualslm.serve.turn_detection import PCMDecoder, TurnDetector

if TYPE_CHECKING:
    from dualslm.serve.app import Server

MAX_EVENT_BYTES = 16 * 2**20  # as OpenAI
POLICY_VIOLATION, TRY_AGAIN = 1008, 1013  # WebSocket's codes
EVENTS_OF_ITEMS = ("conversation.item.retrieve", "conversation.item.delete", "conversation.item.truncate")


def add_realtime_route(api: FastAPI, server: Server, needs_key: list[Any]) -> None:
    """Adds `/v1/realtime`.

    Args:
        api: the application.
        server: what its routes share.
        needs_key: dependencies that check the API key.
    """
    sessions: set[RealtimeSession] = set()

    @api.websocket("/v1/realtime", dependencies=needs_key)
    async def realtime(socket: WebSocket, model: str | None = None) -> None:
        # "realtime" is what browsers send, which cannot set headers
        offered = socket.scope.get("subprotocols", [])
        await socket.accept("realtime" if "realtime" in offered else None)
        if model is not None and model != server.name:
            await socket.close(POLICY_VIOLATION, f"No model {model!r} here; this is {server.name!r}."[:120])
            return
        most = server.limits.running + server.limits.waiting
        own = [one for one in sessions if one.client == CALLER.get().name]
        if len(sessions) >= most or len(own) >= math.ceil(most * ONE_CLIENT):
            await socket.close(TRY_AGAIN, "The server is full: connect again in a moment.")
            return
        session = RealtimeSession(server, socket)
        sessions.add(session)
        try:
            await session.run()
        finally:
            sessions.discard(session)


@dataclass(eq=False)
class RealtimeSession:
    """One connection: its settings, its conversation, the sound that was not said yet, the reply that is being given.

    Attributes:
        server: what the routes share.
        socket: the connection.
        settings: as the client changed them.
        items: the conversation.
    """

    server: Server
    socket: WebSocket
    settings: SessionSettings = field(default_factory=SessionSettings)
    items: list[Item] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = new_id("sess")
        self.client = CALLER.get().name
        temperature = min(self.server.service.model.generation.temperature, 2.0)  # no client may state more
        self.settings = self.settings.changed({"temperature": temperature})
        self._detector: TurnDetector | None = None
        self._decoder = PCMDecoder(self.settings.audio.input.format.rate)
        self._buffer: list[Samples] = []  # without turn detection: what was appended since the last commit
        self._turn_id = new_id("item")  # of the turn that is being said
        self._reply: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[None]] = set()  # transcriptions

    async def run(self) -> None:
        """Answers events until the client leaves."""
        try:
            await self._listen_by(self.settings)
        except DualSLMError:  # no detector: turns are committed, until the client asks for something else
            await self._listen_by(self.settings.changed({"audio": {"input": {"turn_detection": None}}}))
        await self._send("session.created", session=self._session())
        try:
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._handle(message.get("text") or message.get("bytes") or "")
        except WebSocketDisconnect:
            return
        finally:
            for task in filter(None, [self._reply, *self._others]):
                task.cancel()
            await asyncio.gather(*filter(None, [self._reply, *self._others]), return_exceptions=True)

    async def _handle(self, text: str | bytes) -> None:
        """Does what one event asks for; what is wrong with it is told, and the session goes on."""
        event: dict[str, Any] = {}
        try:
            event = await self.server.threads.run(_parsed, text)
            await self._do(event)
        except (DualSLMError, RefusedError) as error:
            await self._tell(error, event)
        except ValidationError as error:
            checked = next((event[name] for name in ("session", "item", "response") if name in event), None)
            await self._tell(RequestValidationError(error.errors(), body=checked), event)

    async def _do(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "session.update":
                settings = self.settings.changed(_object(event, "session"))
                await self._listen_by(settings)
                await self._send("session.updated", session=self._session())
            case "input_audio_buffer.append":
                await self._append(from_base64(_text(event, "audio")))
            case "input_audio_buffer.commit":
                await self._commit_buffer()
            case "input_audio_buffer.clear":
                self._taken_buffer()
                await self._listen_by(self.settings)
                await self._send("input_audio_buffer.cleared")
            case "conversation.item.create":
                item = await self.server.threads.run(item_of, _object(event, "item"), self.server.limits)
                await self._add(item, event.get("previous_item_id"))
            case kind if kind in EVENTS_OF_ITEMS:
                await self._of_item(str(kind), find(self.items, _text(event, "item_id")))
            case "response.create":
                await self._respond({} if event.get("response") is None else _object(event, "response"))
            case "response.cancel":
                await self._interrupt()
            case kind:
                raise RefusedError(400, f"type: {kind!r} is no event that is taken here; see docs/serve.md.", "unknown")

    # ------------------------------------------------------------------ sound

    async def _listen_by(self, settings: SessionSettings) -> None:
        """Takes settings over; sound that was not said yet is forgotten where the way of listening changes."""
        listening = settings.audio.input
        if listening.turn_detection is not None:
            longest = self.server.limits.audio
            detector = await asyncio.to_thread(TurnDetector, listening.turn_detection.settings(longest))
            if self._detector is None or settings.audio != self.settings.audio or not self.items:
                self._detector = detector
        else:
            self._detector = None
        if listening.format != self.settings.audio.input.format:
            self._decoder = PCMDecoder(listening.format.rate)
        self.settings = settings

    async def _append(self, data: bytes) -> None:
        samples = self._decoder.add(data)
        if self._detector is None:
            CALLER.get().take(samples.nbytes)
            self._buffer.append(samples)
            if sum(map(len, self._buffer)) > self.server.limits.audio * SAMPLE_RATE:
                self._taken_buffer()
                message = f"The turn is longer than {self.server.limits.audio:g} s; commit it earlier."
                raise RefusedError(413, message, "audio_too_long")
            return
        detector = self._detector
        turns = self.settings.audio.input.turn_detection
        for edge in await self.server.threads.run(lambda: list(detector.add(samples))):
            if edge.kind == "start":
                self._turn_id = new_id("item")
                await self._send("input_audio_buffer.speech_started", audio_start_ms=edge.ms, item_id=self._turn_id)
                if turns is not None and turns.interrupt_response:
                    await self._interrupt()
            else:
                await self._send("input_audio_buffer.speech_stopped", audio_end_ms=edge.ms, item_id=self._turn_id)
                await self._commit(edge.samples)
                if turns is not None and turns.create_response:
                    await self._respond({})

    async def _commit_buffer(self) -> None:
        if self._detector is not None:
            message = "The server ends turns here; send turn_detection: null to commit them yourself."
            raise RefusedError(400, message, "invalid_value")
        samples = self._taken_buffer()
        if not len(samples):
            raise RefusedError(400, "The audio buffer is empty; append sound first.", "input_audio_buffer_commit_empty")
        self._turn_id = new_id("item")
        await self._commit(samples)

    def _taken_buffer(self) -> Samples:
        """What was appended since the last commit; the buffer is empty then."""
        samples = np.concatenate([np.empty(0, np.float32), *self._buffer])
        self._buffer.clear()
        CALLER.get().give_back(samples.nbytes)
        return samples

    async def _commit(self, samples: Samples) -> None:
        """Makes a turn of what was said."""
        CALLER.get().take(samples.nbytes)
        speech = Speech(samples)
        if self._detector is None:  # the detector has found a voice already
            await self.server.threads.run(check_speech, speech, self.server.limits)
        previous = self.items[-1].id if self.items else None
        await self._send("input_audio_buffer.committed", item_id=self._turn_id, previous_item_id=previous)
        await self._add(Item(self._turn_id, "user", [speech], held=samples.nbytes))
        if self.settings.audio.input.transcription is not None:
            task = asyncio.create_task(self._transcribe(self._turn_id, speech))
            self._others.add(task)
            task.add_done_callback(self._others.discard)

    async def _transcribe(self, item_id: str, speech: Speech) -> None:
        kind = "conversation.item.input_audio_transcription"
        at = {"item_id": item_id, "content_index": 0}
        try:
            async with self.server.queue.admit():
                words = await self.server.service.transcribe(speech)
        except (DualSLMError, RefusedError) as error:
            await self._send(f"{kind}.failed", **at, error=openai_error(error)[1])
            return
        seconds = len(speech.audio) / SAMPLE_RATE  # type: ignore[arg-type]
        await self._send(f"{kind}.completed", **at, transcript=words, usage={"type": "duration", "seconds": seconds})

    # ------------------------------------------------------------------ the conversation

    async def _add(self, item: Item, after: str | None = None) -> None:
        if len(self.items) >= self.server.limits.turns:
            CALLER.get().give_back(self.items.pop(0).held)
        at = len(self.items)
        if after is not None:
            at = 0 if after == "root" else self.items.index(find(self.items, after)) + 1
        self.items.insert(at, item)
        previous = self.items[at - 1].id if at else None
        for kind in ("added", "done"):
            await self._send(f"conversation.item.{kind}", item=item.json(), previous_item_id=previous)

    async def _of_item(self, kind: str, item: Item) -> None:
        if kind.endswith("delete"):
            self.items.remove(item)
            CALLER.get().give_back(item.held)
            await self._send("conversation.item.deleted", item_id=item.id)
        elif kind.endswith("retrieve"):
            await self._send("conversation.item.retrieved", item=item.json())
        else:
            message = "Replies are text, which no length of sound cuts: send response.cancel to interrupt one."
            raise RefusedError(400, message, "invalid_value")

    # ------------------------------------------------------------------ replies

    async def _respond(self, wanted: dict[str, Any]) -> None:
        """Begins a reply, by settings that may differ from the session's."""
        if self._reply is not None and not self._reply.done():
            message = "A reply is being given; cancel it, or wait for response.done."
            raise RefusedError(400, message, "conversation_already_has_active_response")
        if wanted.pop("conversation", "auto") not in ("auto", None) or wanted.pop("input", None):
            message = "response: replies belong to the conversation here; leave 'conversation' and 'input' out."
            raise RefusedError(400, message, "invalid_value")
        wanted.pop("metadata", None)
        settings = self.settings.changed(wanted)
        # the model's own settings where a client has no say, such as its repetition penalty
        generation = self.server.service.model.generation.changed(
            max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
        )
        instructions = self.server.service.system if settings.instructions is None else settings.instructions
        ask = Ask(conversation_of(self.items, instructions), generation=generation)
        self._reply = asyncio.create_task(self._answer(ask))

    async def _interrupt(self) -> None:
        """Ends the reply that is being given, if there is one; what was sent of it stays."""
        if self._reply is not None and not self._reply.done():
            self._reply.cancel()
            await asyncio.gather(self._reply, return_exceptions=True)

    async def _answer(self, ask: Ask) -> None:
        response_id = new_id("resp")
        item = Item(new_id("item"), "assistant", [], ended=False)
        text = ""
        last: Piece | None = None
        positions = audio = 0

        def response(status: str, **details: Any) -> dict[str, Any]:
            output = [] if status == "in_progress" else [item.json()]
            used = usage(positions, audio, last.reused if last else 0, last.tokens if last else 0)
            return {
                "id": response_id,
                "object": "realtime.response",
                "status": status,
                "status_details": {"type": status, **details} if details else None,
                "output": output,
                "output_modalities": ["text"],
                "usage": None
                if status == "in_progress"
                else {
                    "total_tokens": used.total_tokens,
                    "input_tokens": used.prompt_tokens,
                    "output_tokens": used.completion_tokens,
                    "input_token_details": used.prompt_tokens_details,
                },
            }

        at = {"response_id": response_id, "item_id": item.id, "output_index": 0, "content_index": 0}
        status = "completed"
        details: dict[str, Any] = {}
        try:
            begun = item.json() | {"status": "in_progress"}
            for one in (*announced(response("in_progress")), *opened(begun)):
                kind = one.pop("kind")
                if kind != "in_progress":  # an event of /v1/responses alone
                    more = one if kind == "created" else {"response_id": response_id, **one}
                    await self._send(f"response.{kind}", **more)
            async with self.server.queue.admit(), asyncio.timeout(self.server.limits.timeout):
                prompt = await self.server.service.encode(ask)
                positions, audio = len(prompt.embeds.keys), prompt.audio_positions
                async with aclosing(self.server.service.stream(ask, prompt)) as pieces:
                    async for last in pieces:
                        if last.text:
                            text += last.text
                            await self._send("response.output_text.delta", **at, delta=last.text)
            if last is not None and last.reason == "length":
                status, details = "incomplete", {"reason": "max_output_tokens"}
        except asyncio.CancelledError:
            status, details = "cancelled", {"reason": "turn_detected"}
        except Exception as error:
            status, details = "failed", {"error": openai_error(error)[1]}
        item.parts = [text] if text else []
        item.ended = status == "completed"
        if text:  # of a reply that nobody has seen nothing stays
            self.items.append(item)
        with suppress(RuntimeError, WebSocketDisconnect):  # the client may have left
            await self._send("response.output_text.done", **at, text=text)
            await self._send("response.content_part.done", **at, part=output_text(text))
            await self._send("response.output_item.done", response_id=response_id, output_index=0, item=item.json())
            if text:
                await self._send("conversation.item.done", item=item.json(), previous_item_id=None)
            await self._send("response.done", response=response(status, **details))

    # ------------------------------------------------------------------ what is sent

    async def _send(self, kind: str, **more: Any) -> None:
        event = {"type": kind, "event_id": new_id("event"), **more}
        # half a surrogate pair, which JSON can spell out, is no text that could be sent back
        text = json.dumps(event, ensure_ascii=False).encode(errors="replace").decode()
        await self.socket.send_text(text)

    async def _tell(self, error: Exception, event: dict[str, Any]) -> None:
        """Says what is wrong with an event."""
        await self._send("error", error=openai_error(error)[1] | {"event_id": event.get("event_id")})

    def _session(self) -> dict[str, Any]:
        stated = self.settings.stated() | {"id": self.id, "object": "realtime.session", "model": self.server.name}
        return stated | {"tools": [], "tool_choice": "none"}


def _parsed(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_EVENT_BYTES:
        raise RefusedError(413, f"The event is longer than {MAX_EVENT_BYTES} bytes; send less at once.", "too_long")
    try:
        event = parse_json(text.encode() if isinstance(text, str) else text)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise RefusedError(400, "The event is no JSON object; send one with a type.", "invalid_value")
    return event


def _object(event: dict[str, Any], name: str) -> dict[str, Any]:
    value = event.get(name)
    if not isinstance(value, dict):
        raise RefusedError(400, f"{name}: must be an object; give it.", "invalid_value")
    return value


def _text(event: dict[str, Any], name: str) -> str:
    value = event.get(name)
    if not isinstance(value, str):
        raise RefusedError(400, f"{name}: must be a text; give it.", "invalid_value")
    return value
