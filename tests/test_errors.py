"""What a user is shown: text from elsewhere is read, and never obeyed, by a terminal, in Markdown and in HTML."""

from __future__ import annotations

import ast
import io
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualslm.cli.main import main
from dualslm.errors import (
    UNSEEN,
    DualSLMError,
    Visible,
    for_html,
    for_json,
    for_markdown,
    new_console,
    one_line,
    visible,
)
from dualslm.evaluation.report import markdown
from dualslm.evaluation.report.table import Cell, Line, Table
from dualslm.model.card import modelcard
from dualslm.model.checkpoint import Card

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"  # fills the clipboard of many terminals
HOSTILE = {
    "escape": "\x1b[2J\x1b[31m",
    "clipboard": CLIPBOARD,
    "C1": "\x9b2J\x9d0;title\x9c",
    "return": "good\rbad",
    "direction": "abc\u202etxt.exe",
    "half": "name\udcff.wav",
    "bell": "\a\b\x7f",
}
SAFE = {"visible", "one_line", "for_json"}
NO_TEXT = {"option_string", "new", "versions"}  # of ours: names of options, numbers


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_obeys_is_spelt_out(text: str) -> None:
    for shown in (visible(text), one_line(text), for_json({"reply": text}), for_markdown(text), for_html(text)):
        assert not UNSEEN.search(shown)
        shown.encode()  # halves of characters cannot be printed
    assert json.loads(for_json({"reply": text})) == {"reply": text}


@settings(deadline=None)
@given(st.text())
def test_plain_text_stays_what_it_is(text: str) -> None:
    if not UNSEEN.search(text):
        assert visible(text) == text
    assert json.loads(for_json(text)) == text
    assert "\n" not in one_line(text)


def test_letters_of_every_script_are_plain() -> None:
    text = "Grüße, 你好, שלום, नमस्ते, e\u0301, 👩\u200d💻\n\ttab"
    assert visible(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_console_prints_its_own_colours_and_nobody_elses(text: str) -> None:
    from rich.table import Table as Grid

    file = io.StringIO()
    console = new_console(file=file, force_terminal=True, width=200, color_system="standard")
    table = Grid()
    table.add_row(text)
    console.print(text, style="green", markup=False)
    console.print(table)
    assert "\x1b[32m" in file.getvalue()
    for forbidden in (CLIPBOARD, "\x1b[2J", "\x9b", "\u202e", "\x07", "good\r"):
        assert forbidden not in file.getvalue()


def test_an_error_about_a_hostile_file_is_one_harmless_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(tmp_path / f"a{CLIPBOARD}\x1b[2J\n.wav")
    assert main(["ask", name]) == 2
    error = capsys.readouterr().err
    assert "\\x1b" in error
    assert not UNSEEN.search(error)
    assert len(error.splitlines()) == 1


def test_an_error_is_of_bounded_length() -> None:
    megabyte = "a" * 1_000_000
    error = DualSLMError(f"unknown {megabyte}", got=megabyte, do="leave it out")
    assert len(str(error)) < 5000
    assert str(error).startswith("unknown aaa")
    assert str(error).endswith("aaa; leave it out")
    assert error.got == megabyte


def test_warnings_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("apart")  # as the package's own, which `main` gives the same filter
    logger.addHandler(logging.StreamHandler())
    logger.addFilter(Visible())
    logger.warning("%s is damaged", f"{CLIPBOARD}\n.wav")
    assert not UNSEEN.search(capsys.readouterr().err)
    assert any(isinstance(one, Visible) for one in logging.getLogger("dualslm").filters)


def test_what_is_printed_passes_one_place(root: Path) -> None:
    for path in sorted((root / "dualslm").rglob("*.py")):
        if "build" in path.parts:  # makes what is shipped, out of our own texts
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"):
                assert node.func.id != "Console" or path.name == "errors.py", f"{path}:{node.lineno}: new_console"
                for part in node.args:
                    assert _safe(part), f"{path}:{node.lineno}: {ast.unparse(part)}"


def _safe(node: ast.expr) -> bool:
    """Whether an expression is text of ours, or text from elsewhere that was made safe."""
    if isinstance(node, ast.JoinedStr):
        return all(_safe(part.value) if isinstance(part, ast.FormattedValue) else True for part in node.values)
    if isinstance(node, ast.IfExp):
        return _safe(node.body) and _safe(node.orelse)
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        inside = [one for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in SAFE | NO_TEXT]
        return name in SAFE or (name in ("join", "dumps") and bool(inside))
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    names |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    return isinstance(node, ast.Constant) or bool(names & NO_TEXT) or isinstance(node, ast.Subscript)


# ---------------------------------------------------------------------- pages


HOSTILE_MARKDOWN = "x | y\n\n# title <script>alert(1)</script> [a](javascript:b) ![c](http://d) &lt;img&gt;"


def test_a_report_in_markdown_holds_text_as_text() -> None:
    table = Table(HOSTILE_MARKDOWN, (HOSTILE_MARKDOWN,), (Line(HOSTILE_MARKDOWN, (Cell(HOSTILE_MARKDOWN),)),))
    text = markdown.written(table)
    assert "<script" not in text
    assert "](" not in text
    assert len(text.splitlines()) == 5  # title, blank, head, rule, row
    assert all(line.replace("\\|", "").count("|") == 4 for line in text.splitlines()[2:])


def test_the_page_of_adapters_holds_text_as_text() -> None:
    card = Card(HOSTILE_MARKDOWN, HOSTILE_MARKDOWN, limits=HOSTILE_MARKDOWN, license=HOSTILE_MARKDOWN)
    text = modelcard(Card(**{**vars(card), "metrics": {HOSTILE_MARKDOWN: HOSTILE_MARKDOWN}}))
    assert "<script" not in text
    assert "](javascript" not in text
    front, _, _ = text.removeprefix("---\n").partition("\n---\n")
    assert all(":" in line or line.startswith("- ") for line in front.splitlines())
