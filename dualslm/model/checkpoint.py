"""A checkpoint: `adapters.safetensors` and `config.json`, the card that names the frozen parts.

Only the adapters are saved. Loading is strict: missing or unexpected keys, and frozen parts other than the
card names, are errors. A name in the card that starts with "." is a folder beside the card, so that a
checkpoint may carry its own frozen parts; "pocket:encoder" and "pocket:llm" are fetched once (`dualslm.pocket`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dualslm import pocket
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from dualslm.model.card import modelcard
from dualslm.model.fingerprint import fingerprint
from dualslm.recipe import RUN_RECIPE

log = logging.getLogger("dualslm")

CARD, WEIGHTS, README = "config.json", "adapters.safetensors", "README.md"
FORMAT = 1
RENAMED = {"encoder_print": "encoder_fingerprint", "llm_print": "llm_fingerprint"}  # read for one more version


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself.

    Attributes:
        encoder: hub id or folder of the frozen speech encoder.
        llm: hub id or folder of the frozen LLM.
        encoder_revision: the hub revision of the encoder.
        llm_revision: the hub revision of the LLM.
        encoder_fingerprint: `fingerprint` of the encoder's weights.
        llm_fingerprint: `fingerprint` of the LLM's weights.
        window: what the encoder pads clips to, "full" or "clip".
        paralinguistic: arguments of `ParalinguisticAdapter`.
        linguistic: arguments of `LinguisticAdapter`.
        recipe: the recipe it was trained by.
        metrics: what was measured on it.
        limits: what it can and cannot understand, in a plain sentence about "it".
        license: of the adapters, by the hub's name for it, for example "apache-2.0".
        format: of this file.
    """

    encoder: str
    llm: str
    encoder_revision: str | None = None
    llm_revision: str | None = None
    encoder_fingerprint: str = ""
    llm_fingerprint: str = ""
    window: Literal["full", "clip"] = "full"
    paralinguistic: Mapping[str, Any] = field(default_factory=dict)
    linguistic: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    limits: str | None = None
    license: str | None = None
    format: int = FORMAT


def write(folder: str | os.PathLike[str], card: Card, adapters: nn.Module, *, repo: str | None = None) -> Path:
    """Saves a checkpoint; each file is written under a temporary name, synced and renamed.

    Args:
        folder: made where it is missing.
        card: what the checkpoint says of itself.
        adapters: whose weights are saved.
        repo: the hub id that it is to have, for its page.

    Returns:
        The folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share memory or are not contiguous.
    state = {key: value.detach().cpu().contiguous() for key, value in adapters.state_dict().items()}
    with replacing(path / WEIGHTS) as partial:
        save_file(state, partial, metadata={"format": "pt"})
    with replacing(path / README) as partial:
        partial.write_text(modelcard(card, repo or path.name), encoding="utf-8")
    # The card comes last: a folder without one is no checkpoint, so a save that was broken off is never loaded.
    with replacing(path / CARD) as partial:
        partial.write_text(json.dumps({"model_type": "dualslm", **asdict(card)}, indent=2) + "\n")
    return path


def find(name: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: the shipped one of the pocket model, a folder, or downloaded from the hub.

    Raises:
        DualSLMError: neither a folder with a checkpoint nor a hub id that can be reached.
    """
    path = Path(name)
    if name == pocket.NAME:
        path = pocket.ADAPTERS
        if not (path / CARD).is_file():
            do = "use the embedded model, or name trained adapters"
            raise DualSLMError("this build has no pocket adapters", got="none in the package", do=do)
    elif not path.is_dir():
        path = _download(str(name), revision)
    missing = [file for file in (CARD, WEIGHTS) if not (path / file).is_file()]
    if missing:
        stages = sorted(str(card.parent) for card in path.glob(f"*/{CARD}")) if (path / RUN_RECIPE).is_file() else []
        do = "give the folder that save_pretrained wrote, or a hub id of one"
        do = f"name a stage of this run: {', '.join(stages)}" if stages else do
        got = f"no {' and no '.join(missing)} there"
        raise DualSLMError(f"{name} is not a dualslm checkpoint", got=got, do=do)
    return path


def read_card(folder: Path) -> Card:
    """The card of a checkpoint, its "./" names made absolute.

    Raises:
        DualSLMError: not a card, or a card of another format.
    """
    try:
        values = json.loads((folder / CARD).read_text())
        values = _under_new_names(values, RENAMED, folder)
        if isinstance(values.get("paralinguistic"), dict):
            settings = values["paralinguistic"]
            values["paralinguistic"] = _under_new_names(settings, {"standardise": "standardize"}, folder)
        kind = values.pop("model_type", None)
        known = {entry.name for entry in fields(Card)}
        if kind != "dualslm" or values.get("format") != FORMAT or not values.keys() <= known:
            found = f"model_type {kind!r}, format {values.get('format')}, {sorted(values.keys() - known)[:3]}"
            raise ValueError(found)
        card = Card(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise DualSLMError(
            f"{folder / CARD} is not a dualslm card of format {FORMAT}",
            got=str(error),
            do="save the model anew with this version of dualslm",
        ) from error
    return Card(**{**asdict(card), "encoder": _beside(folder, card.encoder), "llm": _beside(folder, card.llm)})


def read_weights(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The adapters' tensors, on a device.

    Raises:
        DualSLMError: not a safetensors file, or a truncated one.
    """
    try:
        return {key: value.to(device) for key, value in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise DualSLMError(
            f"cannot read {folder / WEIGHTS}", got=str(error), do="copy or download the checkpoint again"
        ) from error


def upload(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Creates the hub repository where it is missing and uploads the folder; returns the commit's address."""
    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    return str(api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Upload dualslm adapters"))


def check_fingerprint(module: nn.Module, expected: str, *, part: str, name: str) -> None:
    """Refuses frozen parts other than the adapters were trained with.

    Raises:
        DualSLMError: the fingerprints differ.
    """
    got = fingerprint(module)
    # cards of the last version state encoders without the rounding to fp16; read for one more version
    if expected and got and expected not in (got, getattr(module, "former_identity", got)):
        raise DualSLMError(
            f"{name} is not the {part} that these adapters were trained with",
            got=f"weights {got}, not {expected}",
            do="load the one that the checkpoint's config.json names",
        )


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        kinds = {HFValidationError: "no hub id", RepositoryNotFoundError: "no such repository on the hub"}
        why = next((why for kind, why in kinds.items() if isinstance(error, kind)), "the hub cannot be reached")
        do = "give a folder that save_pretrained wrote, or a hub id that you can reach"
        raise DualSLMError(f"cannot find the checkpoint {name!r}", got=f"no such folder, and {why}", do=do) from error


def _under_new_names(values: Mapping[str, Any], renamed: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The fields of a card under today's names; those of the last version are read once more, and said."""
    for old in values.keys() & renamed.keys():
        log.warning("%s: %s is now %s; this version reads both for the last time", folder, old, renamed[old])
    return {renamed.get(key, key): value for key, value in values.items()}


def _beside(folder: Path, name: str) -> str:
    return str((folder / name).resolve()) if name.startswith(".") else name
