"""Which words the shipped adapters miss when the LLM writes down what L says, and in what company.

    python bench/word_errors.py [--count 500] [--out docs/results/word_errors.json]

Held-out sentences in voices heard in training, L alone. A sentence with three errors or more has derailed: the
LLM lost its place in it. Beside that, how far the frozen encoder alone would get, from its card.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dualslm.conversation import Conversation, View
from dualslm.evaluation.metrics.wer import word_errors, words
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from dualslm.tiny import WEIGHTS, load, world
from dualslm.tiny.build.recordings import Recordings
from dualslm.tiny.build.run import _record

DERAILED = 3  # errors
AT_ONCE = 100


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    model = load(device="cpu")
    found = measure(model, _record(model, "seen", args.count, args.processes))
    found |= {"command": " ".join(["python", *sys.argv]), "n": args.count, "seed": 0}
    print(json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(model: DualSLM, recordings: Recordings) -> dict[str, Any]:
    """Errors by sentence, tempo, emotion and length."""
    sentences: Counter[str] = Counter()
    within: Counter[str] = Counter()
    company: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for take, heard in zip(recordings.takes, written(model, recordings), strict=True):
        said = words(take.utterance.text)
        errors = word_errors(said, words(heard))
        kind = "exact" if errors == 0 else "derailed" if errors >= DERAILED else "a word or two"
        sentences[kind] += 1
        within[kind] += errors
        length = "fewer than 8 words" if len(said) < 8 else "8 to 11 words" if len(said) < 12 else "12 words or more"
        for name in ("all", f"{take.style.tempo} speech", f"{take.style.emotion} voice", length):
            company[name][0] += errors
            company[name][1] += len(said)
    rates = {name: 100 * wrong / total for name, (wrong, total) in sorted(company.items())}
    encoder = json.loads((WEIGHTS / "encoder" / "card.json").read_text())["wer_seen_voices"]
    return {"sentences": dict(sentences), "errors": dict(within), "rates": rates, "encoder_ctc": encoder}


def written(model: DualSLM, recordings: Recordings) -> list[str]:
    """What the LLM writes down, from L alone."""
    prompts = []
    for index, take in enumerate(recordings.takes):
        conversation = world.transcription(take.speech, random.Random(f"exam/{index}"))
        question = Conversation(conversation.system, conversation.turns[:-1])
        prompts.append(render(question, model.llm.tokenizer, View("none", "speech")))
    answers: list[str] = []
    for start in range(0, len(prompts), AT_ONCE):
        some = prompts[start : start + AT_ONCE]
        answers += model.generate(some, hear=recordings.hear, generation=GenerationSettings(max_new_tokens=48))
    return answers


if __name__ == "__main__":
    main()
