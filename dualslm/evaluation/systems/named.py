"""Systems by the names that the command line gives them: `KIND,key=value,...`, or a checkpoint's folder or hub id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dualslm import pocket
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item, System, report_name
from dualslm.recipe import RUN_RECIPE, load
from dualslm.toml import key_value

if TYPE_CHECKING:
    from dualslm.model.generation import GenerationSettings
    from dualslm.model.llm import FrozenLM

log = logging.getLogger("dualslm")


@dataclass(frozen=True)
class Means:
    """What opening a system may need.

    Attributes:
        items: items that will be asked.
        device: "cpu" or "cuda"; the GPU where there is one when None.
        max_new_tokens: greatest length of an answer in tokens.
        with_likelihoods: whether to give the likelihood of each choice too, where the system can.
    """

    items: Sequence[Item]
    device: str | None = None
    max_new_tokens: int = 128
    with_likelihoods: bool = False

    # Here and below, what needs torch or transformers is imported where it is used: a server, the majority line and a
    # mistake in a name then take no seconds to load what they never call.
    @property
    def generation(self) -> GenerationSettings:
        """Greedy decoding: every system is asked for its likeliest answer, so that a run can be repeated."""
        from dualslm.model.generation import GenerationSettings

        return GenerationSettings(max_new_tokens=self.max_new_tokens)


Opener = Callable[[Mapping[str, str], Means], System]


def opened(spec: str, means: Means) -> System:
    """The system that a specification names.

    Args:
        spec: specification: for example `server,url=http://localhost:8000/v1,model=Qwen/Qwen2-Audio-7B-Instruct`,
            `majority`, or a folder or hub id of a checkpoint.
        means: what opening the system may need.

    Raises:
        DualSLMError: an unknown key, a missing one, or nothing there.
    """
    kind, *pairs = spec.split(",")
    if kind not in SYSTEMS:
        # No kind at all: a checkpoint, as long as it looks like a folder or a hub id (owner/name).
        if pairs or not (spec == pocket.NAME or Path(spec).exists() or "/" in spec):
            do = f"choose one of {', '.join(SYSTEMS)}, or give a checkpoint's folder or hub id"
            raise DualSLMError("unknown kind of system", got=repr(kind), do=do)
        return _checkpoint({"model": spec}, means)
    must, may, make = SYSTEMS[kind]
    form = ",".join([kind, *(f"{key}=..." for key in must), *(f"[{key}=...]" for key in (*may, "name"))])
    wrong = f"{spec!r} does not say what {kind} is"
    given = dict(key_value(pair, wrong=wrong, do=f"write {form}") for pair in pairs)
    lacking = [key for key in must if not given.get(key)]
    if lacking or not given.keys() <= {*must, *may, "name"}:
        raise DualSLMError(wrong, got=f"keys {', '.join(given) or 'none'}", do=f"write {form}")
    return make(given, means)


def checkpoint_of(run: str) -> str:
    """A run's folder → the folder of its last stage that has a checkpoint; anything else as it is.

    Raises:
        DualSLMError: a run without any checkpoint.
    """
    folder = Path(run)
    # A checkpoint's own folder may hold its recipe too: it is no run.
    if not (folder / RUN_RECIPE).is_file() or (folder / "adapters.safetensors").is_file():
        return run
    done = [
        stage.name
        for stage in load(folder / RUN_RECIPE).stages
        if (folder / stage.name / "adapters.safetensors").is_file()
    ]
    if not done:
        raise DualSLMError(
            f"{run} has no checkpoint yet", got="no stage that is done", do="train it, or name another run"
        )
    return str(folder / done[-1])


def _checkpoint(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.ours import Ours
    from dualslm.model.dualslm import DualSLM

    folder = checkpoint_of(given["model"])
    model = DualSLM.from_pretrained(folder, device=means.device)
    name = given.get("name") or report_name(folder)
    log.warning("%s: this model %s", name, model.limits)  # figures are read by people who never heard it
    return Ours(model, means.generation, name, means.with_likelihoods)


def _lm(name: str, means: Means) -> FrozenLM:
    from dualslm.model.execution import resolve_device
    from dualslm.model.llm import FrozenLM

    where, dtype = resolve_device(means.device)
    return FrozenLM.from_pretrained(name, dtype=dtype, device=where)


def _majority(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.majority import Majority

    return Majority(means.items, given.get("name", "majority"))


def _server(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.server import AudioServer

    return AudioServer(given["url"], given["model"], name=given.get("name", ""), max_new_tokens=means.max_new_tokens)


def _text(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.ours import TextLM

    return TextLM(_lm(given["model"], means), means.generation, given.get("name", given["model"]))


def _cascade(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.ours import Cascade
    from dualslm.evaluation.systems.recogniser import recogniser

    name = given.get("name", f"{given['asr']} + {given['llm']}")
    return Cascade(
        recogniser(given["asr"], means.device), given["asr"], _lm(given["llm"], means), means.generation, name
    )


def _qwen2_audio(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.qwen2_audio import Qwen2Audio
    from dualslm.model.execution import resolve_device

    where, dtype = resolve_device(means.device)
    name = given.get("name", "qwen2-audio")
    return Qwen2Audio(given["model"], device=where, dtype=dtype, name=name, max_new_tokens=means.max_new_tokens)


def _emotion2vec(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.emotion2vec import DEFAULT, Emotion2Vec

    return Emotion2Vec(given.get("model", DEFAULT), name=given.get("name", "emotion2vec"))


def _emotion_features(given: Mapping[str, str], means: Means) -> System:
    from dualslm.evaluation.systems.emotion_features import DEFAULT, EmotionFeatures

    name = given.get("name", "emotion2vec-features")
    return EmotionFeatures(Path(given["train"]), given.get("model", DEFAULT), name=name)


def _llama_omni(given: Mapping[str, str], means: Means) -> System:
    raise DualSLMError(
        "LLaMA-Omni cannot be run here",
        got="no model code in transformers, and its own is pinned to torch 2.1.2 and transformers 4.43.4",
        do="serve it by its own code behind an OpenAI-compatible address and ask that: server,url=...,model=...",
    )


SYSTEMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Opener]] = {
    "dualslm": (("model",), (), _checkpoint),
    "majority": ((), (), _majority),
    "server": (("url", "model"), (), _server),
    "llm": (("model",), (), _text),
    "cascade": (("asr", "llm"), (), _cascade),
    "qwen2-audio": (("model",), (), _qwen2_audio),
    "emotion2vec": ((), ("model",), _emotion2vec),
    "emotion2vec-features": (("train",), ("model",), _emotion_features),
    "llama-omni": ((), ("model",), _llama_omni),
}
"""Every kind: keys that it must have, keys that it may have, and how it is opened."""
