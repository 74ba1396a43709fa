"""THIRD_PARTY.md names every package that is pinned, and what is under the GPL is never pulled in unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
