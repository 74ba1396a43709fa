"""The command line: instant help, one line for every mistake, replies as text and as JSON."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.badaudio import BAD, Maker
from support.trainkit import RECIPE, make

from dualslm import __version__
from dualslm.audio import TooLongError, load
from dualslm.cli import ask, completion, options
from dualslm.cli import main as cli
from dualslm.conversation import Conversation, Speech, View
from dualslm.model.generation import GREEDY, GenerationSettings
from dualslm.openai_client import RefusedError
from dualslm.tiny import ADAPTERS, CLIPS


class Parrot:
    """Stands in for a model, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Conversation, View]] = []
        self.generation = GREEDY

    def reply(self, conversation: Conversation, *, view: View, generation: object) -> str:
        self.asked.append((conversation.copy(), view))
        return f"turn {len(conversation.turns)}"

    def stream(self, conversation: Conversation, *, view: View, generation: object) -> Iterator[str]:
        yield from self.reply(conversation, view=view, generation=generation).partition(" ")


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    bird = Parrot()
    monkeypatch.setattr(ask, "model_of", lambda _: bird)
    return bird


@pytest.fixture
def clip(tmp_path: Path) -> str:
    # a voice, because what nobody says is not answered
    return str(shutil.copy(CLIPS / "hear_1_angry.wav", tmp_path / "clip.wav"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error; standard output must be empty."""
    out, err = capsys.readouterr()
    assert not out
    # a mistake that shows when the model is loaded comes after the line that says what it understands
    err = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("dualslm: this model "))
    assert err.startswith("dualslm: error: "), err
    assert err.count("\n") == 1, err
    return err


def test_help_is_instant_and_knows_no_torch() -> None:
    help_command = [sys.executable, "-X", "importtime", "-m", "dualslm", "--help"]
    done = subprocess.run(help_command, capture_output=True, text=True, check=True)
    assert "usage: dualslm" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "numpy", "rich"}
    times = []
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as an installation has it: compiled once
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dualslm", "--help"], capture_output=True, check=True, env=env)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3, times


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, dualslm; dualslm.View; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_verb_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "dualslm demo" in capsys.readouterr().out


def test_version_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert versions["dualslm"] == __version__
    assert {"python", "platform", "torch", "transformers", "soundfile"} <= versions.keys()
    assert cli.main(["--version"]) == 0
    assert f"dualslm          {__version__}\n" in capsys.readouterr().out


def test_a_reader_that_has_read_enough() -> None:
    command = [sys.executable, "-m", "dualslm", "--version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


@pytest.mark.parametrize(("make", "word"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("verb", ["ask", "show"])
def test_bad_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, make: Maker, word: str) -> None:
    assert cli.main([verb, str(make(tmp_path / "a.audio"))]) == 2
    assert word in one_line(capsys)


def test_a_name_of_two_lines_gives_an_error_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", str(tmp_path / "a\nb.wav")]) == 2
    one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ask"], "nothing to hear"),
        (["show"], "nothing to hear"),
        (["ask", "CLIP", "--view", "speech"], "a view is two sources"),
        (["ask", "CLIP", "--view", "speech,sound"], "'sound'"),
        (["ask", "CLIP", "--tone", "missing.wav"], "missing.wav"),
        (["ask", "CLIP", "--encoder", "e"], "--llm"),
        (["ask", "CLIP", "--llm", "l"], "--encoder"),
        (["ask", "--say", "hello", "--style", "purple"], "purple"),
        (["ask", "CLIP", "--style", "sad"], "--style is how --say says something"),
        (["ask", "CLIP", "CLIP", "--transcript", "hello"], "a text of which recording?: got 2 files"),
        (["ask", "CLIP", "--view", "none,text"], "a Speech has no transcript"),
        (["ask", "CLIP", "--model", "nowhere/nothing"], "got no such folder, and the hub cannot be reached"),
        (["ask", "CLIP", "--model", "no/where/at/all"], "got no such folder, and no hub id"),
        (["label", "clips.jsonl", "out.jsonl"], "the line is a recording, not a talk"),
        (["train", "missing.toml"], "missing.toml"),
        (["train", "recipes/small.toml", "--set", "stage.1.learning_rate=1"], "learning_rate"),
    ],
)
def test_mistakes(
    clip: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(root)
    if "clips.jsonl" in arguments:
        monkeypatch.chdir(Path(clip).parent)
        Path("clips.jsonl").write_text('{"audio": "a.wav", "transcript": "Hello."}')
    assert cli.main([clip if argument == "CLIP" else argument for argument in arguments]) == 2
    assert word in one_line(capsys)


@pytest.mark.parametrize(
    "arguments", [["sing"], ["ask", "--loud"], ["ask", "a.wav", "--max-new-tokens", "few"], ["--colour"]]
)
def test_unknown_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "--help" in one_line(capsys)


def test_a_reply_is_printed(parrot: Parrot, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", clip, "--system", "Be brief.", "--view", "none,speech"]) == 0
    assert capsys.readouterr().out == "turn 1\n"
    conversation, view = parrot.asked[0]
    assert (conversation.system, view) == ("Be brief.", View("none", "speech"))


@pytest.mark.parametrize(("options", "replies"), [([], [1, 1]), (["--conversation"], [1, 3]), (["--talk"], [1, 3])])
def test_files_are_asked_apart_or_as_one_conversation(
    parrot: Parrot, clip: str, capsys: pytest.CaptureFixture[str], options: list[str], replies: list[int]
) -> None:
    assert cli.main(["ask", clip, clip, *options]) == 0
    assert capsys.readouterr().out == "".join(f"{clip}: turn {count}\n" for count in replies)


@pytest.mark.parametrize(
    ("arguments", "name", "value", "line"),
    [
        (["ask", "--talk"], "conversation", True, "--talk is now called --conversation"),
        (["chat", "--capture"], "cuda_graphs", True, "--capture is now called --cuda-graphs"),
        (["serve", "--capture"], "cuda_graphs", True, "--capture is now called --cuda-graphs"),
        (["serve", "--patience", "5"], "timeout", 5.0, "--patience is now called --timeout"),
        (["serve", "--timeout", "5"], "timeout", 5.0, None),
        (["serve"], "timeout", 300, None),
        (["chat"], "cuda_graphs", False, None),
    ],
)
def test_options_under_their_former_names(
    capsys: pytest.CaptureFixture[str], arguments: list[str], name: str, value: object, line: str | None
) -> None:
    assert getattr(cli._parser().parse_args(arguments), name) == value
    out, err = capsys.readouterr()
    assert (out, err) == ("", "" if line is None else f"dualslm: warning: {line}\n")


@pytest.mark.parametrize("arguments", [["--json", "ask"], ["ask", "--json"]])
def test_replies_as_json(parrot: Parrot, clip: str, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main([*arguments, clip, clip]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"said": clip, "view": "speech,speech", "reply": "turn 1"}] * 2


def test_the_tone_of_another_clip(parrot: Parrot, clip: str, tmp_path: Path) -> None:
    other = shutil.copy(CLIPS / "hear_3_sad.wav", tmp_path / "other.wav")
    assert cli.main(["ask", clip, "--tone", str(other)]) == 0
    (speech,) = parrot.asked[0][0].turns[0].speeches
    assert isinstance(speech.audio, np.ndarray)
    assert isinstance(speech.tone, Speech)
    assert isinstance(speech.tone.audio, np.ndarray)
    assert (len(speech.audio), len(speech.tone.audio)) == (len(load(clip)), len(load(other)))


def test_what_is_known_of_a_clip_is_read_as_text(parrot: Parrot, clip: str) -> None:
    assert cli.main(["ask", clip, "--transcript", "Hello.", "--caption", "sad", "--view", "text,text"]) == 0
    (speech,) = parrot.asked[0][0].turns[0].speeches
    assert (speech.transcript, speech.caption) == ("Hello.", "sad")


@pytest.mark.parametrize("verb", ["features", "train", "eval"])
def test_a_gpu_that_is_not_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    make(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE.format(folder=tmp_path))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    wanted = [str(ADAPTERS), "--on", "train.jsonl", "--task", "asr"] if verb == "eval" else ["r.toml"]
    assert cli.main([verb, *wanted, "--device", "cuda"]) == 2
    assert "PyTorch sees no GPU: got device cuda" in one_line(capsys)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(TooLongError("it is long", got=5, do="cut it")))
    assert isinstance(error, TooLongError)
    assert (str(error), error.got) == ("it is long: got 5; cut it", 5)
    refused = pickle.loads(pickle.dumps(RefusedError("http://host/v1", 404, "no such model")))
    assert (refused.status, refused.message) == (404, "no such model")


def test_standard_input(parrot: Parrot, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = SimpleNamespace(buffer=io.BytesIO(Path(clip).read_bytes()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    assert cli.main(["ask", "-"]) == 0
    assert len(parrot.asked) == 1


def test_a_terminal_is_no_recording(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert cli.main(["ask", "-"]) == 2
    assert "a terminal" in one_line(capsys)


def test_interrupted(monkeypatch: pytest.MonkeyPatch, clip: str) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "model_of", interrupt)
    assert cli.main(["ask", clip]) == 130


@pytest.mark.parametrize("arguments", [["--json", "ask", "CLIP"], ["ask", "CLIP", "--json"], ["ask", "--json", "CLIP"]])
def test_json_stands_on_either_side_of_the_verb(
    parrot: Parrot, clip: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([clip if word == "CLIP" else word for word in arguments]) == 0
    assert json.loads(capsys.readouterr().out)["reply"] == "turn 1"


def test_every_verb_takes_json_or_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = completion.verbs_of(cli._parser())
    for name, verb in verbs.items():
        assert ("--json" in completion.options_of(verb)) != (name in cli.WITHOUT_JSON)
    assert cli.main(["--json", "demo"]) == 2
    assert "leave --json out" in one_line(capsys)


def test_how_replies_are_drawn(clip: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[object] = []

    class Bird(Parrot):
        def stream(self, conversation: Conversation, *, view: View, generation: object) -> Iterator[str]:
            given.append(generation)
            return super().stream(conversation, view=view, generation=generation)

    monkeypatch.setattr(ask, "model_of", lambda _: Bird())
    assert (
        cli.main(["ask", clip, "--temperature", "0.7", "--seed", "3", "--max-new-tokens", "9", "--device", "cpu"]) == 0
    )
    assert given == [GenerationSettings(max_new_tokens=9, temperature=0.7, seed=3)]
    assert cli.main(["ask", clip]) == 0
    assert given[1] == GenerationSettings(max_new_tokens=256)
    capsys.readouterr()
    assert cli.main(["ask", clip, "--temperature", "-1"]) == 2
    assert "temperature" in one_line(capsys)


def test_a_tone_in_words_is_one_that_the_model_knows(
    parrot: Parrot, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", clip, "--tone", "sad, slow"]) == 0
    (asked,) = parrot.asked[-1][0].turns[-1].speeches
    assert asked.tone is not None
    assert asked.tone.caption == "sad, slow"
    capsys.readouterr()
    assert cli.main(["ask", clip, "--tone", "purple"]) == 2
    told = one_line(capsys)
    assert "purple" in told
    assert "afraid" in told
    assert cli.main(["ask", clip, "--tone", "purple.wav"]) == 2
    assert "purple.wav" in one_line(capsys)


def test_the_size_of_a_download_is_said_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    files = {"model-1.safetensors": 5_000_000_000, "model-2.safetensors": 2_100_000_000, "other.bin": 9_000_000_000}
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files.items()])
    asked: list[str] = []

    class Hub:
        def model_info(self, name: str, **_: object) -> SimpleNamespace:
            asked.append(name)
            if name == "no/where":
                raise OSError("404")
            return info

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, _: "x" if name == "is/here" else None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert not options.announce_downloads([None, "pocket", "pocket:llm", "own/model", "no/where", "is/here"])
    assert capsys.readouterr().err == ""
    assert asked == ["no/where"]
    assert options.announce_downloads(["Qwen/Qwen2.5-3B-Instruct"])
    assert "dualslm: fetching Qwen/Qwen2.5-3B-Instruct, 7.1 GB, once" in capsys.readouterr().err
