"""Our checkpoints, an LLM that reads text, and a cascade: whatever a frozen causal LM of ours answers (paper §IV).

All three render a talk through a `View` and decode alike. An LLM alone knows the views from text: `text,text` is the
oracle, `none,text` what a cascade with a perfect recogniser knows.

Dimensions: T tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dualslm.conversation import (
    L_ONLY,
    NORMAL,
    ORACLE,
    P_ONLY,
    TRANSCRIPT,
    Conversation,
    Reply,
    Speech,
    Turn,
    View,
)
from dualslm.evaluation.systems.item import Item
from dualslm.model.checkpoint import fingerprint
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Prompt, render
from dualslm.recipe import TaskKind

VIEWS: Mapping[TaskKind, tuple[View, ...]] = {
    "linguistic": (NORMAL, L_ONLY, P_ONLY),  # P: the leak cell
    "paralinguistic": (NORMAL, P_ONLY, L_ONLY, ORACLE, TRANSCRIPT),  # L and the transcript: what words alone give away
    "dual": (NORMAL, P_ONLY, L_ONLY, ORACLE, TRANSCRIPT),
}


@dataclass
class Ours:
    """A checkpoint of ours.

    Attributes:
        model: with its adapters.
        how: decoding settings.
        name: as reports call it.
        weigh: also give the likelihood of each choice.
    """

    model: DualSLM
    generation: GenerationSettings
    name: str
    weigh: bool = False
    kept: tuple[tuple[str, ...], Frames] | None = None

    @property
    def about(self) -> dict[str, Any]:
        """The card: frozen parts, training recipe, decoding."""
        model = self.model
        return {
            "kind": "dualslm",
            "encoder": model.encoder.name,
            "encoder_revision": model.encoder.revision,
            "llm": model.llm.name,
            "llm_revision": model.llm.revision,
            "llm_fingerprint": fingerprint(model.llm),
            "adapters_fingerprint": fingerprint(model.adapters),
            "stage": dict(model.metrics).get("stage"),
            "decoding": self.generation.stated,
            "likelihoods": self.weigh,
        }

    def views(self, item: Item) -> Sequence[View]:
        """By the kind of the task."""
        return VIEWS[item.kind]

    def unfit(self, item: Item) -> str | None:
        """Any item will do."""
        return None

    @torch.no_grad()
    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Replies of one batch, and the likelihoods of the choices where they are asked for."""
        assert view is not None
        prompts = [render(item.conversation, self.model.llm.tokenizer, view) for item in items]
        answers = decode(self.model.llm, self.model.embed(prompts, self.hear), self.generation)
        if not self.weigh:
            return answers
        return [
            replace(answer, likelihoods=self._weighed(item, view)) for answer, item in zip(answers, items, strict=True)
        ]

    def _weighed(self, item: Item, view: View) -> dict[str, float]:
        return likelihoods(item, view, self.model.llm, lambda prompts: self.model(prompts, self.hear))

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of recordings; those of the last batch are kept, since views of one batch follow each other.

        They are never kept longer: their company, and so the last bits, would depend on what was asked before.
        """
        names = tuple(str(clip.audio) for clip in clips)
        if self.kept is None or self.kept[0] != names:
            self.kept = (names, self.model.hear(clips))
        return self.kept[1]


@dataclass
class TextLM:
    """An LLM that hears nothing: the oracle where it reads the styled transcript, else the transcript alone.

    Attributes:
        llm: frozen.
        how: decoding settings.
        name: as reports call it.
    """

    llm: FrozenLM
    generation: GenerationSettings
    name: str

    @property
    def about(self) -> dict[str, Any]:
        """The LLM and its decoding."""
        return {"kind": "llm", **_llm(self.llm), "decoding": self.generation.stated}

    def views(self, item: Item) -> Sequence[View]:
        """From text alone."""
        return (ORACLE, TRANSCRIPT)

    def unfit(self, item: Item) -> str | None:
        """Any item will do that is not a transcription."""
        return "it hears nothing" if item.task == "asr" else None

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Replies of one batch."""
        assert view is not None
        if "speech" in (view.para, view.ling):
            raise ValueError(f"{self.name} hears no speech")
        return _read([item.conversation for item in items], view, self.llm, self.generation)


@dataclass
class Cascade:
    """A speech recogniser, and an LLM that reads what it wrote.

    Attributes:
        asr: a recording → its words.
        asr_name: hub id or folder of the recogniser.
        llm: frozen.
        how: decoding settings.
        name: as reports call it.
    """

    asr: Callable[[Sequence[Any]], list[str]]
    asr_name: str
    llm: FrozenLM
    generation: GenerationSettings
    name: str
    written: dict[str, str] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """Both parts."""
        return {"kind": "cascade", "asr": self.asr_name, **_llm(self.llm), "decoding": self.generation.stated}

    def views(self, item: Item) -> Sequence[None]:
        """It has one way of hearing."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have every recording."""
        return None if all(clip.audio for turn in item.conversation.turns for clip in turn.speeches) else "no recording"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """A transcription is the recogniser's own; everything else the LLM answers from its words."""
        clips = {str(clip.audio): clip for item in items for turn in item.conversation.turns for clip in turn.speeches}
        new = [path for path in clips if path not in self.written]
        self.written |= dict(zip(new, self.asr([clips[path].audio for path in new]), strict=True)) if new else {}
        asked = [item for item in items if item.task != "asr"]
        conversations = [self._as_written(item.conversation) for item in asked]
        replies = iter(_read(conversations, TRANSCRIPT, self.llm, self.generation) if conversations else [])
        return [Reply(self.written[str(item.speech.audio)]) if item.task == "asr" else next(replies) for item in items]

    def _as_written(self, conversation: Conversation) -> Conversation:
        def part(one: str | Speech) -> str | Speech:
            return one if isinstance(one, str) else Speech(transcript=self.written[str(one.audio)])

        return Conversation(
            conversation.system, [Turn(turn.role, tuple(map(part, turn.parts))) for turn in conversation.turns]
        )


@torch.no_grad()
def decode(llm: FrozenLM, prompts: Sequence[Tensor], generation: GenerationSettings) -> list[Reply]:
    """Replies to prompts of embeddings, each (T, D), and whether each came to its end."""
    return [replace(reply, text=reply.text.strip()) for reply in llm.generate(prompts, generation)]


@torch.no_grad()
def likelihoods(item: Item, view: View, llm: FrozenLM, loss: Callable[[Sequence[Prompt]], Any]) -> dict[str, float]:
    """The mean log-probability of a token of each choice's sentence, in nats; the end of the turn counts too."""
    options = item.options()
    if not options:
        return {}
    conversations = [item.conversation.copy().assistant(sentence) for sentence in options.values()]
    found = loss([render(conversation, llm.tokenizer, view, supervise="last") for conversation in conversations])
    means = (-found.nll_B / found.tokens_B).tolist()
    return {choice: round(mean, 6) for choice, mean in zip(options, means, strict=True)}


def _read(
    conversations: Sequence[Conversation], view: View, llm: FrozenLM, generation: GenerationSettings
) -> list[Reply]:
    """An LLM's replies to talks that it reads."""
    prompts = [render(conversation, llm.tokenizer, view) for conversation in conversations]
    return decode(llm, [llm.embed_text(prompt) for prompt in prompts], generation)


def _llm(llm: FrozenLM) -> dict[str, Any]:
    return {"llm": llm.name, "llm_revision": llm.revision, "llm_fingerprint": fingerprint(llm)}
