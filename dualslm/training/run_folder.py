"""The folder of a run: one process may use it, and what it holds is known by hash (ours).

`state.pt` ends with the SHA-256 of what stands before it. It keeps, beside the adapters and the optimizer, what the run
learns from: the hash of every manifest, of all recordings and of every file of the frozen parts. So a run goes on only
where it would end with the bytes that it would have ended with, and a damaged file is found when it is read.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from dualslm.errors import DualSLMError
from dualslm.files import locked, open_regular, read_text, replacing, sha256
from dualslm.recipe import RUN_RECIPE, Recipe, parse

log = logging.getLogger("dualslm")

STATE_FILE = "state.pt"
LOCK_FILE = "run.lock"
LOGS = ("metrics.jsonl", "skipped.jsonl")
SEAL = b"\ndualslm sha256\n"  # stands between the state and its hash
SEAL_BYTES = len(SEAL) + hashlib.sha256().digest_size


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Makes a run folder where it is missing and holds it for this process; one that stays empty is removed again.

    Raises:
        DualSLMError: another process trains in it.
    """

    def busy() -> None:
        do = "wait for it, or give another folder"
        raise DualSLMError(f"another process trains in {out}", got=f"a lock on {LOCK_FILE}", do=do)

    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK_FILE, busy):
        try:
            yield
        finally:
            with suppress(OSError):
                # A mistake that was found before anything was written leaves nothing behind.
                if [path.name for path in out.iterdir()] == [LOCK_FILE]:
                    (out / LOCK_FILE).unlink()
                    out.rmdir()


def check_recipe(recipe: Recipe, out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds another run, or this one where it is not to be resumed."""
    file = out / RUN_RECIPE
    if not file.exists():
        return
    if not resume:
        raise DualSLMError(f"{out} holds a run already", got=RUN_RECIPE, do="give --resume, or another folder")
    text = read_text(file, "the run's recipe", "copy the recipe of the run there again")
    if parse(text, name=str(file)) != recipe:
        raise DualSLMError(f"{out} holds a run of another recipe", got=str(file), do="resume with the recipe as it was")


# ---------------------------------------------------------------------- the state


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Writes the state of a run, with the hashes of its logs as they are now."""
    memory = io.BytesIO()
    torch.save({**state, "logs": {name: _log_hash(out / name) for name in LOGS}}, memory)
    with replacing(out / STATE_FILE) as partial, partial.open("wb") as file:
        # Not by torch.save itself, whose errors do not say what the disk answered.
        file.write(memory.getbuffer())
        file.write(SEAL + hashlib.sha256(memory.getbuffer()).digest())


def read_state(out: Path) -> dict[str, Any] | None:
    """The state of a run; None where none was saved.

    Raises:
        DualSLMError: it cannot be read, or is damaged.
    """
    file = out / STATE_FILE
    if not file.exists():
        return None
    do = f"copy {STATE_FILE} from elsewhere, or delete it to begin the run anew"
    with open_regular(file, "the run's state", do) as opened:
        data = opened.read()
    sealed = data[-SEAL_BYTES : -SEAL_BYTES + len(SEAL)] == SEAL
    content = memoryview(data)[:-SEAL_BYTES] if sealed else memoryview(data)
    if sealed and hashlib.sha256(content).digest() != data[-SEAL_BYTES + len(SEAL) :]:
        raise DualSLMError(f"{file} is damaged", got="other bytes than were written", do=do)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # A state of an earlier version has neither a hash nor this entry; a cut-off one of this version lacks one.
        if sealed != ("logs" in state):
            raise ValueError("it is cut off")
        _check_fields(state)
    except (RuntimeError, ValueError, TypeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        got = (str(error) or type(error).__name__).splitlines()[0]
        raise DualSLMError(f"{file} is damaged", got=got, do=do) from error
    for name, (length, known) in state.get("logs", {}).items():
        # Only named, because nothing is learnt from a log: its damaged lines are left out, its figures may be wrong.
        if _log_hash(out / name, length) != (length, known):
            log.warning("%s is not as the run wrote it: its figures may be wrong", out / name)
    return state


def _check_fields(state: Mapping[str, Any]) -> None:
    """Refuses what somebody else has sealed, and no run wrote."""
    kinds = {"stage": int, "step": int, "best": float, "adapters": Mapping, "adamw": Mapping, "schedule": Mapping}
    wrong = [
        name for name, kind in kinds.items() if not isinstance(state.get(name), kind) or isinstance(state[name], bool)
    ]
    if not wrong and state["best"] != state["best"]:  # no loss would be better than no number: none would be kept
        wrong.append("best")
    logs, sources = state.get("logs", {}), state.get("sources", {})
    if not isinstance(logs, Mapping) or any(name not in LOGS or len(pair) != 2 for name, pair in logs.items()):
        wrong.append("logs")
    if wrong or not isinstance(sources, Mapping) or min(state["stage"], state["step"]) < 0:
        raise ValueError(f"no {[*wrong, 'place in the run, or no sources'][0]} that a run has")


def _log_hash(file: Path, length: int | None = None) -> tuple[int, str]:
    """The length and the hash of a log, or of its first bytes: a run that was stopped has gone on after its state."""
    data = file.read_bytes()[:length] if file.exists() else b""
    return len(data), hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------------- what a run learns from


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """The SHA-256 of every manifest of a recipe, by path."""
    names = [*recipe.data.train, *recipe.data.validation, *(name for stage in recipe.stages for name in stage.also)]
    return {name: sha256(Path(name)) for name in dict.fromkeys(names)}


def check_sources(state: Mapping[str, Any], sources: Mapping[str, str], out: Path) -> None:
    """Refuses to go on from other data or frozen parts than a run began with.

    Args:
        state: of the run.
        sources: hash of everything that it learns from, by name.
        out: its folder.

    Raises:
        DualSLMError: something is not what it was; the first few are named.
    """
    known = state.get("sources")
    if known is None:
        log.warning("%s is of an earlier version: whether the data are those of the run is not known", out / STATE_FILE)
        return
    other = [name for name in known.keys() | sources.keys() if known.get(name) != sources.get(name)]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise DualSLMError(
            f"{out} holds a run that began with other data or models",
            got=f"a change in {', '.join(sorted(other)[:3])}{more}",
            do="put them back as they were, or begin a run in another folder",
        )
