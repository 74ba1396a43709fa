"""Chains of thought never become targets or replies: by tags, channels, or a thought that the template has opened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from support import factory
from support.targetskit import TRANSCRIPTS, lines

from dualslm import DualSLM, tiny
from dualslm.conversation import Conversation, Reply
from dualslm.inference.backend import Piece, TokenLogprob
from dualslm.inference.local import LocalBackend
from dualslm.inference.session import Session
from dualslm.inference.vllm import VLLMBackend
from dualslm.model.generation import GREEDY, GenerationSettings, Sampler
from dualslm.model.inputs import IGNORE_INDEX, PromptEmbeds
from dualslm.model.llm import FrozenLM
from dualslm.model.reasoning import ALOUD, UNMARKED, AnswerStream, answer, opens_thought, separate, text_with_marks
from dualslm.serve.service import Ask, Service
from dualslm.tiny.questions import ASKED
from dualslm.training.targets import Job, write
from dualslm.training.teacher import LocalTeacher

ANSWER = "I am so sorry about your keys."
THOUGHT = "Okay, the user lost their keys. I should console them."


class Says:
    """A writer that gives one text, but another for one transcript."""

    def __init__(self, text: str, other: str | None = None, *, ended: bool = True) -> None:
        self.text = text
        self.other = other
        self.ended = ended

    @property
    def about(self) -> dict[str, Any]:
        return {"llm": "says", "revision": None}

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        words = [conversation.turns[-1].speeches[-1].transcript for conversation in examples]
        return [
            Reply(self.other, self.ended) if self.other is not None and one == TRANSCRIPTS[0] else Reply(self.text)
            for one in words
        ]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(8)))
    return Job((tmp_path / "a.jsonl",), tmp_path / "a.targets.jsonl")


def written(job: Job) -> set[str]:
    return {json.loads(line)["turns"][-1]["parts"][0] for line in job.out.read_text().splitlines()}


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
        f"{THOUGHT}\n</think>\n\n{ANSWER}",
        f"<THINK>{THOUGHT}</THINK>{ANSWER}",
        f"<think></think>{ANSWER}",
        f"<think>\n<think>{THOUGHT}</think>{ANSWER}",
        f"<thinking>{THOUGHT}</thinking><answer>{ANSWER}</answer>",
        f"<think>{THOUGHT}</think>{ANSWER}<think>Was that kind?</think>",
        f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
        f"<seed:think>{THOUGHT}</seed:think>{ANSWER}",
        f"\u25c1think\u25b7{THOUGHT}\u25c1/think\u25b7{ANSWER}",
        f"<reasoning>{THOUGHT}</reasoning>{ANSWER}",
        f"Here is my thought process: {THOUGHT}\nHere is my response:\n{ANSWER}",
        f"<thinking>{THOUGHT}<reflection>Hm.</reflection></thinking><output>{ANSWER}</output>",
        f"<inner_monologue>{THOUGHT}</inner_monologue>{ANSWER}",
        f"<think>{THOUGHT}</think><|begin_of_box|>{ANSWER}<|end_of_box|>",
        f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{ANSWER}",
        f"<|think|>{THOUGHT}<|end|><|begin|>assistant<|content|>{ANSWER}<|end|>",
        f"<|thinking|>{THOUGHT}<|/thinking|>{ANSWER}",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|channel|>final <|constrain|>text<|message|>{ANSWER}<|end|>",
        f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}",
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
        f"analysisThe user lost their keys.assistantfinal{ANSWER}",
    ],
)
def test_a_thought_that_is_marked_is_cut_off(job: Job, text: str) -> None:
    report = write(job, Says(text), seed=0)
    assert report["written"] == report["thoughts"] == 8
    assert written(job) == {ANSWER}
    assert '"thought"' not in job.out.read_text()
    assert THOUGHT not in job.samples.read_text()


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n{THOUGHT}",
        f"<think>{THOUGHT}</think>",
        f"{THOUGHT}</think>\n",
        f"<think>{THOUGHT}</think>{ANSWER}<think>Was that",
        f"<|channel|>analysis<|message|>{THOUGHT}",
        "analysisThe user lost their keys and sounds sad.",
        f"Here's my thought process: {THOUGHT}",
    ],
)
def test_a_thought_without_an_answer_is_left_out_with_its_reason(job: Job, text: str) -> None:
    report = write(job, Says(text), seed=0)
    assert report["written"] == 0
    assert report["dropped"] == {ALOUD: 8}


@pytest.mark.parametrize("ended", [True, False])
def test_beside_lone_closing_tags_an_unmarked_reply_is_a_thought(job: Job, ended: bool) -> None:
    # Only a template that opens every thought gives closing tags alone: what lacks one never came to its answer.
    report = write(job, Says(f"{THOUGHT}\n</think>\n{ANSWER}", THOUGHT, ended=ended), seed=0, batch=3)
    assert report["dropped"] == {UNMARKED: 2}
    assert report["written"] == 6
    assert written(job) == {ANSWER}


def test_replies_that_only_look_like_thoughts_stay() -> None:
    for text in (ANSWER, "I think < 3 is right.", "Analysis is hard.", "analysis takes time.", "My answer: <b>no</b>."):
        assert separate(text) == (text, "none")


def test_whether_a_template_opens_a_thought() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert opens_thought("[THINK]")
    assert not opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thought("I said <think> to them.<|im_start|>assistant\n")


OPENED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("reply", "kept"), [(f"{THOUGHT}\n</think>\n\n{ANSWER}", True), (THOUGHT, False), (f"<think>\n{THOUGHT}", False)]
)
def test_in_process_a_reply_begins_in_the_thought_that_the_template_opened(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, reply: str, kept: bool
) -> None:
    llm = FrozenLM.from_pretrained(str(factory.save_llm(tmp_path / "llm")))
    llm.tokenizer.chat_template = OPENED
    monkeypatch.setattr(llm, "generate", lambda prompts, *_, **__: [Reply(reply) for _ in prompts])
    report = write(job, LocalTeacher(llm, GREEDY), seed=0)
    assert (report["written"], report["dropped"]) == ((8, {}) if kept else (0, {ALOUD: 8}))
    assert written(job) == ({ANSWER} if kept else set())


def test_marks_that_are_special_tokens_are_read() -> None:
    tokenizer = factory.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = tokenizer.encode("<think>why</think>because", add_special_tokens=False)
    assert separate(text_with_marks(tokenizer, ids)).answer == "because"
    plain = tokenizer.encode("because<|im_end|>", add_special_tokens=False)
    assert text_with_marks(tokenizer, plain) == "because"


# ---------------------------------------------------------------------- spoken replies


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        (f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", False),
        (f"{THOUGHT}\n</think>\n\n{ANSWER}", True),
        (f"<think>{THOUGHT} <b>no</b> [sic]</think>{ANSWER}", True),
        (f"[THINK]{THOUGHT}[/THINK]{ANSWER}", False),
        (f"<seed:think>{THOUGHT}</seed:think>{ANSWER}", False),
        (f"\u25c1think\u25b7{THOUGHT}\u25c1/think\u25b7{ANSWER}", False),
        (f"<think></think><answer>{ANSWER}</answer>", False),
        (f"<inner_monologue>{THOUGHT}</inner_monologue><output>{ANSWER}</output>", False),
        (f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>{ANSWER}", False),
        (f"<|think|>{THOUGHT}<|end|><|begin|>assistant<|content|>{ANSWER}", False),
        (f"<|channel|>analysis<|message|>{THOUGHT}<|channel|>final <|constrain|>text<|message|>{ANSWER}", False),
        (
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
            False,
        ),
        (ANSWER, False),
    ],
)
def test_a_thought_is_not_spoken_however_the_reply_is_cut(text: str, opened: bool) -> None:
    assert answer(text, opened) == ANSWER
    for size in (1, 3, 7):
        stream = AnswerStream(opened)
        pieces = [stream.add(text[start : start + size]) for start in range(0, len(text), size)]
        assert "".join(pieces) + stream.rest() == ANSWER


@pytest.mark.parametrize(
    "text", ["5 < 6 and [so] on", "I <b>do</b> <", "a <answer> b [", "<thin> \u25c1", "1 <|", " x"]
)
def test_a_reply_without_a_thought_stays_as_it_is(text: str) -> None:
    stream = AnswerStream()
    assert "".join(map(stream.add, text)) + stream.rest() == text


def test_a_thought_without_an_end_is_not_spoken() -> None:
    assert answer(f"<think>{THOUGHT}") == ""
    assert answer(THOUGHT, opened=True) == ""


@pytest.fixture
def thinker(monkeypatch: pytest.MonkeyPatch) -> DualSLM:
    """The embedded model, whose LLM says a thought and an answer, whatever it reads."""
    model = tiny.load()
    tokenizer = model.llm.tokenizer
    said = tokenizer.encode(f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", add_special_tokens=False)
    said.append(next(iter(model.llm.stops)))

    def scripted(sampler: Sampler, logits_BV: Any) -> Any:
        at = getattr(sampler, "at", 0)
        sampler.at = at + 1  # type: ignore[attr-defined]
        return torch.full((len(logits_BV),), said[at])

    monkeypatch.setattr(Sampler, "__call__", scripted)
    monkeypatch.setattr(GenerationSettings, "penalizes", property(lambda _: True))  # so that the sampler is asked
    return model


def test_nobody_speaks_a_thought(thinker: DualSLM) -> None:
    assert thinker.reply(Conversation().user("My keys are gone.")) == ANSWER
    assert "".join(thinker.stream(Conversation().user("My keys are gone."))) == ANSWER
    session = Session(thinker)
    assert session.reply("My keys are gone.") == ANSWER
    assert session.conversation.turns[-1].parts == (ANSWER,)

    async def served() -> str:
        backend = LocalBackend(thinker.llm)
        service = Service(thinker, backend, questions=ASKED, system=None)
        try:
            return await service.reply(Ask(Conversation().user("My keys are gone.")))
        finally:
            await service.close()

    assert asyncio.run(served()) == ANSWER


def test_a_thought_from_vllm_is_not_spoken_and_its_logprobs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.load(load_llm=False)
    bodies: list[dict[str, Any]] = []

    def answered(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        told = {"tokens": ["I"], "token_logprobs": [-0.1], "top_logprobs": [{"I": -0.1, "We": -2.0}]}
        events = [{"text": piece} for piece in ("Okay", ", sad.\n</thi", "nk>\n\nI am", " so sorry")]
        events[2]["logprobs"] = told  # type: ignore[assignment]
        events.append({"text": ".", "finish_reason": "stop"})
        lines = [f"data: {json.dumps({'choices': [event], 'usage': {'completion_tokens': 5}})}\n\n" for event in events]
        return httpx2.Response(200, text="".join(lines) + "data: [DONE]\n\n")

    monkeypatch.setattr(VLLMBackend, "_served", lambda *_: ("tiny", None))
    backend = VLLMBackend("http://nowhere/v1", model.llm.stops, tokenizer=model.llm.tokenizer)
    backend.web = httpx2.AsyncClient(transport=httpx2.MockTransport(answered))
    ids = model.llm.tokenizer.encode("Hi. <think>\n", add_special_tokens=False)
    prompt = PromptEmbeds(model.llm.embed(torch.tensor(ids)), tuple(ids), torch.full((len(ids),), IGNORE_INDEX))
    settings = GenerationSettings(logprobs=2, response_format='{"type": "json_object"}', top_k=3)

    async def streamed() -> list[Piece]:
        return [piece async for piece in backend.stream(prompt, settings, ["", "x"])]

    pieces = asyncio.run(streamed())
    assert "".join(piece.text for piece in pieces) == "I am so sorry."
    assert [one for piece in pieces for one in piece.logprobs] == [TokenLogprob("I", -0.1, (("I", -0.1), ("We", -2.0)))]
    (body,) = bodies
    assert (body["logprobs"], body["top_k"], body["response_format"]) == (2, 3, {"type": "json_object"})
    assert body["stop"] == ["x"]
