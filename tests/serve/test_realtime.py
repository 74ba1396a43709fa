"""`/v1/realtime` by OpenAI's own client: sound appended, turns found, text back, interrupted by speaking."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import soxr
from support.servekit import ANGRY, CLIP, SAD, SlowBackend, client, threaded
from websockets.sync.client import connect

from dualslm import Conversation, DualSLM, Speech, tiny
from dualslm.audio import SAMPLE_RATE
from dualslm.serve.app import app
from dualslm.serve.json_body import MAX_VALUES
from dualslm.serve.limits import Limits
from dualslm.serve.service import Service
from dualslm.serve.turn_detection import PCMDecoder, TurnDetector, TurnSettings
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

MODEL: Any = "dualslm"
RATE = 24_000
SILENCE = np.zeros(RATE, np.float32)
BYTES = RATE // 10 * 2  # a tenth of a second in one event


@pytest.fixture
def slow(model: DualSLM) -> Iterator[str]:
    service = Service(model, SlowBackend(), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service, page=False)) as address:
        yield address


def samples_of(path: Path) -> Any:
    samples, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate, RATE)


def append(connection: Any, *sounds: Any) -> None:
    data = (np.concatenate(sounds) * 32767).astype("<i2").tobytes()
    for start in range(0, len(data), BYTES):
        connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + BYTES]).decode())


def until(connection: Any, kind: str, found: Callable[[Any], bool] = lambda _: True) -> list[Any]:
    """The events up to the first of a kind."""
    events: list[Any] = []
    while not events or events[-1].type != kind or not found(events[-1]):
        events.append(connection.recv())
        assert events[-1].type != "error" or kind == "error", events[-1]
    return events


def deltas(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_turns_are_found_and_answered(url: str, model: DualSLM) -> None:
    with client(url).realtime.connect(model=MODEL) as connection:
        created: Any = connection.recv()
        assert (created.type, created.session.output_modalities) == ("session.created", ["text"])
        said = {}
        for path in (SAD, ANGRY):
            append(connection, SILENCE, samples_of(path), SILENCE)
            events = until(connection, "response.done")
            kinds = [event.type for event in events]
            order = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"]
            order += ["input_audio_buffer.committed", "conversation.item.added", "response.created"]
            order += ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
            order += ["response.output_text.done", "response.output_item.done", "response.done"]
            assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order
            done = events[-1].response
            assert done.status == "completed"
            assert deltas(events) == done.output[0].content[0].text
            started, stopped = events[0], next(event for event in events if event.type == order[1])
            spoken = len(samples_of(path)) / RATE * 1000
            assert abs(stopped.audio_end_ms - started.audio_start_ms - spoken) < 1000
            said[path] = deltas(events)
        assert "bakery" in said[SAD]  # the words reached the reply
        assert said[SAD] != said[ANGRY]
        assert said[SAD] == model.reply(Conversation(LISTEN).user(Speech(SAD)))


def test_speaking_interrupts_a_reply_which_stays_as_far_as_it_was_sent(slow: str) -> None:
    with client(slow).realtime.connect(model=MODEL) as connection:
        connection.recv()
        append(connection, samples_of(SAD), SILENCE)
        events = until(connection, "response.output_text.delta")
        append(connection, samples_of(ANGRY))
        events += until(connection, "response.done")
        cancelled = events[-1].response
        assert (cancelled.status, cancelled.status_details.reason) == ("cancelled", "turn_detected")
        kept = cancelled.output[0]
        assert kept.content[0].text == deltas(events)
        assert len(deltas(events)) < 3 * 250  # of 256 tokens: it was not drawn to its end
        assert [event.type for event in events].count("input_audio_buffer.speech_started") == 2
        connection.conversation.item.retrieve(item_id=kept.id)
        retrieved = until(connection, "conversation.item.retrieved")[-1]
        assert retrieved.item.content[0].text == kept.content[0].text
        append(connection, SILENCE)
        until(connection, "response.output_text.delta")  # and the interruption is answered


def test_turns_that_the_client_commits(url: str, model: DualSLM) -> None:
    listening: Any = {"type": "realtime", "instructions": "Be brief.", "audio": {"input": {"turn_detection": None}}}
    with client(url).realtime.connect(model=MODEL) as connection:
        connection.session.update(session=listening)
        updated = until(connection, "session.updated")[-1].session
        assert (updated.instructions, updated.audio.input.turn_detection) == ("Be brief.", None)
        append(connection, samples_of(SAD))
        connection.input_audio_buffer.commit()
        connection.response.create()
        events = until(connection, "response.done")
        assert "input_audio_buffer.speech_started" not in [event.type for event in events]
        samples, _ = soundfile.read(SAD, dtype="float32")
        assert deltas(events) == model.reply(Conversation("Be brief.").user(Speech(samples)))
        limited: Any = {"max_output_tokens": 2}
        connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "I am happy."}]}
        )
        connection.response.create(response=limited)
        cut = until(connection, "response.done")[-1].response
        assert (cut.status, cut.status_details.reason, cut.usage.output_tokens) == (
            "incomplete",
            "max_output_tokens",
            2,
        )


def test_words_are_told_where_they_are_asked_for(url: str) -> None:
    wanted: Any = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}}
    with client(url).realtime.connect(model=MODEL) as connection:
        connection.session.update(session=wanted)
        append(connection, samples_of(SAD), SILENCE)
        heard = until(connection, "conversation.item.input_audio_transcription.completed")[-1]
        assert "bakery" in heard.transcript


def test_the_first_names_of_the_settings(url: str) -> None:
    old: Any = {"modalities": ["text"], "input_audio_format": "pcm16", "turn_detection": None, "tools": []}
    old |= {"input_audio_transcription": {"model": "whisper-1"}, "voice": "alloy", "tool_choice": "auto"}
    with client(url).realtime.connect(model=MODEL) as connection:
        connection.session.update(session=old)
        session = until(connection, "session.updated")[-1].session
        assert session.audio.input.turn_detection is None
        assert session.audio.input.transcription is not None


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "dance"}, "'dance'"),
        ({"type": "session.update"}, "session:"),
        ({"type": "session.update", "session": {"output_modalities": ["audio"]}}, "output_modalities.0: must be 'te"),
        ({"type": "session.update", "session": {"tools": [{"type": "function", "name": "f"}]}}, "tools:"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}, "'audio/pc"),
        ({"type": "session.update", "session": {"input_audio_format": "g711_ulaw"}}, "input_audio_format:"),
        ({"type": "input_audio_buffer.append", "audio": "?"}, "base64"),
        ({"type": "input_audio_buffer.append"}, "audio:"),
        ({"type": "input_audio_buffer.commit"}, "turn_detection: null"),
        ({"type": "conversation.item.retrieve", "item_id": "x"}, "'x'"),
        ({"type": "conversation.item.truncate", "item_id": "x"}, "'x'"),
        ({"type": "conversation.item.create", "item": {"type": "function_call_output"}}, "type: must be 'message'"),
        ({"type": "response.create"}, "ends with a user turn"),
        ({"type": "response.create", "response": {"conversation": "none"}}, "conversation"),
        ([], "no JSON object"),
    ],
)
def test_mistakes_are_told_and_the_session_goes_on(url: str, event: Any, words: str) -> None:
    with client(url).realtime.connect(model=MODEL) as connection:
        connection.recv()
        connection._connection.send(json.dumps(event))
        told: Any = connection.recv()
        while told.type not in ("error", "response.done"):
            told = connection.recv()
        error = told.error if told.type == "error" else told.response.status_details.error
        assert words in (getattr(error, "message", None) or str(error))
        connection.input_audio_buffer.clear()
        until(connection, "input_audio_buffer.cleared")


def test_another_model_and_a_missing_key_are_refused(url: str, model: DualSLM) -> None:
    with client(url).realtime.connect(model="gpt-realtime") as connection, pytest.raises(Exception, match="dualslm"):
        connection.recv()
    service = Service(model, SlowBackend(), questions=ASKED)
    with threaded(app(service, page=False, key="secret")) as address:
        with pytest.raises(Exception, match=r"40[13]"), client(address, "wrong").realtime.connect(model=MODEL):
            pass
        with client(address, "secret").realtime.connect(model=MODEL) as connection:
            assert connection.recv().type == "session.created"


def test_a_turn_that_is_too_long_is_ended(model: DualSLM) -> None:
    samples, _ = soundfile.read(SAD, dtype="float32")
    detector = TurnDetector(TurnSettings(longest_s=1.0))
    edges = list(detector.add(samples))
    assert [edge.kind for edge in edges[:2]] == ["start", "end"]
    assert len(edges[1].samples) <= 1.1 * SAMPLE_RATE


def test_sound_may_be_cut_anywhere() -> None:
    samples = samples_of(CLIP["hear_2_happy"])
    data = (samples * 32767).astype("<i2").tobytes()
    whole = np.concatenate([PCMDecoder(RATE).add(data)])
    decoder = PCMDecoder(RATE)
    parts = np.concatenate([decoder.add(data[start : start + 777]) for start in range(0, len(data), 777)])
    shorter = min(len(whole), len(parts))
    assert shorter > 0.9 * len(samples) * SAMPLE_RATE / RATE
    assert np.abs(whole[:shorter] - parts[:shorter]).max() < 1e-3


def text_item(text: str) -> Any:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def error_of(connection: Any) -> Any:
    return until(connection, "error")[-1].error


def test_what_a_session_keeps_is_the_clients_share_of_the_memory(model: DualSLM) -> None:
    limits = Limits(memory=400_000, turns=2)  # half of it for one client
    listening: Any = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    with threaded(app(Service(model, SlowBackend(), questions=ASKED), page=False, limits=limits)) as address:
        with client(address).realtime.connect(model=MODEL) as connection:
            until(connection, "session.created")
            connection.session.update(session=listening)
            silence = base64.b64encode(bytes(2 * RATE)).decode()  # a second, which takes 64,000 bytes here
            for _ in range(4):
                connection.input_audio_buffer.append(audio=silence)
            assert error_of(connection).code == "server_full"
            connection.input_audio_buffer.clear()
            until(connection, "input_audio_buffer.cleared")
            connection.conversation.item.create(item=text_item("x" * 250_000))
            assert error_of(connection).code == "server_full"
            for _ in range(8):  # the oldest make room
                connection.conversation.item.create(item=text_item("x" * 60_000))
                until(connection, "conversation.item.done")
        with client(address).realtime.connect(model=MODEL) as connection:
            until(connection, "session.created")
            connection.conversation.item.create(item=text_item("x" * 190_000))
            until(connection, "conversation.item.done")


def test_one_client_does_not_take_all_sessions(model: DualSLM) -> None:
    limits = Limits(running=4, waiting=4)
    made = app(Service(model, SlowBackend(), questions=ASKED), page=False, limits=limits, key=["one", "two"])
    with threaded(made) as address, ExitStack() as stack:
        for _ in range(7):
            connection = stack.enter_context(client(address, "one").realtime.connect(model=MODEL))
            until(connection, "session.created")
        with client(address, "one").realtime.connect(model=MODEL) as connection, pytest.raises(Exception, match="full"):
            connection.recv()
        with client(address, "two").realtime.connect(model=MODEL) as connection:
            until(connection, "session.created")


def test_an_event_of_very_many_values_is_refused(url: str) -> None:
    with client(url).realtime.connect(model=MODEL) as connection:
        until(connection, "session.created")
        connection._connection.send(json.dumps({"type": "session.update", "session": [1] * (MAX_VALUES + 1)}))
        assert error_of(connection).code == "too_many_values"
        # half a surrogate pair is no text; the connection lives on
        connection._connection.send(json.dumps({"type": "conversation.item.create", "item": text_item("\ud800")}))
        assert error_of(connection).code == "invalid_value"
        connection.conversation.item.create(item=text_item("Hello."))
        until(connection, "conversation.item.done")


@pytest.mark.parametrize(("origin", "passes"), [("https://friend.example", True), ("https://evil.example", False)])
def test_pages_of_named_origins_alone_may_connect(model: DualSLM, origin: str, passes: bool) -> None:
    """As a browser does: the key as a protocol, the origin in a header."""
    service = Service(model, SlowBackend(), questions=ASKED)
    made = app(service, page=False, key="secret", origins=["https://friend.example"])
    with threaded(made) as address, ExitStack() as stack:
        protocols: Any = ["realtime", "openai-insecure-api-key.secret"]
        where = address.replace("http", "ws", 1) + "/realtime"
        if not passes:
            stack.enter_context(pytest.raises(Exception, match="403"))
        with connect(where, origin=cast(Any, origin), subprotocols=protocols) as socket:
            assert socket.subprotocol == "realtime"
            assert json.loads(socket.recv())["type"] == "session.created"
