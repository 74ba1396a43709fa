"""`dualslm recipes`: what is shipped is listed, copied whole, and planned away from the source."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dualslm.cli import main as cli
from dualslm.cli import recipes
from dualslm.recipe import load


def test_every_recipe_is_listed_and_copied(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "--json"]) == 0
    listed = [one["name"] for one in json.loads(capsys.readouterr().out)]
    assert listed == sorted(path.stem for path in (root / "recipes").glob("*.toml"))
    for name in listed:
        assert cli.main(["recipes", name]) == 0
        copied, shipped = load(f"recipes/{name}.toml"), load(root / "recipes" / f"{name}.toml")
        assert copied.stages == shipped.stages
        for part in (copied.model.encoder, copied.model.llm):
            assert not part.startswith("dualslm/"), "away from the source there is no such folder"
    capsys.readouterr()
    assert cli.main(["recipes", "tiny.toml"]) == 2, "nobody's changes are overwritten"
    assert "recipes/tiny.toml is there already" in capsys.readouterr().err


def test_a_copy_of_the_tiny_recipe_plans_the_tiny_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["recipes", "tiny", "--to", "."])
    capsys.readouterr()
    assert cli.main(["plan", "tiny.toml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"]["linguistic"] == 16000, "those that the build makes, not the paper's"
    assert found["lengths"]["dual"]["seconds"] < 4


def test_a_recipe_that_is_not_there_leads_to_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "nowhere.toml"]) == 2
    assert "dualslm recipes" in capsys.readouterr().err


def test_the_wheel_holds_them(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("dualslm/recipes/")}
    assert held == {f"dualslm/recipes/{path.name}" for path in recipes.FOLDER.glob("*.toml")}
