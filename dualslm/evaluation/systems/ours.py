"""Our checkpoints, an LLM that reads text, and a cascade: whatever a frozen causal LM of ours answers (paper §IV).

All three render a conversation through a `View` and decode alike. An LLM alone knows the views from text: `text,text`
is the oracle, `none,text` what a cascade with a perfect recogniser knows.

Dimensions: T tokens, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
    history_view,
)
from dualslm.evaluation.systems.item import Item
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.fingerprint import fingerprint
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.model.loss import Loss
from dualslm.prompt import Prompt, render
from dualslm.recipe import TaskKind

# Beside normal use: each channel alone (Tables I and III, and the leaks that they leave out), and the LLM that reads
# text. A transcription has no text views, whose prompt would hold the answer.
VIEWS: Mapping[TaskKind, tuple[View, ...]] = {
    "linguistic": (NORMAL, L_ONLY, P_ONLY),
    "paralinguistic": (NORMAL, P_ONLY, L_ONLY, ORACLE, TRANSCRIPT),
    "dual": (NORMAL, P_ONLY, L_ONLY, ORACLE, TRANSCRIPT),
}


@dataclass
class Ours:
    """A checkpoint of ours.

    Attributes:
        model: the frozen parts with trained adapters.
        generation: settings of the replies.
        name: name in reports.
        with_likelihoods: whether to give the likelihood of each choice too.
        last_batch: paths of the recordings that were encoded last, and their frames.
    """

    model: DualSLM
    generation: GenerationSettings
    name: str
    with_likelihoods: bool = False
    last_batch: tuple[tuple[str, ...], Frames] | None = None

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
            "likelihoods": self.with_likelihoods,
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
        prompts = [
            render(item.conversation, self.model.llm.tokenizer, view, history=history_view(item.history, view))
            for item in items
        ]
        answers = decode(self.model.llm, self.model.embed(prompts, self.hear), self.generation)
        if not self.with_likelihoods:
            return answers
        loss = partial(self.model, hear=self._heard_in_batch)
        # Item by item: the choices of one item share their prompt, and the batch has encoded their recordings.
        return [
            replace(answer, likelihoods=likelihoods(item, view, self.model.llm, loss))
            for answer, item in zip(answers, items, strict=True)
        ]

    def hear(self, clips: Sequence[Speech]) -> Frames:
        """The frames of recordings; those of the last batch are cached."""
        # The views of one batch follow each other. Cached for longer, a recording could be read from another batch:
        # the last bits of its frames depend on the batch it is encoded in, and a resumed run would write other bytes.
        paths = tuple(str(clip.audio) for clip in clips)
        if self.last_batch is None or self.last_batch[0] != paths:
            self.last_batch = (paths, self.model.hear(clips))
        return self.last_batch[1]

    def _heard_in_batch(self, clips: Sequence[Speech]) -> Frames:
        """The frames of some recordings of the batch that was encoded last."""
        assert self.last_batch is not None, "the replies of a batch come before its likelihoods"
        paths, frames = self.last_batch
        return frames.pick([paths.index(str(clip.audio)) for clip in clips])


@dataclass
class TextLM:
    """An LLM that reads text alone: the oracle where it reads the styled transcript, else the transcript.

    Attributes:
        llm: the frozen LLM.
        generation: settings of the replies.
        name: name in reports.
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
        """Any item will do but a transcription, whose answer it would be given."""
        return "it hears nothing" if item.task == "asr" else None

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """Replies of one batch."""
        assert view is not None
        if "speech" in (view.para, view.ling):
            raise ValueError(f"{self.name} takes no speech")
        return _read([item.conversation for item in items], view, self.llm, self.generation)


@dataclass
class Cascade:
    """A speech recogniser, and an LLM that reads what it wrote.

    Attributes:
        asr: recordings → their words.
        asr_name: hub id or folder of the recogniser.
        llm: the frozen LLM.
        generation: settings of the replies.
        name: name in reports.
        transcripts: words of every recording so far, by path.
    """

    asr: Callable[[Sequence[Any]], list[str]]
    asr_name: str
    llm: FrozenLM
    generation: GenerationSettings
    name: str
    transcripts: dict[str, str] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """Both parts."""
        return {"kind": "cascade", "asr": self.asr_name, **_llm(self.llm), "decoding": self.generation.stated}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It must have every recording."""
        return None if all(clip.audio for turn in item.conversation.turns for clip in turn.speeches) else "no recording"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """A transcription is the recogniser's own; everything else the LLM answers from its words."""
        clips = {str(clip.audio): clip for item in items for turn in item.conversation.turns for clip in turn.speeches}
        # A recording has several questions, in several sets. The recogniser takes recordings one by one, so that its
        # words may be cached without depending on a batch.
        new = [path for path in clips if path not in self.transcripts]
        if new:
            self.transcripts |= dict(zip(new, self.asr([clips[path].audio for path in new]), strict=True))
        conversations = [self._transcribed(item.conversation) for item in items if item.task != "asr"]
        replies = iter(_read(conversations, TRANSCRIPT, self.llm, self.generation) if conversations else [])
        return [
            Reply(self.transcripts[str(item.speech.audio)]) if item.task == "asr" else next(replies) for item in items
        ]

    def _transcribed(self, conversation: Conversation) -> Conversation:
        """A conversation with the recogniser's words in place of the true ones, in the history too."""

        def part(one: str | Speech) -> str | Speech:
            return one if isinstance(one, str) else Speech(transcript=self.transcripts[str(one.audio)])

        turns = [Turn(turn.role, tuple(map(part, turn.parts))) for turn in conversation.turns]
        return Conversation(conversation.system, turns)


@torch.no_grad()
def decode(llm: FrozenLM, prompts: Sequence[Tensor], generation: GenerationSettings) -> list[Reply]:
    """Replies to prompts of embeddings, each (T, D), and whether each came to its end."""
    # Other systems give their answers stripped: a leading space must not tell them apart, to a judge least of all.
    return [replace(reply, text=reply.text.strip()) for reply in llm.generate(prompts, generation)]


@torch.no_grad()
def likelihoods(item: Item, view: View, llm: FrozenLM, loss: Callable[[Sequence[Prompt]], Loss]) -> dict[str, float]:
    """The mean log-probability per token of each choice's sentence, in nats; the end of the turn counts too.

    Args:
        item: question with choices; without any there is nothing to give.
        view: view of the conversation.
        llm: the frozen LLM, for its chat template.
        loss: gives the loss of prompts.
    """
    options = item.options()
    if not options:
        return {}
    conversations = [item.conversation.copy().assistant(sentence) for sentence in options.values()]
    history = history_view(item.history, view)
    found = loss([render(one, llm.tokenizer, view, history=history, supervise="last") for one in conversations])
    # By token, since choices differ in length; of sums, the choice with the fewest tokens would mostly win.
    means = (-found.nll_B / found.tokens_B).tolist()
    return {choice: round(mean, 6) for choice, mean in zip(options, means, strict=True)}


def _read(
    conversations: Sequence[Conversation], view: View, llm: FrozenLM, generation: GenerationSettings
) -> list[Reply]:
    """An LLM's replies to conversations that it reads as text."""
    prompts = [render(conversation, llm.tokenizer, view) for conversation in conversations]
    return decode(llm, [llm.embed_text(prompt) for prompt in prompts], generation)


def _llm(llm: FrozenLM) -> dict[str, Any]:
    return {"llm": llm.name, "llm_revision": llm.revision, "llm_fingerprint": fingerprint(llm)}
