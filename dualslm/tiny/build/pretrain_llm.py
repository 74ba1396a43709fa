"""Trains the tiny world's LLM: Qwen2's architecture, from scratch, on conversations of the world (ours).

In the first part it learns what a real chat LLM can do before any adapter exists, from words as they are written. In
the second part the transcripts are stretched to the pace of speech (`llm_examples`).

A killed run resumes from its last checkpoint.

Dimensions: B rows, T tokens, D width of the LLM, K positions with a label, V vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.tiny.build import tokenizer as world_tokenizer
from dualslm.tiny.build.exam_llm import evaluate
from dualslm.tiny.build.llm_examples import BLANK_ID, Disfluency, Pool, stretch, stumble, write_pool

PEAK_LR = 1.5e-3  # of the first part
SECOND_LR = 7e-4  # of the second part
WARM_UP = 0.03  # of all steps
CLIP_NORM = 1.0
BLANK_NOISE = 1.5  # largest noise in place of a blank, in standard deviations of the embeddings
NOISY_SHARE = 0.5  # batches with noise on the embeddings of the prompt
BUCKET = 32  # tokens: rows are padded to a multiple of it
CHECKPOINT_EVERY = 1000  # steps
REPORT_EVERY = 100  # steps


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
        pool = write_pool(out, size["examples"], seed, processes, disfluency)
        fit(model, pool, out / f"checkpoint-{disfluency.__name__}.pt", settings, device, resume, peak_lr)
        model.bfloat16().float()  # rounded to half precision, because that is what is tested and shipped
    model.to(torch.bfloat16).save_pretrained(out)
    card = {"fluent": dict(fluent), "stretched": dict(stretched), "seed": seed}
    card |= {"parameters": sum(p.numel() for p in model.parameters()), **evaluate(out, n=tested, device=device)}
    with replacing(out / "card.json") as partial_file:
        partial_file.write_text(json.dumps(card, indent=2) + "\n")
    return card


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
