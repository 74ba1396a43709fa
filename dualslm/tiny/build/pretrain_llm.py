"""Trains the tiny world's LLM: Qwen2's architecture, from scratch, on conversations of the world (ours).

It learns what a real chat LLM can do before any adapter exists: to write down the words of its prompt, to answer
questions from a caption, and to hold a conversation and remember its facts. Its prompts are those of `prompt.render`
with text sources, channel by channel: caption or nothing, transcript or nothing.

In the second part the transcripts are stretched to the pace of speech: a word fills several positions, with dots or
noise between them. A large LLM reads such a text at once. A small one that has seen fluent text alone does not
(measured: 47 % word errors on random words said three times each, 88 % with noise between them), and an adapter could
not teach it.

A killed run resumes from its last checkpoint.

Dimensions: B rows, T tokens, D width of the LLM, K positions with a label, V vocabulary.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from dualslm.conversation import Conversation, Part, Speech, Turn, View
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.prompt import Text, render
from dualslm.tiny import world
from dualslm.tiny.build import tokenizer as world_tokenizer
from dualslm.tiny.build.exam_llm import evaluate
from dualslm.tiny.style import sample_style

PEAK_LR = 1.5e-3  # of the first part
SECOND_LR = 7e-4  # of the second part
WARM_UP = 0.03  # of all steps
CLIP_NORM = 1.0
TASK_SHARES = {"transcribe": 0.35, "ask": 0.3, "listen": 0.35}
DISFLUENT_SHARE = 0.4  # transcripts with repeated words or dots, in the first part
FLUENT_SHARE = 0.3  # transcripts that are not stretched, in the second part
DOT_SHARES = (0.5, 0.3, 0.2)  # dots that become a blank, a space, or stay
BLANK_ID = 0  # <|endoftext|>, which stands in no conversation
BLANK_NOISE = 1.5  # largest noise in place of a blank, in standard deviations of the embeddings
NOISY_SHARE = 0.5  # batches with noise on the embeddings of the prompt
BUCKET = 32  # tokens: rows are padded to a multiple of it
CHECKPOINT_EVERY = 1000  # steps
REPORT_EVERY = 100  # steps
Disfluency: TypeAlias = Callable[[str, random.Random], str]
"""Changes a fluent transcript: `stumble` in the first part of the training, `stretch` in the second."""


@dataclass(frozen=True)
class Pool:
    """Tokenized training examples, end to end.

    Attributes:
        ids: token ids of all examples.
        loss: whether each token carries loss.
        starts: position of the first token of each example, and the end of the last.
    """

    ids: np.ndarray
    loss: np.ndarray
    starts: np.ndarray


def llm_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """The small LLM: 192 wide, 6 layers, 6 heads with 2 key-value heads, tied embeddings."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def pretrain(
    out: Path,
    *,
    fluent: Mapping[str, int],
    stretched: Mapping[str, int],
    seed: int,
    device: str,
    processes: int,
    tested: int = 500,
    conversations: int = world_tokenizer.CONVERSATIONS,
    resume: bool = True,
) -> dict[str, Any]:
    """Writes the examples, trains the LLM in two parts, tests it and writes it to a folder.

    Args:
        out: output folder, for the LLM as transformers loads it (half precision) and card.json.
        fluent: settings of the first part, on words as they are written: `examples` in the pool, optimizer `steps`,
            and `tokens_per_step`, padding included.
        stretched: settings of the second part, on words at the pace of speech.
        seed: seed of every draw.
        device: where the LLM is trained, such as "cpu" or "cuda".
        processes: number of processes that write examples.
        tested: number of held-out sentences of the final test.
        conversations: number of conversations that the tokenizer is trained on.
        resume: whether to resume from a checkpoint in `out`, if there is one.

    Returns:
        The card: the settings, and the share of exact answers on held-out sentences.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    tokenizer = world_tokenizer.load_or_train(out, seed, conversations)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(llm_config(tokenizer)).to(device)
    parts: tuple[tuple[Mapping[str, int], Disfluency, float], ...] = (
        (fluent, stumble, PEAK_LR),
        (stretched, stretch, SECOND_LR),
    )
    for size, disfluency, peak_lr in parts:
        settings = {**size, "seed": seed}
        pool = _write_pool(out, size["examples"], seed, processes, disfluency)
        fit(model, pool, out / f"checkpoint-{disfluency.__name__}.pt", settings, device, resume, peak_lr)
        model.bfloat16().float()  # rounded to half precision, because that is what is tested and shipped
    model.to(torch.bfloat16).save_pretrained(out)
    card = {"fluent": dict(fluent), "stretched": dict(stretched), "seed": seed}
    card |= {"parameters": sum(p.numel() for p in model.parameters()), **evaluate(out, n=tested, device=device)}
    with replacing(out / "card.json") as partial_file:
        partial_file.write_text(json.dumps(card, indent=2) + "\n")
    return card


# ---------------------------------------------------------------------- examples


def stumble(text: str, rng: random.Random) -> str:
    """The words as a poor recognizer writes them: some repeated, some followed by dots."""
    if rng.random() > DISFLUENT_SHARE:
        return text
    out: list[str] = []
    for word in text.split():
        out += [word] * (2 if rng.random() < 0.12 else 1)
        out += [".."] * (rng.random() < 0.08)
    return " ".join(out)


def stretch(text: str, rng: random.Random) -> str:
    """The words at the pace of speech, as L gives them with 10 embeddings a second: repeated, with dots between."""
    if rng.random() < FLUENT_SHARE:
        return text
    repeat_chance = rng.uniform(0.0, 0.7)
    pause_chance = rng.uniform(0.0, 0.6)
    out: list[str] = [".."] * rng.randint(0, 3)
    for word in text.split():
        out += [word] * (1 + _run_length(rng, repeat_chance))
        out += [".."] * _run_length(rng, pause_chance)
    return " ".join(out)


def _run_length(rng: random.Random, chance: float) -> int:
    """How often in a row a draw of this chance succeeds, at most three times."""
    return next((count for count in range(3) if rng.random() >= chance), 3)


def example(rng: random.Random, disfluency: Disfluency = stumble) -> tuple[Conversation, View]:
    """One training example: a conversation and its view, with text or nothing in each channel.

    Args:
        rng: source of every draw.
        disfluency: function that changes every transcript.
    """
    task = rng.choices(list(TASK_SHARES), list(TASK_SHARES.values()))[0]
    if task == "transcribe":
        return _transcribe(rng, disfluency)
    if task == "ask":
        return _ask(rng, disfluency)
    return _listen(rng, disfluency)


def _speech(rng: random.Random, utterance: world.Utterance) -> Speech:
    style = sample_style(rng)
    return Speech(transcript=utterance.text, caption=world.caption(style, rng), labels=style.labels())


def _transcribe(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """A transcription task; the prompt may be disfluent, the label never is."""
    # Soups cannot be guessed from their context: without them the LLM would complete sentences instead of reading.
    kinds: Sequence[world.Kind] = ("soup",) if rng.random() < 0.35 else ("event", "fact", "small")
    utterance = world.sample_utterance(rng, held_out=False, kinds=kinds)
    conversation = world.transcription(_speech(rng, utterance), rng)
    speech = Speech(transcript=disfluency(utterance.text, rng), caption=conversation.turns[0].speeches[0].caption)
    conversation.turns[0] = Turn("user", (speech,))
    return conversation, View(rng.choice(("text", "none")), "text")


def _ask(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """Questions that the caption answers, with the words or without them."""
    utterance = world.sample_utterance(rng, held_out=False)
    speech = _speech(rng, utterance)
    # Only attributes that the caption names: an LLM that has to guess learns to guess.
    named = [name for name in world.QUESTIONS if world.mentions(speech.caption or "", name)]
    asked = rng.sample(named, rng.randint(1, len(named)))
    speech = replace(speech, transcript=disfluency(utterance.text, rng))
    return world.questions(speech, rng, asked), View("text", rng.choice(("text", "text", "none")))


def _listen(rng: random.Random, disfluency: Disfluency) -> tuple[Conversation, View]:
    """A conversation with its reply; without the tone or the words, the reply does without them too."""
    utterance = world.sample_utterance(rng, held_out=False, kinds=("event",))
    style = sample_style(rng)
    view = View(rng.choice(("text",) * 4 + ("none",)), rng.choice(("text",) * 7 + ("none",)))
    transcript = disfluency(utterance.text, rng)
    caption = world.caption(style, rng)
    while not world.mentions(caption, "emotion"):  # the reply depends on it
        caption = world.caption(style, rng)

    def typed_or_spoken(rng: random.Random, kind: world.Kind) -> tuple[world.Utterance, Part]:
        stated, text = world.typed(rng, kind)
        spoken = Speech(transcript=disfluency(stated.text, rng), caption=world.caption(sample_style(rng), rng))
        return stated, rng.choice((text, spoken))

    # A view holds for all recordings of a prompt: where it has no words, facts must be typed to be remembered.
    earlier = typed_or_spoken if view.ling == "text" else world.typed
    speech = Speech(transcript=transcript, caption=caption)
    sample = world.sample_talk(rng, speech, utterance, style, earlier)
    emotion = style.emotion if view.para == "text" else None
    reply = world.reply_to(utterance if view.ling == "text" else None, emotion, sample.memory)
    return sample.conversation.assistant(reply.text), view


def blank_dots(ids: Sequence[int], dots: Sequence[int], rng: random.Random) -> list[int]:
    """Replaces some of the dots by a blank and some by the space that they begin with.

    Args:
        ids: token ids of a text.
        dots: token ids of " ..".
        rng: source of every draw.
    """
    out: list[int] = []
    for token in ids:
        out.append(token)
        if out[-len(dots) :] == list(dots):
            out[-len(dots) :] = rng.choices(([BLANK_ID], dots[:1], dots), DOT_SHARES)[0]
    return out


def _write_pool(out: Path, count: int, seed: int, processes: int, disfluency: Disfluency) -> Pool:
    """The pool of a part of the training, read from its file where that exists."""
    file = out / f"pool-{disfluency.__name__}.npz"
    if not file.exists():
        chunk = min(1000, -(-count // processes))
        work = partial(_chunk, folder=out, seed=seed, size=chunk, disfluency=disfluency)
        chunks = range(-(-count // chunk))
        if processes > 1:
            with multiprocessing.get_context("spawn").Pool(processes) as workers:
                parts = list(workers.imap(work, chunks))
        else:
            parts = [work(index) for index in chunks]
        ids, loss, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        with replacing(file) as partial_file, partial_file.open("wb") as handle:
            np.savez(handle, ids=ids, loss=loss, starts=starts)
    return Pool(**np.load(file))


def _chunk(
    index: int, *, folder: Path, seed: int, size: int, disfluency: Disfluency
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, loss flags and lengths of a run of examples; each is seeded by its own number."""
    tokenizer = world_tokenizer.load_or_train(folder)
    dots = tokenizer.encode(" ..")
    ids: list[int] = []
    loss: list[bool] = []
    lengths = []
    for number in range(index * size, (index + 1) * size):
        rng = random.Random(f"llm/{seed}/{number}")
        conversation, view = example(rng, disfluency)
        prompt = render(conversation, tokenizer, view, supervise="all")
        before = len(ids)
        for segment in prompt.segments:
            assert isinstance(segment, Text)
            text_ids = blank_dots(segment.ids, dots, rng)
            ids += text_ids
            loss += [segment.loss] * len(text_ids)
        lengths.append(len(ids) - before)
    return np.array(ids, np.int32), np.array(loss), np.array(lengths)


# ---------------------------------------------------------------------- training


def fit(
    model: Qwen2ForCausalLM,
    pool: Pool,
    checkpoint: Path,
    settings: dict[str, int],
    device: str,
    resume: bool,
    peak_lr: float,
) -> None:
    """Trains an LLM on the examples of a pool.

    Args:
        model: LLM to be trained, in place.
        pool: examples.
        checkpoint: file of the checkpoint, written every so many steps and at the end.
        settings: `steps`, `tokens_per_step` and `seed`; a checkpoint with other settings is refused.
        device: where the LLM is, such as "cpu".
        resume: whether to resume from the checkpoint, if there is one.
        peak_lr: learning rate after the warm-up.
    """
    steps = settings["steps"]
    cuda = device.startswith("cuda")
    # Norms and biases are not decayed, as is usual.
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95), fused=cuda)
    first = _restore(model, optimizer, checkpoint, settings) if resume and checkpoint.exists() else 0
    model.train()
    began = time.monotonic()
    recent: list[Tensor] = []
    for step, rows in enumerate(_batches(pool, settings, first), first):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * _schedule(step, steps)
        ids_BT, loss_BT = _pad(pool, rows, device)
        torch.manual_seed(settings["seed"] * 1_000_003 + step)  # a resumed run draws what an uninterrupted one does
        # The first tenth is without noise: it learns the language before it learns to read through noise.
        noisy = step % 2 < 2 * NOISY_SHARE and step > steps // 10
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=cuda):
            loss = _loss(model, ids_BT, loss_BT, noisy=noisy)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.detach())  # read a hundred at once: reading each would make the CPU wait for the GPU
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            left = (time.monotonic() - began) / (done - first) * (steps - done) / 60
            mean = torch.stack(recent).mean().item()
            print(f"llm {done}/{steps}  loss {mean:.4f}  {left:.1f} min left", file=sys.stderr, flush=True)
            recent = []
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "made": settings}
            with replacing(checkpoint) as partial_file:
                torch.save(state, partial_file)


def _loss(model: Qwen2ForCausalLM, ids_BT: Tensor, loss_BT: Tensor, *, noisy: bool) -> Tensor:
    """Next-token loss of the assistant's tokens.

    Args:
        model: the LLM.
        ids_BT: token ids.
        loss_BT: whether each token carries loss.
        noisy: whether the whole prompt gets noise. Blanks always are noise; each row has a strength of its own.
    """
    embeds_BTD = model.get_input_embeddings()(ids_BT)
    strength_B = torch.rand(len(ids_BT), 1, 1, device=ids_BT.device) * embeds_BTD.std().detach()
    noise_BTD = torch.randn_like(embeds_BTD) * strength_B
    if noisy:
        embeds_BTD = embeds_BTD + noise_BTD.masked_fill(loss_BT[..., None], 0.0)
    blank_BT = (ids_BT == BLANK_ID) & ~loss_BT
    embeds_BTD = torch.where(blank_BT[..., None], BLANK_NOISE * noise_BTD, embeds_BTD)
    hidden_BTD = model.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    labelled_BT = loss_BT[:, 1:]
    # The output head runs at positions with a label alone: with so small an LLM it is most of the work.
    logits_KV = model.lm_head(hidden_BTD[:, :-1][labelled_BT])
    return F.cross_entropy(logits_KV.float(), ids_BT[:, 1:][labelled_BT])


def _batches(pool: Pool, settings: dict[str, int], first: int) -> Iterator[np.ndarray]:
    """Batches of examples of about the same length; step i draws by its own number, so that runs can be resumed."""
    lengths = np.diff(pool.starts)
    order = np.argsort(lengths, kind="stable")
    for step in range(first, settings["steps"]):
        rng = np.random.default_rng([settings["seed"], step])
        at = int(rng.integers(len(order)))
        rows = settings["tokens_per_step"] // (-(-int(lengths[order[at]]) // BUCKET) * BUCKET)
        start = max(0, min(at - rows // 2, len(order) - rows))
        near = order[max(0, start - rows) : start + 2 * rows]  # neighbours in length, drawn anew each time
        yield rng.choice(near, min(rows, len(near)), replace=False)


def _pad(pool: Pool, rows: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Rows side by side, padded on the right to a multiple of `BUCKET`; padding carries no loss."""
    spans = [(int(pool.starts[row]), int(pool.starts[row + 1])) for row in rows]
    length = -(-max(end - start for start, end in spans) // BUCKET) * BUCKET
    ids_BT = np.zeros((len(rows), length), np.int64)
    loss_BT = np.zeros((len(rows), length), bool)
    for row, (start, end) in enumerate(spans):
        ids_BT[row, : end - start] = pool.ids[start:end]
        loss_BT[row, : end - start] = pool.loss[start:end]
    return (
        torch.from_numpy(ids_BT).to(device, non_blocking=True),
        torch.from_numpy(loss_BT).to(device, non_blocking=True),
    )


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))


def _restore(
    model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, checkpoint: Path, settings: dict[str, int]
) -> int:
    """Loads a checkpoint; returns the number of its finished steps."""
    state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
    if state["made"] != settings:
        raise DualSLMError(f"{checkpoint} belongs to another run", got=state["made"], do="delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
