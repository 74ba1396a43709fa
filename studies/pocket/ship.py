"""The checkpoint that goes into the package: 16-bit weights, and a card that says what it hears and learnt from.

What learnt from MELD's texts or from RAVDESS is refused: neither may be shipped under the licence of the rest.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import soundfile

from dualslm import pocket
from dualslm.audio import SAMPLE_RATE, load
from dualslm.errors import DualSLMError
from dualslm.model import checkpoint
from dualslm.model.dualslm import DualSLM
from studies.pocket.measure import clip, rows_of
from studies.pocket.replies import REPLY

ADAPTERS, RECORDINGS = pocket.ADAPTERS, pocket.RECORDINGS
LICENCE = "cc-by-sa-4.0"  # that of the telephone calls and of DailyTalk's texts, which asks for the same
LIMITS = (
    "hears English sentences of real people with about a third of the words wrong, and tells men from women and loud "
    "from quiet, but no emotions; its LLM is very small and mostly misses the point"
)
MIN_WORDS = 3
UNSHIPPABLE = ("ravdess", "meld", "tess")


PLAYED = ("words-test-librispeech", "words-test-speechocean762", "words-test-wuw2_phone")  # sets that `demo` plays
PLAYED_SECONDS = (2.0, 5.0)
NAMES = {
    "librispeech": "LibriSpeech, CC BY 4.0",
    "speechocean762": "speechocean762, CC BY 4.0",
    "wuw2_phone": "wake words by telephone, CC BY-SA 4.0",
}


def write_recordings(manifests: Path, out: Path, seed: int) -> None:
    """Draws two recordings of each set of tests for `dualslm demo`, of one speaker each, and copies them.

    Args:
        manifests: folder of the manifests of `corpora`.
        out: folder in the package.
        seed: of the draw; what is heard well is not preferred.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"played/{seed}")
    listed = []
    for name in PLAYED:
        rows = [row for row in rows_of(manifests / f"{name}.jsonl") if len(clip(row)["transcript"].split()) > MIN_WORDS]
        short = [row for row in rows if PLAYED_SECONDS[0] < row["seconds"] < PLAYED_SECONDS[1]]
        speakers = rng.sample(sorted({row["speaker"] for row in short}), 2)
        for speaker in speakers:
            row = rng.choice([row for row in short if row["speaker"] == speaker])
            file = f"{len(listed) + 1}_{row['corpus']}.flac"
            soundfile.write(out / file, load(clip(row)["audio"]), SAMPLE_RATE, subtype="PCM_16")
            text, corpus = " ".join(clip(row)["transcript"].split()), NAMES[row["corpus"]]
            listed.append({"file": file, "text": text, "corpus": corpus, "id": row["id"]})
    (out / "clips.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")


def write(model: str, out: Path) -> None:
    """Writes a checkpoint of the study as the package has it.

    Args:
        model: folder of the checkpoint.
        out: folder of the adapters in the package.

    Raises:
        DualSLMError: it learnt from what may not be shipped.
    """
    loaded = DualSLM.from_pretrained(model, encoder=pocket.ENCODER, llm=pocket.LLM)
    learnt = json.dumps(loaded.recipe).lower()
    if found := [name for name in UNSHIPPABLE if name in learnt]:
        raise DualSLMError(f"{model} may not be shipped", got=f"it learnt from {', '.join(found)}", do="leave it out")
    loaded.generation = replace(loaded.generation, repetition_penalty=REPLY.repetition_penalty)
    loaded.adapters.half()
    loaded.save_pretrained(out, license=LICENCE, limits=LIMITS)
    size = (out / checkpoint.WEIGHTS).stat().st_size / 1e6
    print(f"{out}: {size:.0f} MB")
