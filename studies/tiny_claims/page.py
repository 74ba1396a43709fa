"""docs/study.md and its plot, written from docs/results/study.json alone; nobody types a figure or a verdict.

A figure pools its seeds: the interval is a bootstrap over test utterances, which all seeds share, and the value of
each seed follows where there are several. A claim is tested on the paired difference of two rows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dualslm.evaluation.metrics.bootstrap import Difference, difference, figure, holm
from dualslm.evaluation.metrics.figure import Figure

RESULT = Path("docs/results/study.json")
PAGE = Path("docs/study.md")
PLOT = Path("docs/study.svg")
FULL_LENGTH_RESULT = Path("docs/results/tiny.json")  # of the shipped model's own build
Result: TypeAlias = dict[str, Any]
Cell: TypeAlias = tuple[str, str]
"""A row (variant/stage) and a measure such as "words/L"."""

MEASURES = {
    "words/both": "word errors, P and L",
    "words/L": "word errors, L alone",
    "words/caption+L": "word errors, caption and L",
    "nats/both": "nats a word token, P and L",
    "nats/L": "nats a word token, L alone",
    "emotion/both": "emotion, P and L",
    "emotion/P": "emotion, P alone",
    "emotion/L": "emotion, L alone (leak)",
    "energy/both": "energy, P and L",
    "energy/P": "energy, P alone",
    "energy/L": "energy, L alone (leak)",
    "reply/both": "reply all right, P and L",
    "tone/both": "reply: tone",
    "content/both": "reply: content",
    "memory/both": "reply: memory",
    "reply/caption+L": "reply all right, caption and L",
    "reply/P+transcript": "reply all right, P and transcript",
}
TABLES: dict[str, dict[str, str]] = {
    "By the paper's own method, after each stage": {
        "unaligned/joint": "stage 1",
        "unaligned/disentangle": "stage 2 (ERR)",
        "unaligned-without-err/disentangle": "stage 2 without ERR",
        "unaligned/respond": "stage 3",
        "unaligned-without-err/respond": "stage 3 without ERR",
    },
    "Its switches, after stage 3": {
        "unaligned/respond": "as the paper says",
        "unaligned-heard-history/respond": "histories heard",
        "unaligned-plain-views/respond": "simple tasks from speech alone",
    },
    "With L aligned before stage 1, after each stage": {
        "full/joint": "stage 1",
        "full/disentangle": "stage 2 (ERR)",
        "without-err/disentangle": "stage 2 without ERR",
        "full/respond": "stage 3",
        "without-err/respond": "stage 3 without ERR",
    },
    "One adapter of equal size, after stage 3": {
        "full/respond": "two adapters",
        "single/respond": "one adapter",
    },
    "m soft-prompt embeddings, and the encoder's layers, after stage 3": {
        "m-1/respond": "m = 1",
        "m-4/respond": "m = 4",
        "m-8/respond": "m = 8",
        "full/respond": "m = 16",
        "mix/respond": "m = 16, mix of layers",
    },
}


AT_LENGTH = {
    "seen/wer/speech,speech": "word errors, P and L",
    "seen/wer/none,speech": "word errors, L alone",
    "seen/wer/text,speech": "word errors, caption and L",
    "seen/emotion/speech,speech": "emotion, P and L",
    "seen/emotion/speech,none": "emotion, P alone",
    "seen/emotion/none,speech": "emotion, L alone (leak)",
    "seen/energy/speech,speech": "energy, P and L",
    "seen/energy/speech,none": "energy, P alone",
    "seen/energy/none,speech": "energy, L alone (leak)",
    "seen/reply/speech,speech": "reply all right, P and L",
    "seen/reply/text,speech": "reply all right, caption and L",
    "seen/reply/speech,text": "reply all right, P and transcript",
}


class Claim(NamedTuple):
    """A claim as a difference between two cells: the first should be the better one."""

    says: str
    better: Cell
    worse: Cell


def claims_of(row: str) -> tuple[Claim, ...]:
    """The paper's claims about its three stages and ERR, tested on one row and on the same row without ERR.

    Args:
        row: "unaligned", which is trained as the paper says, or "full", whose L is aligned first.
    """
    without = {"unaligned": "unaligned-without-err", "full": "without-err"}[row]
    one, two, three = (f"{row}/{stage}" for stage in ("joint", "disentangle", "respond"))
    return (
        Claim("stage 1 entangles: L alone reads worse than P and L", (one, "words/both"), (one, "words/L")),
        Claim("stage 1 entangles: P alone tells emotion worse", (one, "emotion/both"), (one, "emotion/P")),
        Claim("stage 2 mends it: words from L alone", (two, "words/L"), (one, "words/L")),
        Claim("stage 2 mends it: emotion from P alone", (two, "emotion/P"), (one, "emotion/P")),
        *(
            Claim(f"ERR: {what}", (three, measure), (f"{without}/respond", measure))
            for what, measure in (
                ("words from L alone", "words/L"),
                ("emotion from P alone", "emotion/P"),
                ("energy from P alone", "energy/P"),
                ("replies when P is its caption", "reply/caption+L"),
                ("replies when L is its transcript", "reply/P+transcript"),
                ("words with P and L together", "words/both"),
                ("emotion with P and L together", "emotion/both"),
                ("replies with P and L together", "reply/both"),
            )
        ),
        Claim("stage 3 is needed to reply", (three, "reply/both"), (two, "reply/both")),
    )


PAPER = "unaligned/respond"
HEARD = "unaligned-heard-history/respond"
PLAIN = "unaligned-plain-views/respond"
ALIGNED = "full/respond"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "By the paper's own method": claims_of("unaligned"),
    "The same with L aligned first, as the tiny recipe does": claims_of("full"),
    "Switches of the paper's own method": (
        *(
            Claim(f"histories read, not heard: {what}", (PAPER, key), (HEARD, key))
            for what, key in (("replies", "reply/both"), ("words from L alone", "words/L"))
        ),
        *(
            Claim(
                f"ERR's views in stage 3's simple tasks: {what}", (PAPER, key), ("unaligned-plain-views/respond", key)
            )
            for what, key in (
                ("words from L alone", "words/L"),
                ("emotion from P alone", "emotion/P"),
                ("replies", "reply/both"),
            )
        ),
    ),
    "Choices of design, with L aligned first": (
        Claim("two adapters beat one: words", (ALIGNED, "words/both"), ("single/respond", "words/both")),
        Claim("two adapters beat one: emotion", (ALIGNED, "emotion/both"), ("single/respond", "emotion/both")),
        Claim("two adapters beat one: replies", (ALIGNED, "reply/both"), ("single/respond", "reply/both")),
        Claim(
            "histories of random length: memory where no fact was stated",
            (ALIGNED, "depth 0 memory/both"),
            ("fixed-history/respond", "depth 0 memory/both"),
        ),
        Claim(
            "histories of random length: memory three exchanges deep",
            (ALIGNED, "depth 3 memory/both"),
            ("fixed-history/respond", "depth 3 memory/both"),
        ),
        Claim("a mix of layers helps: emotion", ("mix/respond", "emotion/both"), (ALIGNED, "emotion/both")),
    ),
}


def write() -> None:
    """Writes the page and the plot from the result file."""
    result: Result = json.loads(RESULT.read_text())
    # Imported late: a check of the page needs no matplotlib.
    from studies.tiny_claims.plot import draw

    draw(result)
    PAGE.write_text(page(result))


def page(result: Result) -> str:
    """The whole page."""
    parts = [_head(result), _verdicts(result), *(_table(result, title, rows) for title, rows in TABLES.items())]
    return "\n".join([*parts, _depths(result), _full_length(), _reservations(result)])


# ---------------------------------------------------------------------- figures


def cell(result: Result, row: str, measure: str) -> Figure | None:
    """The figure of a row over all its seeds; None where it was not measured."""
    counts, names = pooled(result, row, measure)
    if not names:
        return None
    found = figure(np.array(counts), names)
    scale = 100.0 if measure.startswith("nats") else 1.0  # `figure` is in percent, which nats are not
    return Figure(found.value / scale, found.low / scale, found.high / scale, found.n, found.clusters)


def pooled(result: Result, row: str, measure: str, seeds: tuple[str, ...] = ()) -> tuple[list[list[float]], list[str]]:
    """The counts of all seeds, and the utterance of each: the clusters of the bootstrap."""
    counts: list[list[float]] = []
    names: list[str] = []
    for seed in seeds or seeds_of(result, row, measure):
        own = result["marks"][f"{row}/{seed}"][measure]
        counts += own
        names += [str(index) for index in range(len(own))]
    return counts, names


def seeds_of(result: Result, row: str, measure: str) -> tuple[str, ...]:
    """The seeds with which a row was measured."""
    legs = (key.rsplit("/", 1) for key, counts in result["marks"].items() if measure in counts)
    return tuple(sorted(seed for name, seed in legs if name == row))


def gap(result: Result, claim: Claim) -> Difference | None:
    """How much better the first cell of a claim is; None where no seed has both cells."""
    seeds = tuple(seed for seed in seeds_of(result, *claim.better) if seed in seeds_of(result, *claim.worse))
    if not seeds:
        return None
    better, names = pooled(result, *claim.better, seeds)
    worse, _ = pooled(result, *claim.worse, seeds)
    # Paired: both cells have the same seeds and utterances, in the same order.
    found = difference(np.array(better), np.array(worse), names)
    low_is_good = claim.better[1].startswith(("words", "nats"))
    scale = (-1 if low_is_good else 1) / (100 if claim.better[1].startswith("nats") else 1)
    low, high = sorted((scale * found.low, scale * found.high))
    return Difference(scale * found.value, low, high, found.p, found.n, found.clusters)


def gaps(result: Result) -> dict[Claim, Difference]:
    """The gap of every measured claim, with p corrected for their number."""
    claims = [claim for group in CLAIMS.values() for claim in group]
    measured = {claim: found for claim in claims if (found := gap(result, claim)) is not None}
    corrected = holm([found.p for found in measured.values()])
    return {claim: replace(found, p=p) for (claim, found), p in zip(measured.items(), corrected, strict=True)}


# ---------------------------------------------------------------------- parts of the page


def _head(result: Result) -> str:
    done = len(result["marks"])
    steps = ", ".join(f"{name} {one['steps']} steps of {one['batch']}" for name, one in result["lengths"].items())
    missing = result["missing"]
    rest = f"**Not done yet: {'; '.join(missing)}.** `{result['command']}` goes on with them.\n" if missing else ""
    return f"""# The study: which claims hold in miniature

<!-- written by `{result["command"]}` from docs/results/study.json; do not edit -->

Rows are trained on the embedded default ({result["recordings"]} recordings of the tiny world, with its frozen encoder
and LLM) and examined on n = {result["n"]} utterances a seed whose sentences were never heard, in voices of
training. In brackets: 95 % intervals, bootstrapped over utterances; where a row has several seeds, the value of
each follows. Stages are shorter than in `recipes/tiny.toml` ({steps}), so figures are below those of the shipped
model: compare rows with each other. {done} of {done + len(missing)} are examined. torch {result["torch"]}, transformers
{result["transformers"]}.

{rest}"""


def _verdicts(result: Result) -> str:
    lines = [
        "## Claims\n",
        "The difference is what the first row is better by (points of percent), on the same utterances and seeds. p",
        "is of a sign-flip test, with Holm's correction for the number of all claims that are measured. Below 0.05 a",
        "claim *holds* or, where the difference is negative, is *contradicted*; else it is *not shown*.\n",
    ]
    measured = gaps(result)
    for title, claims in CLAIMS.items():
        lines += [f"### {title}\n", _row("claim", "better by", "p", "seeds", "n", "in miniature")]
        lines += ["|---|--:|--:|--:|--:|---|", *(_verdict_row(claim, measured.get(claim)) for claim in claims), ""]
    return "\n".join([*lines, "![word errors and emotion by channel](study.svg)", ""])


def _verdict_row(claim: Claim, found: Difference | None) -> str:
    if found is None:
        return _row(claim.says, "-", "-", "0", "0", "not measured yet")
    shown = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return _row(
        claim.says, shown, f"{found.p:.3f}", str(found.n // max(1, found.clusters)), str(found.n), verdict(found)
    )


def verdict(found: Difference) -> str:
    """What a difference with corrected p says about a claim, in Markdown."""
    if found.p >= 0.05:
        return "not shown"
    return "**holds**" if found.value > 0 else "**contradicted**"


def _table(result: Result, title: str, rows: dict[str, str]) -> str:
    measures = [name for name in MEASURES if any(seeds_of(result, row, name) for row in rows)]
    lines = [f"## {title}\n"]
    if not measures:
        return "\n".join([*lines, "Not measured yet.\n"])
    lines += [_row("% unless nats", *rows.values()), "|---|" + "--:|" * len(rows)]
    lines += [_row(MEASURES[name], *(_cell(result, row, name) for row in rows)) for name in measures]
    return "\n".join([*lines, ""])


def _cell(result: Result, row: str, measure: str) -> str:
    """A cell of a table: the figure, its interval, and the value of each seed."""
    found = cell(result, row, measure)
    if found is None:
        return "-"
    digits = 2 if measure.startswith("nats") else 1
    shown = f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    seeds = seeds_of(result, row, measure)
    if len(seeds) > 1:
        scale = 1 if measure.startswith("nats") else 100
        each = (np.array(result["marks"][f"{row}/{seed}"][measure]).sum(0) for seed in seeds)
        shown += " (" + ", ".join(f"{scale * part / whole:.{digits}f}" for part, whole in each) + ")"
    return shown


def _depths(result: Result) -> str:
    rows = {"full/respond": "random length", "fixed-history/respond": f"always {result['fixed']} exchanges"}
    depths = sorted({key.split()[1] for counts in result["marks"].values() for key in counts if "depth" in key})
    lines = ["## Histories of random or of one length\n"]
    if not depths:
        return "\n".join([*lines, "Not measured yet.\n"])
    names = ["exchanges before", "the LLM reading the text", *rows.values()]
    for slot, what in (("memory", "Facts stated before are remembered, %"), ("content", "The words are answered, %")):
        lines += [f"{what} (the LLM itself was trained on 0 to 3 exchanges):\n", _row(*names), "|---|--:|--:|--:|"]
        for depth in depths:
            key = f"depth {depth} {slot}"
            cells = [_cell(result, "full/respond", f"{key}/text"), *(_cell(result, row, f"{key}/both") for row in rows)]
            lines.append(_row(depth, *cells))
        lines.append("")
    return "\n".join(lines)


def _full_length() -> str:
    """The figures of the recipe at its full length, from the result file of the shipped model's build."""
    built = json.loads(FULL_LENGTH_RESULT.read_text())
    with_err = built["figures"]["respond"]
    without_err = built["figures"]["without-err"]
    shared = [(key, label) for key, label in AT_LENGTH.items() if key in with_err and key in without_err]
    lines = [
        "## The recipe at its full length\n",
        f"The build of the shipped model (`python -m dualslm.tiny build`, n = {built['n']}, seed {built['seed']}) went "
        "through the whole recipe, with L aligned first, once with ERR and once without. Two figures are called apart",
        "where their 95 % intervals do not meet, which is stricter than a paired test.\n",
        _row("after stage 3, %", "with ERR", "without ERR", ""),
        "|---|--:|--:|---|",
    ]
    for key, label in shared:
        a = with_err[key]
        b = without_err[key]
        better = (a["value"] < b["value"]) == ("wer" in key)
        apart = a["low"] > b["high"] or a["high"] < b["low"]
        says = ("**better with ERR**" if better else "**worse with ERR**") if apart else "not apart"
        shown = [f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}]" for figure in (a, b)]
        lines.append(_row(label, *shown, says))
    apart = [label for (_, label), row in zip(shared, lines[-len(shared) :], strict=True) if "**" in row]
    together = [label for label in apart if "P and L" in label]
    lines += ["", f"{len(apart)} of {len(shared)} are apart{': ' * bool(apart)}{'; '.join(apart)}."]
    lines += ["" if together else "No figure with P and L together is: there ERR neither helps nor harms visibly."]
    return "\n".join([*lines, ""])


def _reservations(result: Result) -> str:
    return f"""## What to keep in mind

- **By the paper's own method** means no alignment, one learning rate for both adapters, and histories as text; stage 1
  takes {result["unaligned"]["steps"]} steps, because L finds its words through the LLM alone. The other rows align L
  with the LLM's words before stage 1, as the tiny recipe does: then stage 1 has little to entangle, and ERR little to
  mend. The claims of both are the same; they were written down before these rows were trained, and after a shorter one
  of one seed had been read.
- **Without ERR** means the same examples, order and steps, with both channels in every prompt and both adapters
  learning.
- **One adapter** has P's transformer layer in front of L's two linear layers and no P: nearly as many weights, all
  embeddings at 10 Hz. It can be replaced by nothing, so ERR does not apply to it.
- **Histories of one length** are those talks of the same manifest that have {result["fixed"]} exchanges: about a
  quarter of the distinct conversations, for as many steps.
- One tiny world, one tiny LLM: what does not hold here may hold at the paper's size, and the other way round.
"""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    write()
