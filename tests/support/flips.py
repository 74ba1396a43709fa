"""Flips one bit of a stopped run's folder at a random place and goes on: it must be found, or change nothing.

    python tests/support/flips.py --times 200

Every file is as likely as any other, the cache of frames among them, and so is each of its bytes. Found means an error
of one line, or a warning that names the file. Harmless means that the run ends with the bytes of the run that nobody
touched, and that its adapters load with the card that they were saved with. A traceback is neither.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dualslm.errors import DualSLMError
from dualslm.model.checkpoint import read_card, read_weights
from dualslm.recipe import Stage, load, to_toml
from dualslm.training.train import train
from dualslm.training.trainer import Trainer
from support.trainkit import make

STAGES = ("joint", "disentangle")
STOP = ("disentangle", 5)


class _StopError(Exception):
    """Stands for a kill."""


class Heard(logging.Handler):
    """Counts the warnings of the package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def flipped(folder: Path, times: int, seed: int) -> Counter[str]:
    """Tries so many flips in copies of a stopped run.

    Args:
        folder: an empty folder.
        times: number of flips.
        seed: of their places.

    Returns:
        How many were "found", "harmless", or something else, with the place.
    """
    base = folder / "base"
    base.mkdir()
    _stopped_run(base)
    work = folder / "work"
    shutil.copytree(base, work)
    _at(work, base)
    assert outcome(work, {}) == "harmless"
    right = _ended(work)
    files = sorted(path.relative_to(base) for path in (base / "run").rglob("*") if path.is_file())
    files = [file for file in files if (base / file).stat().st_size]
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(times):
        shutil.rmtree(work)
        shutil.copytree(base, work)
        _at(work, base)
        file = rng.choice(files)
        data = bytearray((work / file).read_bytes())
        place = rng.randrange(len(data))
        bit = rng.randrange(8)
        data[place] ^= 1 << bit
        (work / file).write_bytes(data)
        what = outcome(work, right)
        found[what if what in ("found", "harmless") else f"{what} at bit {bit} of byte {place} of {file}"] += 1
    return found


def outcome(folder: Path, right: Mapping[str, Any]) -> str:
    """Goes on with a run and loads what it left.

    Args:
        folder: of recipe, data and run.
        right: what `_ended` gave for the run that nobody touched; {} compares nothing.
    """
    heard = Heard()
    logging.getLogger("dualslm").addHandler(heard)
    try:
        train(load(folder / "recipe.toml"), folder / "run", resume=True, device="cpu")
        ended = _ended(folder)
    except DualSLMError:
        return "found"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger("dualslm").removeHandler(heard)
    if heard.lines:
        return "found"
    return "harmless" if not right or ended == right else "CHANGED"


def _stopped_run(folder: Path) -> None:
    recipe = make(folder, clips=6)
    recipe = replace(recipe, data=replace(recipe.data, features=f"{folder}/run/features"))
    (folder / "recipe.toml").write_text(to_toml(recipe))
    real = Trainer.training_step

    def stopped(self: Trainer, own: Stage, number: int, *rest: Any) -> None:
        if (own.name, number) == STOP:
            raise _StopError
        real(self, own, number, *rest)

    Trainer.training_step = stopped  # type: ignore[assignment,method-assign]
    try:
        train(recipe, folder / "run", device="cpu")
    except _StopError:
        pass
    finally:
        Trainer.training_step = real  # type: ignore[method-assign]


def _at(folder: Path, before: Path) -> None:
    """Lets the recipe and the lists of frames of a copied folder name files where they are now."""
    # The data stay in the first folder: its paths stand in the state, in the cards and in the cache.
    for file in (folder / "recipe.toml", folder / "run" / "recipe.toml"):
        file.write_text(file.read_text().replace(f"{before}/run/", f"{folder}/run/"))


def _ended(folder: Path) -> dict[str, Any]:
    """The adapters of every stage, and of its card what decides what they compute or is told of them."""
    ended = {}
    for stage in STAGES:
        card = read_card(folder / "run" / stage)
        read = read_weights(folder / "run" / stage)
        weights = {key: value.flatten().view(torch.uint8).numpy().tobytes() for key, value in read.items()}
        told = json.dumps([card.paralinguistic, card.linguistic, card.window, card.metrics, card.llm, card.encoder])
        ended[stage] = (weights, told)
    return ended


def main() -> int:
    """Prints how the flips ended; returns 0 where each was found or harmless."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = flipped(Path(folder), args.times, args.seed)
    for what, count in found.most_common():
        print(count, what)
    return 0 if set(found) <= {"found", "harmless"} else 1


if __name__ == "__main__":
    sys.exit(main())
