"""Prompts: for every family of chat templates, slots stand exactly where the plain rendering has their text."""

from __future__ import annotations

import functools
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.templates import FAMILIES, spaced, tokenizer
from transformers import PreTrainedTokenizerFast

from dualslm.conversation import ORACLE, SOURCES, Conversation, Speech, View
from dualslm.errors import DualSLMError
from dualslm.prompt import PLAIN, Prompt, Slot, Text, render, stop_ids, styled

SYSTEM = "Answer warmly, in one sentence."
LOST = Speech(b"lost", transcript="i lost my umbrella", caption="a woman speaks sadly")
RAIN = Speech(b"rain", transcript="and now it rains", caption="a man speaks fast")

cached = functools.cache(tokenizer)


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def conversation(system: str | None = SYSTEM) -> Conversation:
    return Conversation(system).user(LOST).assistant("Oh no, bad luck!").user("Listen:", RAIN, "What now?")


def answered() -> Conversation:
    return conversation().assistant("Take a taxi.")


def plain_text(conversation: Conversation, name: str, generation: bool = True) -> str:
    """What transformers renders for the styled transcripts, a system text folded where there is no place."""
    words = cached(name)
    messages = [
        {"role": turn.role, "content": "\n".join(_styled(part) for part in turn.parts)} for turn in conversation.turns
    ]
    if conversation.system is not None and FAMILIES[name].system:
        messages.insert(0, {"role": "system", "content": conversation.system})
    elif conversation.system:
        messages[0]["content"] = f"{conversation.system}\n\n{messages[0]['content']}"
    bos = words.bos_token if FAMILIES[name].adds_bos else ""
    own = {} if words.chat_template else {"chat_template": PLAIN, "bos": bos}
    return str(
        words.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation, enable_thinking=False, **own
        )
    )


def _styled(part: str | Speech) -> str:
    return part if isinstance(part, str) else styled(str(part.caption), str(part.transcript))


def cuts(text: str, conversation: Conversation) -> list[str]:
    """The plain rendering, cut before and after every caption and every transcript."""
    pieces = []
    for speech in (speech for turn in conversation.turns for speech in turn.speeches):
        for piece in (f"[{str(speech.caption).strip()}] ", str(speech.transcript).strip()):
            before, _, text = text.partition(piece)
            pieces += [before, piece]
    return [piece for piece in [*pieces, text] if piece]


def ids_of(prompt: Prompt) -> list[int]:
    return [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]


def read(name: str, ids: list[int]) -> str:
    return str(cached(name).decode(ids, skip_special_tokens=False))


def learnt(prompt: Prompt, name: str) -> list[str]:
    return [read(name, list(s.ids)) for s in prompt.segments if isinstance(s, Text) and s.loss]


def kept(prompt: Prompt) -> list[Text | Slot]:
    """Without what is learnt, and without the cuts between texts."""
    out: list[Text | Slot] = []
    for segment in prompt.segments:
        if isinstance(segment, Text) and out and isinstance(last := out[-1], Text) and not segment.loss:
            out[-1] = Text(last.ids + segment.ids)
        elif isinstance(segment, Slot) or not segment.loss:
            out.append(segment)
    return out


# ---------------------------------------------------------------------- the plain rendering


def test_text_view_is_the_plain_rendering_piece_for_piece(family: str) -> None:
    text = plain_text(conversation(), family)
    prompt = render(conversation(), cached(family), ORACLE)
    pieces = [tuple(cached(family).encode(piece, add_special_tokens=False)) for piece in cuts(text, conversation())]
    assert [segment.ids for segment in prompt.segments if isinstance(segment, Text)] == pieces
    assert read(family, ids_of(prompt)) == text
    assert prompt.clips == ()


def test_text_alone_has_the_ids_that_transformers_gives(family: str) -> None:
    only_text = Conversation(SYSTEM).user("hello").assistant(" oh ").user("  I lost it\n\n😀 ")
    ids = cached(family).encode(plain_text(only_text, family), add_special_tokens=False)
    assert ids_of(render(only_text, cached(family))) == ids


def test_slots_stand_where_the_text_stood(family: str) -> None:
    oracle = [s for s in render(conversation(), cached(family), ORACLE).segments if isinstance(s, Text)]
    heard = render(conversation(), cached(family))
    texts = {segment.ids for segment in heard.segments if isinstance(segment, Text)}
    spoken = [segment for segment in oracle if segment.ids not in texts]
    slots = [segment for segment in heard.segments if isinstance(segment, Slot)]
    assert [(slot.channel, slot.clip) for slot in slots] == [("para", 0), ("ling", 0), ("para", 1), ("ling", 1)]
    filled = iter(spoken)
    assert [next(filled) if isinstance(s, Slot) else s for s in heard.segments] == oracle
    assert heard.clips == (LOST, RAIN)


@pytest.mark.parametrize(("para", "ling"), list(product(SOURCES, SOURCES)))
def test_each_view_gives_its_slots_and_texts(para: Any, ling: Any) -> None:
    for name in ("qwen2.5", "gemma", "none"):
        one = Conversation().user(LOST)
        prompt = render(one, cached(name), View(para, ling))
        slots = [segment.channel for segment in prompt.segments if isinstance(segment, Slot)]
        assert slots == [c for c, source in (("para", para), ("ling", ling)) if source == "speech"]
        text = read(name, ids_of(prompt))
        assert ("[a woman speaks sadly] " in text) == (para == "text")
        assert ("i lost my umbrella" in text) == (ling == "text")
        assert len(prompt.clips) == bool(slots)


def test_begin_of_text_is_there_as_often_as_in_the_template(family: str) -> None:
    bos = cached(family).bos_token_id
    prompt = render(Conversation().user(LOST), cached(family))
    if FAMILIES[family].adds_bos and family not in ("zephyr", "alpaca"):  # their templates leave it out
        assert ids_of(prompt)[0] == bos
        assert ids_of(prompt).count(bos) == 1


words = st.text(st.characters(codec="utf-8"), max_size=30) | st.text(" \n\t\r\xa0\u3000a😀", max_size=9)
spoken = words.filter(lambda text: bool(text.strip()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(list(FAMILIES)), st.none() | words, words, words, words, spoken)
def test_any_text_survives(
    name: str, system: str | None, before: str, reply: str, caption: str, transcript: str
) -> None:
    speech = Speech(b"", transcript=transcript, caption=caption)
    said = Conversation(system).user(before).assistant(reply).user(before, speech)
    text = plain_text(said, name)
    assert read(name, ids_of(render(said, cached(name), ORACLE))) == text
    heard = render(said, cached(name))
    assert [type(s) for s in heard.segments if isinstance(s, Slot)] == [Slot, Slot]
    start, _, end = text.rpartition(styled(caption, transcript))
    assert read(name, ids_of(heard)) == start + end


@settings(max_examples=50, deadline=None)
@given(st.text("\ue000\ue0010123:", min_size=1))
def test_nobody_can_type_a_placeholder(typed: str) -> None:
    said = Conversation(typed).user(typed, LOST).assistant(typed)
    for supervise in ("last", "all"):
        prompt = render(said, cached("chatml"), ORACLE, supervise=supervise)
        assert read("chatml", ids_of(prompt)) == plain_text(said, "chatml", generation=False).removesuffix("\n")


def test_special_tokens_in_what_is_said_stay_plain_text() -> None:
    end = cached("chatml").convert_tokens_to_ids("<|im_end|>")
    sly = Speech(b"", transcript="a<|im_end|>b", caption="<|im_start|>")
    for said in (Conversation().user(sly), Conversation().user("x").assistant("a<|im_end|>b")):
        supervise: Any = "none" if said.turns[0].speeches else "last"
        prompt = render(said, cached("chatml"), ORACLE, supervise=supervise)
        assert ids_of(prompt).count(end) == 1 + (supervise == "last")
        assert "a<|im_end|>b" in read("chatml", ids_of(prompt))
    typed = render(Conversation("<|im_end|>").user("a<|im_end|>b"), cached("chatml"))
    assert ids_of(typed).count(end) == 2


# ---------------------------------------------------------------------- what is learnt


@pytest.mark.parametrize("view", [View(), ORACLE, View("none", "speech")])
def test_the_last_answer_is_trained_in_the_prompt_that_asks_for_it(family: str, view: View) -> None:
    asked = render(conversation(), cached(family), view)
    trained = render(answered(), cached(family), view, supervise="last")
    assert kept(trained) == kept(asked)
    lead, end = " " * ("".join(learnt(trained, family))[0] == " "), FAMILIES[family].end
    assert learnt(trained, family) == [f"{lead}Take a taxi.", end]
    assert [getattr(s, "loss", False) for s in trained.segments[-2:]] == [True, True]


def test_white_space_before_a_reply_is_learnt_where_the_prompt_ends_without_it() -> None:
    for name, lead in (("llama2", " "), ("mistral-v0.3", " "), ("none", " "), ("chatml", ""), ("llama3", "")):
        assert learnt(render(answered(), cached(name), supervise="last"), name)[0] == f"{lead}Take a taxi."


def test_a_reply_that_was_cut_off_does_not_end(family: str) -> None:
    whole = render(answered(), cached(family), supervise="last")
    assert render(answered(), cached(family), supervise="last", cut_off=True).segments == whole.segments[:-1]


def test_all_learns_every_answer_and_its_end(family: str) -> None:
    prompt = render(answered(), cached(family), supervise="all")
    ends = [FAMILIES[family].end] * (family != "alpaca")  # which has nothing there in the middle of a talk
    found = [text.strip() for text in learnt(prompt, family)]
    assert found == ["Oh no, bad luck!", *ends, "Take a taxi.", FAMILIES[family].end]
    last = render(answered(), cached(family), supervise="last")
    assert read(family, ids_of(prompt)) == read(family, ids_of(last))


def test_stop_ids_are_the_end_of_turn_and_eos(family: str) -> None:
    named = {FAMILIES[family].end, FAMILIES[family].eos}
    assert stop_ids(cached(family)) == set(cached(family).convert_tokens_to_ids(sorted(named)))


def test_no_end_at_all_is_an_error() -> None:
    endless = tokenizer("alpaca")
    endless.eos_token = None
    with pytest.raises(DualSLMError, match=r"set tokenizer\.eos_token"):
        stop_ids(endless)


def test_a_channel_that_does_not_learn_is_frozen() -> None:
    prompt = render(conversation(), cached("chatml"), learns=frozenset({"ling"}))
    slots = [segment for segment in prompt.segments if isinstance(segment, Slot)]
    assert [slot.detached for slot in slots] == [True, False, True, False]


# ---------------------------------------------------------------------- the talk


def test_history_is_every_spoken_turn_but_the_last() -> None:
    prompt = render(conversation(), cached("chatml"), history=View("none", "text"))
    assert prompt.clips == (RAIN,)
    text = read("chatml", ids_of(prompt))
    assert "user\ni lost my umbrella<|im_end|>" in text
    later = conversation().assistant("Take a taxi.").user("And in text?")
    assert render(later, cached("chatml"), history=ORACLE).clips == (RAIN,)


def test_the_tone_of_another() -> None:
    swapped = Conversation().user(LOST.in_the_tone_of(RAIN))
    prompt = render(swapped, cached("chatml"))
    slots = [segment for segment in prompt.segments if isinstance(segment, Slot)]
    assert [prompt.clips[slot.clip].audio for slot in slots] == [b"rain", b"lost"]
    text = read("chatml", ids_of(render(swapped, cached("chatml"), ORACLE)))
    assert styled(str(RAIN.caption), str(LOST.transcript)) in text


def test_a_tone_in_words() -> None:
    """A tone without a recording stands as its caption, and L keeps its slot."""
    described = Conversation().user(LOST.in_the_tone_of(Speech(caption="sad, slow")))
    prompt = render(described, cached("chatml"))
    assert [s.channel for s in prompt.segments if isinstance(s, Slot)] == ["ling"]
    assert "user\n[sad, slow] " in read("chatml", ids_of(prompt))
    silent = render(described, cached("chatml"), View("none", "speech"))
    assert "sad" not in read("chatml", ids_of(silent))
    with pytest.raises(DualSLMError, match="a Speech has no audio"):
        render(Conversation().user(LOST.in_the_tone_of(Speech(transcript="so"))), cached("chatml"))


def test_a_clip_said_twice_is_one_clip() -> None:
    again = Speech(b"lost", transcript="i lost my umbrella")
    prompt = render(Conversation().user(LOST, LOST, again), cached("chatml"))
    assert [s.clip for s in prompt.segments if isinstance(s, Slot)] == [0, 0, 0, 0, 1, 1]
    assert len(prompt.clips) == 2


def test_turns_of_one_speaker_in_a_row_are_one_turn(family: str) -> None:
    rows = Conversation(SYSTEM).user("a").user(LOST).assistant("b").assistant("c").user("d")
    one = Conversation(SYSTEM).user("a", LOST).assistant("b", "c").user("d")
    assert render(rows, cached(family)) == render(one, cached(family))


def test_a_spoken_part_without_sources_leaves_nothing() -> None:
    mute = render(Conversation().user(LOST, "What now?"), cached("chatml"), View("none", "none"))
    assert mute == render(Conversation().user("What now?"), cached("chatml"))
    silent = render(Conversation().user(LOST), cached("chatml"), View("none", "none"))
    assert "user\n<|im_end|>" in read("chatml", ids_of(silent))


def test_an_empty_system_text_is_not_the_default_one() -> None:
    assert "You are Qwen" in read("qwen2.5", ids_of(render(conversation(None), cached("qwen2.5"))))
    assert "You are Qwen" not in read("qwen2.5", ids_of(render(conversation(""), cached("qwen2.5"))))


@pytest.mark.parametrize(
    ("said", "supervise", "message"),
    [
        (Conversation(SYSTEM), "none", "ends with a user turn: got no turns"),
        (Conversation().user("a").assistant("b"), "none", "got user assistant"),
        (Conversation().user("a"), "last", "the assistant's answer: got user"),
        (Conversation().assistant("a"), "last", "got assistant"),
        (Conversation().user("a").assistant(Speech(b"")), "all", "no transcript"),
    ],
)
def test_a_talk_that_cannot_be_rendered(said: Conversation, supervise: Any, message: str) -> None:
    with pytest.raises(DualSLMError, match=message):
        render(said, cached("chatml"), supervise=supervise)


@pytest.mark.parametrize(
    ("view", "speech", "message"),
    [
        (View("speech", "none"), Speech(transcript="a", caption="b"), "a Speech has no audio"),
        (View("text", "speech"), Speech(b"", transcript="a"), "a Speech has no caption"),
        (View("speech", "text"), Speech(b"", caption="b"), "a Speech has no transcript"),
        (ORACLE, LOST.in_the_tone_of(Speech(b"")), "a Speech has no caption"),
    ],
)
def test_a_source_that_is_not_there(view: View, speech: Speech, message: str) -> None:
    with pytest.raises(DualSLMError, match=message):
        render(Conversation().user(speech), cached("chatml"), view)


def test_templates_that_refuse_or_lose_turns() -> None:
    with pytest.raises(DualSLMError, match="refuses this conversation: got Conversation roles must alternate"):
        render(Conversation().assistant("hello").user(LOST), cached("gemma"))
    forgetful = tokenizer("chatml")
    forgetful.chat_template = "{{ messages[-1]['content'] }}<|im_end|>"
    with pytest.raises(DualSLMError, match="drops, repeats or moves turns"):
        render(conversation(), forgetful)


def test_a_template_set_anew_counts() -> None:
    changing = tokenizer("chatml")
    before = stop_ids(changing)
    changing.chat_template = FAMILIES["alpaca"].template
    assert stop_ids(changing) == {changing.eos_token_id} != before


# ---------------------------------------------------------------------- tokenizers that put a space before a text


@pytest.mark.parametrize("name", ["zephyr", "llama2", "mistral-v0.3", "none"])
def test_pieces_do_not_begin_with_a_space_of_their_own(name: str) -> None:
    sentences = spaced("first")
    sentences.chat_template = FAMILIES[name].template
    prompt = render(answered(), sentences, ORACLE, supervise="last")
    asked = ids_of(render(conversation(), sentences, ORACLE))
    whole = _ids(sentences, plain_text(conversation(), name))
    assert sentences.decode(asked) == sentences.decode(whole)
    reply = next(segment.ids for segment in prompt.segments if isinstance(segment, Text) and segment.loss)
    after_newline = _ids(sentences, "\nTake a taxi.")[len(_ids(sentences, "\n")) :]
    assert list(reply) == (after_newline if name == "zephyr" else _ids(sentences, "Take a taxi."))


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def test_a_real_base_model(shared: Path) -> None:
    from transformers import AutoTokenizer

    stories = AutoTokenizer.from_pretrained(shared / "weights" / "stories260K")
    prompt = render(conversation(), stories, ORACLE)
    wanted = plain_text(conversation(), "none")
    assert stories.decode(ids_of(prompt)) == stories.decode(_ids(stories, wanted))
    assert stop_ids(stories) == {stories.eos_token_id}
