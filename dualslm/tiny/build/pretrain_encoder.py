"""Makes the tiny world's speech encoder: Whisper's architecture, trained once on synthetic speech (ours).

Sentences of the world and random word soups are spoken by the training voices in all styles; half of what the
encoder hears is in rooms and noise. `hearing` says what it learns. Clips are always padded to the full
window, as the encoder will be used. On a GPU all clips stay in its memory and are augmented there.

A run that is killed goes on from its last checkpoint; on a CPU it ends as if it had never stopped.

Dimensions: B clips, N samples of a full window, S symbols of a target.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from dualslm.errors import DualSLMError
from dualslm.evaluation.metrics import word_errors
from dualslm.tiny import world
from dualslm.tiny.build.hearing import LETTERS, EncoderSample, Learner, encoder_config, read_out, total
from dualslm.tiny.build.probes import labels_of, pool, probe_accuracies
from dualslm.tiny.build.signals import SAMPLES_PER_FRAME, augment, log_mel, mask_mel, prosody
from dualslm.tiny.style import ATTRIBUTES, Style, sample_style
from dualslm.tiny.voices import MAX_SECONDS, Job, render_many, voices

WINDOW_S = int(MAX_SECONDS)
PEAK_LR = 1e-3
WARM_UP = 0.06  # of all steps
SOUPS = 0.4  # share of random word soups: without them the encoder learns the sentences, not the words
TIED = 0.3  # how far style follows emotion: less than in the world, so that every attribute is heard alone
CHECKPOINT_EVERY, REPORT_EVERY = 1000, 100  # steps
TESTED_AT_ONCE = 64


@dataclass(frozen=True)
class Clips:
    """Rendered utterances in the memory of one device.

    Attributes:
        jobs: what was rendered.
        pcm: all 16-bit samples, end to end.
        starts_B, lengths_B: where each clip lies in `pcm`.
        words_BS, letters_BS, styles_BA: see `hearing.EncoderSample`.
    """

    jobs: Sequence[Job]
    pcm: Tensor
    starts_B: Tensor
    lengths_B: Tensor
    words_BS: Tensor
    letters_BS: Tensor
    styles_BA: Tensor

    def waves(self, rows_B: Tensor) -> Tensor:
        """Chosen clips, zero-padded to the window: (B, N) float32."""
        place_N = torch.arange(WINDOW_S * 16_000, device=self.pcm.device)
        inside_BN = place_N < self.lengths_B[rows_B, None]
        index_BN = (self.starts_B[rows_B, None] + place_N).clamp(max=len(self.pcm) - 1)
        return torch.where(inside_BN, self.pcm[index_BN], 0).float() / 32767

    def frames(self, rows_B: Tensor) -> Tensor:
        """Valid encoder frames of chosen clips."""
        return (self.lengths_B[rows_B] + SAMPLES_PER_FRAME - 1) // SAMPLES_PER_FRAME


def pretrain(
    out: Path,
    *,
    utterances: int,
    steps: int,
    batch: int,
    seed: int,
    device: str,
    processes: int,
    resume: bool = True,
) -> dict[str, Any]:
    """Renders the speech, trains the encoder, tests it and writes it to a folder.

    Args:
        out: gets config.json, model.safetensors (half precision), preprocessor_config.json and card.json.
        utterances: clips to render and learn from.
        steps: of the optimizer.
        batch: clips in a step.
        seed: of everything.
        device: "cpu", "cuda", ...
        processes: that render.
        resume: go on from a checkpoint in `out`, if there is one.

    Returns:
        The card: how it was made, word error rates and probe accuracies, both in percent.

    Raises:
        DualSLMError: the checkpoint belongs to a run with other arguments.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = {"utterances": utterances, "steps": steps, "batch": batch, "seed": seed}
    clips = _speak(_plan("train", utterances, seed), device, processes)
    torch.manual_seed(seed)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    learner = Learner(encoder_config(), world.vocabulary()).to(device)
    _train(learner, clips, extractor, out / "checkpoint.pt", made, resume)
    learner.half().float()  # tested as shipped
    card = {**made, "parameters": sum(p.numel() for p in learner.encoder.parameters())}
    card |= _examine(learner, clips, extractor, seed, processes)
    _save(learner, extractor, card, out)
    return card


def _plan(name: str, count: int, seed: int) -> list[Job]:
    """Jobs for "train", or for "seen" or "unseen" voices with sentences that training never hears."""
    jobs, vocabulary = [], world.vocabulary()
    for index in range(count):
        rng = random.Random(f"encoder/{seed}/{name}/{index}")
        if name == "train" and rng.random() < SOUPS:
            text = " ".join(rng.choices(vocabulary, k=rng.randint(2, 8)))
        else:
            text = world.sentence(rng, held_out=name != "train")
        style = sample_style(rng, TIED)
        voice = rng.choice(voices(style.gender, held_out=name == "unseen"))
        jobs.append(Job(text, style, voice, rng.randrange(2**31)))
    return jobs


def _speak(jobs: Sequence[Job], device: str, processes: int) -> Clips:
    waves = list(render_many(jobs, processes))
    number = {word: place for place, word in enumerate(world.vocabulary(), 1)}
    words = [world.words(job.text) for job in jobs]
    lengths_B = torch.tensor([len(wave) for wave in waves])
    return Clips(
        jobs=jobs,
        pcm=torch.from_numpy(np.concatenate(waves)).to(device),
        starts_B=(lengths_B.cumsum(0) - lengths_B).to(device),
        lengths_B=lengths_B.to(device),
        words_BS=_pad([[number[word] for word in said] for said in words], device),
        letters_BS=_pad([_letters(" ".join(said)) for said in words], device),
        styles_BA=torch.stack([labels_of(_styles(jobs), name) for name in ATTRIBUTES], 1).to(device),
    )


def _letters(text: str) -> list[int]:
    return [1 + LETTERS.index(letter) for letter in text.lower() if letter in LETTERS]


def _pad(rows: Sequence[Sequence[int]], device: str) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


def _styles(jobs: Sequence[Job]) -> list[Style]:
    return [job.style for job in jobs]


def _train(
    learner: Learner,
    clips: Clips,
    extractor: WhisperFeatureExtractor,
    checkpoint: Path,
    made: dict[str, int],
    resume: bool,
) -> None:
    steps, device = made["steps"], clips.pcm.device
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=device.type == "cuda"
    )
    first = _restore(learner, optimizer, checkpoint, made) if resume and checkpoint.exists() else 0
    began = time.monotonic()
    learner.train()
    for step in range(first, steps):
        torch.manual_seed(made["seed"] * 1_000_003 + step)  # each step's chance depends on its number alone
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * _schedule(step, steps)
        losses = _step(learner, clips, extractor, made["batch"])
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            left = (time.monotonic() - began) / (done - first) * (steps - done) / 60
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"encoder {done}/{steps}  {shown}  {left:.1f} min left", file=sys.stderr, flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {
                "learner": learner.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "made": made,
            }
            _replace(checkpoint, lambda path, state=state: torch.save(state, path))


def _step(learner: Learner, clips: Clips, extractor: WhisperFeatureExtractor, batch: int) -> dict[str, Tensor]:
    device = clips.pcm.device
    rows_B = torch.randint(len(clips.jobs), (batch,), device=device)
    waves_BN, lengths_B = clips.waves(rows_B), clips.lengths_B[rows_B]
    lesson = EncoderSample(
        frames_B=clips.frames(rows_B),
        words_BS=clips.words_BS[rows_B],
        letters_BS=clips.letters_BS[rows_B],
        styles_BA=clips.styles_BA[rows_B],
        mel_BMF=log_mel(waves_BN, extractor),
        prosody=prosody(waves_BN),
    )
    mel_BMF = mask_mel(log_mel(augment(waves_BN, lengths_B), extractor), lengths_B)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return learner.losses(learner(mel_BMF), lesson)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _restore(learner: Learner, optimizer: torch.optim.Optimizer, checkpoint: Path, made: dict[str, int]) -> int:
    state = torch.load(checkpoint, map_location=next(learner.parameters()).device, weights_only=True)
    if state["made"] != made:
        raise DualSLMError(
            f"{checkpoint} belongs to another run", got=state["made"], do="delete it, or repeat its arguments"
        )
    learner.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


@torch.no_grad()
def _encode(
    learner: Learner, clips: Clips, extractor: WhisperFeatureExtractor, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The last layer and the valid frames of the first clips, clean, a batch at a time."""
    learner.eval()
    for rows_B in torch.arange(rows, device=clips.pcm.device).split(TESTED_AT_ONCE):
        yield learner(log_mel(clips.waves(rows_B), extractor)).last_BTD, clips.frames(rows_B)


def _examine(
    learner: Learner, clips: Clips, extractor: WhisperFeatureExtractor, seed: int, processes: int
) -> dict[str, Any]:
    """Word error rates and probe accuracies in percent, on sentences that training never heard."""
    device, count = str(clips.pcm.device), max(10, min(500, len(clips.jobs) // 20))
    known = min(8 * count, len(clips.jobs))
    pooled_BD = torch.cat([pool(*heard) for heard in _encode(learner, clips, extractor, known)])
    found: dict[str, Any] = {"tested_utterances": count}
    for name in ("seen", "unseen"):
        test = _speak(_plan(name, count, seed), device, processes)
        heard = list(_encode(learner, test, extractor, count))
        said = [text for last, frames in heard for text in _transcribe(learner, last, frames)]
        right = [world.words(job.text) for job in test.jobs]
        errors = sum(word_errors(a, b) for a, b in zip(right, said, strict=True))
        found[f"wer_{name}_voices"] = round(100 * errors / sum(map(len, right)), 2)
        probes = probe_accuracies(
            pooled_BD, _styles(clips.jobs[:known]), torch.cat([pool(*h) for h in heard]), _styles(test.jobs)
        )
        found[f"probes_{name}_voices"] = {attribute: round(100 * value, 1) for attribute, value in probes.items()}
    return found


@torch.no_grad()
def _transcribe(learner: Learner, last_BTD: Tensor, frames_B: Tensor) -> list[list[str]]:
    return read_out(learner.words(last_BTD), frames_B, world.vocabulary())


def _save(learner: Learner, extractor: WhisperFeatureExtractor, card: dict[str, Any], out: Path) -> None:
    fresh = out / "new"
    learner.encoder.half().save_pretrained(fresh)
    extractor.save_pretrained(fresh)
    (fresh / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    for file in sorted(fresh.iterdir()):
        _replace(out / file.name, file.replace)
    fresh.rmdir()


def _replace(path: Path, write: Any) -> None:
    """Writes a file under a temporary name, syncs it and gives it its name: it is never seen half-written."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
