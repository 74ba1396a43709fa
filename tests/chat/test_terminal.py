"""`dualslm chat`: at a real terminal, and line by line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from support.badaudio import BAD, Maker
from support.terminal import Terminal

from dualslm import tiny
from dualslm.audio import SAMPLE_RATE, load
from dualslm.chat import saved
from dualslm.chat.line import spoken
from dualslm.chat.microphone import BLOCK, Microphone, utterance
from dualslm.chat.terminal import Chat, Flow
from dualslm.conversation import Conversation, Speech, View
from dualslm.errors import DualSLMError
from dualslm.inference.continuous_batch import ActiveRequest
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.tiny import CLIPS, world
from dualslm.tiny.questions import ASKED

ANGRY, HAPPY, SAD = (CLIPS / f"hear_{name}.wav" for name in ("1_angry", "2_happy", "3_sad"))
MOLLY, DAY, LOST = (CLIPS / f"memory_{name}.wav" for name in ("1_neutral", "2_neutral", "3_afraid"))
TIMES = r"[^\n]+\n[\d.]+ s to the first token[^\n]*\n"


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load()


class ScriptedChat:
    """A chat whose lines are given and whose screen is read."""

    def __init__(self, model: DualSLM) -> None:
        self.screen = io.StringIO()
        conversation = Conversation(world.LISTEN)
        self.session = Session(
            model, conversation, generation=GenerationSettings(max_new_tokens=48), context=tiny.CONTEXT, questions=ASKED
        )
        self.loop = Chat(self.session, Console(file=self.screen, width=100, highlight=False))

    def __call__(self, *lines: object) -> str:
        """What is shown after the greeting."""
        waiting = iter([str(line) for line in lines])

        def read(_: str) -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        self.loop.read = read
        self.screen.truncate(self.screen.seek(0))
        assert self.loop.run() == 0
        return self.screen.getvalue()


@pytest.fixture
def chat(model: DualSLM) -> ScriptedChat:
    return ScriptedChat(model)


# ---------------------------------------------------------------------- at a terminal


def test_a_conversation_at_a_terminal(tmp_path: Path) -> None:
    """Typed text, recordings, tone, view, a bad file, Ctrl-C, saving; loaded again it gives the same reply."""
    for name, source in {"my molly": MOLLY, "angry": ANGRY, "happy": HAPPY, "lost": LOST}.items():
        shutil.copy(source, tmp_path / f"{name}.wav")
    (tmp_path / "bad.wav").write_bytes(b"RIFF, or so they say")
    with Terminal(["dualslm.cli.main", "chat", "--cuda-graphs"], tmp_path) as screen:
        screen.wait_for("/help says more.*1 > ")
        screen.enter("'my molly.wav'")
        assert "That is a lovely name for a dog." in screen.wait_for(TIMES + "2 > ")
        screen.enter("It was a long day.")
        screen.wait_for(TIMES + "3 > ")
        screen.enter("bad.wav")
        assert "Traceback" not in screen.wait_for(r"cannot decode bad.wav[^\n]*\n3 > ")
        screen.enter("/tone angry.wav")
        screen.wait_for(r"in the tone of angry.wav.*3 \(angry.wav\) > ")
        screen.enter("happy.wav")
        assert "angry?" in screen.wait_for(TIMES)
        screen.enter("/tone off")
        screen.enter("/undo")
        screen.wait_for("taken back\n3 > ")
        screen.enter("/view speech,none")
        screen.wait_for("P from speech, L from none")
        screen.enter("/view speech,speech")
        screen.enter("/heard 1")
        screen.wait_for(r"words, from L alone +I have a dog called Molly.*voice, from P alone[^\n]*neutral")
        screen.enter("/save the talk")
        screen.wait_for("saved; dualslm chat --load 'the talk'.*3 > ")
        screen.enter("lost.wav")
        here = screen.wait_for(TIMES + "4 > ")
        assert "Molly" in here
        screen.enter("/quit")
        assert screen.process.wait(60) == 0
    with Terminal(["dualslm.cli.main", "chat", "--load", "the talk"], tmp_path) as screen:
        shown = screen.wait_for("3 > ")
        assert "s of speech)" in shown
        assert "lovely name" in shown
        screen.enter("lost.wav")
        again = screen.wait_for(TIMES)
        assert again.split("\n")[-3] == here.split("\n")[-3]
        screen.wait_for("4 > ")
        screen.interrupt_the_prompt("/quit or Ctrl-D ends the conversation\n4 > ")
        screen.enter("happy.wav")
        screen.wait_for("How won")
        screen.interrupt()
        assert "Traceback" not in screen.wait_for("5 > ")
        screen.enter("\x04")  # Ctrl-D
        assert screen.process.wait(60) == 0


# ---------------------------------------------------------------------- line by line


def test_ctrl_c_stops_the_reply_and_what_was_said_stays(chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    real = chat.session.batch.step
    count = 0

    def slow() -> list[tuple[ActiveRequest, int | None]]:
        nonlocal count
        count += 1
        if count == 4:
            signal.raise_signal(signal.SIGINT)
        return real()

    monkeypatch.setattr(chat.session.batch, "step", slow)
    shown = chat(LOST)
    assert "(stopped)" in shown
    (reply,) = chat.session.conversation.turns[-1].parts
    assert isinstance(reply, str)
    assert 0 < len(reply) < 30
    assert shown.split("\n")[1] == f"{reply} (stopped)"
    monkeypatch.undo()
    assert "s to the first token" in chat(DAY)
    assert len(chat.session.conversation.turns) == 4


@pytest.mark.parametrize(("make", "word"), [BAD[name] for name in list(BAD)[:3]], ids=list(BAD)[:3])
def test_bad_recordings_are_an_error_of_one_line(chat: ScriptedChat, tmp_path: Path, make: Maker, word: str) -> None:
    shown = chat(make(tmp_path / "a.wav")).splitlines()
    assert word in shown[1]
    assert len(shown) == 3
    assert not chat.session.conversation.turns


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/sing", "unknown command: got /sing"),
        ("/view speech", "a view is two sources"),
        ("/swap 1 2", "say something first"),
        ("/heard", "say something first"),
        ("/undo", "nothing to take back"),
        ("/save", "no folder"),
        ("missing.wav", "No such file"),
        ("x" * 300 + ".wav", "File name too long"),
        ("/tone missing.wav", "No such file"),
        ("", "name a recording"),
    ],
)
def test_mistakes(chat: ScriptedChat, line: str, word: str) -> None:
    assert word in chat(line)


def test_every_command_is_in_the_help(chat: ScriptedChat) -> None:
    shown = chat("/help")
    for name in ("/heard", "/tone", "/swap", "/view", "/save", "/undo", "/help", "/quit", "Ctrl-C", "a.wav"):
        assert name in shown


def test_tones_and_swaps(chat: ScriptedChat) -> None:
    """P is another clip's, or words; L stays."""
    shown = chat(HAPPY, "/tone sounding sad", "/undo", HAPPY, "/heard", "/tone off", ANGRY, "/swap 1 2")
    first, second, swapped = (turn.speeches[0] for turn in chat.session.conversation.turns if turn.role == "user")
    assert first.tone is not None
    assert (first.tone.audio, first.tone.caption) == (None, "sounding sad")
    assert second.tone is None
    assert swapped.tone is second
    assert swapped.audio is first.audio
    assert "voice, given in words  sounding sad" in shown
    replies = [exchange.reply for exchange in chat.session.record]
    assert "but you sound sad" in replies[0]
    assert "angry" in replies[2]


def test_a_recording_and_a_question(chat: ScriptedChat) -> None:
    chat(f"{ANGRY} What's that?")
    speech, text = chat.session.conversation.turns[0].parts
    assert isinstance(speech, Speech)
    assert text == "What's that?"


@pytest.mark.parametrize(
    "typed",
    ["{}", "'{}'", '"{}"', "file://{url}", "{escaped}", " {} "],
)
def test_paths_as_terminals_drop_them(tmp_path: Path, typed: str) -> None:
    path = tmp_path / "my clip (1).wav"
    shutil.copy(ANGRY, path)
    escaped = str(path).replace(" ", r"\ ").replace("(", r"\(").replace(")", r"\)")
    (speech,) = spoken(typed.format(path, url=path.as_uri().removeprefix("file://"), escaped=escaped).strip())
    assert isinstance(speech, Speech)
    assert isinstance(speech.audio, np.ndarray)


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="is a folder: got no recording"):
        list(spoken(str(tmp_path)))
    assert not list(spoken("and/or"))
    assert not list(spoken("/" + "b" * 300))  # longer than a name may be


@pytest.mark.parametrize("line", ["hello", "I can't go.", "It was 3.5 km / 2 miles", "I heard a.wav", "and/or", "..."])
def test_text_is_no_path(line: str) -> None:
    assert not list(spoken(line))


@given(st.text(max_size=400))
@settings(deadline=None)
def test_whatever_is_typed_is_text_or_an_error(line: str) -> None:
    try:
        parts = list(spoken(line))
    except DualSLMError:
        return
    assert not parts or isinstance(parts[0], Speech)


@pytest.mark.parametrize(
    "line", ["a/b " * 300, "~nobody/x", "file://[", "http://[x", "'", "\\", "a\0/b", "x." + "y" * 5000]
)
def test_odd_lines_are_text(line: str) -> None:
    assert not list(spoken(line))


def test_lines_break_between_words() -> None:
    screen = io.StringIO()
    flow = Flow(Console(file=screen, width=20, force_terminal=True, color_system=None))
    for piece in ["I am", " so", " sor", "ry about", " your umbrella", ", my dear", " friend."]:
        flow.add(piece)
    flow.end()
    lines = screen.getvalue().split("\n")
    assert [line.strip() for line in lines] == ["I am so sorry about", "your umbrella, my", "dear friend."]


# ---------------------------------------------------------------------- saved conversations


def test_a_saved_conversation_is_the_same(tmp_path: Path, chat: ScriptedChat) -> None:
    chat(ANGRY, "hello", f"/tone {SAD}", HAPPY, "/tone sounding afraid", DAY, "/view speech,none", f"/save {tmp_path}")
    conversation, settings = saved.restore(tmp_path)
    assert settings == {"view": "speech,none", "past": None}
    assert conversation.system == world.LISTEN
    assert len(list(tmp_path.glob("*.wav"))) == 4  # each recording once
    again = Session(
        chat.session.model,
        conversation,
        view=View.parse("speech,none"),
        generation=chat.session.generation,
        context=320,
    )
    assert again.reply(LOST_SPEECH) == chat.session.reply(LOST_SPEECH)
    chat(f"/save {tmp_path}")  # over itself
    assert len(saved.restore(tmp_path)[0].turns) == 10


LOST_SPEECH = Speech(LOST)


def _broken(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    whole = json.loads((folder / "talk.json").read_text())
    change(whole)
    (folder / "talk.json").write_text(json.dumps(whole))


def test_what_is_no_saved_conversation(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="there is no conversation"):
        saved.restore(tmp_path)
    saved.save(tmp_path / "a", Conversation().user(Speech(load(ANGRY))).assistant("Yes."), {})
    _broken(tmp_path / "a", lambda whole: whole.update(format=2))
    with pytest.raises(DualSLMError, match="is no saved conversation: got ValueError: format 2"):
        saved.restore(tmp_path / "a")
    _broken(tmp_path / "a", lambda whole: whole.update(format=1, turns=[{"role": "robot", "parts": []}]))
    with pytest.raises(DualSLMError, match="is no saved conversation: got KeyError: 'robot'"):
        saved.restore(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(DualSLMError, match="holds something else"):
        saved.save(tmp_path / "b", Conversation(), {})


# ---------------------------------------------------------------------- the microphone


def blocks(*waves: NDArray[np.floating[Any]]) -> Iterator[NDArray[np.float32]]:
    sound = np.concatenate(waves).astype(np.float32)
    for start in range(0, len(sound) - BLOCK + 1, BLOCK):
        yield sound[start : start + BLOCK]


def test_an_utterance_is_cut_out_of_silence() -> None:
    silero = pytest.importorskip("silero_vad", reason="the microphone needs pip install 'dualslm[chat]'")
    model = silero.load_silero_vad()
    noise = 1e-3 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    said = load(ANGRY)
    stream = blocks(noise, said, noise, load(HAPPY), noise)
    for wave in (said, load(HAPPY)):
        found = utterance(stream, model)
        assert found is not None
        assert len(wave) - 0.3 * SAMPLE_RATE < len(found) < len(wave) + 2 * SAMPLE_RATE
    assert utterance(stream, model) is None


def test_listening(chat: ScriptedChat) -> None:
    """Enter alone listens, where there is a microphone."""
    chat.loop.microphone = SimpleNamespace(name="a microphone", listen=lambda: load(MOLLY))  # type: ignore[assignment]
    shown = chat("")
    assert "press Enter and speak (a microphone)" in shown
    assert "That is a lovely name for a dog." in shown
    chat.loop.microphone = SimpleNamespace(name="a microphone", listen=lambda: None)  # type: ignore[assignment]
    assert "nobody spoke" in chat("")


def test_no_microphone_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DualSLMError, match=r"no microphone: got no package sounddevice; pip install 'dualslm\[chat\]'"):
        Microphone()

    def no_devices(kind: str) -> None:
        raise ValueError(f"no {kind} device")

    devices = SimpleNamespace(query_devices=no_devices, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    with pytest.raises(DualSLMError, match="no microphone: got no input device"):
        Microphone()
