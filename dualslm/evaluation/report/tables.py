"""A report's tables, shaped as in the paper (Tables I-IV), with the paper's figures beside ours.

Rows are systems and views. Among them are bounds: the majority line, and the LLM that reads the styled transcript
(oracle) or the transcript alone; and leak cells, which show what a channel should not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from dualslm.evaluation.report.rows import (
    BOUNDS,
    VIEWS,
    Row,
    grouped,
    judged_label,
    line_kind,
    plain,
    row_label,
    set_label,
    system_line,
)
from dualslm.evaluation.report.table import BLANK, Cell, Line, Table, cell, quoted

ATTRIBUTES = ("gender", "pitch", "tempo", "energy", "emotion")
CONTROLS = ("gold", "transcript-only", "generic", "shuffled", "injection")  # systems of the judges' calibration
MADE = "tiny"  # the corpus of the embedded model's made world
PERCENT = (0.0, 100.0)  # axis of the drawn intervals
MEASURES = {"wa": "WA", "ua": "UA", "wf1": "weighted F1", "macro_f1": "macro F1", "parse_rate": "parsed"}
OTHER_READINGS = {"wa_strict": "WA strict", "wa_likelihood": "WA by likelihood"}


@cache
def published() -> Mapping[str, Any]:
    """The figures of the paper's tables, by table, with their sources."""
    found: Mapping[str, Any] = json.loads(
        (files("dualslm.evaluation.report") / "published.json").read_text(encoding="utf-8")
    )
    return found


def tables(report: Row) -> list[Table]:
    """Every table of a report that has rows, in the order of the pages."""
    cells: Sequence[Row] = report["cells"]
    made = [
        *_attributes(cells),
        *_emotions(cells),
        *_words(cells),
        *_judged(report["judged"], any(one["task"] == "respond" for one in cells)),
        *_replies(cells),
        *_side_by_side(report),
        *_choices(cells),
        *_compared(report["comparisons"]),
    ]
    worlds = {one["corpus"] for one in cells}
    return [_of_two_worlds(table, made_alone=worlds == {MADE}) for table in made if table.lines]


def _of_two_worlds(table: Table, *, made_alone: bool) -> Table:
    """A table in which figures of the made world stand above the paper's says in every row which world it is of."""
    # 100 % of five synthesized emotions is no better than 93 % of people's
    ours_is_made = made_alone or f"· {MADE}/" in table.title
    if not ours_is_made or len({line.kind == "paper" for line in table.lines}) == 1:
        return table
    world = {True: "real speech", False: "made world"}
    lines = [replace(line, label=f"{line.label} · {world[line.kind == 'paper']}") for line in table.lines]
    return replace(table, lines=tuple(lines))


def counts(report: Row) -> Table:
    """Number of items that were asked, and of those that could not be measured or read."""
    lines = []
    for one in report["cells"]:
        counted = one["counts"]
        numbers = (
            counted["asked"],
            sum(counted["unscored"].values()),
            counted.get("unparsed", ""),
            counted.get("ambiguous", ""),
            counted["cut_off"],
        )
        lines.append(Line(f"{row_label(one)} · {one['task']}, {set_label(one)}", tuple(Cell(str(x)) for x in numbers)))
    note = "Answers that name no choice, or several, count as wrong; what is unscored is in no figure."
    return Table(
        "What was asked", ("asked", "unscored", "unparsed", "ambiguous", "cut off"), tuple(lines), note, folded=True
    )


def confusions(report: Row) -> list[Row]:
    """The cells whose confusion matrix is shown: systems that take speech, through all their channels."""
    measured = [one for one in report["cells"] if one.get("confusion") and one["system"] != "majority"]
    return [one for one in measured if one["view"] in (None, "speech,speech")]


def confusion_title(one: Row) -> str:
    """The title of a cell's confusion matrix: task, set, system and view."""
    return f"Confusion · {one['task']}, {set_label(one)} · {row_label(one)}"


def diagnostics(report: Row) -> list[tuple[Table, str]]:
    """The table of each diagnostic, with its explanation."""
    out = []
    for name, one in report["instruments"].items():
        rows = one["rows"]
        ends = [row[key] for row in rows for key in ("value", "low", "high", "zero") if row.get(key) is not None]
        span = (min(0.0, *ends), max(*ends, 0.0)) if len(ends) > 1 else None
        # The zero is what a channel without the information would give, such as the majority line.
        has_zero = any(row.get("zero") is not None for row in rows)
        columns = ("figure", "its zero") if has_zero else ("figure",)
        lines = []
        for row in rows:
            zero = [plain(row.get("zero"))] if has_zero else []
            lines.append(Line(str(row["label"]), (cell(row, 3), *zero), str(row["n"])))
        table = Table(str(one.get("title", name)), columns, tuple(lines), span=span)
        out.append((table, str(one.get("reading", ""))))
    return out


# ---------------------------------------------------------------------- choices


def _attributes(cells: Sequence[Row]) -> list[Table]:
    """Table I: accuracy of the attributes, for each set that asks for more than emotion."""
    out = []
    for (corpus, split), some in grouped(cells, "corpus", "split"):
        asked = [name for name in ATTRIBUTES if any(one["task"] == name for one in some)]
        if not set(asked) - {"emotion"}:
            continue
        lines = []
        for _, of_system in grouped([one for one in some if one["task"] in asked], "system", "view"):
            found = {one["task"]: one["figures"] for one in reversed(of_system)}
            lines.append(system_line(of_system[0], [cell(found.get(name, {}).get("wa")) for name in asked], some))
        if not any(one["system"] == "majority" for one in some):
            lines.append(_majority(some, asked))
        paper = published()["attributes"]
        columns = [paper["columns"].index(name) for name in asked]
        lines += [_paper_line(row, [row["values"][column] for column in columns]) for row in paper["rows"]]
        title = f"Table I · attributes, WA in % · {corpus}/{split}"
        out.append(Table(title, tuple(asked), tuple(lines), f"Paper: {paper['set']}. {paper['note']}", PERCENT))
    return out


def _emotions(cells: Sequence[Row]) -> list[Table]:
    """Table II: emotion, for each set that asks for nothing else."""
    out = []
    for (corpus, split), some in grouped(cells, "corpus", "split"):
        if {one["task"] for one in some if one["task"] in ATTRIBUTES} != {"emotion"}:
            continue
        asked = [one for one in some if one["task"] == "emotion"]
        lines = [system_line(one, [cell(one["figures"].get(name), 2) for name in MEASURES], [one]) for one in asked]
        if not any(one["system"] == "majority" for one in asked):
            majority = asked[0]["majority"]
            found = [cell(majority.get(name), 2) for name in MEASURES]
            lines.append(Line(f"majority line ({majority['label']})", tuple(found), kind="line"))
        paper = published()["emotion"]
        blanks = [None] * (len(MEASURES) - 1)  # the paper gives WA alone
        lines += [_paper_line(row, [*row["values"], *blanks]) for row in paper["rows"]]
        title = f"Table II · emotion in dialogue, in % · {corpus}/{split}"
        note = f"Paper: {paper['set']}. {paper['note']}"
        out.append(Table(title, tuple(MEASURES.values()), tuple(lines), note, PERCENT))
    return out


def _majority(cells: Sequence[Row], asked: Sequence[str]) -> Line:
    """The majority line of a set, which every cell holds: it depends on the true labels alone."""
    first = {one["task"]: one.get("majority") for one in reversed(cells)}
    found = [cell((first.get(name) or {}).get("wa")) for name in asked]
    return Line("majority line", tuple(found), kind="line")


def _choices(cells: Sequence[Row]) -> list[Table]:
    """Accuracy by the ways to read an answer: lenient, strict and by likelihood."""
    asked = [one for one in cells if one["task"] in ATTRIBUTES and one["figures"] and one["system"] != "majority"]
    extra = [name for name in OTHER_READINGS if any(name in one["figures"] for one in asked)]
    lines = [
        Line(
            f"{row_label(one)} · {one['task']}, {set_label(one)}",
            tuple(cell(one["figures"].get(name)) for name in ("wa", *extra, "parse_rate")),
            str(one["n"]),
            line_kind(one),
        )
        for one in asked
    ]
    columns = ("WA lenient", *(OTHER_READINGS[name] for name in extra), "parsed")
    return [Table("How answers were read, in %", columns, tuple(lines), span=PERCENT, folded=True)]


# ---------------------------------------------------------------------- words


def _words(cells: Sequence[Row]) -> list[Table]:
    """Table III: word error rates with two columns for each set, and the errors by kind."""
    asked = [one for one in cells if one["task"] == "asr" and one["figures"]]
    if not asked:
        return []
    sets = list(dict.fromkeys(set_label(one) for one in asked))
    # Both normalizers: Whisper's forgives spelling, numbers and fillers, so that rates under the two do not compare.
    by_characters = {set_label(one) for one in asked if one.get("unit") == "characters"}
    suffixes = {name: " CER" if name in by_characters else "" for name in sets}
    columns = [f"{name}{suffixes[name]} {normalizer}" for name in sets for normalizer in ("raw", "Whisper")]
    lines = []
    for _, some in grouped(asked, "system", "view"):
        found = {set_label(one): one["figures"] for one in some}
        row = [cell(_rate(found.get(name, {}), key)) for name in sets for key in ("raw", "whisper")]
        lines.append(system_line(some[0], row, some))
    title = f"Table III · word error rate{' (CER: character error rate)' if by_characters else ''}, in %"
    return [
        Table(title, tuple(columns), tuple(lines), _words_note(asked, bool(by_characters)), PERCENT),
        _paper_table("words"),
        _word_errors(asked),
    ]


def _rate(figures: Row, key: str) -> Any:
    """The figure of an error rate, of words or of characters."""
    return figures.get(f"wer_{key}") or figures.get(f"cer_{key}")


def _words_note(cells: Sequence[Row], by_characters: bool) -> str:
    """What a reader must know of the rates: what was counted, by which normalizer, and what it left nothing of."""
    notes = []
    if by_characters:
        notes.append("CER counts characters, without spaces: the script of that set is written without them.")
    foreign = sorted({set_label(one) for one in cells if not one.get("english", True)})
    if foreign:
        notes.append(f"Whisper's normalizer is the basic one, which keeps accents, on {', '.join(foreign)}.")
    emptied = {
        f"{name} of {counted['emptied']} of {one['n']} references in {set_label(one)}"
        for one in cells
        for name, counted in one["edits"].items()
        if counted.get("emptied")
    }
    if emptied:
        notes.append(f"Warning: nothing is left by {'; by '.join(sorted(emptied))}; their words count as insertions.")
    return " ".join(notes)


def _word_errors(cells: Sequence[Row]) -> Table:
    """Word errors by kind, and what a chat model adds to a transcript."""
    kinds = ("substitutions", "deletions", "insertions")
    lines = []
    for one in cells:
        counted = one["edits"]["raw"]
        numbers = [Cell(str(counted[kind])) for kind in (*kinds, "reference_words")]
        rates = [cell(one["figures"].get(name)) for name in ("runaway", "preambles")]
        rates.append(cell(_rate(one["figures"], "stripped")))
        label = f"{row_label(one)} · {set_label(one)}{' (characters)' if one.get('unit') == 'characters' else ''}"
        lines.append(Line(label, (*numbers, *rates), str(one["n"]), line_kind(one)))
    columns = (*kinds, "reference words", "runaway, %", "preambles, %", "WER without preambles")
    return Table("What the word errors are (raw)", columns, tuple(lines), folded=True)


# ---------------------------------------------------------------------- replies


def _judged(judged: Row, asked: bool) -> list[Table]:
    """Table IV: one table for each judge and scale; the paper's own where replies were asked for and not judged."""
    out = [] if judged or not asked else [_paper_table("replies", 2)]
    for (judge, protocol), some in grouped(judged.get("scores", []), "judge", "protocol"):
        columns = list(dict.fromkeys(row["dimension"] for row in some))
        lines = []
        for (system, direction), rows in grouped(some, "system", "direction"):
            found = {row["dimension"]: cell({**row, "value": row["mean"]}, 2) for row in rows}
            label = judged_label(system) if direction == "all" else f"{judged_label(system)}, {direction}"
            bound = system in CONTROLS or system.endswith(tuple(f"[{view}]" for view in BOUNDS))
            cells = tuple(found.get(name, BLANK) for name in columns)
            lines.append(Line(label, cells, str(rows[0]["n"]), "line" if bound else "ours"))
        paper = published()["replies"]
        for row in paper["rows"]:
            values = dict(zip(paper["columns"], row["values"], strict=True))
            named = {**row, "system": _with_judge(row)}
            lines.append(_paper_line(named, [values.get(name) for name in columns], 2))
        title = f"Table IV · replies by judge {judge} · protocol {protocol}"
        out.append(Table(title, tuple(columns), tuple(lines), f"Paper: {paper['set']}. {paper['note']}"))
    return [*out, *_trust(judged.get("trust", [])), *_agreement(judged.get("agreement", []))]


def _trust(trials: Sequence[Row]) -> list[Table]:
    """Whether each judge passed the calibration."""
    lines = [
        Line(f"{one['judge']} · {one['protocol']}", (Cell("yes" if one["usable"] else "no"),), str(one["n"]))
        for one in trials
    ]
    note = " ".join(sentence for one in trials for sentence in one["told"])
    return [Table("Can these judges be trusted?", ("passed every step",), tuple(lines), note)]


def _agreement(rows: Sequence[Row]) -> list[Table]:
    names = [
        name
        for name in ("alpha", "kappa", "spearman", "exact", "within_one", "tau")
        if any(name in row for row in rows)
    ]
    lines = [
        Line(
            f"{' and '.join(row['judges'])} · {row['protocol']}, {row['dimension']}",
            tuple(plain(row.get(name)) for name in names),
            str(row.get("n", "")),
        )
        for row in rows
    ]
    return [Table("How judges agree", tuple(names), tuple(lines))]


def _replies(cells: Sequence[Row]) -> list[Table]:
    """What can be measured of replies without a judge."""
    asked = [one for one in cells if one["task"] == "respond" and one["figures"]]
    lines = []
    for one in asked:
        figures = one["figures"]
        overlap = cell(figures.get("rouge_l"))
        length = replace(cell(figures.get("length")), number=None)  # in words, so not on the axis of percent
        row = (overlap, length, cell(figures.get("empty")))
        lines.append(Line(f"{row_label(one)} · {set_label(one)}", row, str(one["n"]), line_kind(one)))
    note = "ROUGE-L against the reference reply, where there is one: how near, not how good."
    columns = ("ROUGE-L, %", "words a reply", "empty, %")
    return [Table("Replies without a judge", columns, tuple(lines), note, PERCENT)]


# ---------------------------------------------------------------------- side by side


def _side_by_side(report: Row) -> list[Table]:
    """Our checkpoints in columns: stages and ablations."""
    names = list(dict.fromkeys(one["name"] for one in report["systems"] if one.get("kind") == "dualslm"))
    if len(names) < 2:
        return []
    measures = {"asr": "wer_raw", "respond": "rouge_l"}  # of other tasks, WA
    lines = []
    for (task, corpus, split, view), some in grouped(report["cells"], "task", "corpus", "split", "view"):
        by_system = {one["system"]: one["figures"] for one in some}
        name = measures.get(task, "wa")
        # The same measure of characters, where a set is written without spaces.
        if not any(name in figures for figures in by_system.values()):
            name = name.replace("wer_", "cer_")
        row = [cell(by_system[system].get(name)) if system in by_system else BLANK for system in names]
        if any(one is not BLANK for one in row):
            label = " · ".join((f"{task}, {corpus}/{split}", *([VIEWS.get(view, view)] if view else []), name))
            lines.append(Line(label, tuple(row), str(some[0]["n"])))
    return [Table("Stages and ablations side by side, in %", tuple(names), tuple(lines), span=PERCENT)]


def _compared(found: Sequence[Row]) -> list[Table]:
    """Paired differences between systems."""
    lines = []
    for one in found:
        sides = [row_label({"system": system, "view": view}) for system, view in (one["first"], one["second"])]
        label = f"{one['task']}, {one['corpus']}/{one['split']} · {sides[0]} minus {sides[1]}"
        row = (cell(one), plain(one["p"], 4), plain(one["p_holm"], 4), Cell(one["measure"]))
        lines.append(Line(label, row, str(one["n"])))
    note = "Paired over clusters; p of the sign-flip test; Holm's correction over all lines of this table."
    columns = ("difference", "p", "p, Holm", "measure")
    return [
        Table(
            "Differences on the same items, in points", columns, tuple(lines), note, (-100.0, 100.0), 0.0, folded=True
        )
    ]


# ---------------------------------------------------------------------- the paper's figures


def _paper_table(name: str, digits: int = 1) -> Table:
    """One of the paper's tables as it is, for where ours has other columns, or there is none of ours."""
    paper = published()[name]
    lines = [_paper_line({**row, "system": _with_judge(row)}, row["values"], digits) for row in paper["rows"]]
    title = f"Table {paper['table']} in the paper · {paper['set']}, {paper['measure']}"
    return Table(title, tuple(paper["columns"]), tuple(lines), paper["note"])


def _with_judge(row: Row) -> str:
    """The system of a published row, and the judge that scored it, if any."""
    return f"{row['system']}, judge {row['judge']}" if "judge" in row else str(row["system"])


def _paper_line(row: Row, values: Sequence[float | None], digits: int = 1) -> Line:
    source = f" {row['source']}" if row.get("source") else ""
    # A fair comparison needs it: the paper and we train the adapters alone, others also the encoder or the LLM.
    learns = f" · learns: {row['learnable']}" if row.get("learnable") else ""
    return Line(f"{row['system']}{source}{learns}", tuple(quoted(value, digits) for value in values), kind="paper")
