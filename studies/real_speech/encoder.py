"""The study's encoder: whisper-tiny.en with a window of 6 s instead of 30 (docs/real-speech.md says what that does).

RAVDESS' longest clip lasts 5.3 s, and the encoder's cost grows with its window. The weights are the same, except that
the table of position embeddings is cut to its first rows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dualslm.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from dualslm.errors import DualSLMError

WINDOW_S = 6
POSITIONS = "encoder.embed_positions.weight"


def shorten(whisper: Path, out: Path, seconds: int = WINDOW_S) -> Path:
    """Writes a copy of a Whisper encoder with a shorter window, where there is none yet.

    Args:
        whisper: folder of the encoder.
        out: folder of the copy.
        seconds: window of the copy, in s.

    Returns:
        The folder of the copy.

    Raises:
        DualSLMError: the folder holds no Whisper encoder.
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
    # `contiguous`: safetensors refuses a view of a larger tensor.
    tensors[name] = tensors[name][: seconds * FRAMES_PER_SECOND].contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    samples = seconds * SAMPLE_RATE
    shutil.copy(whisper / "preprocessor_config.json", out)
    _edit(out / "preprocessor_config.json", chunk_length=seconds, n_samples=samples, nb_max_frames=samples // 160)
    # Last, since this file stands for a finished copy.
    shutil.copy(whisper / "config.json", out)
    _edit(out / "config.json", max_source_positions=seconds * FRAMES_PER_SECOND)
    return out


def _edit(file: Path, **values: int) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}, indent=1) + "\n")
