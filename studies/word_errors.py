"""How the word errors of the shipped adapters fall on sentences, from L alone, by length, tempo and emotion.

    python -m studies.word_errors [--count 500] [--out docs/results/word_errors.json]

Held-out sentences in voices of the training data. A sentence with three errors or more is "derailed": the small LLM
went on with another sentence, or wrote a part twice. For comparison, the frozen encoder's own word error rate, from its
card.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from dualslm.conversation import L_ONLY
from dualslm.evaluation.metrics.wer import word_errors, words
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.prompt import render
from dualslm.tiny import WEIGHTS, load, world
from dualslm.tiny.build.exam import without_answer
from dualslm.tiny.build.recordings import Recordings
from dualslm.tiny.build.run import record_test_set

DERAILED_ERRORS = 3
BATCH = 100  # prompts


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    model = load(device="cpu")
    found = measure(model, record_test_set(model, "seen", args.count, args.processes))
    found |= {"command": " ".join(["python -m studies.word_errors", *sys.argv[1:]]), "n": args.count, "seed": 0}
    print(json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(model: DualSLM, recordings: Recordings) -> dict[str, Any]:
    """Sentences and errors by kind of sentence, and word error rates in percent by group."""
    sentences: Counter[str] = Counter()
    errors_in: Counter[str] = Counter()
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # errors and words
    for take, answer in zip(recordings.takes, transcripts(model, recordings), strict=True):
        right = words(take.utterance.text)
        errors = word_errors(right, words(answer))
        kind = "exact" if errors == 0 else "derailed" if errors >= DERAILED_ERRORS else "a word or two"
        sentences[kind] += 1
        errors_in[kind] += errors
        length = "fewer than 8 words" if len(right) < 8 else "8 to 11 words" if len(right) < 12 else "12 words or more"
        for name in ("all", f"{take.style.tempo} speech", f"{take.style.emotion} voice", length):
            groups[name][0] += errors
            groups[name][1] += len(right)
    rates = {name: 100 * wrong / total for name, (wrong, total) in sorted(groups.items())}
    # By CTC, without any LLM: what these errors are not due to.
    encoder = json.loads((WEIGHTS / "encoder" / "card.json").read_text())["wer_seen_voices"]
    return {"sentences": dict(sentences), "errors": dict(errors_in), "rates": rates, "encoder_ctc": encoder}


def transcripts(model: DualSLM, recordings: Recordings) -> list[str]:
    """What the LLM writes down, from L alone."""
    prompts = []
    for index, take in enumerate(recordings.takes):
        # The wording of `dualslm.tiny.build.exam`, so that the rate of all is the one that it reports.
        conversation = world.transcription(take.speech, random.Random(f"exam/{index}"))
        prompts.append(render(without_answer(conversation), model.llm.tokenizer, L_ONLY))
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        answers += model.generate(batch, hear=recordings.hear, generation=GenerationSettings(max_new_tokens=48))
    return answers


if __name__ == "__main__":
    main()
