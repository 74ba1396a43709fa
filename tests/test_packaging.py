"""What others get: the wheel works away from the source, the image's file is sound, every page fits the version."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from support.factory import save_encoder, save_llm
from support.trainkit import RECIPE

from dualslm import __version__
from dualslm.cli import main as cli
from dualslm.model import checkpoint
from dualslm.model.dualslm import DualSLM
from dualslm.recipe import parse


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as `python -m build` does it, without fetching anything."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(root)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_alone_demonstrates(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/"))]
    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    code = "import dualslm.cli.main as cli; print(cli.__file__, flush=True); cli.main(['demo'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path)), "another dualslm than the wheel's"
    assert "The bakery will miss you" in done.stdout


def test_the_wheel_names_its_requirements_and_script(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        told = archive.read(f"dualslm-{__version__}.dist-info/METADATA").decode()
        script = archive.read(f"dualslm-{__version__}.dist-info/entry_points.txt").decode()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for one in project["dependencies"]:
        assert f"\nRequires-Dist: {one.replace('_', '-')}\n" in told
    assert "Requires-Python: >=3.11" in told
    assert "dualslm = dualslm.cli.main:main" in script


def test_every_page_is_of_this_version(root: Path) -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (__version__, "Apache-2.0")
    assert cited["preferred-citation"]["title"] in (root / "README.md").read_text().replace("\n", " ")


def test_forms_are_what_the_host_reads(root: Path) -> None:
    for path in (root / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= form.keys()
            assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in form["body"])


def test_the_image_is_built_from_what_is_sent(root: Path) -> None:
    """What the build needs is let through, and the command is one of ours."""
    sent = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((root / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sent == needed | set(wheel["packages"]) | set(wheel["force-include"])
    assert all((root / name).exists() for name in sent)
    lines = (root / "Dockerfile").read_text().splitlines()
    assert any(line.startswith("USER ") for line in lines)
    entry, command = (
        json.loads(line.removeprefix(f"{word} "))
        for word in ("ENTRYPOINT", "CMD")
        for line in lines
        if line.startswith(f"{word} ")
    )
    assert entry[0] in project["project"]["scripts"]
    read = cli._parser().parse_args(command)
    assert (read.host, read.port) == ("0.0.0.0", 8000)
    assert any(f"127.0.0.1:{read.port}/health" in line for line in lines)


def test_the_image_passes_the_linter(root: Path) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint")
    done = subprocess.run([linter, str(root / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    return DualSLM.from_parts(
        str(save_encoder(folder / "encoder")), str(save_llm(folder / "llm")), paralinguistic={"heads": 4}, device="cpu"
    )


def test_a_checkpoint_that_says_little_has_a_page_that_says_so(model: DualSLM, tmp_path: Path) -> None:
    page = (model.save_pretrained(tmp_path / "mine") / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert front["library_name"] == "dualslm"
    assert "base_model" not in front, "a folder of this machine is nobody's base model"
    assert 'from_pretrained("mine")' in page
    assert page.count("not stated") == 4
    assert "$" not in page


def test_what_is_pushed_tells_bases_metrics_recipe_and_licence(
    model: DualSLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = parse(RECIPE.format(folder="data"))
    model.recipe, model.metrics = asdict(recipe), {"stage": "joint", "word_error_rate": {"test": 0.03125}}
    pages: list[str] = []

    def upload(folder: Path, repo: str, **_: object) -> str:
        assert checkpoint.read_card(folder).license == "cc-by-4.0"
        pages.append((folder / "README.md").read_text())
        return repo

    monkeypatch.setattr(checkpoint, "upload", upload)
    model.push_to_hub("me/ears", license="cc-by-4.0", llm="Qwen/Qwen2.5-7B-Instruct", llm_revision="abc")
    (page,) = pages
    front = yaml.safe_load(page.split("---")[1])
    assert front["base_model"] == ["Qwen/Qwen2.5-7B-Instruct"]
    assert front["license"] == "cc-by-4.0"
    assert 'from_pretrained("me/ears")' in page
    assert "| `Qwen/Qwen2.5-7B-Instruct` | abc |" in page
    assert "| word error rate, test | 0.03125 |" in page
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert parse(shown) == recipe
