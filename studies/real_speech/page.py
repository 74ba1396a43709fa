"""Writes the tables and findings of docs/real-speech.md from the result file; nobody types a number there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies import pages
from studies.pages import ranged, table
from studies.real_speech import plans
from studies.real_speech.wording import EMOTIONS

PAGE = Path(__file__).parents[2] / "docs" / "real-speech.md"
Figures = Mapping[str, Any]


def write(result: Path, *, check: bool = False) -> int:
    """Writes the page.

    Args:
        result: result file.
        check: whether only to compare the page.

    Returns:
        0, or with `check` 1 where the page is stale.
    """
    return pages.write(PAGE, "real_speech", tables, result, check=check)


def tables(result: Figures) -> str:
    """All tables in Markdown; one without figures is left out."""
    found: Figures = result["figures"]
    head = f"Machine: {result['machine']}; torch {result['torch']}, transformers {result['transformers']}.\n"
    makers = (_findings, _chosen, _confusion, _swap, _probe, _tone, _whole, _rotated, _tested)
    return "\n".join([head, *(part for make in makers if (part := make(found)))])


def _findings(found: Figures) -> str:
    """The comparisons in words, each with its figures and intervals."""
    # P is compared among the arms that train P alone, the rest among those that train both adapters.
    chosen = found.get("as chosen seed 0")
    lines: list[str] = []
    for name, words in FINDINGS.items():
        other = found.get(f"{name} seed 0")
        if chosen and other:
            lines.append(f"{len(lines) + 1}. {words}: {_pair(chosen['emotion, P'], other['emotion, P'])}.")
    for words, name, ours, theirs in WHOLE_FINDINGS:
        if (one := found.get(f"{plans.CHOSEN.name} seed 0")) and (other := found.get(f"{name} seed 0")):
            lines.append(f"{len(lines) + 1}. {words}: {_pair(_get(one, ours), _get(other, theirs))}.")
    if "probe" in found:
        last = max(key for key in found["probe"] if key.startswith("emotion"))
        layer, figure = probe_best(found["probe"])
        compared = f"{layer} of the yardstick reads {ranged(figure)}, its last layer {ranged(found['probe'][last])}"
        lines.append(f"{len(lines) + 1}. The best layer for emotion is not the last one: {compared}.")
    return (
        "### Findings\n\nEmotion from P alone unless said, n as below.\n\n" + "\n".join(lines) + "\n" if lines else ""
    )


EARLIER_MIXTURE = "copies transcribed too"  # the mixture of tasks before the one that was chosen
FINDINGS: Mapping[str, str] = {
    "last layer": "Layer 3 of 4, against the last",
    "channels as they are": "Channels standardized, against normalised frame by frame alone",
    "P not aligned first": "P aligned with the words of its labels first, against the LLM's loss alone",
    "m = 1": "m = 4, against 1",
    "m = 16": "m = 4, against 16",
    "mean alone": "Mean and deviation, against the mean alone",
    "learned mix of layers": "One layer, against a learned mix of all",
    "a transformer layer": "No transformer layer in P, against one, as in the paper",
}


EMOTION = ("emotion, P and L",)  # paths of figures in the result file
SENTENCE = ("words, P and L", "exact")
WHOLE_FINDINGS: Sequence[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = (
    ("With ERR, against without", "without ERR", ("emotion, P",), ("emotion, P",)),
    ("With ERR, against without, emotion from P and L", "without ERR", EMOTION, EMOTION),
    ("With ERR, against without, which sentence from P and L", "without ERR", SENTENCE, SENTENCE),
    ("Two adapters, against one of equal size, emotion", plans.SINGLE.name, EMOTION, ("emotion, L",)),
    ("Two adapters, against one of equal size, which sentence", plans.SINGLE.name, SENTENCE, ("words, L", "exact")),
)
"""Text, the arm beside the chosen one, and the paths of both figures; a single adapter stands in L's place."""


def _pair(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    # Stricter than a paired test: intervals may overlap and the difference still be real.
    apart = ours["low"] > theirs["high"] or theirs["low"] > ours["high"]
    return f"{ranged(ours)} against {ranged(theirs)}; the intervals {'do not overlap' if apart else 'overlap'}"


def probe_best(probe: Figures) -> tuple[str, Mapping[str, float]]:
    """The layer from which the probe reads the emotion best, and its figure."""
    own = {key: value for key, value in probe.items() if key.startswith("emotion, ")}
    key = max(own, key=lambda one: float(own[one]["value"]))
    return key.removeprefix("emotion, ").capitalize(), own[key]


def _chosen(found: Figures) -> str:
    runs = _seeds(found, plans.CHOSEN.name)
    if not runs:
        return ""
    head = ["%", "aim", *(f"seed {seed}" for seed in runs)]
    rows = [[label, aim, *(_at(run, path) for run in runs.values())] for label, aim, path in CHOSEN_ROWS]
    text = [[f"{label}, as text", "", *[_at(found, ("ceiling", *path))] * len(runs)] for label, path in TEXT_ROWS]
    n = next(iter(runs.values()))["emotion, P"]["n"]
    digits = next(iter(runs.values()))["digits"]["words, L"]["exact"]["n"]
    return (
        f"### The chosen setting\n\nActors 13 to 18, n = {n}; digits of two unseen speakers, n = {digits}; 95 % "
        "intervals in brackets.\n\n" + table(head, [row for row in [*rows, *text] if any(row[2:])])
    )


CHOSEN_ROWS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("emotion of eight, P alone", "75", ("emotion, P",)),
    ("emotion, P and L", "within 2", ("emotion, P and L",)),
    ("emotion, L alone (leak)", "chance 12.5", ("emotion, L",)),
    ("emotion, always the commonest", "", ("emotion, commonest",)),
    ("gender, P alone", "99", ("gender, P",)),
    ("gender, P and L", "", ("gender, P and L",)),
    ("gender, L alone (leak)", "chance 50", ("gender, L",)),
    ("which sentence, L alone, word for word", "99", ("words, L", "exact")),
    ("which sentence, P and L", "", ("words, P and L", "exact")),
    ("which sentence, P alone (leak)", "chance 50", ("words, P", "exact")),
    ("word error rate of the sentences, L alone", "", ("words, L", "wer")),
    ("digits, L alone", "97", ("digits", "words, L", "exact")),
    ("digits, P and L", "", ("digits", "words, P and L", "exact")),
    ("LibriSpeech, word error rate, L alone", "only reported", ("librispeech", "words, L", "wer")),
)
TEXT_ROWS = (
    ("emotion, caption and transcript", ("emotion",)),
    ("gender, caption and transcript", ("gender",)),
    ("sentence, caption and transcript", ("words", "exact")),
)


def _confusion(found: Figures) -> str:
    runs = _seeds(found, plans.CHOSEN.name)
    if not runs:
        return ""
    seed, run = next(iter(runs.items()))
    head = ["acted", *EMOTIONS, "none"]
    rows = [[name, *map(str, counts)] for name, counts in zip(EMOTIONS, run["confusion"], strict=True)]
    return (
        f"### What is heard for what\n\nP alone, seed {seed}: clips acted (rows) and answered (columns).\n\n"
        + table(head, rows)
    )


def _swap(found: Figures) -> str:
    runs = _seeds(found, plans.CHOSEN.name)
    rows = [
        [f"{name}, seed {seed}", ranged(figure), str(figure["n"])]
        for seed, run in runs.items()
        for name, figure in run.get("swap", {}).items()
    ]
    if not rows:
        return ""
    head = "### The swap\n\nP of an angry clip with L of a calm one of the same actor, who says the other sentence.\n\n"
    return head + table(["%", "rate", "n"], rows)


def _probe(found: Figures) -> str:
    if "probe" not in found:
        return ""
    names = [("probe", "window of 6 s"), ("probe, window of 30 s", "window of 30 s")]
    probes = [(found[key], label) for key, label in names if key in found]
    layers = sorted({key.split("layer ")[1] for key in probes[0][0]})
    head = ["layer", *(f"{name}, {label}" for _, label in probes for name in ("emotion", "gender"))]
    rows = [
        [
            layer,
            *(ranged(probe[f"{name}, layer {layer}"]) for probe, _ in probes for name in ("emotion", "gender")),
        ]
        for layer in layers
    ]
    intro = (
        "### The yardstick\n\nA linear classifier on mean and deviation of one layer over the clip, same speakers; "
        "layer 0 is the convolutions', the last one the encoder's output.\n\n"
    )
    return intro + table(head, rows)


def _tone(found: Figures) -> str:
    arms = [(arm.name, found[f"{arm.name} seed 0"]) for arm in plans.TONE if f"{arm.name} seed 0" in found]
    if not arms:
        return ""
    rows = [
        [
            name,
            ranged(run["emotion, P"]),
            ranged(run["gender, P"]),
            f"{run['adapters']:,}",
            f"{run['minutes']}",
        ]
        for name, run in arms
    ]
    intro = (
        "### P alone: what makes it better\n\nOne stage that teaches P alone, the same clips, order and steps; each "
        "row differs from the first in one thing.\n\n"
    )
    return intro + table(["setting", "emotion, %", "gender, %", "parameters of both adapters", "minutes"], rows)


def _whole(found: Figures) -> str:
    names = [arm.name for arm in (plans.CHOSEN, *plans.WHOLE)] + [EARLIER_MIXTURE]
    arms = [(name, found[f"{name} seed 0"]) for name in names if f"{name} seed 0" in found]
    if len(arms) < 2:
        return ""

    def has(arm: str, path: tuple[str, ...]) -> bool:
        # A single adapter is asked through P too, where it has nothing: such figures say nothing of it.
        return arm != plans.SINGLE.name or any(part.endswith(", L") for part in path)

    left_out = ("librispeech", "emotion, commonest")
    labels = [(label, path) for label, _, path in CHOSEN_ROWS if path[0] not in left_out]
    rows = [[label, *(_at(run, path) if has(name, path) else "" for name, run in arms)] for label, path in labels]
    intro = (
        "### Both adapters: with and without ERR, and a single one\n\nThe same clips, order and steps. A single "
        "adapter has no P: what it does stands in the rows of L alone, where tone is no leak.\n\n"
    )
    return intro + table(["%", *(name for name, _ in arms)], rows)


def _rotated(found: Figures) -> str:
    """Digits of every pair of speakers, each from a run without them in its training data."""
    arms = (plans.CHOSEN, *plans.ROTATED)
    runs = [(arm, found[key]["digits"]) for arm in arms if (key := f"{arm.name} seed 0") in found]
    if len(runs) < 2:
        return ""
    keys = (("words, L", "exact"), ("words, P and L", "exact"))
    rows = [
        [" and ".join(arm.held), str(run["words, L"]["exact"]["n"]), *(_at(run, key) for key in keys)]
        for arm, run in runs
    ]
    intro = (
        "### Digits of the other speakers\n\nThe chosen setting, seed 0, taught by four speakers and asked about the "
        "other two. Only the first two had been looked at before it was chosen.\n\n"
    )
    return intro + table(["never heard", "n", "L alone, %", "P and L, %"], rows)


def _tested(found: Figures) -> str:
    runs = [run for name, run in found.items() if name.startswith("tested ")]
    keys = ("emotion, P", "emotion, P and L", "gender, P")
    rows = [[" ".join(run["actors"]), str(run["seed"]), *(_at(run, (key,)) for key in keys)] for run in runs]
    if not rows:
        return ""
    return "### By `--test-dir`\n\n" + table(["actors", "seed", *keys], rows)


# ---------------------------------------------------------------------- helpers


def _seeds(found: Figures, name: str) -> dict[str, Any]:
    """The runs of an arm, by seed."""
    prefix = f"{name} seed "
    return {key.removeprefix(prefix): run for key, run in found.items() if key.startswith(prefix)}


def _at(run: Figures, path: Iterable[str]) -> str:
    """The figure at a path; empty where it was not measured."""
    figure = _get(run, path)
    return ranged(figure) if figure else ""


def _get(run: Figures, path: Iterable[str]) -> Any:
    found: Any = run
    for key in path:
        found = found.get(key, {})
    return found
