"""Data work on a local Ray cluster of two machines, one of which is killed: nothing is lost, and nothing differs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.badaudio import wav
from support.evalkit import exam
from support.slow import DEADLY, IMPOSSIBLE, Slow
from support.targetskit import RECIPE, lines
from support.trainkit import make

from dualslm.cli import main as cli
from dualslm.data import cluster as cluster_module
from dualslm.data.cluster import Cluster
from dualslm.errors import DualSLMError
from dualslm.recipe import to_toml
from dualslm.tiny import WEIGHTS
from dualslm.training.feature_cache import FrameCache, Rule

ray = pytest.importorskip("ray", reason="needs pip install 'dualslm[ray]'")
START_S = 300.0  # longest wait for a task to begin, on a machine that is busy with other tests
PATIENCE = {
    "USAGE_STATS_ENABLED": "0",
    "agent_register_timeout_ms": "600000",
    "health_check_timeout_ms": "60000",
    "worker_register_timeout_seconds": "600",
}


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A cluster whose head does no work, and two machines of one CPU each."""
    from ray.cluster_utils import Cluster as Machines

    tests = Path(__file__).parents[1]
    patch = pytest.MonkeyPatch()
    paths = [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(paths))
    # Ray allows its parts some seconds to start and to answer, which are too few beside other tests.
    for name, allowed in PATIENCE.items():
        patch.setenv(f"RAY_{name}", allowed)
    # A constant of Ray's gives a machine 30 s to start: the clock that measures them runs slower here.
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() / 20})
    patch.setattr("ray._private.node.time", clock)
    head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    # Not by Ray at exit: it would set a handler of signals, which no thread but the first may, and what a thread has
    # started would end with that thread.
    found: Any = Machines(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    for _ in range(2):
        found.add_node(num_cpus=1, num_gpus=0)
    yield found
    found.shutdown()
    patch.undo()


def kill_one(machines: Any, folder: Path, pattern: str, at: int = 1) -> Thread:
    """Kills a machine as soon as a folder holds so many files of a pattern, and starts another in its place."""

    def wait_and_kill() -> None:
        deadline = time.monotonic() + START_S
        while len(list(folder.glob(pattern))) < at and time.monotonic() < deadline:
            time.sleep(0.02)
        machines.remove_node(next(node for node in machines.list_all_nodes() if not node.head), allow_graceful=False)
        machines.add_node(num_cpus=1, num_gpus=0)

    thread = Thread(target=wait_and_kill)
    thread.start()
    return thread


def test_what_a_killed_machine_was_doing_is_done_again(machines: Any, tmp_path: Path) -> None:
    with Cluster(machines.address) as cluster:
        assert (cluster.device, cluster.slots) == ("cpu", 2)
        killer = kill_one(machines, tmp_path, "begun-*", at=2)  # both machines are at work then, for three seconds
        assert list(cluster.map(Slow(tmp_path), range(6))) == [0, 1, 4, 9, 16, 25]
        killer.join()
    assert len(list(tmp_path.glob("begun-*"))) > 6


def test_a_users_error_comes_back_as_itself(machines: Any, tmp_path: Path) -> None:
    with Cluster(machines.address) as cluster, pytest.raises(DualSLMError, match="nobody can do: got 99; leave it"):
        list(cluster.map(Slow(tmp_path), [IMPOSSIBLE]))


def test_a_piece_that_kills_every_process_is_given_up(machines: Any, tmp_path: Path) -> None:
    with (
        Cluster(machines.address) as cluster,
        pytest.raises(DualSLMError, match=r"gave up on a piece .* after 4 tries"),
    ):
        list(cluster.map(Slow(tmp_path), [DEADLY]))
    assert len(list(tmp_path.glob("begun-*"))) == 4


def test_a_cluster_without_machines_is_said_while_it_is_waited_for(
    machines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "NOTE_S", 1.0)
    with Cluster(machines.address) as cluster:
        for node in [node for node in machines.list_all_nodes() if not node.head]:
            machines.remove_node(node, allow_graceful=False)
        work = cluster.map(Slow(tmp_path), range(2))
        found: list[int] = []
        waiting = Thread(target=lambda: found.extend(work))
        waiting.start()
        said = ""
        deadline = time.monotonic() + START_S
        while "no machine with a CPU is left" not in said and time.monotonic() < deadline:
            time.sleep(0.5)
            said += capsys.readouterr().err
        for _ in range(2):
            machines.add_node(num_cpus=1, num_gpus=0)
        waiting.join()
    assert found == [0, 1]
    assert "waiting for one" in said


def test_no_cluster_and_no_gpu_are_said_in_a_line(machines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(Path(__file__).parents[2] / "recipes" / "small.toml")
    assert cli.main(["features", recipe, "--ray", machines.address, "--device", "cuda"]) == 2
    assert "the cluster can run no task: got no cuda" in capsys.readouterr().err
    assert cli.main(["features", recipe, "--ray", "local", "--shard", "1/2"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DualSLMError, match=r"pip install 'dualslm\[ray\]'"):
        Cluster("auto")


def frames(folder: Path) -> dict[str, Any]:
    cache = FrameCache(folder, Rule(**json.loads((folder / "cache.json").read_text())))
    return {path: cache.get(path) for path in sorted(cache.rows)}


def test_features_hold_the_same_frames_though_a_machine_is_killed(
    machines: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(make(tmp_path)))
    alone = tmp_path / "alone"
    assert cli.main(["--json", "features", str(recipe), "--set", f"data.features={alone}"]) == 0
    counts = json.loads(capsys.readouterr().out)
    features = tmp_path / "features"
    killer = kill_one(machines, features, "part-*.json")
    assert cli.main(["--json", "features", str(recipe), "--ray", machines.address]) == 0
    killer.join()
    out = capsys.readouterr().out
    assert json.loads(out) == counts, out
    one, many = frames(alone), frames(features)
    assert list(one) == list(many)
    # Other recordings share a batch, so that sums are added in another order.
    assert all((one[path] - many[path]).abs().max() <= 0.02 * one[path].abs().max() for path in one)


def test_targets_are_the_same_bytes(machines: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(9)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines(2)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(folder=tmp_path, llm=WEIGHTS / "llm"))
    common = ["targets", str(recipe), "--batch", "2", "--max-new-tokens", "8", "--temperature", "1"]
    written = {}
    for name, more in (("alone", ["--device", "cpu"]), ("many", ["--ray", machines.address])):
        out = tmp_path / name / "t.jsonl"
        assert cli.main([*common, "--out", str(out), *more]) == 0
        written[name] = [path.read_bytes() for path in sorted(out.parent.iterdir())]
    assert len(written["alone"]) == 3
    assert written["alone"] == written["many"]


def test_labels_are_the_same_bytes(machines: Any, tmp_path: Path) -> None:
    pytest.importorskip("parselmouth", reason="needs pip install 'dualslm[label]'")
    time_N = np.arange(16_000) / 16_000
    rows = []
    for number in range(20):
        wave = 0.05 * np.sign(np.sin(2 * np.pi * (100 + 10 * number) * time_N))
        wav(tmp_path / f"{number}.wav", wave.astype(np.float32))
        clip = {"audio": f"{number}.wav", "transcript": "one two three"}
        rows.append({"id": str(number), "tasks": ["asr"], "turns": [{"role": "user", "parts": [clip]}]})
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, many = tmp_path / "alone.jsonl", tmp_path / "many.jsonl"
    assert cli.main(["label", str(source), str(alone)]) == 0
    assert cli.main(["label", str(source), str(many), "--ray", machines.address]) == 0
    assert alone.read_bytes() == many.read_bytes()
    assert b'"measured": {"pitch"' in many.read_bytes()


def test_predictions_are_the_same_bytes(machines: Any, tmp_path: Path) -> None:
    asked, _ = exam(tmp_path / "exam", 8)
    common = ["eval", "--system", "majority", "--on", str(asked), "--only", "predict", "--batch", "3"]
    for name, more in (("alone", []), ("many", ["--ray", machines.address])):
        assert cli.main([*common, "--out", str(tmp_path / name), *more]) == 0
    alone, many = (tmp_path / name / "predictions.jsonl" for name in ("alone", "many"))
    assert alone.read_bytes() == many.read_bytes()
    assert not list(many.parent.glob(".predictions.*"))  # no work file is left
    assert cli.main(["eval", "--only", "predict", "--ray", "local", "--out", str(tmp_path / "tiny")]) == 2
