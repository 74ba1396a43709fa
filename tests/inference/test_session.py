"""A talk reads only what is new, and replies as if it had read everything; nothing that was said is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support.factory import llm_config, save_encoder
from support.factory import tokenizer as small_tokenizer
from support.templates import tokenizer
from transformers import AutoModelForCausalLM, BloomConfig, PreTrainedTokenizerFast

from dualslm.conversation import Conversation, Part, Speech, View
from dualslm.errors import DualSLMError
from dualslm.inference import describe
from dualslm.inference.audio_cache import AudioCache
from dualslm.inference.continuous_batch import ActiveRequest, ContinuousBatch
from dualslm.inference.describe import ASKED
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import render

SHORT = GenerationSettings(max_new_tokens=8)
# plain, thinking tags that vanish, trimmed turns, system in the first turn, spaces around replies, no template
REWRITING = ["chatml", "qwen3", "deepseek-r1", "llama3.1", "gemma", "mistral-v0.3", "llama2", "zephyr", "none"]
Build = Callable[..., DualSLM]


def clip(seconds: float, seed: int = 0) -> Speech:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    return Speech(wave.astype(np.float32))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpeechEncoder:
    return SpeechEncoder.from_pretrained(str(save_encoder(tmp_path_factory.mktemp("encoder"))))


@pytest.fixture(scope="module")
def build(encoder: SpeechEncoder) -> Build:
    """Makes a small random model around a tokenizer."""

    def make(words: PreTrainedTokenizerFast, family: str = "qwen2", positions: int = 1024) -> DualSLM:
        torch.manual_seed(0)
        config = llm_config(family, len(words))
        config.max_position_embeddings = positions
        config.eos_token_id, config.bos_token_id = words.eos_token_id, words.bos_token_id
        llm = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in llm.parameters():
                if weight.dim() > 1:
                    weight.mul_(4)
        torch.manual_seed(1)
        settings = {"linguistic": {"hidden": 64}, "paralinguistic": {"tokens": 4}}
        return DualSLM(encoder, FrozenLM(llm, words), **settings).eval()

    return make


@pytest.fixture(scope="module")
def model(build: Build) -> DualSLM:
    return build(small_tokenizer())


@pytest.fixture
def session(model: DualSLM) -> Session:
    return Session(model, Conversation("Be kind."), generation=SHORT)


@pytest.fixture(autouse=True)
def short_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end, so they are cut short where they write down what they heard."""
    monkeypatch.setattr(describe, "TRANSCRIPT_SETTINGS", SHORT)


TURNS: list[tuple[Part, ...]] = [
    (clip(1.0, 1),),
    ("And now in text.",),
    (clip(0.7, 2), "What was that?"),
    (clip(1.3, 3).in_the_tone_of(clip(0.5, 4)),),
    (clip(0.2, 5),),
]


def fresh(session: Session) -> str:
    """What the model answers to the talk before its last reply, without any memory."""
    conversation = session.conversation.copy()
    conversation.turns.pop()
    return session.model.reply(conversation, view=session.view, generation=session.generation)


# ---------------------------------------------------------------------- with and without the cache


@pytest.mark.parametrize("family", REWRITING)
def test_reading_what_is_new_equals_reading_all(build: Build, family: str) -> None:
    """Every template, also those that write an earlier reply otherwise than they had opened it."""
    model = build(tokenizer(family))
    session, most = Session(model, Conversation("Be kind."), generation=SHORT), 0
    for parts in TURNS:
        reply = session.reply(*parts)
        assert session.times is not None
        most = max(most, session.times.reused)
        assert reply == fresh(session)
        conversation = session.conversation.copy().user("And so on.")
        (row,) = session.audio_cache.embed([render(conversation, model.llm.tokenizer)])
        whole = model.llm.prefill([row.embeds_TD]).logits_BV
        request = session.batch.join(row, SHORT)
        torch.testing.assert_close(request.logits_V[None], whole, atol=1e-4, rtol=0)
        session.batch.leave(request)
    assert most > 50, most


def test_replies_stay_in_the_cache(session: Session) -> None:
    """With a template that does not rewrite, everything but the new turn is there already."""
    before = 0
    for number, parts in enumerate(TURNS):
        session.reply(*parts)
        assert session.times is not None
        # at most the last token of the reply, and what it was joined to in the text, is read again
        assert number == 0 or session.times.reused >= before - 8
        assert session.times.positions - session.times.reused < 80
        before = session.times.positions + session.times.tokens


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_cache_that_forgets_is_not_reused(build: Build, family: str) -> None:
    """Sliding windows of fewer positions than the talk has."""
    model = build(small_tokenizer(), family)
    assert not model.llm.keeps_every_position
    session = Session(model, generation=SHORT)
    for parts in TURNS[:3]:
        assert session.reply(*parts) == fresh(session)
        assert session.times is not None
        assert session.times.reused == 0


def test_captured_steps_leave_a_cache_to_go_on_with(build: Build) -> None:
    model = build(small_tokenizer())
    model.llm.enable_cuda_graphs()
    session = Session(model, Conversation("Be kind."), generation=SHORT)
    pieces = session.say(*TURNS[0])
    next(pieces)
    pieces.close()
    for parts in TURNS[1:3]:
        assert session.reply(*parts) == fresh(session)
        assert session.times is not None
        assert session.times.reused > 20


def test_a_conversation_without_state_reuses_what_it_shares(session: Session) -> None:
    """As a server sees it: the whole talk comes with every request, other recordings of equal sound."""
    conversation = Conversation("Be kind.").user(clip(1.0, 1))
    first = "".join(session.answer(conversation))
    longer = Conversation("Be kind.").user(clip(1.0, 1)).assistant(first).user(clip(0.5, 2))
    assert "".join(session.answer(longer)) == session.model.reply(longer, generation=SHORT)
    assert session.times is not None
    assert session.times.reused > session.times.positions / 2
    assert session.audio_cache.encoded == 2
    other = Conversation("Be cross.").user(clip(1.0, 1))
    assert "".join(session.answer(other)) == session.model.reply(other, generation=SHORT)


def test_a_reading_that_was_broken_off_is_not_trusted(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.reply(*TURNS[0])
    layers = session.model.llm.model.model.layers
    kept = layers[1].forward

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers[1], "forward", broken)  # the first layer has read more than the second
    with pytest.raises(KeyboardInterrupt):
        session.reply(*TURNS[2])
    monkeypatch.setattr(layers[1], "forward", kept)
    assert session.conversation.turns[-1].role == "user"
    assert session.reply("Go on.") == fresh(session)


def test_each_recording_is_encoded_once(session: Session, tmp_path: Path) -> None:
    from support.badaudio import wav

    samples = clip(1.0, 1).audio
    assert isinstance(samples, np.ndarray)
    path = wav(tmp_path / "a.wav", samples)
    session.reply(Speech(path))
    session.reply(Speech(path.read_bytes()))
    session.view = View("speech", "none")
    session.reply(Speech(str(path)))
    assert session.audio_cache.encoded == 1


def test_what_is_kept_of_recordings_is_bounded(model: DualSLM) -> None:
    audio_cache = AudioCache(model, max_bytes=20_000)
    for seed in range(12):
        audio_cache.embed([render(Conversation().user(clip(1.0, seed)), model.llm.tokenizer)])
    sizes = [value.nbytes for both in audio_cache._kept.values() for value in both.values()]
    assert audio_cache.encoded == 12
    assert 0 < sum(sizes) <= 20_000


# ---------------------------------------------------------------------- history


def test_a_full_context_drops_whole_exchanges_and_keeps_the_system(build: Build) -> None:
    model = build(small_tokenizer(), positions=256)
    session = Session(model, Conversation("Be kind."), generation=SHORT)
    for number in range(7):
        reply = session.reply(clip(0.5, number), f"This is turn {number}.")
        times = session.times
        assert times is not None
        assert times.positions + SHORT.max_new_tokens <= 256
        assert times.left_out % 2 == 0
        shown = Conversation("Be kind.", session.conversation.turns[times.left_out : -1])
        assert reply == model.reply(shown, generation=SHORT)
    assert times is not None
    assert times.left_out > 0
    assert len(session.conversation.turns) == 14  # the history itself is whole


def test_hardly_more_is_dropped_than_must_be(build: Build) -> None:
    """A quarter more at most, and then nothing for a while, so that the context is not read anew at every turn."""
    session = Session(build(small_tokenizer(), positions=512), generation=SHORT)
    conversation, dropped = Conversation("Be kind."), []
    for number in range(40):
        prompt, left_out = session._fitted(conversation.user(f"Turn {number}?"), SHORT)
        fit = [
            start
            for start in range(0, len(conversation.turns), 2)
            if session.audio_cache.length(
                render(Conversation(conversation.system, conversation.turns[start:]), session.model.llm.tokenizer)
            )
            <= 512 - SHORT.max_new_tokens
        ]
        assert session.audio_cache.length(prompt) <= 512 - SHORT.max_new_tokens
        assert fit[0] <= left_out <= fit[0] + (len(conversation.turns) - fit[0]) / 4
        dropped.append(left_out)
        conversation.assistant("Yes, of course.")
    changes = sum(one != other for one, other in pairwise(dropped))
    assert dropped[-1] > 20
    assert changes <= dropped[-1] / 4


def test_a_turn_that_does_not_fit_is_told_and_taken_back(build: Build) -> None:
    session = Session(build(small_tokenizer(), positions=128), generation=SHORT)
    session.reply(clip(0.5))
    with pytest.raises(DualSLMError, match="too long for the LLM's context"):
        session.reply("word " * 400)
    assert [turn.role for turn in session.conversation.turns] == ["user", "assistant"]
    session.reply("Now shorter.")


def test_a_reply_ends_where_the_context_does(build: Build) -> None:
    session = Session(build(small_tokenizer(), positions=96), generation=GenerationSettings(max_new_tokens=500))
    session.reply("Talk for ever.")
    assert session.times is not None
    assert session.times.positions + session.times.tokens <= 96


def test_a_wrong_context_is_refused(model: DualSLM) -> None:
    with pytest.raises(DualSLMError, match="this context makes no sense"):
        Session(model, context=10_000)


def test_an_interrupted_reply_stays_as_far_as_it_was_said(session: Session) -> None:
    pieces = session.say(clip(1.0, 1))
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.conversation.turns[-1].parts == (said,)
    assert not session.record[-1].whole
    assert session.reply("Go on.") == fresh(session)
    assert session.record[-1].whole


def test_an_unusable_recording_leaves_the_talk_as_it_was(session: Session, tmp_path: Path) -> None:
    session.reply("hello")
    with pytest.raises(DualSLMError, match="cannot read the recording"):
        session.reply(Speech(tmp_path / "missing.wav"))
    assert len(session.conversation.turns) == 2
    assert len(session.record) == 1


def test_undo(session: Session) -> None:
    assert session.undo() is None
    first = session.reply("hello")
    session.reply(clip(1.0))
    taken = session.undo()
    assert taken is not None
    assert taken.speeches
    assert len(session.conversation.turns) == 2
    session.undo()
    assert session.reply("hello") == first
    assert len(session.record) == 1


def test_past_turns_given_as_text(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those that were heard, where the recording has none of its own."""
    session.past = View("none", "text")
    session.reply(clip(1.0, 1))
    found = replace(session.describe(session.conversation.turns[0].speeches[0]), words="I lost my umbrella.")
    session._descriptions = dict.fromkeys(session._descriptions, found)
    reply = session.reply(clip(0.5, 2))
    words = Conversation("Be kind.").user("I lost my umbrella.").assistant(session.record[0].reply).user(clip(0.5, 2))
    assert reply == session.model.reply(words, generation=SHORT)
    assert session.conversation.turns[0].speeches[0].transcript is None  # the history keeps what came


def test_a_past_turn_keeps_the_tone_it_was_given(session: Session) -> None:
    swapped = clip(1.0, 1).in_the_tone_of(clip(0.5, 2))
    kept = session._in_words(swapped, View("speech", "text"))
    assert kept.tone is swapped.tone
    assert kept.transcript == session.describe(swapped).words
    described = clip(1.0, 1).in_the_tone_of(Speech(caption="sad"))
    assert session._in_words(described, View("text", "text")).caption == "sad"


def test_what_was_heard_comes_from_its_own_channel(session: Session) -> None:
    """The words never depend on the tone, nor the attributes on the words; each is asked once."""
    words, voice = clip(1.0, 1), clip(0.6, 2)
    found = session.describe(words)
    assert session.describe(words.in_the_tone_of(voice)) is found
    assert session.describe(Speech(words.audio)) is found
    assert list(found.attributes) == ["gender", "pitch", "tempo", "energy", "emotion"]
    assert session.audio_cache.encoded == 1
    asked = Conversation(ASKED.words).user(words)
    alone = session.model.reply(asked, view=View("none", "speech"), generation=SHORT)
    assert found.words == alone.strip()


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The speaker sounds sad.", "sad"),
        ("The speaker sounds AFRAID!", "fearful"),
        ("Sad or happy.", None),
        ("I cannot tell.", None),
        ("", None),
    ],
)
def test_an_answer_names_one_value_or_none(answer: str, value: str | None) -> None:
    assert ASKED.attributes["emotion"].value(answer) == value


# ---------------------------------------------------------------------- pieces


class Bytes(ContinuousBatch):
    """A batch that 'draws' given tokens."""

    def __init__(self, llm: FrozenLM, tokens: list[int]) -> None:
        super().__init__(llm, 1)
        self.tokens = list(tokens)

    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        return [(self.requests[0], self.tokens.pop(0) if self.tokens else None)]


@pytest.mark.parametrize("text", ["Schön, 日本語!", "😀👍 ok", "a\nb  c", "é" * 5])
def test_no_piece_splits_a_character(session: Session, text: str) -> None:
    """The vocabulary has no token for these, so each character comes as several bytes."""
    tokens = session.model.llm.tokenizer.encode(text, add_special_tokens=False)
    assert text.isascii() or len(tokens) > len(text)
    session.batch = Bytes(session.model.llm, tokens)
    pieces = list(session.say("hello"))
    assert "".join(pieces) == text
    assert all(pieces)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces[:-1])


def test_times(session: Session) -> None:
    session.reply(clip(1.0))
    times = session.times
    assert times is not None
    assert 0 < times.encode + times.prefill <= times.first_token
    assert times.tokens > 1
    assert times.tokens_per_second > 0
    assert session.record[0].times == times


def test_an_llm_without_a_limit(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out where the configuration names no context."""
    model = build(small_tokenizer())
    monkeypatch.setattr(model.llm.model, "config", BloomConfig())
    session = Session(model)
    assert session.context is None
    _, left_out = session._fitted(Conversation().user("hello " * 3000), SHORT)
    assert left_out == 0
