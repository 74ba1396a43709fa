"""A report's tables, shaped as in the paper (Tables I-IV), with the paper's figures beside ours.

Rows are systems and views. Bounds stand beside: the majority line, the LLM that reads the styled transcript (oracle)
or the transcript alone, and the leak cells, what a channel should not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from dualslm.evaluation.report.table import BLANK, Cell, Line, Table, cell, quoted

Row: TypeAlias = Mapping[str, Any]
VIEWS = {
    "speech,speech": "P&L-Embs",
    "speech,none": "P-Embs",
    "none,speech": "L-Embs",
    "text,text": "reads the styled transcript (oracle)",
    "none,text": "reads the transcript alone",
    "none,none": "hears nothing",
    "text,speech": "caption & L-Embs",
    "speech,text": "P-Embs & transcript",
}
LEAKS = {("linguistic", "speech,none"), ("paralinguistic", "none,speech")}
ATTRIBUTES = ("gender", "pitch", "tempo", "energy", "emotion")
CONTROLS = ("gold", "transcript-only", "generic", "shuffled", "injection")  # of the judges' trial
PERCENT = (0.0, 100.0)
MEASURES = {"wa": "WA", "ua": "UA", "wf1": "weighted F1", "macro_f1": "macro F1", "parse_rate": "parsed"}
MORE = {"wa_strict": "WA strict", "wa_likelihood": "WA by likelihood"}


@cache
def published() -> Mapping[str, Any]:
    """What the paper's tables say."""
    found: Mapping[str, Any] = json.loads(
        (files("dualslm.evaluation.report") / "published.json").read_text(encoding="utf-8")
    )
    return found


def tables(report: Row) -> list[Table]:
    """Every table of a report that has something in it."""
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
    return [table for table in made if table.lines]


def counts(report: Row) -> Table:
    """What was asked, and what of it could not be measured or read."""
    lines = []
    for one in report["cells"]:
        told = one["counts"]
        unscored = sum(told["unscored"].values())
        numbers = (told["asked"], unscored, told.get("unparsed", ""), told.get("ambiguous", ""), told["cut_off"])
        lines.append(Line(f"{row_label(one)} · {one['task']}, {_set(one)}", tuple(Cell(str(x)) for x in numbers)))
    note = "Answers that name no choice, or several, count as wrong; what is unscored is in no figure."
    return Table(
        "What was asked", ("asked", "unscored", "unparsed", "ambiguous", "cut off"), tuple(lines), note, folded=True
    )


def confusions(report: Row) -> list[Row]:
    """The cells whose confusion is shown: systems that hear, through all that they have."""
    heard = [one for one in report["cells"] if one.get("confusion") and one["system"] != "majority"]
    return [one for one in heard if one["view"] in (None, "speech,speech")]


def confusion_title(one: Row) -> str:
    """What a confusion matrix is of."""
    return f"Confusion · {one['task']}, {_set(one)} · {row_label(one)}"


def row_label(one: Row) -> str:
    """A system and its view."""
    view = one["view"]
    if view is None:
        return str(one["system"])
    leak = " (leak)" if (one.get("kind"), view) in LEAKS else ""
    return f"{one['system']}, {VIEWS.get(view, view)}{leak}"


def instruments(report: Row) -> list[tuple[Table, str]]:
    """Each instrument's table and its reading."""
    out = []
    for name, one in report["instruments"].items():
        rows = one["rows"]
        ends = [row[key] for row in rows for key in ("value", "low", "high", "zero") if row.get(key) is not None]
        span = (min(0.0, *ends), max(*ends, 0.0)) if len(ends) > 1 else None
        has_zero = any(row.get("zero") is not None for row in rows)
        columns = ("figure", "its zero") if has_zero else ("figure",)
        lines = [
            Line(str(row["label"]), (cell(row, 3), *([_plain(row.get("zero"))] if has_zero else [])), str(row["n"]))
            for row in rows
        ]
        out.append((Table(str(one.get("title", name)), columns, tuple(lines), span=span), str(one.get("reading", ""))))
    return out


# ---------------------------------------------------------------------- choices


def _attributes(cells: Sequence[Row]) -> list[Table]:
    """Table I: accuracy of the attributes of each set that asks for more than emotion."""
    out = []
    for (corpus, split), some in _by(cells, "corpus", "split"):
        asked = [name for name in ATTRIBUTES if any(one["task"] == name for one in some)]
        if set(asked) - {"emotion"}:
            find = _finder(some, "wa")
            lines = [_line(head, [find(head, name) for name in asked], some) for head in _heads(some, asked)]
            lines += _majority(some, asked)
            paper = published()["attributes"]
            places = [paper["columns"].index(name) for name in asked]
            lines += [_paper(row, [row["values"][place] for place in places]) for row in paper["rows"]]
            title = f"Table I · attributes, WA in % · {corpus}/{split}"
            out.append(Table(title, tuple(asked), tuple(lines), f"Paper: {paper['set']}. {paper['note']}", PERCENT))
    return out


def _emotions(cells: Sequence[Row]) -> list[Table]:
    """Table II: emotion of each set that asks for nothing else."""
    out = []
    for (corpus, split), some in _by(cells, "corpus", "split"):
        if {one["task"] for one in some if one["task"] in ATTRIBUTES} == {"emotion"}:
            some = [one for one in some if one["task"] == "emotion"]
            lines = [_line(one, [cell(one["figures"].get(name), 2) for name in MEASURES], [one]) for one in some]
            if not any(one["system"] == "majority" for one in some):
                line = some[0]["majority"]
                found = [cell(line.get(name), 2) for name in MEASURES]
                lines.append(Line(f"majority line ({line['label']})", tuple(found), kind="line"))
            paper = published()["emotion"]
            blanks = [None] * (len(MEASURES) - 1)
            lines += [_paper(row, [*row["values"], *blanks]) for row in paper["rows"]]
            title = f"Table II · emotion in dialogue, in % · {corpus}/{split}"
            note = f"Paper: {paper['set']}. {paper['note']}"
            out.append(Table(title, tuple(MEASURES.values()), tuple(lines), note, PERCENT))
    return out


def _majority(some: Sequence[Row], asked: Sequence[str]) -> list[Line]:
    if any(one["system"] == "majority" for one in some):
        return []
    first = {one["task"]: one.get("majority") for one in reversed(some)}
    found = [cell((first.get(name) or {}).get("wa")) for name in asked]
    return [Line("majority line", tuple(found), kind="line")]


def _choices(cells: Sequence[Row]) -> list[Table]:
    """How answers were read: strict, lenient and by likelihood."""
    asked = [one for one in cells if one["task"] in ATTRIBUTES and one["figures"] and one["system"] != "majority"]
    extra = [name for name in MORE if any(name in one["figures"] for one in asked)]
    lines = [
        Line(
            f"{row_label(one)} · {one['task']}, {_set(one)}",
            tuple(cell(one["figures"].get(name)) for name in ("wa", *extra, "parse_rate")),
            str(one["n"]),
            _kind(one),
        )
        for one in asked
    ]
    columns = ("WA lenient", *(MORE[name] for name in extra), "parsed")
    return [Table("How answers were read, in %", columns, tuple(lines), span=PERCENT, folded=True)]


# ---------------------------------------------------------------------- words


def _words(cells: Sequence[Row]) -> list[Table]:
    """Table III: word error rates, a column pair for each set; and what the errors are."""
    asked = [one for one in cells if one["task"] == "asr" and one["figures"]]
    sets = list(dict.fromkeys(_set(one) for one in asked))
    if not asked:
        return []
    columns = [f"{name} {how}" for name in sets for how in ("raw", "Whisper")]
    lines = []
    for head in _heads(asked, sets):
        found = {_set(one): one["figures"] for one in asked if _same(one, head)}
        row = [cell(found.get(name, {}).get(f"wer_{how}")) for name in sets for how in ("raw", "whisper")]
        lines.append(_line(head, row, [one for one in asked if _same(one, head)]))
    kinds = ("substitutions", "deletions", "insertions")
    details = [
        Line(
            f"{row_label(one)} · {_set(one)}",
            (
                *(Cell(str(one["edits"]["raw"][kind])) for kind in kinds),
                Cell(str(one["edits"]["raw"]["reference_words"])),
                *(cell(one["figures"].get(name)) for name in ("runaway", "preambles", "wer_stripped")),
            ),
            str(one["n"]),
            _kind(one),
        )
        for one in asked
    ]
    columns_of_details = (*kinds, "reference words", "runaway, %", "preambles, %", "WER without preambles")
    return [
        Table("Table III · word error rate, in %", tuple(columns), tuple(lines), span=PERCENT),
        _quoted("words"),
        Table("What the word errors are (raw)", columns_of_details, tuple(details), folded=True),
    ]


# ---------------------------------------------------------------------- replies


def _judged(judged: Row, asked: bool) -> list[Table]:
    """Table IV: one table for each judge and scale; the paper's own where replies were asked for and not judged."""
    out = [] if judged or not asked else [_quoted("replies", 2)]
    for (judge, protocol), some in _by(judged.get("scores", []), "judge", "protocol"):
        columns = list(dict.fromkeys(row["dimension"] for row in some))
        lines = []
        for (system, way), rows in _by(some, "system", "direction"):
            found = {row["dimension"]: cell({**row, "value": row["mean"]}, 2) for row in rows}
            label = _known(system) if way == "all" else f"{_known(system)}, {way}"
            bound = system in CONTROLS or system.endswith(("[text,text]", "[none,text]"))
            row = tuple(found.get(name, BLANK) for name in columns)
            lines.append(Line(label, row, str(rows[0]["n"]), "line" if bound else "ours"))
        paper = published()["replies"]
        places = {name: place for place, name in enumerate(paper["columns"])}
        for row in paper["rows"]:
            values = [row["values"][places[name]] if name in places else None for name in columns]
            lines.append(_paper({**row, "system": _judge(row)}, values, 2))
        title = f"Table IV · replies by judge {judge} · protocol {protocol}"
        out.append(Table(title, tuple(columns), tuple(lines), f"Paper: {paper['set']}. {paper['note']}"))
    return [*out, *_trust(judged.get("trust", [])), *_agreement(judged.get("agreement", []))]


def _trust(trials: Sequence[Row]) -> list[Table]:
    """What the sanity suite says of each judge."""
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
            tuple(_plain(row.get(name)) for name in names),
            str(row.get("n", "")),
        )
        for row in rows
    ]
    return [Table("How judges agree", tuple(names), tuple(lines))]


def _replies(cells: Sequence[Row]) -> list[Table]:
    """Replies without a judge."""
    asked = [one for one in cells if one["task"] == "respond" and one["figures"]]
    lines = []
    for one in asked:
        figures = one["figures"]
        overlap = cell(figures.get("rouge_l"))
        length = replace(cell(figures.get("length")), number=None)  # not on an axis of percents
        row = (overlap, length, cell(figures.get("empty")))
        lines.append(Line(f"{row_label(one)} · {_set(one)}", row, str(one["n"]), _kind(one)))
    note = "ROUGE-L against the reference reply, where there is one: how near, not how good."
    columns = ("ROUGE-L, %", "words a reply", "empty, %")
    return [Table("Replies without a judge", columns, tuple(lines), note, PERCENT)]


# ---------------------------------------------------------------------- side by side


def _side_by_side(report: Row) -> list[Table]:
    """Checkpoints of ours in columns: stages and ablations."""
    names = list(dict.fromkeys(one["name"] for one in report["systems"] if one.get("kind") == "dualslm"))
    if len(names) < 2:
        return []
    measure = {"asr": "wer_raw", "respond": "rouge_l"}
    lines = []
    for (task, corpus, split, view), some in _by(report["cells"], "task", "corpus", "split", "view"):
        of = {one["system"]: one for one in some}
        name = measure.get(task, "wa")
        row = [cell(of[system]["figures"].get(name)) if system in of else BLANK for system in names]
        if any(one is not BLANK for one in row):
            label = " · ".join((f"{task}, {corpus}/{split}", *([VIEWS.get(view, view)] if view else []), name))
            lines.append(Line(label, tuple(row), str(some[0]["n"])))
    return [Table("Stages and ablations side by side, in %", tuple(names), tuple(lines), span=PERCENT)]


def _compared(found: Sequence[Row]) -> list[Table]:
    """Paired differences."""
    lines = []
    for one in found:
        sides = [row_label({"system": system, "view": view}) for system, view in (one["first"], one["second"])]
        label = f"{one['task']}, {one['corpus']}/{one['split']} · {sides[0]} minus {sides[1]}"
        row = (cell(one), _plain(one["p"], 4), _plain(one["p_holm"], 4), Cell(one["measure"]))
        lines.append(Line(label, row, str(one["n"])))
    note = "Paired over clusters; p of the sign-flip test; Holm's correction over all lines of this table."
    columns = ("difference", "p", "p, Holm", "measure")
    return [
        Table(
            "Differences on the same items, in points", columns, tuple(lines), note, (-100.0, 100.0), 0.0, folded=True
        )
    ]


# ---------------------------------------------------------------------- parts


def _by(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(found.items())


def _heads(cells: Sequence[Row], asked: Sequence[str]) -> list[Row]:
    """The first cell of each system and view."""
    fit = [one for one in cells if one["task"] in asked or _set(one) in asked]
    return [some[0] for _, some in _by(fit, "system", "view")]


def _finder(cells: Sequence[Row], measure: str) -> Callable[[Row, str], Cell]:
    def find(head: Row, task: str) -> Cell:
        found = [one for one in cells if _same(one, head) and one["task"] == task]
        return cell(found[0]["figures"].get(measure)) if found else BLANK

    return find


def _same(one: Row, head: Row) -> bool:
    return (one["system"], one["view"]) == (head["system"], head["view"])


def _set(one: Row) -> str:
    return f"{one['corpus']}/{one['split']}"


def _kind(one: Row) -> str:
    bound = one["view"] in ("text,text", "none,text") or one["system"] == "majority"
    return "line" if bound else "ours"


def _line(head: Row, row: Sequence[Cell], cells: Sequence[Row]) -> Line:
    sizes = sorted({one["n"] for one in cells if _same(one, head)})
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
    return Line(row_label(head), tuple(row), n, _kind(head))


def _quoted(name: str, digits: int = 1) -> Table:
    """One of the paper's tables as it stands there, where ours has other columns, or none."""
    paper = published()[name]
    lines = [_paper({**row, "system": _judge(row)}, row["values"], digits) for row in paper["rows"]]
    title = f"Table {paper['table']} in the paper · {paper['set']}, {paper['measure']}"
    return Table(title, tuple(paper["columns"]), tuple(lines), paper["note"])


def _judge(row: Row) -> str:
    """A published row's system, and its judge where there is one."""
    return f"{row['system']}, judge {row['judge']}" if "judge" in row else str(row["system"])


def _paper(row: Row, values: Sequence[float | None], digits: int = 1) -> Line:
    source = f" {row['source']}" if row.get("source") else ""
    learns = f" · learns: {row['learnable']}" if row.get("learnable") else ""
    return Line(f"{row['system']}{source}{learns}", tuple(quoted(value, digits) for value in values), kind="paper")


def _plain(value: Any, digits: int = 3) -> Cell:
    return BLANK if value is None else Cell(f"{value:.{digits}f}" if isinstance(value, float) else str(value))


def _known(label: str) -> str:
    """A judge's label of a system and its view, in the words of the other tables."""
    system, _, view = label.removesuffix("]").partition(" [")
    return f"{system}, {VIEWS.get(view, view)}" if view else label
