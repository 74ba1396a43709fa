"""Equivalence replacement, measured, and which channel each word of a reply hangs on (paper §III-C).

ERR promises that an answer stays as it is when the other channel comes from text, from speech or from nothing.
The divergence of the next-token distributions on the answer's own tokens tells how far that holds, without
decoding and without a judge. Leaving a channel out tells the same way what a reply owes to it.

Dimensions: K tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dualslm.conversation import CAPTION_AND_L, L_ONLY, NORMAL, NOTHING, P_AND_TRANSCRIPT, P_ONLY, View
from dualslm.evaluation.diagnostics.base import Examiner, Line, Result, line
from dualslm.evaluation.diagnostics.items import Item, Material

FIRM = 0.1  # nats; a token that loses less hangs on nothing


def equivalence(desk: Examiner, material: Material) -> Result:
    """How far the chances of the answer's tokens move when a channel is replaced."""
    asked: list[tuple[str, Sequence[Item], dict[View, str]]] = [
        ("transcripts", material.words, {CAPTION_AND_L: "P as its caption", L_ONLY: "no P"}),
        ("answers about the voice", material.voices, {P_AND_TRANSCRIPT: "L as its transcript", P_ONLY: "no L"}),
        ("replies", material.replies, {CAPTION_AND_L: "P as its caption", P_AND_TRANSCRIPT: "L as its transcript"}),
    ]
    lines = []
    for what, items, views in asked:
        some = [item for item in items if item.speech.transcript and item.speech.caption]
        if some:
            moved = moves(desk, some, (*views, NOTHING))
            worst = _line("", some, moved[NOTHING]).value
            lines += [_line(f"{what}, {how}, nats a token", some, moved[view], worst) for view, how in views.items()]
    far = [one.label.removesuffix(", nats a token") for one in lines if one.zero and one.value > one.zero / 4]
    says = f"Not equivalent: {'; '.join(far)}" if far else "Every replacement is near to the speech that it stands for"
    note = "zero is here the distance when nothing at all is heard; equivalent sources have 0"
    return Result("Equivalent replacement: how far an answer moves", lines, f"{says} ({note}).")


def attribution(desk: Examiner, material: Material) -> Result:
    """What each token of a reply loses without P and without L."""
    items = [item for item in material.replies if item.speech.audio is not None]
    moved = moves(desk, items, (L_ONLY, P_ONLY))
    each = [(para.tolist(), ling.tolist()) for para, ling in zip(moved[L_ONLY], moved[P_ONLY], strict=True)]
    lines = [
        _line("without P, nats a token", items, moved[L_ONLY]),
        _line("without L, nats a token", items, moved[P_ONLY]),
    ]
    groups, lengths = [item.group for item in items], [len(one) for one, _ in each]
    for label, mine, other in (("tokens that hang on P most, %", 0, 1), ("tokens that hang on L most, %", 1, 0)):
        hang = [sum(a > max(b, FIRM) for a, b in zip(one[mine], one[other], strict=True)) for one in each]
        lines.append(line(label, hang, groups, wholes=lengths))
    shown = _example(desk, items[0], *each[0]) if items else "No spoken replies."
    return Result("What a reply owes to P and to L", lines, shown)


def moves(desk: Examiner, items: Sequence[Item], views: Sequence[View]) -> dict[View, list[Tensor]]:
    """How far normal use and each view are apart, for each token of each answer (K), in nats."""
    found: dict[View, list[Tensor]] = {view: [] for view in views}
    for start in range(0, len(items), desk.batch):  # a whole vocabulary for each token: some talks at a time
        conversations = [item.conversation for item in items[start : start + desk.batch]]
        true = [log_KV for log_KV, _ in desk.distributions(conversations, NORMAL)]
        for view in views:
            other = desk.distributions(conversations, view)
            found[view] += [divergence(one_KV, two_KV) for one_KV, (two_KV, _) in zip(true, other, strict=True)]
    return found


def divergence(true_KV: Tensor, other_KV: Tensor) -> Tensor:
    """KL(true ‖ other) of each token (K), in nats, of log-chances."""
    return (true_KV.exp() * (true_KV - other_KV)).sum(-1).clamp_min(0.0)


def _line(label: str, items: Sequence[Item], moved: Sequence[Tensor], zero: float | None = None) -> Line:
    sums, lengths = [float(one_K.sum()) for one_K in moved], [float(len(one_K)) for one_K in moved]
    return line(label, sums, [item.group for item in items], wholes=lengths, percent=False, zero=zero)


def _example(desk: Examiner, item: Item, para: Sequence[float], ling: Sequence[float]) -> str:
    """One reply with a mark at every token that hangs on a channel."""
    tokenizer = desk.model.llm.tokenizer
    (_, tokens_K), *_ = desk.distributions([item.conversation], NORMAL)
    marked = []
    for token, from_p, from_l in zip(tokens_K.tolist(), para, ling, strict=True):
        mark = "" if max(from_p, from_l) < FIRM else "(P)" if from_p > from_l else "(L)"
        marked.append(tokenizer.decode([token], skip_special_tokens=True) + mark)
    return "For example: " + "".join(marked).strip()
