"""Makes the tiny world's LLM: Qwen2's architecture, trained from scratch on talks of the world (ours).

It learns what a real chat LLM can do before any adapter exists: to write down words that stand in its prompt, to
answer questions from a caption, to hold a talk with a memory. Its prompts are those of `prompt.render` with text
sources, channel by channel: caption or none, transcript or none.

In the second part the transcripts in its prompts are stretched to the pace of speech: words drawn out over
several places, and dots or noise between them. A large LLM reads such a text at once; a small one that has only
seen fluent text loses its place (measured: 47 % word errors on random words said thrice each, 88 % with noise
between them), and an adapter could not teach it.

A run that is killed goes on from its last checkpoint.

Dimensions: B rows, T tokens.
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
from dualslm.tiny.build import tokenizer as words_to_ids
from dualslm.tiny.build.exam_llm import evaluate
from dualslm.tiny.style import Style, sample_style

PEAK_LR, SECOND_LR, WARM_UP, CLIP = 1.5e-3, 7e-4, 0.03, 1.0
SHARES = {"transcribe": 0.35, "ask": 0.3, "listen": 0.35}
DISFLUENT = 0.4  # share of transcripts with repeated or dropped words
PLAIN = 0.3  # share of transcripts that are not stretched, in the second part
BLANKS = (0.5, 0.3, 0.2)  # shares of dots that become a blank, a space, or stay
BLANK, BLANK_STRENGTH = 0, 1.5  # the id of <|endoftext|>, which no talk holds, and its noise at most
Heard: TypeAlias = Callable[[str, random.Random], str]
NOISY = 0.5  # share of batches with noise on the embeddings of the prompt
BUCKET = 32  # rows are padded to a multiple of this
CHECKPOINT_EVERY, REPORT_EVERY = 1000, 100  # steps


@dataclass(frozen=True)
class Pool:
    """Training examples end to end.

    Attributes:
        ids: tokens of all examples.
        loss: whether each is to be learnt.
        starts: where each example begins, and the end of the last.
    """

    ids: np.ndarray
    loss: np.ndarray
    starts: np.ndarray


def llm_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """The small LLM: 192 wide, 6 layers, 6 heads of which 2 keep keys, tied embeddings."""
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
    conversations: int = words_to_ids.TALKS,
    resume: bool = True,
) -> dict[str, Any]:
    """Writes the examples, trains the LLM in two parts, tests it and writes it to a folder.

    Args:
        out: gets an LLM folder as transformers loads it (half precision) and card.json.
        fluent: of the first part, on words as they are written: `examples` in the pool that steps draw from,
            `steps` of the optimizer, `tokens_per_step`, padding included.
        stretched: the same of the second part, on words at the pace of speech.
        seed: of everything.
        device: "cpu", "cuda", ...
        processes: that write examples.
        tested: held-out sentences of the closing exam.
        conversations: that the tokenizer is trained on.
        resume: go on from a checkpoint in `out`, if there is one.

    Returns:
        The card: how it was made and what it can do on held-out sentences.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    tokenizer = words_to_ids.save(out, seed, conversations)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(llm_config(tokenizer)).to(device)
    for size, heard, peak in ((fluent, stumble, PEAK_LR), (stretched, stretch, SECOND_LR)):
        made = {**size, "seed": seed}
        pool = _write_pool(out, size["examples"], seed, processes, heard)
        fit(model, pool, out / f"checkpoint-{heard.__name__}.pt", made, device, resume, peak)
        model.bfloat16().float()  # what is shipped, and tested, is in half precision
    model.to(torch.bfloat16).save_pretrained(out)
    card = {"fluent": dict(fluent), "stretched": dict(stretched), "seed": seed}
    card |= {"parameters": sum(p.numel() for p in model.parameters()), **evaluate(out, n=tested, device=device)}
    with replacing(out / "card.json") as partial_file:
        partial_file.write_text(json.dumps(card, indent=2) + "\n")
    return card


# ---------------------------------------------------------------------- examples


def stumble(text: str, rng: random.Random) -> str:
    """The words as an unsure ear gives them: some repeated, some run into dots."""
    if rng.random() > DISFLUENT:
        return text
    out: list[str] = []
    for word in text.split():
        out += [word] * (2 if rng.random() < 0.12 else 1)
        out += [".."] * (rng.random() < 0.08)
    return " ".join(out)


def stretch(text: str, rng: random.Random) -> str:
    """The words at the pace of speech, as 10 embeddings a second have them: drawn out, with dots between."""
    if rng.random() < PLAIN:
        return text
    pace, rest = rng.uniform(0.0, 0.7), rng.uniform(0.0, 0.6)
    out: list[str] = [".."] * rng.randint(0, 3)
    for word in text.split():
        out += [word] * (1 + _runs(rng, pace))
        out += [".."] * _runs(rng, rest)
    return " ".join(out)


def _runs(rng: random.Random, chance: float) -> int:
    """How often in a row something of this chance happens, at most thrice."""
    return next((count for count in range(3) if rng.random() >= chance), 3)


def example(rng: random.Random, heard: Heard = stumble) -> tuple[Conversation, View]:
    """One training talk and its view, text or nothing in each channel; `heard` alters every transcript."""
    task = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if task == "transcribe":
        return _transcribe(rng, heard)
    if task == "ask":
        return _ask(rng, heard)
    return _listen(rng, heard)


def _speech(rng: random.Random, utterance: world.Utterance) -> Speech:
    style = sample_style(rng)
    return Speech(transcript=utterance.text, caption=world.caption(style, rng), labels=style.labels())


def _transcribe(rng: random.Random, heard: Heard) -> tuple[Conversation, View]:
    """Write down the words; what is heard may be disfluent, what is written never is."""
    kinds: Sequence[world.Kind] = ("soup",) if rng.random() < 0.35 else ("event", "fact", "small")
    said = world.sample_utterance(rng, held_out=False, kinds=kinds)
    conversation = world.transcription(_speech(rng, said), rng)
    speech = Speech(transcript=heard(said.text, rng), caption=conversation.turns[0].speeches[0].caption)
    conversation.turns[0] = Turn("user", (speech,))
    return conversation, View(rng.choice(("text", "none")), "text")


def _ask(rng: random.Random, heard: Heard) -> tuple[Conversation, View]:
    """Questions that the caption answers, beside the words or without them."""
    said = world.sample_utterance(rng, held_out=False)
    speech = _speech(rng, said)
    named = [name for name in world.QUESTIONS if world.mentions(speech.caption or "", name)]
    asked = rng.sample(named, rng.randint(1, len(named)))
    speech = replace(speech, transcript=heard(said.text, rng))
    return world.questions(speech, rng, asked), View("text", rng.choice(("text", "text", "none")))


def _listen(rng: random.Random, heard: Heard) -> tuple[Conversation, View]:
    """A talk with a memory; tone or words may be missing, and then the answer does without them."""
    said = world.sample_utterance(rng, held_out=False, kinds=("event",))
    style = sample_style(rng)
    view = View(rng.choice(("text",) * 4 + ("none",)), rng.choice(("text",) * 7 + ("none",)))
    speech = Speech(transcript=heard(said.text, rng), caption=_with_emotion(style, rng))
    earlier = partial(_perhaps_spoken, heard=heard) if view.ling == "text" else world.typed
    conversation = world.sample_talk(rng, speech, said, style, earlier)
    emotion = style.emotion if view.para == "text" else None
    reply = world.reply_to(said if view.ling == "text" else None, emotion, conversation.memory)
    return conversation.conversation.assistant(reply.text), view


def _perhaps_spoken(rng: random.Random, kind: world.Kind, heard: Heard) -> tuple[world.Utterance, Part]:
    """Something said earlier, typed or as a styled transcript."""
    said, text = world.typed(rng, kind)
    spoken = Speech(transcript=heard(said.text, rng), caption=world.caption(sample_style(rng), rng))
    return said, rng.choice((text, spoken))


def _with_emotion(style: Style, rng: random.Random) -> str:
    """A caption that does not leave out the emotion."""
    text = world.caption(style, rng)
    return text if world.mentions(text, "emotion") else _with_emotion(style, rng)


def blanked(ids: Sequence[int], dots: Sequence[int], rng: random.Random) -> list[int]:
    """Some of the dots as a blank, some as the space that they begin with."""
    out: list[int] = []
    for token in ids:
        out.append(token)
        if out[-len(dots) :] == list(dots):
            out[-len(dots) :] = rng.choices(([BLANK], dots[:1], dots), BLANKS)[0]
    return out


def _write_pool(out: Path, count: int, seed: int, processes: int, heard: Heard) -> Pool:
    file = out / f"pool-{heard.__name__}.npz"
    if not file.exists():
        chunk = min(1000, -(-count // processes))
        work = partial(_chunk, folder=out, seed=seed, size=chunk, heard=heard)
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
    index: int, *, folder: Path, seed: int, size: int, heard: Heard
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokenizer = words_to_ids.save(folder)
    dots = tokenizer.encode(" ..")
    ids: list[int] = []
    loss: list[bool] = []
    lengths = []
    for number in range(index * size, (index + 1) * size):
        rng = random.Random(f"llm/{seed}/{number}")
        conversation, view = example(rng, heard)
        prompt = render(conversation, tokenizer, view, supervise="all")
        before = len(ids)
        for segment in prompt.segments:
            assert isinstance(segment, Text)
            some = blanked(segment.ids, dots, rng)
            ids += some
            loss += [segment.loss] * len(some)
        lengths.append(len(ids) - before)
    return np.array(ids, np.int32), np.array(loss), np.array(lengths)


# ---------------------------------------------------------------------- training


def fit(
    model: Qwen2ForCausalLM,
    pool: Pool,
    checkpoint: Path,
    made: dict[str, int],
    device: str,
    resume: bool,
    peak: float,
) -> None:
    """Teaches a model the examples of a pool; goes on from the checkpoint where there is one and `resume` is set."""
    steps, cuda = made["steps"], device.startswith("cuda")
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=cuda)
    first = _restore(model, optimizer, checkpoint, made) if resume and checkpoint.exists() else 0
    model.train()
    began, recent = time.monotonic(), []
    for step, rows in enumerate(_batches(pool, made, first), first):
        for group in optimizer.param_groups:
            group["lr"] = peak * _schedule(step, steps)
        ids_BT, loss_BT = _pad(pool, rows, device)
        torch.manual_seed(made["seed"] * 1_000_003 + step)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=cuda):
            loss = _loss(model, ids_BT, loss_BT, noisy=step % 2 < 2 * NOISY and step > steps // 10)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.detach())
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            left = (time.monotonic() - began) / (done - first) * (steps - done) / 60
            mean = torch.stack(recent).mean().item()
            print(f"llm {done}/{steps}  loss {mean:.4f}  {left:.1f} min left", file=sys.stderr, flush=True)
            recent = []
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "made": made}
            with replacing(checkpoint) as partial_file:
                torch.save(state, partial_file)


def _loss(model: Qwen2ForCausalLM, ids_BT: Tensor, loss_BT: Tensor, *, noisy: bool) -> Tensor:
    """Next-token loss of the assistant's tokens.

    Blanks are noise of a strength of the row's own, and so is, in noisy batches, what lies on the whole prompt.
    """
    embeds_BTD = model.get_input_embeddings()(ids_BT)
    strength_B = torch.rand(len(ids_BT), 1, 1, device=ids_BT.device) * embeds_BTD.std().detach()
    noise_BTD = torch.randn_like(embeds_BTD) * strength_B
    if noisy:
        embeds_BTD = embeds_BTD + noise_BTD.masked_fill(loss_BT[..., None], 0.0)
    blank_BT = (ids_BT == BLANK) & ~loss_BT
    embeds_BTD = torch.where(blank_BT[..., None], BLANK_STRENGTH * noise_BTD, embeds_BTD)
    hidden_BTD = model.model(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    wanted_BT = loss_BT[:, 1:]
    logits_KV = model.lm_head(hidden_BTD[:, :-1][wanted_BT])
    return F.cross_entropy(logits_KV.float(), ids_BT[:, 1:][wanted_BT])


def _batches(pool: Pool, made: dict[str, int], first: int) -> Iterator[np.ndarray]:
    """Rows of about one length; step i draws by its own number, so that a resumed run goes on alike."""
    lengths = np.diff(pool.starts)
    order = np.argsort(lengths, kind="stable")
    for step in range(first, made["steps"]):
        rng = np.random.default_rng([made["seed"], step])
        at = int(rng.integers(len(order)))
        rows = made["tokens_per_step"] // (-(-int(lengths[order[at]]) // BUCKET) * BUCKET)
        start = max(0, min(at - rows // 2, len(order) - rows))
        near = order[max(0, start - rows) : start + 2 * rows]  # neighbours in length, drawn anew each time
        yield rng.choice(near, min(rows, len(near)), replace=False)


def _pad(pool: Pool, rows: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Rows side by side, padded on the right to a multiple of `BUCKET`; padding carries no loss."""
    spans = [(int(pool.starts[row]), int(pool.starts[row + 1])) for row in rows]
    longest = -(-max(end - start for start, end in spans) // BUCKET) * BUCKET
    ids, loss = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), bool)
    for row, (start, end) in enumerate(spans):
        ids[row, : end - start], loss[row, : end - start] = pool.ids[start:end], pool.loss[start:end]
    return tuple(torch.from_numpy(array).to(device, non_blocking=True) for array in (ids, loss))  # type: ignore[return-value]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))


def _restore(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, checkpoint: Path, made: dict[str, int]) -> int:
    state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
    if state["made"] != made:
        raise DualSLMError(f"{checkpoint} belongs to another run", got=state["made"], do="delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
