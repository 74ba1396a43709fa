"""Respond: a conversation whose answer is the frozen LLM's own reply to the styled transcript (paper §III-B).

The answers are written once, by `dualslm targets`; until then a line with this task gives no example.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dualslm.data.tasks.captions import caption
from dualslm.data.tasks.task import Clip
from dualslm.recipe import TaskKind

PROMPTS = (
    "You are talking with the user. Answer in one or two short sentences, as one does in a conversation.",
    "Be a good listener: reply to what the user says and to how it is said, briefly.",
    "You are a friendly voice assistant. Keep your replies short, natural and fit to be spoken.",
    "Hold a conversation with the user. Be attentive to the mood and answer in a few words.",
    "Continue the talk. One or two sentences of plain, spoken English are enough.",
    "You are a companion who cares how the user feels. Answer kindly and to the point.",
    "Reply as a considerate friend would on the phone: short, warm and relevant.",
    "Take your turn in this conversation. Mind the words as well as the voice of the user.",
    "Respond to the user in everyday language, without lists, in at most two sentences.",
    "You chat with the user. Let your reply suit what was said and the tone in which it was said.",
)
UNSEEN_PROMPTS = (
    "Somebody calls you. Say something back that fits, and do not go on for long.",
    "Act as a good neighbour in a chat over the fence: a sentence or two, in plain words.",
    "Give the answer that a patient and attentive person would give aloud.",
    "It is your turn to speak. Be natural, be brief, and take into account how you were spoken to.",
)


@dataclass(frozen=True)
class Response:
    """Replies to the user, by words and voice: the task with dual information."""

    name: str = "respond"
    kind: TaskKind = "dual"
    metric: str = "judge"
    prompts: tuple[str, ...] = PROMPTS
    unseen_prompts: tuple[str, ...] = UNSEEN_PROMPTS

    def lacks(self, clip: Clip) -> str | None:
        """The reason where the transcript is missing, or anything known of how it is said."""
        # The frozen LLM answers the styled transcript, which is made of both.
        if not str(clip.get("transcript") or "").strip():
            return "no transcript"
        known = clip.get("caption") or caption(clip.get("labels") or {})
        return None if known else "nothing known of how it is said"

    def ask(self, clip: Clip, rng: random.Random, prompts: Sequence[str]) -> str:
        """One of the prompts."""
        return rng.choice(prompts)

    def answer(self, clip: Clip) -> None:
        """None: the frozen LLM writes the answer."""
