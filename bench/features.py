"""`features` with short windows and with the encoder's own, and what `plan` says of it.

    python bench/features.py --encoder WHISPER [--hours 1] [--rounds 8] [--quick] [--out RESULT.json]

Clips of 1 to 10 s, all lengths equally often, are encoded into caches of both rules as `dualslm features` does it:
decoded, encoded, written. They come in as many parts as there are rounds; each part is encoded by one rule and then by
the other, the order changing from part to part, and its ratio is that of two neighbouring times. `plan` predicts the
ratio by its count of FLOPs. `--quick` only shows that it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs/build"))

import numpy as np
import soundfile
import tables
import torch
from measuring import about, seconds_of, write_result

from dualslm import pocket, tiny
from dualslm.audio import SAMPLE_RATE, Window
from dualslm.model.encoder import SpeechEncoder
from dualslm.recipe import ModelRecipe
from dualslm.training import feature_cache
from dualslm.training.estimate import encoding_flops
from dualslm.training.shapes import encoder_shape

SECONDS = (1.0, 10.0)  # shortest and longest clip
RULES: tuple[Window, Window] = ("full", "clip")


def write_clips(folder: Path, hours: float) -> list[tuple[str, float]]:
    """Writes noise of so many hours in all; gives the path and the length in s of each clip, in random order."""
    rng = np.random.default_rng(0)
    count = max(2, round(3600 * hours / (sum(SECONDS) / 2)))
    found = []
    for number, seconds in enumerate(rng.permutation(np.linspace(*SECONDS, count))):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(round(SAMPLE_RATE * seconds)), SAMPLE_RATE)
        found.append((str(path), float(seconds)))
    return found


def predicted(encoder: str, clips: list[tuple[str, float]]) -> float:
    """How many times the work of short windows the full ones are, by the FLOPs that `plan` counts."""
    shape = encoder_shape(encoder)
    sums = []
    for rule in RULES:
        model = ModelRecipe(encoder=encoder, llm="", window=rule)
        sums.append(sum(encoding_flops(shape, seconds, model) for _, seconds in clips))
    return sums[0] / sums[1]


def measure(encoder: str, clips: list[tuple[str, float]], rounds: int, folder: Path) -> list[dict[str, float]]:
    """Seconds of each rule for each part of the clips."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    encoders = {rule: SpeechEncoder.from_pretrained(encoder, dtype=dtype, device=device, window=rule) for rule in RULES}
    found = []
    for number in range(rounds):
        paths = [path for path, _ in clips[number::rounds]]
        seconds: dict[str, float] = {}
        for rule in RULES if number % 2 else reversed(RULES):
            cache = folder / f"{rule}-{number}"
            build = partial(feature_cache.build, encoders[rule], paths, cache, say=lambda _: None)
            seconds[rule] = seconds_of(build, device)
        found.append(seconds)
        print(f"part {number + 1} of {rounds}: " + ", ".join(f"{rule} {took:.1f} s" for rule, took in seconds.items()))
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=pocket.ENCODER)
    parser.add_argument("--hours", type=float, default=1.0, help="of speech")
    parser.add_argument("--rounds", type=int, default=8, help="parts that the clips are encoded in")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.quick:
        args.encoder, args.hours, args.rounds = str(tiny.WEIGHTS / "encoder"), 0.01, 2
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder), args.hours)
        rounds = measure(args.encoder, clips, args.rounds, Path(folder))
        ratios = [one["full"] / one["clip"] for one in rounds]
        result: dict[str, Any] = {
            **about(),
            "encoder": args.encoder,
            "hours": args.hours,
            "clips": len(clips),
            "rounds": rounds,
            "ratios": ratios,
            "predicted": predicted(args.encoder, clips),
        }
    write_result(result, args.out)
    print(tables.features(result))


if __name__ == "__main__":
    main()
