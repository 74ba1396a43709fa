"""The study's LLM: the tiny one, taught in text alone the words of these corpora and the wording of our tasks.

The tiny LLM has never met a digit, five of RAVDESS' eight emotions, or the questions of `dualslm.data.tasks`. A large
chat LLM reads all of these at once. So each missing word becomes one token, and a few hundred steps on talks made
of text teach it to write words down, to read a caption and to answer. It hears nothing of any recording, and is
frozen before an adapter is made.

Dimensions: V vocabulary, D width.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from dualslm.conversation import Conversation, Turn, View
from dualslm.data.manifest import read_conversation
from dualslm.data.tasks import ATTRIBUTES, TASKS, one_task
from dualslm.files import replacing
from dualslm.prompt import Text, render
from dualslm.tiny import WEIGHTS, world
from dualslm.tiny.build import pretrain_llm
from studies.real_speech import blends as blended
from studies.real_speech.wording import DIGITS, EMOTIONS, conversation

PEAK_LR = 1e-3
WHO = ["Kids", "Dogs", "Cats", "Birds", "Men", "Women", "Boys", "Girls", "Horses", "Rabbits"]
DOING = ["talking", "sitting", "standing", "waiting", "running", "playing", "sleeping", "eating"]
WHERE = ["door", "window", "table", "tree", "house", "station", "river", "garden"]
ATTRIBUTE_CHANCE = {"emotion": 0.5, "gender": 0.12, "asr": 0.26, "respond": 0.12}


def build(out: Path, *, examples: int, steps: int, tokens_per_step: int, blends: int, seed: int = 0) -> Path:
    """Makes the LLM in two parts, on text and on blends; what is finished is kept.

    Args:
        out: gets an LLM folder as transformers loads it.
        examples: in the pool that steps draw from.
        steps: on text.
        tokens_per_step: padding included.
        blends: steps on blends.
        seed: of everything.
    """
    if (out / "card.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = extend(WEIGHTS / "llm", sorted(spoken_words()))
    tokenizer.save_pretrained(out)
    torch.manual_seed(seed)
    model = widened(Qwen2ForCausalLM.from_pretrained(WEIGHTS / "llm", dtype=torch.float32), tokenizer)
    made = {"examples": examples, "steps": steps, "tokens_per_step": tokens_per_step, "seed": seed}
    pool = write_pool(tokenizer, examples, seed)
    pretrain_llm.fit(model, pool, out / "checkpoint.pt", made, "cpu", True, PEAK_LR)
    model.save_pretrained(out)
    if blends:
        frozen = blended.load(out)
        blended.teach(frozen.model, frozen, example, blends, seed)
        frozen.model.save_pretrained(out)
    with replacing(out / "card.json") as partial:
        partial.write_text(json.dumps({**made, "blends": blends}) + "\n")
    return out


# ---------------------------------------------------------------------- words


def spoken_words() -> set[str]:
    """Every word that the study says, asks with or answers with."""
    texts = [*WHO, *DOING, *WHERE, *DIGITS, *EMOTIONS, "are by the You sound and say that"]
    texts += [prompt for task in (*ATTRIBUTES.values(), TASKS["asr"], TASKS["respond"]) for prompt in task.prompts]
    return set(re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", " ", " ".join(texts))))


def extend(folder: Path, words: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each word is one token after a space, and ids that were there stay."""
    known = PreTrainedTokenizerFast.from_pretrained(folder)
    raw = json.loads(known.backend_tokenizer.to_str())
    vocabulary, merges = raw["model"]["vocab"], raw["model"]["merges"]
    for text in (form for word in words for form in (f" {word}", word)):
        pieces = known.tokenize(text)
        while len(pieces) > 1:
            whole = pieces[0] + pieces[1]
            if whole not in vocabulary:
                vocabulary[whole] = len(vocabulary)
                merges.append([pieces[0], pieces[1]])
            pieces[:2] = [whole]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=type(known.backend_tokenizer).from_str(json.dumps(raw)),
        eos_token=known.eos_token,
        pad_token=known.pad_token,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = known.chat_template
    return fast


def widened(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """The LLM with an embedding for each new token: the mean of those of its pieces, so that nothing starts blank."""
    known = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "llm")
    before = model.get_input_embeddings().weight.data.clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table_VD = model.get_input_embeddings().weight.data
    for token in range(len(before), len(tokenizer)):
        table_VD[token] = before[known.encode(tokenizer.decode([token]))].mean(0)
    return model


# ---------------------------------------------------------------------- examples


def example(rng: random.Random) -> tuple[Conversation, View]:
    """One talk in text and its view; words are said at the pace of speech."""
    task = rng.choices(list(ATTRIBUTE_CHANCE), list(ATTRIBUTE_CHANCE.values()))[0]
    labels = {"gender": rng.choice(("male", "female")), "emotion": rng.choice(EMOTIONS)}
    fields = {"id": str(rng.random()), "speaker": "text", "labels": labels, "transcript": sentence(rng, task)}
    if task == "asr" and rng.random() < 0.3:
        del labels["emotion"]
    row = one_task(conversation(fields, fields["id"], (task,)), task)
    if task == "respond":
        row["turns"] = [*row["turns"], {"role": "assistant", "parts": [reply(fields["transcript"], labels["emotion"])]}]
    told = read_conversation(row, Path())
    clip = told.turns[0].speeches[0]
    told.turns[0] = Turn("user", (replace(clip, transcript=pretrain_llm.stretch(clip.transcript or "", rng)),))
    sources = (
        {"asr": ("text", "none")}.get(task, ("text",)),
        ("text", "text", "none") if task in ATTRIBUTES else ("text",),
    )
    return told, View(rng.choice(sources[0]), rng.choice(sources[1]))


def reply(transcript: str, emotion: str) -> str:
    """What a listener says who took in both: how it was said, and what."""
    said = transcript.rstrip(".")
    return f"You sound {emotion}, and you say that {said[0].lower()}{said[1:]}."


def sentence(rng: random.Random, task: str) -> str:
    """Something to say: digits, somebody doing something somewhere, or anything of the tiny world."""
    kind = rng.choices(("digits", "scene", "soup", "world"), (0.3, 0.3, 0.25, 0.15))[0]
    if kind == "scene" or task == "respond":
        return f"{rng.choice(WHO)} are {rng.choice(DOING)} by the {rng.choice(WHERE)}."
    if kind == "digits":
        return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 7)))
    if kind == "soup":
        words = (*world.vocabulary(), *DIGITS * 10, *(word.lower() for word in (*WHO, *DOING, *WHERE)))
        return " ".join(rng.choices(words, k=rng.randint(1, 8)))
    return world.sentence(rng, held_out=False)


def write_pool(tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> pretrain_llm.Pool:
    """The examples end to end."""
    dots = tokenizer.encode(" ..")
    ids: list[int] = []
    loss: list[bool] = []
    starts = [0]
    for number in range(count):
        rng = random.Random(f"study/{seed}/{number}")
        told, view = example(rng)
        for piece, learnt in _pieces(render(told, tokenizer, view, supervise="all").segments):
            some = pretrain_llm.blanked(piece, dots, rng)
            ids += some
            loss += [learnt] * len(some)
        starts.append(len(ids))
    return pretrain_llm.Pool(np.array(ids, np.int32), np.array(loss), np.array(starts))


def _pieces(segments: Any) -> Iterator[tuple[tuple[int, ...], bool]]:
    for segment in segments:
        assert isinstance(segment, Text)
        yield segment.ids, segment.loss
