"""`dualslm targets`: the same in process and by a server, resumable, by one LLM, without refusals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.targetskit import RECIPE, TRANSCRIPTS, lines

from dualslm import openai_client
from dualslm.cli import main as cli
from dualslm.conversation import Conversation, Reply, Speech, View
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import Text, render
from dualslm.tiny import WEIGHTS
from dualslm.training import targets
from dualslm.training.targets import Job, fault, jobs_of, write
from dualslm.training.teacher import LocalTeacher, ServerTeacher, messages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("a", 11), ("b", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(count)))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path, llm=WEIGHTS / "llm"))
    return tmp_path


@dataclass
class Echo:
    """A writer that needs no LLM, and is stopped at a call."""

    llm: str = "echo"
    replies: dict[str, str] = field(default_factory=dict)
    stop_at: int = -1
    calls: int = 0

    @property
    def about(self) -> dict[str, Any]:
        return {"llm": self.llm, "revision": None, "by": "test"}

    def write(self, examples: Sequence[Conversation], seed: int) -> list[Reply]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        styled = [messages(conversation)[-1]["content"] for conversation in examples]
        plain = [text.partition("] ")[2] for text in styled]
        return [Reply(self.replies.get(one, f"You said: {one} ({seed})"), one != TRANSCRIPTS[0]) for one in plain]


def job(folder: Path) -> Job:
    return Job((folder / "a.jsonl",), folder / "out" / "a.targets.jsonl")


def test_every_line_becomes_a_finished_example(folder: Path) -> None:
    report = write(job(folder), Echo(), seed=0, batch=4)
    rows = [json.loads(line) for line in job(folder).out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"t{number}/respond" for number in range(11)]
    assert (report["written"], report["cut_off"]) == (11, 3)
    assert [row["early_stop"] for row in rows[:4]] == [False, True, True, True]
    row = rows[1]
    assert (row["kind"], "tasks" in row, len(row["turns"])) == ("dual", False, 4)
    assert row["turns"][2]["parts"][0]["audio"] == "../clips/1.wav"
    assert row["turns"][2]["parts"][0]["caption"]
    assert row["provenance"].keys() == {"llm", "revision", "by", "view", "prompt"}
    examples = Examples([job(folder).out])
    assert examples.count("dual") == 11
    assert examples.writer == row["provenance"] | {"prompt": rows[0]["provenance"]["prompt"]}
    assert examples.get("dual", 0).cut_off
    assert not examples.get("dual", 1).cut_off
    sheet = job(folder).samples.read_text()
    assert "You said: I won a prize." in sheet
    assert "(cut off)" in sheet


@pytest.mark.parametrize("stop_at", [0, 1, 2])
@pytest.mark.parametrize("torn", [0, 30])
def test_stopped_and_started_again_gives_the_same_bytes(folder: Path, stop_at: int, torn: int) -> None:
    whole = Job(job(folder).sources, folder / "other" / "a.targets.jsonl")
    write(whole, Echo(), seed=0, batch=4)
    with pytest.raises(KeyboardInterrupt):
        write(job(folder), Echo(stop_at=stop_at), seed=0, batch=4)
    work = job(folder).work
    work.write_bytes(work.read_bytes()[: -torn or None] if stop_at else work.read_bytes())
    assert not job(folder).out.exists()
    again = Echo()
    write(job(folder), again, seed=0, batch=4)
    assert again.calls == 3 - stop_at + (1 if torn and stop_at else 0)
    for name in ("out", "report", "samples"):
        assert getattr(job(folder), name).read_bytes() == getattr(whole, name).read_bytes()
    assert not work.exists()
    assert write(job(folder), Echo(stop_at=0), seed=0, batch=4)["written"] == 11  # done is done


def test_stopped_between_the_last_reply_and_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    whole = Job(job(folder).sources, folder / "other" / "a.targets.jsonl")
    write(whole, Echo(), seed=0, batch=4)
    with monkeypatch.context() as patch:
        patch.setattr(targets, "_sheet", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(job(folder), Echo(), seed=0, batch=4)
    left = job(folder).work.read_bytes()
    write(job(folder), Echo(stop_at=1), seed=0, batch=4)  # the last batch was no whole one
    assert job(folder).out.read_bytes() == whole.out.read_bytes()
    job(folder).work.write_bytes(left)  # as a run leaves it that is killed just before its end
    write(job(folder), Echo(stop_at=0), seed=0, batch=4)
    assert not job(folder).work.exists()


def test_two_llms_in_one_file_are_refused(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(job(folder), Echo(stop_at=1), seed=0, batch=4)
    with pytest.raises(DualSLMError, match="targets of another LLM"):
        write(job(folder), Echo("another"), seed=0, batch=4)
    write(job(folder), Echo(), seed=0, batch=4)
    with pytest.raises(DualSLMError, match="targets of another LLM"):
        write(job(folder), Echo("another"), seed=0, batch=4)
    with pytest.raises(DualSLMError, match="other settings"):
        write(job(folder), Echo(), seed=1, batch=4)


def test_refusals_and_empty_replies_are_counted(folder: Path) -> None:
    bad = {
        TRANSCRIPTS[0]: " ",
        TRANSCRIPTS[1]: "As an AI language model, I have no feelings.",
        TRANSCRIPTS[2]: "[sad] Oh.",
    }
    report = write(job(folder), Echo(replies=bad), seed=0)
    assert report["dropped"] == {"empty": 3, "refusal": 3, "written as a styled transcript": 3}
    assert report["written"] == 2
    assert "(dropped: refusal)" in job(folder).samples.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I cannot assist you.", "refusal"),
        ("Sorry, but as an AI I do not know.", "refusal"),
        ("I am unable to answer this.", "refusal"),
        ("I'm sorry to hear that. What happened?", None),
        ("I'm sorry, but that is how trains are.", None),
        ("I can't believe it!", None),
        ("<think>\nThe user is sad.", "thinks aloud"),
        ("\n", "empty"),
    ],
)
def test_what_is_no_target(text: str, why: str | None) -> None:
    assert fault(text) == why


# ---------------------------------------------------------------------- the tiny LLM, in process and by a server


@pytest.fixture(scope="module")
def llm() -> FrozenLM:
    return FrozenLM.from_pretrained(str(WEIGHTS / "llm"))


@pytest.fixture
def server(llm: FrozenLM) -> Iterator[Any]:
    """Answers chat completions with the tiny LLM; the first request of all meets trouble."""
    trouble = [503]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if trouble or body["model"] != "tiny":
                self.send_error(trouble.pop() if trouble else 404)
                return
            ids = llm.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )["input_ids"]
            new: list[int] = []
            for (token,) in llm.decode(llm.prefill([llm.embed(ids[0])]), GenerationSettings(body["max_tokens"])):
                new += [] if token is None else [token]
                why = "stop" if token is None else "length"
            text = llm.tokenizer.decode(new, skip_special_tokens=True)
            answer = {"choices": [{"message": {"content": text}, "finish_reason": why}], "model": "tiny"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    web = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/v1"
    web.shutdown()


def replies(path: Path) -> list[tuple[str, bool]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["turns"][-1]["parts"][0], row["early_stop"]) for row in rows]


def test_a_server_and_this_process_write_the_same(
    folder: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openai_client, "WAIT", 0.01)
    recipe = str(folder / "recipe.toml")
    by_server = ["--server", server, "--model", "tiny", "--out", str(folder / "s.jsonl")]
    for max_new_tokens in ("4", "60"):
        assert cli.main(["targets", recipe, "--batch", "4", "--max-new-tokens", max_new_tokens, "--device", "cpu"]) == 0
        assert cli.main(["targets", recipe, "--batch", "3", "--max-new-tokens", max_new_tokens, *by_server]) == 0
        own, other = replies(folder / "a.targets.jsonl"), replies(folder / "s.jsonl")
        assert own == other
        assert len(set(own)) > 5
        assert {ended for _, ended in own} == {max_new_tokens == "60"}
        assert len(replies(folder / "b.targets.jsonl")) == 3
        for name in ("a.targets.jsonl", "b.targets.jsonl", "s.jsonl"):
            (folder / name).unlink()
    assert "11 targets, 11 cut off" in capsys.readouterr().out


def test_the_llm_reads_the_styled_transcript(llm: FrozenLM) -> None:
    conversation = Conversation("Be brief.").user("Hi.").assistant("Hi!").user("Listen.")
    conversation.user(Speech("a.wav", transcript=" I lost it. ", caption="sad"))
    assert messages(conversation)[-1] == {"role": "user", "content": "Listen.\n[sad] I lost it."}
    segments = render(conversation, llm.tokenizer, View("text", "text")).segments
    read = llm.tokenizer.decode([token for one in segments if isinstance(one, Text) for token in one.ids])
    spelt = llm.tokenizer.apply_chat_template(messages(conversation), tokenize=False, add_generation_prompt=True)
    assert read == spelt


def test_drawn_replies_follow_from_the_seed(folder: Path, llm: FrozenLM) -> None:
    outs = []
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        one = Job((folder / "b.jsonl",), folder / name / "b.jsonl")
        write(one, LocalTeacher(llm, GenerationSettings(12, temperature=2.0)), seed=seed)
        outs.append(replies(one.out))
    assert outs[0] == outs[1] != outs[2]


def test_killed_at_any_instant(folder: Path) -> None:
    """SIGKILL while it works, and a second start."""
    recipe = folder / "recipe.toml"
    whole = folder / "whole.jsonl"
    command = ["targets", str(recipe), "--batch", "1", "--device", "cpu", "--out"]
    assert cli.main([*command, str(whole)]) == 0
    out = folder / "killed.jsonl"
    run = subprocess.Popen([sys.executable, "-m", "dualslm", *command, str(out)], stderr=subprocess.DEVNULL)
    work = Job((), out).work
    for _ in range(3000):
        if out.exists() or (work.exists() and work.read_bytes().count(b"\n") > 2):
            break
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert cli.main([*command, str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(openai_client, "TRIES", 1)
    recipe = str(folder / "recipe.toml")
    nothing = folder / "nothing.toml"
    nothing.write_text(
        RECIPE.format(folder=folder, llm="x").replace("a.jsonl", "c.jsonl").replace("b.jsonl", "c.jsonl")
    )
    (folder / "c.jsonl").write_text(json.dumps({**lines(1)[0], "tasks": ["emotion"]}) + "\n")
    for arguments, word in (
        ([recipe, "--batch", "0"], "--batch"),
        ([recipe, "--model", "x"], "--server"),
        ([recipe, "--server", "localhost"], "not a server"),
        ([recipe, "--server", "http://127.0.0.1:9/v1"], "cannot reach"),
        ([recipe, "--temperature", "-1"], "decoding settings"),
        ([recipe, "--set", "model.llm='./no/where'"], "cannot load the LLM"),
        ([str(nothing)], "no line asks for an answer"),
    ):
        assert cli.main(["targets", *arguments]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("dualslm: error: "), error
        assert word in error


def test_a_server_that_is_none(folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "WAIT", 0.01)
    with pytest.raises(DualSLMError, match="does not answer as an OpenAI-compatible server: got status 404"):
        write(job(folder), ServerTeacher(server, "unknown", GenerationSettings()), seed=0)
    assert targets.Job((), folder / "x.jsonl").work.name == ".x.jsonl.work"


def test_jobs_leave_out_what_targets_wrote(folder: Path) -> None:
    from dualslm.recipe import load

    recipe = load(folder / "recipe.toml")
    assert [one.out.name for one in jobs_of(recipe)] == ["a.targets.jsonl", "b.targets.jsonl"]
    assert jobs_of(recipe, "x.jsonl") == [Job((folder / "a.jsonl",), Path("x.jsonl"))]
