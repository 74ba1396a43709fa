"""Records sentences that somebody reads aloud, one at a time, as a corpus of their own (docs/your-own-voice.md).

Each recording is written, and listed in `clips.jsonl`, before the next sentence is shown, so that a run that was
stopped goes on at the first sentence without a recording. `dualslm prepare jsonl` makes manifests of the list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from dualslm.audio import SAMPLE_RATE, silence
from dualslm.errors import DualSLMError
from dualslm.files import replacing

LIST = "clips.jsonl"
HELD_OUT = 5  # every fifth sentence is for validation: nobody else has this voice
MIN_SECONDS = 0.7  # a shorter recording of a sentence is a cough
AGAIN, STOP = "r", "q"

# Ours: together every sound of English several times, in statements, questions and wishes.
SENTENCES = (
    "Could you tell me what time the next train leaves?",
    "My sister bought a blue jacket at the market yesterday.",
    "I would like a cup of tea with milk and no sugar, please.",
    "The children were laughing so loudly that we heard them from the garden.",
    "Do you think it will rain before we get home?",
    "He put the keys on the kitchen table and forgot about them.",
    "I am so happy that you could come to the party.",
    "We should measure the room before we choose another carpet.",
    "Please call the doctor, my brother has hurt his ankle.",
    "Which of these two songs do you like better?",
    "She usually takes the dog for a walk in the early morning.",
    "I have lost my umbrella, it must be on the bus.",
    "Thank you for the beautiful flowers, they smell wonderful.",
    "The bread is fresh, and there is some cheese in the fridge.",
    "Why did nobody tell me that the shop was closed?",
    "On Thursday we are going to visit my grandmother in the village.",
    "That was a long journey, but the view was worth it.",
    "I cannot sleep because the neighbours are watching television.",
    "Would you mind opening the window for a few minutes?",
    "He joined the choir because he enjoys singing with other people.",
)


def record(
    folder: Path,
    sentences: Sequence[str],
    listen: Callable[[], NDArray[np.float32] | None],
    ask: Callable[[str], str],
    say: Callable[[str], None],
) -> int:
    """Records the sentences that have no recording yet.

    Args:
        folder: folder of the recordings and of their list; made where it is missing.
        sentences: sentences to be read aloud.
        listen: gives the 16 kHz samples (N,) of an utterance; None where the sound ended without one.
        ask: shows a line and gives what is typed.
        say: shows a line.

    Returns:
        The number of sentences that have a recording now.

    Raises:
        DualSLMError: the folder holds recordings of other sentences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / LIST
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    done = len(lines)
    if [json.loads(line)["transcript"] for line in lines] != list(sentences[:done]):
        raise DualSLMError(f"{folder} holds other sentences", got=LIST, do="name another folder with --out")
    while done < len(sentences):
        say(f"{done + 1} of {len(sentences)}:  {sentences[done]}")
        samples = listen()
        if samples is None:
            break
        if fault := _fault(samples):
            say(f"   that was {fault}; once more, please")
            continue
        typed = ask(f"   {len(samples) / SAMPLE_RATE:.1f} s. Enter keeps it, {AGAIN} records again, {STOP} stops: ")
        if typed.strip().lower() == AGAIN:
            continue
        _keep(folder, done, sentences[done], samples)
        done += 1
        if typed.strip().lower() == STOP:
            break
    return done


def _fault(samples: NDArray[np.float32]) -> str | None:
    """Why a recording cannot be a sentence, in words; None where it may be one."""
    if silence(samples):
        return "silence"
    return "too short" if len(samples) < MIN_SECONDS * SAMPLE_RATE else None


def _keep(folder: Path, number: int, sentence: str, samples: NDArray[np.float32]) -> None:
    name = f"{number + 1:03d}.wav"
    with replacing(folder / name) as partial:
        soundfile.write(partial, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    split = "validation" if number % HELD_OUT == HELD_OUT - 1 else "train"
    with (folder / LIST).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"audio": name, "transcript": sentence, "split": split}, ensure_ascii=False) + "\n")
