"""One cell of a table: the answers of one system through one view to one set, measured (docs/evaluation.md).

Accuracy for tasks with choices, word errors for transcriptions, and for replies what needs no judge. Every figure
has n and an interval over clusters; what cannot be measured is counted with its reason and never left to a default.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dualslm.evaluation.metrics import answers, labels, wer
from dualslm.evaluation.metrics.bootstrap import Difference, Floats, difference, figure, rate
from dualslm.evaluation.metrics.figure import Figure

log = logging.getLogger("dualslm")

Record: TypeAlias = Mapping[str, Any]
NO_TRUTH = "nothing known to measure by"


def measure(rows: Sequence[Record], seed: int) -> dict[str, Any]:
    """Figures and counts of one cell.

    Args:
        rows: predictions of one system, view, task, corpus and split.
        seed: seed of the resamples.
    """
    # A reply needs no reference: its length is a figure, and judges read the reply itself.
    usable = [row for row in rows if row["truth"] is not None or row["task"] == "respond"]
    unscored = {NO_TRUTH: len(rows) - len(usable)} if len(usable) < len(rows) else {}
    counts = {"asked": len(rows), "cut_off": sum(not row["ended"] for row in rows), "unscored": unscored}
    if not usable:
        return {"figures": {}, "counts": counts}
    if usable[0]["choices"]:
        figures, more = _labels(usable, seed)
    elif usable[0]["task"] == "asr":
        figures, more = _words(usable, seed)
    else:
        figures, more = _replies(usable, seed)
    return {
        "figures": {name: one.as_json() for name, one in figures.items()},
        "counts": counts | more.pop("counts", {}),
    } | more


def compare(first: Sequence[Record], second: Sequence[Record], seed: int) -> tuple[str, Difference] | None:
    """The paired difference of two cells on the items that both have, by the measure of their task.

    Args:
        first: predictions of one cell.
        second: predictions of another cell of the same set.
        seed: seed of resamples and swaps.

    Returns:
        The measure's name and the difference; None where the cells share no item.
    """
    other = {row["id"]: row for row in second}
    pairs = [(row, other[row["id"]]) for row in first if row["id"] in other and row["truth"] is not None]
    if not pairs:
        return None
    row = pairs[0][0]
    count: Callable[[Record], tuple[float, float]]
    if row["choices"]:
        name = "wa"
        count = _correct
    elif row["task"] == "asr":
        how = wer.counting([one["truth"] for one, _ in pairs])
        name = f"{how.rate}_raw"
        count = how.errors_of
    else:
        name = "rouge_l"
        count = _overlap
    one, two = (np.array([count(pair[side]) for pair in pairs], dtype=np.float64) for side in (0, 1))
    clusters = [str(row["cluster"]) for row, _ in pairs]
    return name, difference(one, two, clusters, rate, seed=seed)


def parsed_choice(row: Record) -> answers.Read:
    """The choice that an answer means."""
    return answers.lenient(row["answer"], row["choices"], row["task"])


# ---------------------------------------------------------------------- choices


def _labels(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Accuracy and F1 of a task with choices, the confusion matrix, and the majority line."""
    gold = [str(row["truth"]) for row in rows]
    clusters = [str(row["cluster"]) for row in rows]
    parsed = [parsed_choice(row) for row in rows]
    predicted = [one.choice for one in parsed]
    figures = labels.measure(gold, predicted, clusters, seed)
    # Beside the lenient figures stands what needs no list of synonyms, so that a reader sees what parsing adds.
    strict = [answers.strict(row["answer"], row["choices"]).choice for row in rows]
    figures["wa_strict"] = _proportion([a == b for a, b in zip(strict, gold, strict=True)], clusters, seed)
    figures["parse_rate"] = _proportion([one.status == "ok" for one in parsed], clusters, seed)
    if all("likelihoods" in row for row in rows):
        likeliest = [max(row["likelihoods"], key=row["likelihoods"].get) for row in rows]
        figures["wa_likelihood"] = _proportion([a == b for a, b in zip(likeliest, gold, strict=True)], clusters, seed)
    status = Counter(one.status for one in parsed)
    commonest = labels.commonest(gold)
    majority = labels.measure(gold, [commonest] * len(gold), clusters, seed)
    return figures, {
        "counts": {"ambiguous": status["ambiguous"], "unparsed": status["unparsed"]},
        "confusion": _confusion(rows, gold, predicted),
        "majority": {"label": commonest, **{name: one.as_json() for name, one in majority.items()}},
    }


def _confusion(rows: Sequence[Record], gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, Any]:
    """Gold labels by predicted ones; the last column holds answers that name no choice."""
    # Lines may list their choices in different orders: each class stands where it is first seen.
    classes = list(dict.fromkeys(choice for row in rows for choice in row["choices"]))
    whole = labels.matrix(labels.counts(gold, predicted, classes).sum(0))
    return {"labels": classes, "rows": whole.astype(int).tolist()}


def _correct(row: Record) -> tuple[float, float]:
    """1 for a right answer, of 1."""
    return float(parsed_choice(row).choice == row["truth"]), 1.0


def _proportion(right: Sequence[bool], clusters: Sequence[str], seed: int) -> Figure:
    return figure(np.array([(one, 1) for one in right], dtype=np.float64), clusters, seed=seed)


# ---------------------------------------------------------------------- words


def _words(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Error rates with and without chat preambles, and the kinds of errors; of words, or of characters."""
    clusters = [str(row["cluster"]) for row in rows]
    truths = [row["truth"] for row in rows]
    how = wer.counting(truths)
    figures: dict[str, Figure] = {}
    kinds: dict[str, dict[str, int]] = {}
    for name in wer.NORMALISERS:
        references = [how.tokens(name, truth) for truth in truths]
        found = [wer.edits(ref, how.tokens(name, row["answer"])) for ref, row in zip(references, rows, strict=True)]
        # Errors over all reference words, not the mean of the items' rates, in which a short item weighs as a long one.
        counts = [(float(sum(one)), float(len(ref))) for one, ref in zip(found, references, strict=True)]
        figures[f"{how.rate}_{name}"] = _errors_figure(counts, clusters, seed)
        sums = {key: sum(getattr(one, key) for one in found) for key in wer.Edits._fields}
        # A normaliser may leave nothing of a reference ("um"): what is said against it is an insertion over no word.
        emptied = [truth for truth, ref in zip(truths, references, strict=True) if truth.strip() and not ref]
        kinds[name] = {
            **sums,
            "reference_words": sum(map(len, references)),
            "empty_references": sum(not ref for ref in references),
            "emptied": len(emptied),
        }
        if emptied:
            log.warning(
                "%s leaves nothing of %d of %d references, for example %r", name, len(emptied), len(rows), emptied[0]
            )
    bare = [wer.unwrapped(row["answer"]) for row in rows]
    stripped = [how.errors(truth, text) for truth, text in zip(truths, bare, strict=True)]
    figures[f"{how.rate}_stripped"] = _errors_figure(stripped, clusters, seed)
    with_preamble = [text != row["answer"] for text, row in zip(bare, rows, strict=True)]
    figures["preambles"] = _proportion(with_preamble, clusters, seed)
    # A few answers that never end can make up most of the rate by their insertions, so their share stands beside it.
    lengths = [(len(how.tokens("raw", row["answer"])), len(how.tokens("raw", row["truth"]))) for row in rows]
    figures["runaway"] = _proportion([got > wer.RUNAWAY * max(1, wanted) for got, wanted in lengths], clusters, seed)
    unit = "characters" if how.characters else "words"
    return figures, {"edits": kinds, "unit": unit, "english": how.english}


def _errors_figure(counts: Sequence[tuple[float, float]], clusters: Sequence[str], seed: int) -> Figure:
    """Errors over reference words, which insertions can make more than all."""
    is_share = all(errors <= words for errors, words in counts)
    return figure(np.array(counts), clusters, is_share=is_share, seed=seed)


# ---------------------------------------------------------------------- replies


def _replies(rows: Sequence[Record], seed: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """What can be said of replies without a judge: length, emptiness, overlap with a reference where there is one."""
    clusters = [str(row["cluster"]) for row in rows]
    lengths = [len(wer.words(row["answer"])) for row in rows]
    figures = {
        "length": figure(
            np.array([(length, 1) for length in lengths], dtype=np.float64), clusters, _mean, is_share=False, seed=seed
        ),
        "empty": _proportion([not row["answer"].strip() for row in rows], clusters, seed),
    }
    known = [row for row in rows if row["truth"]]
    if known:
        overlap = np.array([_overlap(row) for row in known])
        figures["rouge_l"] = figure(overlap, [str(row["cluster"]) for row in known], seed=seed)
    return figures, {}


def _overlap(row: Record) -> tuple[float, float]:
    """ROUGE-L: the F1 of the longest common subsequence of words."""
    wanted = wer.words(row["truth"])
    got = wer.words(row["answer"])
    if not wanted or not got:
        return float(wanted == got), 1.0
    # One row of the dynamic program is enough: each cell needs its left, upper and upper left neighbours alone.
    lengths = [0] * (len(got) + 1)
    for word in wanted:
        diagonal = 0
        for index, other in enumerate(got, 1):
            above = lengths[index]
            lengths[index] = max(above, lengths[index - 1], diagonal + (word == other))
            diagonal = above
    return 2 * lengths[-1] / (len(wanted) + len(got)), 1.0


def _mean(sums: Floats) -> Floats:
    """A length in words has no percent, which `rate` would give."""
    out: Floats = sums[..., 0] / sums[..., 1]
    return out
