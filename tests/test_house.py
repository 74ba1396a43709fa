"""The layout, measured: folders, who may import whom, the field's words, comments, and how quickly it starts."""

from __future__ import annotations

import ast
import io
import os
import re
import resource
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ["model", "data", "training", "inference", "evaluation", "serve", "chat", "cli", "tiny", "pocket"]
FOLDERS += ["data/tasks", "data/corpora", "serve/page", "tiny/build"]
FOLDERS += [f"evaluation/{name}" for name in ("metrics", "judges", "systems", "report", "diagnostics")]
MAX_ROOT_MODULES, MAX_LAYERS = 10, 10
MIN_COMMENT_SHARE = 0.04  # of the lines that are code or comment
MAX_PACKED_ASSIGNMENTS = 39  # a, b = x, y
MAX_SHORT_HELPERS = 39  # private, used once, at most four lines
START_S = 0.3  # of CPU time

# Words of a private vocabulary that the field has names for. They may stand in sentences, never as identifiers.
OLD_WORDS = """
    Told Talks talks Lesson Lessons lesson lessons Journal journal Tally tally checks Places places place Seat seat
    seats Pasts pasts Memory Marked marks Captured captured Stay stay room rooms ROOM WORTH worth LONGEST SHARE
    Kept kept checkpointed llm_print encoder_print _Print NO_TARGET targets_T targets_BT table_only Ears ears Heard
    mind Desk desk Decoding Draw Pieces Until quantise Quantise optimiser Optimiser standardise Front front Guard gate
    wire Meters meters patience told talk
""".split()  # noqa: SIM905 - a list of words reads best as words


def modules(root: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    for path in sorted((root / "dualslm").rglob("*.py")):
        text = path.read_text()
        yield path, text, ast.parse(text)


def test_every_folder_is_there_and_the_root_is_small(root: Path) -> None:
    for name in FOLDERS:
        assert (root / "dualslm" / name / "__init__.py").is_file(), name
    assert len(list((root / "dualslm").glob("*.py"))) <= MAX_ROOT_MODULES


def test_tests_mirror_the_package(root: Path) -> None:
    for path in (root / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(root / "tests").as_posix()
        assert folder in (".", "studies", *FOLDERS), path


def test_the_import_law_names_folders_alone(root: Path) -> None:
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    assert len(layers) <= MAX_LAYERS
    named = [name.strip() for line in layers for name in line.split("|")]
    assert all((root / name.replace(".", "/")).is_dir() for name in named)
    listed = {name for one in contracts for name in one.get("source_modules", ())}
    nouns = {f"dualslm.{path.stem}" for path in (root / "dualslm").glob("*.py") if not path.stem.startswith("__")}
    assert listed == nouns | {"dualslm.audio", "dualslm.data"}, "what imports no torch stands in one list"


def test_the_nouns_import_no_folder(root: Path) -> None:
    for path, _, tree in modules(root):
        if path.parent.name != "dualslm" or path.stem.startswith("__"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dualslm."):
                assert node.module.split(".")[1] not in FOLDERS, f"{path.name} imports {node.module}"


def test_identifiers_are_the_fields_own(root: Path) -> None:
    found = Counter[str]()
    for path, text, _ in modules(root):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in OLD_WORDS:
                found[f"{path.relative_to(root)}: {token.string}"] += 1
    assert not found


def test_comments_say_why_often_enough(root: Path) -> None:
    code, comments = 0, 0
    for _, text, tree in modules(root):
        docs: set[int] = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                docs |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        said, lines = set(), set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                said.add(token.start[0])
            elif token.string.strip():
                lines |= set(range(token.start[0], token.end[0] + 1))
        code += len((lines - docs) | said)
        comments += len(said)
    assert comments / code >= MIN_COMMENT_SHARE


def test_a_line_holds_one_idea(root: Path) -> None:
    packed = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path, _, tree in modules(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
        and isinstance(node.value, ast.Tuple)
    ]
    assert len(packed) <= MAX_PACKED_ASSIGNMENTS, packed


def test_few_helpers_are_short_and_used_once(root: Path) -> None:
    uses = Counter[str]()
    helpers = []
    for path, _, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                uses[node.id] += 1
            elif isinstance(node, ast.Attribute):
                uses[node.attr] += 1
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and re.match(r"_[^_]", node.name):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if length <= 4:
                    helpers.append((path.relative_to(root), node.name))
    once = [f"{path}: {name}" for path, name in helpers if uses[name] <= 1]
    assert len(once) <= MAX_SHORT_HELPERS, once


@pytest.mark.parametrize("code", ["import dualslm", "from dualslm.cli.main import main; main(['--help'])"])
def test_it_starts_at_once_and_without_torch(code: str) -> None:
    took = []
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as an installation has it: compiled once
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < START_S
