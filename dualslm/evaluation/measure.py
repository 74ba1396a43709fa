"""One cell of a table: the answers of one system through one view to one set, measured (docs/evaluation.md).

Accuracy for tasks with choices, word errors for transcriptions, and for replies what needs no judge. Every figure
has n and an interval over clusters; what cannot be measured is counted with its reason and never left to a default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dualslm.evaluation.metrics import answers, labels, wer
from dualslm.evaluation.metrics.bootstrap import Difference, Floats, difference, figure, rate
from dualslm.evaluation.metrics.figure import Figure

Record: TypeAlias = Mapping[str, Any]
NO_TRUTH = "nothing known to measure by"


def measure(rows: Sequence[Record], seed: int) -> dict[str, Any]:
    """Figures and counts of one cell.

    Args:
        rows: predictions of one system, view, task, corpus and split.
        seed: of the resamples.
    """
    usable = [row for row in rows if row["truth"] is not None or row["task"] == "respond"]
    unscored = {NO_TRUTH: len(rows) - len(usable)} if len(usable) < len(rows) else {}
    counts = {"asked": len(rows), "cut_off": sum(not row["ended"] for row in rows), "unscored": unscored}
    if not usable:
        return {"figures": {}, "counts": counts}
    how = _labels if usable[0]["choices"] else _words if usable[0]["task"] == "asr" else _replies
    figures, more = how(usable, seed)
    return {
        "figures": {name: one.as_json() for name, one in figures.items()},
        "counts": counts | more.pop("counts", {}),
    } | more


def compare(first: Sequence[Record], second: Sequence[Record], seed: int) -> tuple[str, Difference] | None:
    """Two cells of one set on the items that both have, by the measure of their task; None where they share none."""
    other = {row["id"]: row for row in second}
    pairs = [(row, other[row["id"]]) for row in first if row["id"] in other and row["truth"] is not None]
    if not pairs:
        return None
    name, count = (
        ("wa", _right)
        if pairs[0][0]["choices"]
        else ("wer_raw", _errors)
        if pairs[0][0]["task"] == "asr"
        else ("rouge_l", _overlap)
    )
    one, two = (np.array([count(pair[side]) for pair in pairs], dtype=np.float64) for side in (0, 1))
    clusters = [str(row["cluster"]) for row, _ in pairs]
    return name, difference(one, two, clusters, rate, seed=seed)


def heard(row: Record) -> answers.Read:
    """The choice that an answer means."""
    return answers.lenient(row["answer"], row["choices"], row["task"])


# ---------------------------------------------------------------------- choices


def _labels(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    gold = [str(row["truth"]) for row in rows]
    clusters = [str(row["cluster"]) for row in rows]
    read = [heard(row) for row in rows]
    said = [one.choice for one in read]
    figures = labels.measure(gold, said, clusters, seed)
    strict = [answers.strict(row["answer"], row["choices"]).choice for row in rows]
    figures["wa_strict"] = _proportion([a == b for a, b in zip(strict, gold, strict=True)], clusters, seed)
    figures["parse_rate"] = _proportion([one.status == "ok" for one in read], clusters, seed)
    if all("likelihoods" in row for row in rows):
        likeliest = [max(row["likelihoods"], key=row["likelihoods"].get) for row in rows]
        figures["wa_likelihood"] = _proportion([a == b for a, b in zip(likeliest, gold, strict=True)], clusters, seed)
    status = Counter(one.status for one in read)
    counts = {"ambiguous": status["ambiguous"], "unparsed": status["unparsed"]}
    line = labels.commonest(gold)
    majority = labels.measure(gold, [line] * len(gold), clusters, seed)
    more = {
        "counts": counts,
        "confusion": _confusion(rows, gold, said),
        "majority": {"label": line, **{name: one.as_json() for name, one in majority.items()}},
    }
    return figures, more


def _confusion(rows: Sequence[Record], gold: Sequence[str], said: Sequence[str | None]) -> dict[str, Any]:
    """Gold by heard; the last column holds answers that name no choice."""
    classes = list(dict.fromkeys(choice for row in rows for choice in row["choices"]))
    whole = labels.matrix(labels.counts(gold, said, classes).sum(0))
    return {"labels": classes, "rows": whole.astype(int).tolist()}


def _right(row: Record) -> tuple[float, float]:
    return float(heard(row).choice == row["truth"]), 1.0


def _proportion(right: Sequence[bool], clusters: Sequence[str], seed: int) -> Figure:
    return figure(np.array([(one, 1) for one in right], dtype=np.float64), clusters, seed=seed)


# ---------------------------------------------------------------------- words


def _words(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Word error rates as they came and without chat preambles, and what errors they are."""
    clusters = [str(row["cluster"]) for row in rows]
    figures: dict[str, Figure] = {}
    kinds: dict[str, dict[str, int]] = {}
    for name, normalise in wer.NORMALISERS.items():
        references = [normalise(row["truth"]) for row in rows]
        found = [wer.edits(ref, normalise(row["answer"])) for ref, row in zip(references, rows, strict=True)]
        counts = np.array([(sum(one), len(ref)) for one, ref in zip(found, references, strict=True)], dtype=np.float64)
        figures[f"wer_{name}"] = figure(counts, clusters, seed=seed)
        sums = {key: sum(getattr(one, key) for one in found) for key in wer.Edits._fields}
        empty = sum(not ref for ref in references)
        kinds[name] = {**sums, "reference_words": int(counts[:, 1].sum()), "empty_references": empty}
    bare = [wer.unwrapped(row["answer"]) for row in rows]
    stripped = [_errors({**row, "answer": text}) for row, text in zip(rows, bare, strict=True)]
    figures["wer_stripped"] = figure(np.array(stripped), clusters, seed=seed)
    figures["preambles"] = _proportion(
        [text != row["answer"] for text, row in zip(bare, rows, strict=True)], clusters, seed
    )
    figures["runaway"] = _proportion([_runaway(row) for row in rows], clusters, seed)
    return figures, {"edits": kinds}


def _errors(row: Record) -> tuple[float, float]:
    reference = wer.raw(row["truth"])
    return float(sum(wer.edits(reference, wer.raw(row["answer"])))), float(len(reference))


def _runaway(row: Record) -> bool:
    return len(wer.raw(row["answer"])) > wer.RUNAWAY * max(1, len(wer.raw(row["truth"])))


# ---------------------------------------------------------------------- replies


def _replies(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """What can be said of replies without a judge: length, emptiness, overlap with a reference where there is one."""
    clusters = [str(row["cluster"]) for row in rows]
    lengths = [len(wer.words(row["answer"])) for row in rows]
    figures = {
        "length": figure(np.array([(length, 1) for length in lengths], dtype=np.float64), clusters, _mean, seed=seed),
        "empty": _proportion([not row["answer"].strip() for row in rows], clusters, seed),
    }
    known = [row for row in rows if row["truth"]]
    if known:
        overlap = np.array([_overlap(row) for row in known])
        figures["rouge_l"] = figure(overlap, [str(row["cluster"]) for row in known], seed=seed)
    return figures, {}


def _overlap(row: Record) -> tuple[float, float]:
    """ROUGE-L: the F1 of the longest common subsequence of words."""
    wanted, got = wer.words(row["truth"]), wer.words(row["answer"])
    if not wanted or not got:
        return float(wanted == got), 1.0
    common = [0] * (len(got) + 1)
    for word in wanted:
        diagonal = 0
        for place, other in enumerate(got, 1):
            diagonal, common[place] = common[place], max(common[place], common[place - 1], diagonal + (word == other))
    return 2 * common[-1] / (len(wanted) + len(got)), 1.0


def _mean(sums: Floats) -> Floats:
    out: Floats = sums[..., 0] / sums[..., 1]
    return out
