"""The study's LLM: the tiny one, trained further in text alone on the words of these corpora and of our tasks.

The tiny LLM has never met a digit, five of RAVDESS' eight emotions, or the questions of `dualslm.data.tasks`. A large
chat LLM knows all of these. So each missing word becomes one token, and a few hundred steps on conversations in text
train it to write words down, to read a caption and to answer. It gets no recording, and is frozen before the adapters
are made.

Dimensions: V vocabulary, D width.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from dualslm.conversation import Conversation, Source, Turn, View
from dualslm.data.manifest import read_conversation
from dualslm.data.tasks import TASKS, one_task
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.files import replacing
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Text, render
from dualslm.tiny import WEIGHTS, world
from dualslm.tiny.build import llm_examples, pretrain_llm
from studies.real_speech.blends import teach
from studies.real_speech.wording import DIGITS, EMOTIONS, conversation

PEAK_LR = 1e-3
# The pattern of RAVDESS' two sentences with other words: the LLM learns to write any such sentence, not these two.
WHO = ["Kids", "Dogs", "Cats", "Birds", "Men", "Women", "Boys", "Girls", "Horses", "Rabbits"]
DOING = ["talking", "sitting", "standing", "waiting", "running", "playing", "sleeping", "eating"]
WHERE = ["door", "window", "table", "tree", "house", "station", "river", "garden"]
TASK_SHARES = {"emotion": 0.5, "gender": 0.12, "asr": 0.26, "respond": 0.12}


def build(out: Path, *, examples: int, steps: int, tokens_per_step: int, blends: int, seed: int = 0) -> Path:
    """Trains the LLM in two parts, on text and on blends, where it does not exist yet.

    Args:
        out: output folder, for the LLM as transformers loads it.
        examples: number of examples in text.
        steps: number of optimizer steps on text.
        tokens_per_step: number of tokens of a step, padding included.
        blends: number of optimizer steps on blends.
        seed: seed of every draw.

    Returns:
        The output folder.
    """
    if (out / "card.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = extend(WEIGHTS / "llm", sorted(spoken_words()))
    tokenizer.save_pretrained(out)
    torch.manual_seed(seed)
    model = widened(Qwen2ForCausalLM.from_pretrained(WEIGHTS / "llm", dtype=torch.float32), tokenizer)
    settings = {"examples": examples, "steps": steps, "tokens_per_step": tokens_per_step, "seed": seed}
    pool = write_pool(tokenizer, examples, seed)
    pretrain_llm.fit(model, pool, out / "checkpoint.pt", settings, "cpu", True, PEAK_LR)
    model.save_pretrained(out)
    if blends:
        # Read anew as `FrozenLM`, whose embeddings and prompts are those of the real adapters.
        frozen = FrozenLM.from_pretrained(str(out), dtype=torch.float32, device="cpu")
        teach(frozen.model, frozen, example, blends, seed)
        frozen.model.save_pretrained(out)
    with replacing(out / "card.json") as partial:
        partial.write_text(json.dumps({**settings, "blends": blends}) + "\n")
    return out


# ---------------------------------------------------------------------- words


def spoken_words() -> set[str]:
    """Every word that the study says, asks with or answers with."""
    texts = [*WHO, *DOING, *WHERE, *DIGITS, *EMOTIONS, "are by the You sound and say that"]
    texts += [prompt for task in (*ATTRIBUTES.values(), TASKS["asr"], TASKS["respond"]) for prompt in task.prompts]
    return set(re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", " ", " ".join(texts))))


def extend(folder: Path, words: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each word is one token.

    Args:
        folder: folder of the LLM with the tokenizer to extend; its ids stay as they are.
        words: words that become one token each, with and without a space in front.
    """
    known = PreTrainedTokenizerFast.from_pretrained(folder)
    raw = json.loads(known.backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    merges = raw["model"]["merges"]
    for text in (form for word in words for form in (f" {word}", word)):
        # BPE reaches a token by merges alone: the pieces are joined from the left, each step a token of its own.
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
    """The LLM with an embedding for each new token: the mean of those of its former pieces."""
    known = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "llm")
    before = model.get_input_embeddings().weight.data.clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table_VD = model.get_input_embeddings().weight.data
    for token in range(len(before), len(tokenizer)):
        table_VD[token] = before[known.encode(tokenizer.decode([token]))].mean(0)
    return model


# ---------------------------------------------------------------------- examples


def example(rng: random.Random) -> tuple[Conversation, View]:
    """One conversation in text and its view; the transcript is stretched to the pace of speech."""
    task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    labels = {"gender": rng.choice(("male", "female")), "emotion": rng.choice(EMOTIONS)}
    fields: dict[str, Any] = {
        "id": str(rng.random()),
        "speaker": "text",
        "labels": labels,
        "transcript": sentence(rng, task),
    }
    if task == "asr" and rng.random() < 0.3:
        del labels["emotion"]  # digits have a gender and no emotion
    row = dict(one_task(conversation(fields, fields["id"], (task,)), task))
    if task == "respond":
        row["turns"] = [*row["turns"], {"role": "assistant", "parts": [reply(fields["transcript"], labels["emotion"])]}]
    spoken = read_conversation(row, Path())
    clip = spoken.turns[0].speeches[0]
    spoken.turns[0] = Turn("user", (replace(clip, transcript=llm_examples.stretch(clip.transcript or "", rng)),))
    # A channel may be missing where its task can be answered without it, as in the stages of the recipe.
    para: tuple[Source, ...] = ("text", "none") if task == "asr" else ("text",)
    ling: tuple[Source, ...] = ("text", "text", "none") if task in ATTRIBUTES else ("text",)
    return spoken, View(rng.choice(para), rng.choice(ling))


def reply(transcript: str, emotion: str) -> str:
    """A reply that shows both channels: how it was said, and what."""
    statement = transcript.rstrip(".")
    return f"You sound {emotion}, and you say that {statement[0].lower()}{statement[1:]}."


def sentence(rng: random.Random, task: str) -> str:
    """A transcript: digits, a sentence like RAVDESS', random words, or a sentence of the tiny world."""
    kind = rng.choices(("digits", "scene", "soup", "world"), (0.3, 0.3, 0.25, 0.15))[0]
    if kind == "scene" or task == "respond":
        return f"{rng.choice(WHO)} are {rng.choice(DOING)} by the {rng.choice(WHERE)}."
    if kind == "digits":
        return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 7)))
    if kind == "soup":
        words = (*world.vocabulary(), *DIGITS * 10, *(word.lower() for word in (*WHO, *DOING, *WHERE)))
        return " ".join(rng.choices(words, k=rng.randint(1, 8)))
    return world.sentence(rng, held_out=False)


def write_pool(tokenizer: PreTrainedTokenizerFast, count: int, seed: int) -> llm_examples.Pool:
    """Tokenizes the examples, end to end."""
    dots = tokenizer.encode(" ..")
    ids: list[int] = []
    loss: list[bool] = []
    starts = [0]
    for number in range(count):
        rng = random.Random(f"study/{seed}/{number}")
        spoken, view = example(rng)
        for segment in render(spoken, tokenizer, view, supervise="all").segments:
            assert isinstance(segment, Text)
            text_ids = llm_examples.blank_dots(segment.ids, dots, rng)
            ids += text_ids
            loss += [segment.loss] * len(text_ids)
        starts.append(len(ids))
    return llm_examples.Pool(np.array(ids, np.int32), np.array(loss), np.array(starts))
