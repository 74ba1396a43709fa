"""The examples and what docs/serve.md says are carried out against a server; the set-up for many is looked through."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.servekit import SAD, client, heard, threaded, user

from dualslm import tiny
from dualslm.inference.local import LocalBackend
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = tiny.load()
    service = Service(model, LocalBackend(model.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service)) as address:
        yield address


def replied(url: str) -> str:
    answer = client(url).chat.completions.create(model="dualslm", messages=[user(heard(SAD))])
    return answer.choices[0].message.content or ""


def test_the_python_of_the_page(
    root: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "serve.md").read_text(), re.DOTALL)
    shutil.copy(SAD, tmp_path / "hello.wav")
    monkeypatch.chdir(tmp_path)
    assert "http://127.0.0.1:8000/v1" in code
    exec(compile(code.replace("http://127.0.0.1:8000/v1", url), "serve.md", "exec"), {})
    told = capsys.readouterr().out
    first, second, words = told.splitlines()
    assert first == replied(url)
    assert "bakery" in first
    assert second.startswith("Then it is good that you sit down")
    assert words == "I lost my job at the bakery on Saturday."


@pytest.mark.parametrize(
    "arguments",
    [["stream.py", "{url}", str(SAD)], ["realtime.py", "{url}", str(SAD)]],
)
def test_python_examples(root: Path, url: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "examples" / arguments[0]
    monkeypatch.setattr(sys, "argv", [one.format(url=url) for one in arguments])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__"})
    assert replied(url) in out.getvalue()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(root: Path, url: str) -> None:
    done = subprocess.run(
        ["sh", str(root / "examples" / "curl.sh"), url, str(SAD)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert replied(url) in done.stdout
    assert '"emotion":"sad"' in done.stdout
    assert "bakery" in done.stdout.split("words, from L alone:")[1]


def test_the_set_up_for_many(root: Path) -> None:
    folder = root / "examples" / "scale"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    fronts = [name for name in services if name.startswith("front-")]
    assert len(fronts) == 2
    balancer = (folder / "nginx.conf").read_text()
    assert set(re.findall(r"server ([\w-]+):8000", balancer)) == set(fronts)
    from dualslm.cli import main as cli

    for name in fronts:
        verb, *options = services[name]["command"]
        args = cli._parser().parse_args([verb, *options])
        assert args.vllm == "http://vllm:8000/v1"
    nginx = shutil.which("nginx")
    if nginx:
        text = re.sub(r"front-\d:", "127.0.0.1:", balancer)
        done = subprocess.run(
            [nginx, "-t", "-c", "/dev/stdin"], input=text, capture_output=True, text=True, check=False
        )
        assert "syntax is ok" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["stream.py", "realtime.py", "tools.py", "curl.sh"])
def test_without_arguments_an_example_says_how_it_is_used(root: Path, name: str) -> None:
    command = ["sh"] if name.endswith(".sh") else [sys.executable]
    done = subprocess.run([*command, str(root / "examples" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"examples/{name} http://127.0.0.1:8000/v1" in done.stderr
    assert "Traceback" not in done.stderr
