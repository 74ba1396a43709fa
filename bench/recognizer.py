"""Speech recognition by faster-whisper, in a process of its own, for the cascade of bench/first_token.py.

    python -m venv .cascade && .cascade/bin/pip install faster-whisper torch transformers
    .cascade/bin/python bench/recognizer.py convert WHISPER FOLDER
    .cascade/bin/python bench/recognizer.py serve FOLDER THREADS

`convert` writes a checkpoint in int8, once. `serve` reads the path of a wav file on a line and writes its words as a
line of JSON. Nothing here imports dualslm, which that environment does not have.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def convert(whisper: str, converted: str) -> None:
    """Writes the checkpoint as CTranslate2 reads it, its weights in int8."""
    from ctranslate2.converters import TransformersConverter

    copied = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(whisper, copy_files=copied).convert(converted, quantization="int8", force=True)


def serve(converted: str, threads: int) -> None:
    """Answers every line with the words of the recording that it names."""
    from faster_whisper import WhisperModel

    model: Any = WhisperModel(converted, device="cpu", compute_type="int8", cpu_threads=threads)
    print("ready", flush=True)
    for line in sys.stdin:
        # The quickest settings: one beam, no second try at another temperature, no timestamps.
        parts, _ = model.transcribe(
            line.strip(), language="en", beam_size=1, temperature=0.0, without_timestamps=True, max_new_tokens=100
        )
        print(json.dumps({"text": " ".join(part.text.strip() for part in parts)}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(*sys.argv[2:4])
    else:
        serve(sys.argv[2], int(sys.argv[3]))
