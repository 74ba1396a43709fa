"""THIRD_PARTY.md names every package that is pinned, and what is under the GPL is never pulled in unasked."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

COPYLEFT = ("GPL", "AGPL", "SSPL", "CC-BY-NC")


@pytest.fixture(scope="module")
def rows(root: Path) -> list[list[str]]:
    """The table of packages: name, version, licence, for whom."""
    text = (root / "THIRD_PARTY.md").read_text()
    table = text[text.index("| package |") :].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line]


def run(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / "build" / "third_party.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


def test_the_page_is_what_the_packages_state(root: Path, tmp_path: Path) -> None:
    done = run(root, "--check", "--sbom", str(tmp_path / "bill.json"))
    if "is not installed" in done.stderr or "is installed in version" in done.stderr:
        pytest.skip(done.stderr)  # an environment without every extra cannot say
    assert done.returncode == 0, "run python docs/build/third_party.py"
    bill = json.loads((tmp_path / "bill.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert all(one["licenses"][0]["license"]["name"] and "@" in one["purl"] for one in bill["components"])


def test_every_pin_is_on_the_page(root: Path, rows: list[list[str]]) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = {tuple(line.split("==")) for line in lines if "==" in line and not line.startswith("#")}
    assert pins == {(name, version) for name, version, _, _ in rows}
    assert all(licence for _, _, licence, _ in rows)


def test_nothing_under_the_gpl_comes_unasked(rows: list[list[str]]) -> None:
    for name, _, licence, use in rows:
        strong = any(word in licence.replace("LGPL", "") for word in COPYLEFT)
        assert not strong or use != "everybody", f"{name}: {licence}"
    named = {
        name for name, _, licence, use in rows if "GPL" in licence.replace("LGPL", "") and "development" not in use
    }
    assert named == {"av", "espeakng-loader", "praat-parselmouth"}, "say so in THIRD_PARTY.md and its docs"


@pytest.fixture
def hashes(root: Path) -> Any:
    """docs/build/hashes.py as a module."""
    spec = importlib.util.spec_from_file_location("hashes", root / "docs" / "build" / "hashes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_but_pytorch_has_the_hashes_of_its_archives(hashes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hashes.py", "--check"])
    assert hashes.main() == 0, "run python docs/build/hashes.py"
    whole = hashes.PAGE.read_text()
    for changed in (whole.replace("numpy==", "numpy==9."), re.sub(r"(numpy==\S+)( \\\n    --hash=\S+)+", r"\1", whole)):
        monkeypatch.setattr(hashes, "PAGE", SimpleNamespace(read_text=lambda changed=changed: changed))
        assert hashes.main() == 1


@pytest.mark.parametrize(
    ("file", "fits"),
    [
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("numpy-2.4.6-cp314-cp314-macosx_14_0_arm64.whl", True),
        ("numpy-2.4.6-cp310-cp310-win_amd64.whl", False),
        ("numpy-2.4.6-pp311-pypy311_pp73-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", False),
        ("numpy-2.4.6-cp39-abi3-win_amd64.whl", True),
        ("numpy-2.4.6-py3-none-any.whl", True),
        ("numpy-2.4.5-py3-none-any.whl", False),
        ("numpy-2.4.6.tar.gz", True),
        ("numpy-2.4.6.zip", False),
        ("numpy.tar.gz", False),
    ],
)
def test_archives_of_systems_that_are_tried(hashes: Any, file: str, fits: bool) -> None:
    assert hashes.fits(file, Version("2.4.6")) is fits
