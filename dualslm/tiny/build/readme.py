"""Writes the measured figures and the demo's output into README.md, between markers.

Nobody types these tables: they are made from docs/results/tiny.json, and a test checks that README.md is up to date.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from rich.console import Console

README = Path("README.md")
RESULT = Path("docs/results/tiny.json")
ATTRIBUTE_TARGETS = {"emotion": 95, "energy": 92, "tempo": 92, "gender": 95, "pitch": 88}
P_ALONE = "speech,none"  # views, as the result file spells them
L_ALONE = "none,speech"
BOTH = "speech,speech"
NO_ERR = "without-err"
Figures = dict[str, dict[str, dict[str, float]]]


def write(*, check: bool = False) -> int:
    """Writes README.md anew; with `check` only compares the tables and returns 1 where they are stale."""
    text = README.read_text()
    fresh = put(text, "results", tables(json.loads(RESULT.read_text())))
    if check:
        return int(fresh != text)
    README.write_text(put(fresh, "session", _session()))
    return 0


def put(text: str, name: str, content: str) -> str:
    """Replaces the content between a pair of markers of a page.

    Args:
        text: the whole page.
        name: name of the markers, `<!-- NAME:begin ... -->` and `<!-- NAME:end -->`.
        content: the new content.
    """
    pattern = rf"(<!-- {name}:begin [^\n]*-->\n).*?(<!-- {name}:end -->)"
    # A function as replacement: a string would have its backslashes read as group references.
    replaced, count = re.subn(pattern, lambda found: found[1] + content + found[2], text, flags=re.DOTALL)
    assert count == 1, f"no {name} markers"
    return replaced


def tables(result: dict[str, object]) -> str:
    """The README's tables of results, in Markdown."""
    figures: Figures = result["figures"]  # type: ignore[assignment]
    final = figures["final"]
    head = (
        f"n = {result['n']} utterances a figure, seed {result['seed']}, 95 % intervals in brackets; "
        "made by `python -m dualslm.tiny eval`.\n\n"
    )
    stages = "\n" + _stage_table(figures) if NO_ERR in figures else ""
    return head + _main_table(final) + stages


def _main_table(final: dict[str, dict[str, float]]) -> str:
    rows = [
        ("word error rate, L alone", 3, "wer/" + L_ALONE),
        ("word error rate, P and L", 3, "wer/" + BOTH),
        *((f"{name}, P alone", target, f"{name}/{P_ALONE}") for name, target in ATTRIBUTE_TARGETS.items()),
        *((f"{name}, P and L", "", f"{name}/{BOTH}") for name in ATTRIBUTE_TARGETS),
        ("emotion, L alone (leak)", "at most 32", f"emotion/{L_ALONE}"),
        ("emotion, always the commonest", "", "emotion/majority"),
        ("reply: tone right", 95, f"reply tone/{BOTH}"),
        ("reply: content right", 90, f"reply content/{BOTH}"),
        ("reply: memory right", 97, f"reply memory/{BOTH}"),
        ("reply: memory right, the fact was spoken", "", f"reply memory of speech/{BOTH}"),
        ("reply: all right", 80, f"reply/{BOTH}"),
    ]
    lines = [_row("%", "aim", "voices heard in training", "voices never heard"), "|---|--:|--:|--:|"]
    lines += [
        _row(label, str(aim), *(_cell(final, f"{voices}/{key}") for voices in ("seen", "unseen")))
        for label, aim, key in rows
    ]
    return "\n".join(lines) + "\n"


def _stage_table(figures: Figures) -> str:
    columns = {
        "align": "aligned",
        "joint": "after stage 1",
        "disentangle": "after stage 2",
        "respond": "after stage 3",
        NO_ERR: "the same steps without ERR",
    }
    rows = [
        ("word error rate, P and L", f"seen/wer/{BOTH}"),
        ("word error rate, L alone", f"seen/wer/{L_ALONE}"),
        ("emotion, P and L", f"seen/emotion/{BOTH}"),
        ("emotion, P alone", f"seen/emotion/{P_ALONE}"),
        ("emotion, L alone (leak)", f"seen/emotion/{L_ALONE}"),
        ("energy, P and L", f"seen/energy/{BOTH}"),
        ("energy, P alone", f"seen/energy/{P_ALONE}"),
        ("energy, L alone (leak)", f"seen/energy/{L_ALONE}"),
        ("reply all right, P and L", f"seen/reply/{BOTH}"),
        ("reply all right, caption and L", "seen/reply/text,speech"),
        ("reply all right, P and transcript", "seen/reply/speech,text"),
    ]
    lines = [
        "What each stage of `recipes/tiny.toml` does, and the same training without equivalence replacement (voices "
        "heard in training); the shipped adapters went on from stage 3 by `recipes/tiny-more.toml`:\n",
        _row("%", *columns.values()),
        "|---|" + "--:|" * len(columns),
    ]
    lines += [_row(label, *(_cell(figures.get(name, {}), key) for name in columns)) for label, key in rows]
    return "\n".join(lines) + "\n"


def _cell(figures: dict[str, dict[str, float]], key: str) -> str:
    if key not in figures:
        return "-"
    figure = figures[key]
    return f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}]"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _session() -> str:
    """The demo's real output, without the last part, which names folders of this machine."""
    from dualslm.tiny import demo

    console = Console(file=io.StringIO(), width=110, highlight=False, color_system=None)
    demo.main(console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    end = next(index for index, line in enumerate(lines) if line.startswith("next"))
    return "```text\n" + "\n".join(lines[:end]).strip() + "\n```\n"
