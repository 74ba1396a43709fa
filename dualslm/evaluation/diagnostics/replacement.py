"""Equivalence replacement, measured, and which channel each word of a reply depends on (paper §III-C).

Equivalence replacement promises that an answer stays as it is when the other channel comes from text, from speech or
from nothing. The divergence of the next-token distributions on the answer's own tokens measures how far that holds,
without decoding and without a judge. Leaving a channel out measures in the same way what a reply owes to it.

Dimensions: K tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dualslm.conversation import CAPTION_AND_L, L_ONLY, NORMAL, NOTHING, P_AND_TRANSCRIPT, P_ONLY, View
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, batches, line
from dualslm.evaluation.diagnostics.items import Item, Material

MIN_NATS = 0.1  # a token that loses less depends on neither channel
NEAR_SHARE = 0.25  # of the distance without P and L: a replacement that moves an answer further is no equivalent


def equivalence(examiner: Examiner, material: Material) -> Result:
    """How far the probabilities of the answer's tokens move when a channel is replaced."""
    asked: list[tuple[str, Sequence[Item], dict[View, str]]] = [
        ("transcripts", material.words, {CAPTION_AND_L: "P as its caption", L_ONLY: "no P"}),
        ("answers about the voice", material.voices, {P_AND_TRANSCRIPT: "L as its transcript", P_ONLY: "no L"}),
        ("replies", material.replies, {CAPTION_AND_L: "P as its caption", P_AND_TRANSCRIPT: "L as its transcript"}),
    ]
    lines = []
    for what, items, views in asked:
        # All views of the same items, which therefore need both texts: means over different items cannot be compared.
        some = [item for item in items if item.speech.transcript and item.speech.caption]
        if some:
            moved = moves(examiner, some, (*views, NOTHING))
            # Nats alone mean little: the distance without P and L is the scale that they are read on.
            worst = _mean_line("", some, moved[NOTHING]).value
            lines += [
                _mean_line(f"{what}, {replaced}, nats a token", some, moved[view], worst)
                for view, replaced in views.items()
            ]
    far = [one.label.removesuffix(", nats a token") for one in lines if one.zero and one.value > one.zero * NEAR_SHARE]
    says = f"Not equivalent: {'; '.join(far)}" if far else "Every replacement is near to the speech that it stands for"
    note = "zero is here the distance without P and L; equivalent sources have 0"
    return Result("Equivalent replacement: how far an answer moves", lines, f"{says} ({note}).")


def attribution(examiner: Examiner, material: Material) -> Result:
    """What each token of a reply loses without P and without L."""
    items = [item for item in material.replies if item.speech.audio is not None]
    moved = moves(examiner, items, (L_ONLY, P_ONLY))
    lost_p = [one_K.tolist() for one_K in moved[L_ONLY]]  # P is what L alone leaves out
    lost_l = [one_K.tolist() for one_K in moved[P_ONLY]]
    groups = [item.group for item in items]
    lengths = [len(one) for one in lost_p]
    lines = [
        _mean_line("without P, nats a token", items, moved[L_ONLY]),
        _mean_line("without L, nats a token", items, moved[P_ONLY]),
    ]
    for channel, own, other in (("P", lost_p, lost_l), ("L", lost_l, lost_p)):
        counts = [
            sum(a > max(b, MIN_NATS) for a, b in zip(own_K, other_K, strict=True))
            for own_K, other_K in zip(own, other, strict=True)
        ]
        lines.append(line(f"tokens that hang on {channel} most, %", counts, groups, wholes=lengths))
    shown = _example(examiner, items[0], lost_p[0], lost_l[0]) if items else "No spoken replies."
    return Result("What a reply owes to P and to L", lines, shown)


def moves(examiner: Examiner, items: Sequence[Item], views: Sequence[View]) -> dict[View, list[Tensor]]:
    """How far each view is from normal use, for each token of each answer (K), in nats."""
    found: dict[View, list[Tensor]] = {view: [] for view in views}
    # Batch by batch, since two whole vocabularies are compared for each token: of all items they would fill the memory.
    for batch in batches(items, examiner.batch):
        conversations = [item.conversation for item in batch]
        normal = [log_KV for log_KV, _ in examiner.distributions(conversations, NORMAL)]
        for view in views:
            other = examiner.distributions(conversations, view)
            found[view] += [divergence(one_KV, two_KV) for one_KV, (two_KV, _) in zip(normal, other, strict=True)]
    return found


def divergence(true_KV: Tensor, other_KV: Tensor) -> Tensor:
    """KL(true ‖ other) of each token (K), in nats, from log-probabilities in nats."""
    # Rounding can bring the sum of two nearly equal distributions below zero, which no divergence is.
    return (true_KV.exp() * (true_KV - other_KV)).sum(-1).clamp_min(0.0)


def _mean_line(label: str, items: Sequence[Item], moved: Sequence[Tensor], zero: float | None = None) -> Line:
    """The mean over all tokens, in which a long answer weighs as much as its tokens do."""
    sums = [float(one_K.sum()) for one_K in moved]
    lengths = [float(len(one_K)) for one_K in moved]
    return line(label, sums, [item.group for item in items], wholes=lengths, percent=False, zero=zero)


def _example(examiner: Examiner, item: Item, lost_p: Sequence[float], lost_l: Sequence[float]) -> str:
    """One reply with (P) or (L) behind every token that depends on a channel."""
    (_, tokens_K), *_ = examiner.distributions([item.conversation], NORMAL)
    pieces = []
    for token, from_p, from_l in zip(tokens_K.tolist(), lost_p, lost_l, strict=True):
        channel = "" if max(from_p, from_l) < MIN_NATS else "(P)" if from_p > from_l else "(L)"
        pieces.append(examiner.model.llm.tokenizer.decode([token], skip_special_tokens=True) + channel)
    return "For example: " + "".join(pieces).strip()
