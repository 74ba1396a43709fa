"""Diagnostics: each finds a fault that is planted, and stays quiet where there is none.

The model is the embedded LLM with adapters that know the answer: what a channel tells is written down by the test
and stands in the prompt as its token embeddings, so that nothing has to be recognised.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.trainkit import make
from torch import Tensor

from dualslm import Conversation, DualSLM, DualSLMError, Speech, View
from dualslm.cli import main as cli
from dualslm.conversation import Channel
from dualslm.evaluation.diagnostics import context, leaks, replacement, swap
from dualslm.evaluation.diagnostics.base import Examiner, Result
from dualslm.evaluation.diagnostics.items import Item, Material, of_rows
from dualslm.evaluation.diagnostics.probes import fitted, probes
from dualslm.evaluation.diagnostics.run import DIAGNOSTICS, measure, run
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import Hear
from dualslm.prompt import Prompt
from dualslm.tiny import ADAPTERS, world
from dualslm.tiny.build import recordings

COUNT = 12
PROBED = 24  # a probe has to be fitted to something
Tells = Callable[[Speech], str]


class Rigged(DualSLM):
    """Its channels tell what the test sets in `tells`."""

    clips: list[Speech]
    tells: dict[Channel, Tells]

    def adapt(self, channel: Channel, frames: Frames, detached: bool = False) -> list[Tensor]:
        """The token embeddings of what the channel tells of each clip; frames hold the clip's number."""
        numbers = frames.last_BTD[:, 0, 0].int().tolist()
        ids = [self.llm.tokenizer.encode(self.tells[channel](self.clips[n]), add_special_tokens=False) for n in numbers]
        return [self.llm.embed(torch.tensor(one, dtype=torch.long)) for one in ids]

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """Frames that hold the clips' numbers and noise."""
        numbers = [int(str(clip.audio).rsplit("/", 1)[1]) for clip in clips]
        noise = torch.randn(len(clips), 3, self.encoder.width, generator=torch.Generator().manual_seed(0))
        noise[:, :, 0] = torch.tensor(numbers, dtype=torch.float32)[:, None]
        return Frames(noise[None], torch.full((len(clips),), 3))


def tone(speech: Speech) -> str:
    return f"[{speech.caption}] "


def said(speech: Speech) -> str:
    return str(speech.transcript)


def both(speech: Speech) -> str:
    return tone(speech) + said(speech)


def nothing(_: Speech) -> str:
    return "[] "


@pytest.fixture(scope="module")
def parts() -> DualSLM:
    return DualSLM.from_pretrained(ADAPTERS, device="cpu")


@pytest.fixture(scope="module")
def material() -> Material:
    return of_world("planted", COUNT)


def of_world(name: str, count: int) -> Material:
    draw = partial(world.sample_utterance, held_out=True, kinds=("event",))
    takes, _ = recordings.plan(name, count, draw, held_out_voices=False)
    found = Material()
    for number, take in enumerate(takes):
        rng = random.Random(number)
        speech = replace(take.speech, labels={"emotion": take.style.emotion})
        found.words.append(item(world.transcription(speech, rng), speech))
        found.voices.append(item(world.questions(speech, rng, ("emotion",)), speech))
        conversation = world.sample_talk(random.Random(number + 7), speech, take.utterance, take.style)
        found.replies.append(item(conversation.conversation.assistant(conversation.reply.text), speech))
    return found


def item(conversation: Conversation, speech: Speech) -> Item:
    return Item(conversation, speech, said(speech).lower())


def examiner(parts: DualSLM, material: Material, para: Tells, ling: Tells) -> Examiner:
    model = Rigged(parts.encoder, parts.llm, **parts.settings).eval()
    model.clips = [one.speech for one in material.words]
    model.tells = {"para": para, "ling": ling}
    return Examiner(model, max_new_tokens=32)


def value(result: Result, label: str) -> float:
    return next(line.value for line in result.lines if line.label.startswith(label))


# ---------------------------------------------------------------------- leaks


def test_a_tone_that_l_carries_is_found(parts: DualSLM, material: Material) -> None:
    clean = leaks.tone_from_words(examiner(parts, material, tone, said), material)
    leaky = leaks.tone_from_words(examiner(parts, material, tone, both), material)
    assert "no leak" in clean.explanation
    assert "it leaks" in leaky.explanation
    assert value(leaky, "emotion from L") > 90 > 60 > value(clean, "emotion from L")
    assert value(clean, "emotion from P alone") > 90
    assert value(clean, "emotion from the LLM") == value(clean, "emotion from L alone")  # L is the transcript here


def test_words_that_p_carries_are_found(parts: DualSLM, material: Material) -> None:
    clean = leaks.words_from_tone(examiner(parts, material, tone, said), material)
    leaky = leaks.words_from_tone(examiner(parts, material, both, said), material)
    assert "no leak" in clean.explanation
    assert "it leaks" in leaky.explanation
    assert [line.value > 90 for line in leaky.lines] == [True, True]
    assert leaky.lines[1].zero == pytest.approx(100 / COUNT)


# ---------------------------------------------------------------------- swaps


def test_a_swap_shows_which_channel_the_answer_follows(parts: DualSLM, material: Material) -> None:
    clean = swap.source_swap(examiner(parts, material, tone, said), material)
    wrong = swap.source_swap(examiner(parts, material, nothing, both), material)
    assert clean.explanation == "Tone follows P and words follow L."
    assert wrong.explanation.startswith("It is not shown")
    assert value(clean, "emotion as in the recording that P") > 90
    assert value(wrong, "emotion as in the recording that L") > 90


def test_words_that_change_with_another_p_are_found(parts: DualSLM, material: Material) -> None:
    wrong = swap.source_swap(examiner(parts, material, both, nothing), material)
    assert value(wrong, "word errors, with another's P") > 60 > value(wrong, "word errors, as recorded")
    assert wrong.explanation.startswith("It is not shown")


def test_a_reply_that_is_deaf_to_tone_is_found(parts: DualSLM, material: Material) -> None:
    clean = swap.style_contrast(examiner(parts, material, tone, said), material)
    deaf = swap.style_contrast(examiner(parts, material, nothing, said), material)
    assert clean.explanation == "The reply follows the tone."
    assert deaf.explanation.startswith("It is not shown")
    assert value(clean, "replies that change") > 80
    assert value(deaf, "replies that change") == 0


# ---------------------------------------------------------------------- replacement


def test_sources_that_are_equal_have_no_distance(parts: DualSLM, material: Material) -> None:
    clean = replacement.equivalence(examiner(parts, material, tone, said), material)
    leaky = replacement.equivalence(examiner(parts, material, nothing, both), material)
    assert value(clean, "transcripts, P as its caption") == pytest.approx(0, abs=1e-4)
    assert value(clean, "replies, L as its transcript") == pytest.approx(0, abs=1e-4)
    assert clean.explanation.startswith("Every replacement")
    assert value(leaky, "answers about the voice, L as its transcript") > 0.1
    assert "answers about the voice, L as its transcript" in leaky.explanation


def test_a_reply_owes_nothing_to_a_channel_that_tells_nothing(parts: DualSLM, material: Material) -> None:
    clean = replacement.attribution(examiner(parts, material, tone, said), material)
    leaky = replacement.attribution(examiner(parts, material, nothing, both), material)
    assert value(clean, "without P") > 0.1
    assert value(clean, "without L") > value(clean, "without P")
    assert value(leaky, "without P") < value(clean, "without P") / 3
    assert "(L)" in clean.explanation


def test_divergence_is_that_of_its_definition() -> None:
    one = torch.randn(5, 7).log_softmax(-1)
    other = torch.randn(5, 7).log_softmax(-1)
    expected = torch.nn.functional.kl_div(other, one, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(replacement.divergence(one, other), expected)


# ---------------------------------------------------------------------- context


class Forgetful(Examiner):
    """A model that hears the last turn only."""

    def nats(
        self, conversations: Sequence[Conversation], view: View, *, history: View | None = None
    ) -> list[tuple[float, int]]:
        return super().nats(
            [Conversation(conversation.system, conversation.turns[-2:]) for conversation in conversations],
            view,
            history=history,
        )


def test_a_model_that_forgets_is_found(parts: DualSLM, material: Material) -> None:
    clean = examiner(parts, material, tone, said)
    used = context.history(clean, material)
    assert used.explanation == "The reply draws on the history."
    assert value(used, "reply after the true") < 0.2 < value(used, "lost with another")
    forgot = context.history(Forgetful(clean.model), material)
    assert forgot.explanation.startswith("It is not shown")
    assert value(forgot, "lost with another") == pytest.approx(0, abs=1e-4)


class Transcriber(Rigged):
    """Writes the transcript, whatever the instruction is."""

    def generate(
        self, prompts: Sequence[Prompt], *, hear: Hear | None = None, generation: GenerationSettings | None = None
    ) -> list[str]:
        answers = super().generate(prompts, hear=hear, generation=generation)
        return [said(prompt.clips[-1]) if prompt.clips else one for prompt, one in zip(prompts, answers, strict=True)]


def test_a_task_vector_is_found(parts: DualSLM, material: Material) -> None:
    clean = examiner(parts, material, tone, said)
    assert context.alarm(clean, material).explanation.startswith("No alarm")
    clean.model.__class__ = Transcriber
    wrong = context.alarm(clean, material)
    assert wrong.explanation.startswith("Alarm")
    assert value(wrong, "merely the transcript, heard") == 100


# ---------------------------------------------------------------------- probes


def test_probes_read_what_is_there_and_nothing_else(parts: DualSLM) -> None:
    material = of_world("probed", PROBED)
    found = probes(examiner(parts, material, tone, said), material)
    assert value(found, "emotion from P, ") > 70 > 60 > value(found, "emotion from L, ")
    assert value(found, "which sentence, from L, ") > 60 > value(found, "which sentence, from P, ")
    assert value(found, "emotion from the encoder") < 60  # noise here


def test_a_probe_is_not_fitted_on_the_groups_it_is_tested_on() -> None:
    rng = np.random.default_rng(0)
    groups = [f"{index // 4}" for index in range(80)]
    truth = [("sad", "happy")[int(group) % 2] for group in groups]
    voices = rng.standard_normal((20, 30))  # a speaker's voice tells the speaker, and nothing of the tone
    table = voices[[int(group) for group in groups]] + 0.1 * rng.standard_normal((80, 30))
    right = fitted(table, truth, groups)
    assert np.mean(right) < 0.75
    with_tone = table + 3.0 * np.array([[one == "sad"] for one in truth])
    assert np.mean(fitted(with_tone, truth, groups)) > 0.95


# ---------------------------------------------------------------------- the whole


def test_manifests_of_any_shape_become_items(tmp_path: Path) -> None:
    speech = {"audio": "a.wav", "transcript": "Hello.", "labels": {"emotion": "sad", "energy": "low"}}
    asked: list[dict[str, Any]] = [
        {"role": "user", "parts": [speech, "Which emotion?"]},
        {"role": "assistant", "parts": ["It is sad."]},
        {"role": "user", "parts": ["Which energy?"]},
        {"role": "assistant", "parts": ["It is low."]},
    ]
    rows = [
        {"id": "1", "kind": "paralinguistic", "turns": asked},
        {"id": "2", "speaker": "Ann", "tasks": ["asr", "emotion"], "turns": [{"role": "user", "parts": [speech]}]},
    ]
    made = of_rows([(row, tmp_path) for row in rows])
    assert sorted(one.answer for one in made.about("emotion")) == ["It is sad.", "The speaker sounds sad."]
    energy = made.about("energy")
    assert [(one.answer, one.group) for one in energy] == [("It is low.", "hello.")]
    assert energy[0].asked.turns[-1].parts[1] == "Which energy?"
    assert [one.group for one in made.words] == ["Ann"]
    assert len(of_rows([(row, tmp_path) for row in rows], limit=1).voices) == 1


def test_every_figure_is_json_with_n_and_interval(parts: DualSLM, material: Material) -> None:
    some = replace(material, words=material.words[:6], voices=material.voices[:6], replies=[])
    names = ("leak-tone", "equivalence", "contrast", "alarm")
    found = measure(examiner(parts, some, tone, said), some, names, say=lambda _: None)
    assert json.loads(json.dumps(found)) == found
    assert set(found) == set(names)
    for one in found.values():
        assert set(one) == {"title", "rows", "reading"}
        for row in one["rows"]:
            assert {"label", "value", "low", "high", "n"} <= set(row)
            assert row["low"] <= row["value"] <= row["high"]
    assert found["contrast"]["reading"].startswith("Not measured")


def test_an_unknown_diagnostic_is_one_line(parts: DualSLM) -> None:
    with pytest.raises(DualSLMError, match="unknown diagnostic"):
        run(parts, [], names=["theremin"])


def test_eval_puts_every_diagnostic_into_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    settings: dict[str, Any] = {"paralinguistic": {"heads": 4, "tokens": 4}, "linguistic": {"hidden": 32}}
    model = DualSLM.from_parts(str(tmp_path / "encoder"), str(tmp_path / "llm"), device="cpu", **settings)
    run_folder = str(model.save_pretrained(tmp_path / "run"))
    asked = ["--on", str(tmp_path / "validation.jsonl"), "--out", str(tmp_path / "out"), "--max-new-tokens", "4"]
    assert cli.main(["eval", run_folder, *asked, "--instruments", "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["instruments"]) == {f"{run_folder}: {name}" for name in DIAGNOSTICS}
    assert "Leak: words from P" in (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()
