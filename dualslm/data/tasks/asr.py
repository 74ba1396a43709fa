"""ASR: the transcript of what is said (paper §III-B, the linguistic task)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dualslm.data.tasks.task import Clip
from dualslm.recipe import TaskKind

PROMPTS = (
    "Write down what the speaker says, word for word.",
    "You take dictation. Type exactly what you hear and add nothing.",
    "Give the transcript of the recording, and only the transcript.",
    "Turn the speech into text. Do not answer it and do not explain it.",
    "What are the spoken words? Reply with these words alone.",
    "You are a stenographer: keep every word that is spoken, in its order.",
    "Please transcribe the user's speech without comment.",
    "Listen to the recording and repeat it in writing.",
    "Your task is speech recognition. Output the recognised sentence.",
    "Note the user's words as they were spoken, nothing more.",
)
UNSEEN_PROMPTS = (
    "Put into letters every word of this voice message.",
    "Which sentence is spoken here? Quote it exactly.",
    "Be a court reporter: the record must hold what was said, no more and no less.",
    "Caption this audio clip verbatim.",
)


@dataclass(frozen=True)
class Transcription:
    """Transcribes the recording."""

    name: str = "asr"
    kind: TaskKind = "linguistic"
    metric: str = "wer"
    prompts: tuple[str, ...] = PROMPTS
    unseen_prompts: tuple[str, ...] = UNSEEN_PROMPTS

    def lacks(self, clip: Clip) -> str | None:
        """The reason where there is no transcript."""
        return None if str(clip.get("transcript") or "").strip() else "no transcript"

    def ask(self, clip: Clip, rng: random.Random, prompts: Sequence[str]) -> str:
        """One of the prompts."""
        return rng.choice(prompts)

    def answer(self, clip: Clip) -> str:
        """The transcript, in lower case where it is all in capitals."""
        text = str(clip["transcript"]).strip()
        # LibriSpeech is all in capitals. An LLM would not write so by itself, and targets should stay close to what
        # it would write (paper §III-B).
        return text.lower() if text.isupper() else text
