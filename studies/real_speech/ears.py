"""The study's encoder: whisper-tiny.en with a window of 6 s instead of 30 (docs/real-speech.md says what that does).

RAVDESS' longest clip lasts 5.3 s, and the encoder's cost grows with its window. The weights are the same; of the
table of positions the first ones are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dualslm.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from dualslm.errors import DualSLMError

WINDOW = 6  # s
POSITIONS = "encoder.embed_positions.weight"


def shorten(whisper: Path, out: Path, seconds: int = WINDOW) -> Path:
    """A copy of a Whisper encoder folder whose window is so long.

    Raises:
        DualSLMError: no encoder there.
    """
    if not (whisper / "model.safetensors").exists():
        do = "give the folder of whisper-tiny.en with --encoder"
        raise DualSLMError(f"no Whisper encoder in {whisper}", got="no model.safetensors", do=do)
    if (out / "config.json").exists():
        return out
    tensors = load_file(whisper / "model.safetensors")
    name = next((key for key in tensors if key.endswith(POSITIONS)), None)
    if name is None or len(tensors[name]) < seconds * FRAMES_PER_SECOND:
        do = "give the folder of whisper-tiny.en with --encoder"
        raise DualSLMError(f"{whisper} is not that encoder", got=f"no {seconds} s of {POSITIONS}", do=do)
    tensors[name] = tensors[name][: seconds * FRAMES_PER_SECOND].contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    samples = seconds * SAMPLE_RATE
    shutil.copy(whisper / "preprocessor_config.json", out)
    _edit(out / "preprocessor_config.json", chunk_length=seconds, n_samples=samples, nb_max_frames=samples // 160)
    shutil.copy(whisper / "config.json", out)
    _edit(out / "config.json", max_source_positions=seconds * FRAMES_PER_SECOND)
    return out


def _edit(file: Path, **values: int) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=1) + "\n")
