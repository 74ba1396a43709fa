"""The house style, measured: lengths, torch-free modules, lazy exports, plain words."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dualslm

MAX_FILE_LINES = 400
MEDIAN_FUNCTION_LINES, P90_FUNCTION_LINES = 11, 45
TORCH_FREE = ["audio", "conversation", "errors", "files", "metrics", "prompt", "recipe", "tasks", "corpora", "judges"]
TEXT = {".py", ".md", ".toml", ".txt", ".yaml"}
HYPE = r"\b(blazing|cutting[- ]edge|effortless|game[- ]chang|revolutionar|seamless|state[- ]of[- ]the[- ]art)"
SOMEBODYS_MACHINE = r"(?<![\w.])/(work|tmp|home|root|Users)/"


def sources(root: Path, folder: str = "dualslm") -> list[Path]:
    return sorted((root / folder).rglob("*.py"))


def function_lengths(root: Path) -> list[int]:
    trees = [ast.parse(path.read_text()) for path in sources(root)]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, functions)]
    return sorted((node.end_lineno or 0) - node.lineno + 1 for node in found)


def project_files(root: Path) -> Iterator[Path]:
    """What git would ship: tracked files and new ones that it does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.splitlines():
        path = root / name
        if path.is_file() and (path.suffix in TEXT or not path.suffix) and path != Path(__file__):
            yield path


def test_functions_are_short(root: Path) -> None:
    lengths = function_lengths(root)
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES
    assert lengths[int(0.9 * len(lengths))] <= P90_FUNCTION_LINES


def test_files_are_short_and_say_what_they_are(root: Path) -> None:
    for path in [*sources(root), *sources(root, "tests")]:
        text = path.read_text()
        assert len(text.splitlines()) <= MAX_FILE_LINES, path
        assert ast.get_docstring(ast.parse(text)), path


def test_words_are_plain_and_paths_are_nobodys(root: Path) -> None:
    for path in project_files(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not re.search(HYPE, line, re.IGNORECASE), f"{path}:{number}: {line}"
            assert not re.search(SOMEBODYS_MACHINE, line), f"{path}:{number}: {line}"


def test_torch_free_modules_import_no_torch(root: Path) -> None:
    present = [name for name in TORCH_FREE if list((root / "dualslm").glob(f"{name}*"))]
    code = "\n".join(f"import dualslm.{name}" for name in present)
    subprocess.run([sys.executable, "-c", f"{code}\nimport sys; assert 'torch' not in sys.modules"], check=True)


def test_every_export_exists() -> None:
    assert sorted(dualslm.__all__) == dir(dualslm)
    assert all(getattr(dualslm, name) is not None for name in dualslm.__all__)
    with pytest.raises(AttributeError, match="Duet"):
        dualslm.Duet  # noqa: B018 - the access is the test


def test_every_requirement_is_pinned(root: Path) -> None:
    lines = (root / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split("[<>=;]", one)[0].replace("_", "-") for group in groups for one in group}
    assert not names - pins.keys()
    assert not any("+" in version for version in pins.values())
