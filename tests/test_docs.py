"""What the README says is run: its Python, its commands, its links."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.factory import save_encoder, save_llm
from support.trainkit import make

from dualslm.cli import main as cli
from dualslm.recipe import to_toml
from dualslm.tiny import ADAPTERS, CLIPS

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
WRITERS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs" / "build").glob("*.py")
    if path.name != "third_party.py"  # compared in test_third_party.py, which knows what it needs to be installed
)


def blocks(root: Path, language: str, name: str = "README.md") -> Iterator[str]:
    yield from re.findall(rf"```{language}\n(.*?)```", (root / name).read_text(), re.DOTALL)


def commands(root: Path) -> list[list[str]]:
    """Each line of the shell blocks as words, comments left out."""
    lines = [line for block in blocks(root, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def good(answer: str) -> str:
    """An answer that is none to be ashamed of: whole sentences, in which no word and no phrase stutters."""
    words = re.findall(r"[\w']+", answer.lower())
    assert len(words) >= 3, answer
    assert re.fullmatch(r"[A-Z].*[.!?]", answer.strip(), re.DOTALL), answer
    phrases = list(zip(words, words[1:], words[2:], strict=False))
    assert len(phrases) == len(set(phrases)), answer
    assert all(one != other for one, other in pairwise(words)), answer
    return answer


def good_answers(told: str) -> list[str]:
    return [good(line) for line in told.splitlines() if line.strip()]


@pytest.fixture
def desk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it: two recordings, and parts by their hub ids."""
    shutil.copy(CLIPS / "hear_3_sad.wav", tmp_path / "hello.wav")
    shutil.copy(CLIPS / "tones_1_happy.wav", tmp_path / "laugh.wav")
    save_encoder(tmp_path / "openai" / "whisper-large-v3")
    save_llm(tmp_path / "Qwen" / "Qwen2.5-7B-Instruct")
    shutil.copytree(root / "recipes", tmp_path / "recipes")
    (tmp_path / "kit").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(to_toml(make(tmp_path / "kit")))  # the tests' own miniature
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_of_the_readme(root: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(root, "python")
    assert "path/or/hub-id" in code
    shown: dict[str, Any] = {}
    # the values of the lines that print nothing are answers too
    code = re.sub(r"^(model\.reply\(.*\))(?=\s*#)", r"print(\1)", code, flags=re.MULTILINE)
    exec(compile(code.replace("path/or/hub-id", str(ADAPTERS)), "README.md", "exec"), shown)
    first, *others = good_answers(capsys.readouterr().out)
    assert "bakery" in first
    assert "sorry" in first
    assert len(others) == 3
    assert all("bakery" in answer for answer in others)
    assert "sorry" not in others[1], "the words alone are not sad"
    assert good(shown["model"].reply(shown["happy"])).startswith("I am glad")


def test_python_of_the_talk(root: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(root, "python", "docs/talk.md")
    exec(compile(code, "docs/talk.md", "exec"), {})
    told = capsys.readouterr().out
    assert "I lost my job at the bakery" in told
    assert "The bakery will miss you" in told
    assert "it is good that you sit down" in told  # after a long day
    assert good(told.splitlines()[-1]) == "That is a lovely name for a dog."


def test_commands_of_the_readme(
    root: Path, desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))  # for chat
    asked = [words[1:] for words in commands(root) if words[0] == "dualslm"]
    assert len(asked) >= 5
    for arguments in asked:
        if "--say" in arguments:
            pytest.importorskip("espeakng_loader", reason="--say needs pip install 'dualslm[voices]'")
        assert cli.main(arguments) == 0, arguments
        told = capsys.readouterr().out
        assert told.strip(), arguments
        if arguments[0] == "ask" and "--encoder" not in arguments:  # fresh adapters have learnt nothing yet
            (answer,) = good_answers(told)
            assert ("umbrella" if "--say" in arguments else "bakery") in answer, "it is about what was said"


def test_make_targets_and_verbs_of_the_readme_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    for words in commands(root):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
        elif words[0] == "python":
            assert words[1:3] == ["-m", "dualslm.tiny"], words
            assert f'add_parser("{words[3]}"' in (root / "dualslm/tiny/__main__.py").read_text(), words


@pytest.mark.parametrize("name", DOCS)
def test_files_that_the_docs_name_exist(root: Path, name: str) -> None:
    text = (root / name).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", text)
    named = re.findall(r"`((?:dualslm|recipes|docs|studies|tests|bench)/[\w./]+\w)`", text)
    for target in [*links, *named]:
        here = (root / name).parent / target if target in links else root / target
        assert here.exists(), f"{name} names {target}"


@pytest.mark.parametrize("script", [*(name for name in WRITERS if not name.endswith("tables.py")), "bench/judges.py"])
def test_what_the_pages_show_is_what_the_result_files_hold(root: Path, script: str) -> None:
    done = subprocess.run([sys.executable, str(root / script), "--check"], check=False)
    assert done.returncode == 0, f"run python {script}"


@pytest.mark.parametrize("name", DOCS)
def test_commands_of_every_page_are_ours(root: Path, name: str) -> None:
    """What a page tells to type is a verb with options that it has."""
    text = "\n".join(blocks(root, "sh", name)).replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?(?:\w+=\S+ )*(?:dualslm|python -m dualslm) (.*)$", text, re.MULTILINE):
        words = shlex.split(line.split(" > ")[0].split(" | ")[0], comments=True)
        assert callable(cli._parser().parse_args(words).verb), f"{name}: {line}"


def test_commands_of_the_scale_page_are_ours(root: Path) -> None:
    text = "\n".join(blocks(root, "sh", "docs/scale.md")).replace("\\\n", " ")
    found = re.findall(r"(?:^|')dualslm ([^'\n#]+)|-m dualslm ([^\n]+)", text, re.MULTILINE)
    asked = [(plain or launched).replace("$((SLURM_PROCID + 1))/$SLURM_NTASKS", "1/32") for plain, launched in found]
    assert len(asked) >= 9
    for line in asked:
        args = cli._parser().parse_args(shlex.split(line))
        assert callable(args.verb), line
        assert "recipe" not in args or (root / args.recipe).exists(), line
