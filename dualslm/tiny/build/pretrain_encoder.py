"""Trains the tiny world's speech encoder: Whisper's architecture on synthetic speech (ours).

The training voices say sentences of the world and soups of random words in all styles; half of the clips get
reverberation and noise. `encoder_heads` has the tasks. Clips are always padded to the full window, as the encoder is
used later. On a GPU all clips stay in its memory and are augmented there.

A killed run resumes from its last checkpoint; on a CPU it ends with the weights of a run that never stopped.

Dimensions: B clips, N samples of a full window, S symbols of a label sequence.
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
from dualslm.evaluation.metrics.wer import word_errors
from dualslm.tiny import world
from dualslm.tiny.build.encoder_heads import (
    LETTERS,
    EncoderForPretraining,
    EncoderLabels,
    encoder_config,
    greedy_ctc,
    total,
)
from dualslm.tiny.build.probes import labels_of, pool, probe_accuracies
from dualslm.tiny.build.signals import SAMPLES_PER_FRAME, augment, log_mel, mask_mel, prosody
from dualslm.tiny.style import ATTRIBUTES, Style, sample_style
from dualslm.tiny.voices import MAX_SECONDS, Job, render_many, voices

WINDOW_S = int(MAX_SECONDS)
PEAK_LR = 1e-3
WARM_UP = 0.06  # of all steps
SOUP_SHARE = 0.4  # soups of random words: without them the encoder learns the sentences, not the words
TIED = 0.3  # how far style follows emotion: less than in the world, so that the encoder tells all attributes apart
CHECKPOINT_EVERY = 1000  # steps
REPORT_EVERY = 100  # steps
TEST_BATCH = 64  # clips


@dataclass(frozen=True)
class Clips:
    """Rendered utterances in the memory of one device.

    Attributes:
        jobs: the jobs that were rendered.
        pcm: all 16-bit samples, end to end.
        starts_B, lengths_B: first sample and number of samples of each clip in `pcm`.
        words_BS, letters_BS, styles_BA: labels, see `encoder_heads.EncoderLabels`.
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
        offset_N = torch.arange(WINDOW_S * 16_000, device=self.pcm.device)
        inside_BN = offset_N < self.lengths_B[rows_B, None]
        index_BN = (self.starts_B[rows_B, None] + offset_N).clamp(max=len(self.pcm) - 1)
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
        out: output folder, for config.json, model.safetensors (half precision), preprocessor_config.json and card.json.
        utterances: number of clips to train on.
        steps: number of optimizer steps.
        batch: number of clips of a step.
        seed: seed of every draw.
        device: where the encoder is trained, such as "cpu" or "cuda".
        processes: number of processes that render.
        resume: whether to resume from a checkpoint in `out`, if there is one.

    Returns:
        The card: the settings, and word error rates and probe accuracies in percent.

    Raises:
        DualSLMError: the checkpoint belongs to a run with other arguments.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {"utterances": utterances, "steps": steps, "batch": batch, "seed": seed}
    clips = _render(_plan("train", utterances, seed), device, processes)
    torch.manual_seed(seed)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    model = EncoderForPretraining(encoder_config(), world.vocabulary()).to(device)
    _train(model, clips, extractor, out / "checkpoint.pt", settings, resume)
    model.half().float()  # rounded to half precision before the test, because that is what is shipped
    card = {**settings, "parameters": sum(p.numel() for p in model.encoder.parameters())}
    card |= _examine(model, clips, extractor, seed, processes)
    _save(model, extractor, card, out)
    return card


def _plan(name: str, count: int, seed: int) -> list[Job]:
    """The jobs of a set: "train", or "seen" or "unseen" with held-out sentences in training or held-out voices."""
    jobs = []
    vocabulary = world.vocabulary()
    for index in range(count):
        rng = random.Random(f"encoder/{seed}/{name}/{index}")
        if name == "train" and rng.random() < SOUP_SHARE:
            text = " ".join(rng.choices(vocabulary, k=rng.randint(2, 8)))
        else:
            text = world.sentence(rng, held_out=name != "train")
        style = sample_style(rng, TIED)
        voice = rng.choice(voices(style.gender, held_out=name == "unseen"))
        jobs.append(Job(text, style, voice, rng.randrange(2**31)))
    return jobs


def _render(jobs: Sequence[Job], device: str, processes: int) -> Clips:
    """Renders the jobs and moves clips and labels to the device."""
    waves = list(render_many(jobs, processes))
    word_number = {word: number for number, word in enumerate(world.vocabulary(), 1)}
    letter_number = {letter: number for number, letter in enumerate(LETTERS, 1)}
    words = [world.words(job.text) for job in jobs]
    letters = [" ".join(spoken).lower() for spoken in words]
    lengths_B = torch.tensor([len(wave) for wave in waves])
    return Clips(
        jobs=jobs,
        pcm=torch.from_numpy(np.concatenate(waves)).to(device),
        starts_B=(lengths_B.cumsum(0) - lengths_B).to(device),
        lengths_B=lengths_B.to(device),
        words_BS=_pad([[word_number[word] for word in spoken] for spoken in words], device),
        letters_BS=_pad([[letter_number[one] for one in text if one in letter_number] for text in letters], device),
        styles_BA=torch.stack([labels_of(_styles(jobs), name) for name in ATTRIBUTES], 1).to(device),
    )


def _pad(rows: Sequence[Sequence[int]], device: str) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


def _styles(jobs: Sequence[Job]) -> list[Style]:
    return [job.style for job in jobs]


def _train(
    model: EncoderForPretraining,
    clips: Clips,
    extractor: WhisperFeatureExtractor,
    checkpoint: Path,
    settings: dict[str, int],
    resume: bool,
) -> None:
    steps = settings["steps"]
    device = clips.pcm.device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=device.type == "cuda"
    )
    first = _restore(model, optimizer, checkpoint, settings) if resume and checkpoint.exists() else 0
    began = time.monotonic()
    model.train()
    for step in range(first, steps):
        # Seeded by the step's number alone: a resumed run draws what an uninterrupted one does.
        torch.manual_seed(settings["seed"] * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * _schedule(step, steps)
        losses = _step(model, clips, extractor, settings["batch"])
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            left = (time.monotonic() - began) / (done - first) * (steps - done) / 60
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            print(f"encoder {done}/{steps}  {shown}  {left:.1f} min left", file=sys.stderr, flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {
                "learner": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
                "made": settings,
            }
            _replace(checkpoint, lambda path, state=state: torch.save(state, path))


def _step(
    model: EncoderForPretraining, clips: Clips, extractor: WhisperFeatureExtractor, batch: int
) -> dict[str, Tensor]:
    """The losses of one random batch."""
    device = clips.pcm.device
    rows_B = torch.randint(len(clips.jobs), (batch,), device=device)
    waves_BN = clips.waves(rows_B)
    lengths_B = clips.lengths_B[rows_B]
    # Spectrum and prosody are those of the clean clip: the encoder learns to hear through echoes and noise.
    labels = EncoderLabels(
        frames_B=clips.frames(rows_B),
        words_BS=clips.words_BS[rows_B],
        letters_BS=clips.letters_BS[rows_B],
        styles_BA=clips.styles_BA[rows_B],
        mel_BMF=log_mel(waves_BN, extractor),
        prosody=prosody(waves_BN),
    )
    mel_BMF = mask_mel(log_mel(augment(waves_BN, lengths_B), extractor), lengths_B)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return model.losses(model(mel_BMF), labels)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def _restore(
    model: EncoderForPretraining, optimizer: torch.optim.Optimizer, checkpoint: Path, settings: dict[str, int]
) -> int:
    """Loads a checkpoint; returns the number of its finished steps."""
    state = torch.load(checkpoint, map_location=next(model.parameters()).device, weights_only=True)
    if state["made"] != settings:
        raise DualSLMError(
            f"{checkpoint} belongs to another run", got=state["made"], do="delete it, or repeat its arguments"
        )
    model.load_state_dict(state["learner"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _encode(
    model: EncoderForPretraining, clips: Clips, extractor: WhisperFeatureExtractor, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The last layer and the valid frames of the first clips, clean, a batch at a time."""
    model.eval()
    for rows_B in torch.arange(rows, device=clips.pcm.device).split(TEST_BATCH):
        yield model(log_mel(clips.waves(rows_B), extractor)).last_BTD, clips.frames(rows_B)


@torch.no_grad()
def _examine(
    model: EncoderForPretraining, clips: Clips, extractor: WhisperFeatureExtractor, seed: int, processes: int
) -> dict[str, Any]:
    """Word error rates and probe accuracies in percent, on held-out sentences."""
    device = str(clips.pcm.device)
    count = max(10, min(500, len(clips.jobs) // 20))
    fitted = min(8 * count, len(clips.jobs))  # training clips that the probes are fitted to
    pooled_BD = torch.cat([pool(*encoded) for encoded in _encode(model, clips, extractor, fitted)])
    figures: dict[str, Any] = {"tested_utterances": count}
    for name in ("seen", "unseen"):
        test = _render(_plan(name, count, seed), device, processes)
        encoded = list(_encode(model, test, extractor, count))
        written: list[list[str]] = []
        for last_BTD, frames_B in encoded:
            written += greedy_ctc(model.words(last_BTD), frames_B, world.vocabulary())
        right = [world.words(job.text) for job in test.jobs]
        errors = sum(word_errors(a, b) for a, b in zip(right, written, strict=True))
        figures[f"wer_{name}_voices"] = round(100 * errors / sum(map(len, right)), 2)
        test_BD = torch.cat([pool(*one) for one in encoded])
        probes = probe_accuracies(pooled_BD, _styles(clips.jobs[:fitted]), test_BD, _styles(test.jobs))
        figures[f"probes_{name}_voices"] = {attribute: round(100 * value, 1) for attribute, value in probes.items()}
    return figures


def _save(model: EncoderForPretraining, extractor: WhisperFeatureExtractor, card: dict[str, Any], out: Path) -> None:
    # transformers writes in place, so it gets a folder of its own; each file is moved when all are complete.
    fresh = out / "new"
    model.encoder.half().save_pretrained(fresh)
    extractor.save_pretrained(fresh)
    (fresh / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    for file in sorted(fresh.iterdir()):
        _replace(out / file.name, file.replace)
    fresh.rmdir()


def _replace(path: Path, write: Any) -> None:
    """Writes a file under a temporary name, syncs it and renames it: nobody ever reads half a file.

    Args:
        path: the file's final path.
        write: function that writes to the path that it is given.
    """
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
