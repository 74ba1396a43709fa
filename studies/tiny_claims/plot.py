"""The plot of docs/study.md: the main figures of each row with their intervals."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot

from studies.tiny_claims.page import PLOT, TABLES, Result, cell, seeds_of


def draw(result: Result) -> None:
    """Draws word errors, emotion and replies by channel, row by row, with intervals."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "study"  # the same figures give the same file
    rows = [row for table in TABLES.values() for row in table if row.endswith("respond") or row.startswith("full")]
    rows = [row for row in dict.fromkeys(rows) if seeds_of(result, row, "words/both")][::-1]
    drawing, axes = pyplot.subplots(1, 3, figsize=(10, 1.2 + 0.4 * len(rows)), sharey=True, layout="constrained")
    groups = {"word errors, %": "words", "emotion right, %": "emotion", "reply all right, %": "reply"}
    for axis, (label, group) in zip(axes, groups.items(), strict=True):
        for shift, source in enumerate(("both", "L", "P", "caption+L", "P+transcript")):
            cells = [(index, cell(result, row, f"{group}/{source}")) for index, row in enumerate(rows)]
            points = [(index + 0.13 * (2 - shift), one) for index, one in cells if one is not None]
            if points:
                values = np.array([one.value for _, one in points])
                low = [one.value - one.low for _, one in points]
                high = [one.high - one.value for _, one in points]
                axis.errorbar(
                    values,
                    [y for y, _ in points],
                    xerr=np.array([low, high]).clip(0),
                    fmt="o",
                    ms=4,
                    lw=1,
                    color=f"C{shift}",
                    label=source,
                )
        axis.set(xlabel=label, yticks=range(len(rows)), yticklabels=rows)
        axis.grid(axis="x", alpha=0.3)
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    drawing.savefig(PLOT, metadata={"Date": None})
    pyplot.close(drawing)
