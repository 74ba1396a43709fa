"""Equivalence replacement, measured, and which channel each word of a reply hangs on (paper §III-C).

ERR promises that an answer stays as it is when the other channel comes from text, from speech or from nothing.
The divergence of the next-token distributions on the answer's own tokens tells how far that holds, without
decoding and without a judge. Leaving a channel out tells the same way what a reply owes to it.

Dimensions: K tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dualslm.conversation import Conversation, View
from dualslm.instruments.desk import BOTH, CAPTION_L, NOTHING, P_TRANSCRIPT, Desk, L, Line, P, Reading, line
from dualslm.instruments.items import Item, Material

FIRM = 0.1  # nats; a token that loses less hangs on nothing


def equivalence(desk: Desk, material: Material) -> Reading:
    """How far the chances of the answer's tokens move when a channel is replaced."""
    asked: list[tuple[str, Sequence[Item], View]] = [
        ("transcripts, P as its caption", material.words, CAPTION_L),
        ("transcripts, no P", material.words, L),
        ("answers about the voice, L as its transcript", material.voices, P_TRANSCRIPT),
        ("answers about the voice, no L", material.voices, P),
        ("replies, P as its caption", material.replies, CAPTION_L),
        ("replies, L as its transcript", material.replies, P_TRANSCRIPT),
    ]
    lines = []
    for label, items, view in asked:
        some = [item for item in items if item.speech.transcript and item.speech.caption]
        if some:
            lines.append(_moved(desk, f"{label}, nats a token", some, view, zero=_worst(desk, some)))
    far = [one.label.removesuffix(", nats a token") for one in lines if one.zero and one.value > one.zero / 4]
    says = f"Not equivalent: {'; '.join(far)}" if far else "Every replacement is near to the speech that it stands for"
    note = "zero is here the distance when nothing at all is heard; equivalent sources have 0"
    return Reading("Equivalent replacement: how far an answer moves", lines, f"{says} ({note}).")


def attribution(desk: Desk, material: Material) -> Reading:
    """What each token of a reply loses without P and without L."""
    items = [item for item in material.replies if item.speech.audio is not None]
    talks = [item.talk for item in items]
    groups = [item.group for item in items]
    without_p, without_l = ([divergence(a, b) for a, b in _both(desk, talks, view)] for view in (L, P))
    lines, each = [], [(para.tolist(), ling.tolist()) for para, ling in zip(without_p, without_l, strict=True)]
    for label, side in (("without P, nats a token", 0), ("without L, nats a token", 1)):
        sums, lengths = [sum(one[side]) for one in each], [len(one[side]) for one in each]
        lines.append(line(label, sums, groups, wholes=lengths, percent=False))
    lengths = [len(one) for one, _ in each]
    for label, mine, other in (("tokens that hang on P most, %", 0, 1), ("tokens that hang on L most, %", 1, 0)):
        hang = [sum(a > max(b, FIRM) for a, b in zip(one[mine], one[other], strict=True)) for one in each]
        lines.append(line(label, hang, groups, wholes=lengths))
    shown = _example(desk, items[0], *each[0]) if items else ""
    return Reading("What a reply owes to P and to L", lines, shown)


def divergence(true_KV: Tensor, other_KV: Tensor) -> Tensor:
    """KL(true ‖ other) of each token (K), in nats, of log-chances."""
    return (true_KV.exp() * (true_KV - other_KV)).sum(-1).clamp_min(0.0)


def _both(desk: Desk, talks: Sequence[Conversation], view: View) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(desk.distributions(talks, BOTH), desk.distributions(talks, view), strict=True)
    return [(a, b) for (a, _), (b, _) in pairs]


def _moved(desk: Desk, label: str, items: Sequence[Item], view: View, *, zero: float | None) -> Line:
    found = [divergence(a, b) for a, b in _both(desk, [item.talk for item in items], view)]
    groups = [item.group for item in items]
    sums, lengths = [float(one.sum()) for one in found], [len(one) for one in found]
    return line(label, sums, groups, wholes=lengths, percent=False, zero=zero)


def _worst(desk: Desk, items: Sequence[Item]) -> float:
    return _moved(desk, "", items, NOTHING, zero=None).value


def _example(desk: Desk, item: Item, para: Sequence[float], ling: Sequence[float]) -> str:
    """One reply with a mark at every token that hangs on a channel."""
    tokenizer = desk.model.llm.tokenizer
    (_, tokens_K), *_ = desk.distributions([item.talk], BOTH)
    marked = []
    for token, from_p, from_l in zip(tokens_K.tolist(), para, ling, strict=True):
        mark = "" if max(from_p, from_l) < FIRM else "(P)" if from_p > from_l else "(L)"
        marked.append(tokenizer.decode([token], skip_special_tokens=True) + mark)
    return "For example: " + "".join(marked).strip()
