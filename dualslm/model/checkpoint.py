"""A checkpoint: `adapters.safetensors` and `config.json`, the card that names the frozen parts.

Only the adapters are saved. Loading is strict: missing or unexpected keys, and frozen parts other than the
card names, are errors. A name in the card that starts with "." is a folder beside the card, so that a
checkpoint may carry its own frozen parts; "pocket:encoder" and "pocket:llm" are fetched once (`dualslm.pocket`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from safetensors.torch import save
from torch import Tensor, nn

from dualslm import pocket, toml
from dualslm.errors import DualSLMError
from dualslm.files import read_json, replacing
from dualslm.model import frozen_files
from dualslm.model.adapters import build_differences
from dualslm.model.card import modelcard
from dualslm.model.fingerprint import fingerprint
from dualslm.model.frozen_files import Kind, Record
from dualslm.model.generation import GREEDY, GenerationSettings
from dualslm.model.nearest import Aligned
from dualslm.recipe import RUN_RECIPE, Linguistic, Paralinguistic

log = logging.getLogger("dualslm")

CARD, WEIGHTS, README = "config.json", "adapters.safetensors", "README.md"
FORMAT = 1
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of adapters
MAX_CARD_BYTES = 1 << 24
RENAMED = {"encoder_print": "encoder_fingerprint", "llm_print": "llm_fingerprint"}  # read for one more version

UNTRAINED = "has untrained adapters: a reply to speech means nothing yet"
UNSTATED = "does not say what it was trained to understand: try it on recordings of your own before you rely on it"


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
        encoder_files: every file of the encoder; see `dualslm.model.frozen_files`.
        llm_files: every file of the LLM, its tokenizer and chat template.
        window: what the encoder pads clips to, "full" or "clip".
        paralinguistic: arguments of `ParalinguisticAdapter`.
        linguistic: arguments of `LinguisticAdapter`.
        recipe: the recipe it was trained by.
        metrics: what was measured on it.
        aligned: what is read of it by nearest token and word; see `dualslm.model.nearest.Aligned`.
        generation: settings of `GenerationSettings` that replies are drawn by unless others are asked for.
        limits: what it can and cannot understand, in a plain sentence about "it".
        license: of the adapters, by the hub's name for it, for example "apache-2.0".
        format: of this file.
        sha256: of all fields above, as the file has them.
    """

    encoder: str
    llm: str
    encoder_revision: str | None = None
    llm_revision: str | None = None
    encoder_fingerprint: str = ""
    llm_fingerprint: str = ""
    encoder_files: Record = field(default_factory=dict)
    llm_files: Record = field(default_factory=dict)
    window: Literal["full", "clip"] = "full"
    paralinguistic: Mapping[str, Any] = field(default_factory=dict)
    linguistic: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    aligned: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    limits: str | None = None
    license: str | None = None
    format: int = FORMAT
    sha256: str = ""

    def hash_of(self, adapters: Mapping[str, Tensor]) -> str:
        """The SHA-256 of some weights and of all settings that decide what they compute."""
        settings = [self.window, self.paralinguistic, self.linguistic, self.encoder_fingerprint, self.llm_fingerprint]
        digest = hashlib.sha256(_hash(settings).encode())
        for key, value in sorted(adapters.items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


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
    page = modelcard(card, repo or path.name)  # first: a recipe that cannot be written leaves all as it was
    path.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share memory or are not contiguous.
    state = {key: value.detach().cpu().contiguous() for key, value in adapters.state_dict().items()}
    with replacing(path / WEIGHTS) as partial:
        # One entry alone: safetensors writes several in another order each time. And not by its own writer, whose
        # errors are none of the system's.
        partial.write_bytes(save(state, metadata={"sha256": card.hash_of(state)}))
    with replacing(path / README) as partial:
        partial.write_text(page, encoding="utf-8")
    # The card comes last: a folder without one is no checkpoint, so a save that was broken off is never loaded.
    stated = {"model_type": "dualslm", **asdict(card), "sha256": ""}
    with replacing(path / CARD) as partial:
        partial.write_text(json.dumps({**stated, "sha256": _hash(stated)}, indent=2) + "\n")
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
    elif not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        path = _download(str(name), revision)
    missing = [file for file in (CARD, WEIGHTS) if not os.path.isfile(path / file)]
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
        DualSLMError: not a card, a card of another format, or settings that no adapters have.
    """
    do = "save the model anew with this version of dualslm"
    try:
        if (folder / CARD).stat().st_size > MAX_CARD_BYTES:
            raise ValueError(f"more than {MAX_CARD_BYTES} bytes")
        values = read_json(folder / CARD, "the card", do)
        if values.get("sha256") and values["sha256"] != _hash({**values, "sha256": ""}):
            # Only named, because what the adapters compute by is known by the hash of the weights.
            log.warning("%s was changed since it was saved: what it says may be wrong", folder / CARD)
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
        _check_fields(card)
        modelcard(card).encode()  # so that whatever is read can be saved again
    # Whatever JSON may hold: nested a thousand times, without a key, or of another type.
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        got = f"{error.wrong}: {error.got}" if isinstance(error, DualSLMError) else str(error)
        raise DualSLMError(f"{folder / CARD} is not a dualslm card of format {FORMAT}", got=got, do=do) from error
    return replace(
        card,
        encoder=_beside(folder, card.encoder),
        llm=_beside(folder, card.llm),
        # Where nobody named a revision, it is the commit that was there at the time: a branch moves on.
        encoder_revision=card.encoder_revision or card.encoder_files.get("commit"),
        llm_revision=card.llm_revision or card.llm_files.get("commit"),
    )


def read_weights(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The adapters' tensors, on a device.

    Raises:
        DualSLMError: not a safetensors file, a damaged one, or one that does not belong to the card beside it.
    """
    do = "copy or download the checkpoint again"
    with frozen_files.tensors_in(folder / WEIGHTS) as file:
        known = (file.metadata() or {}).get("sha256")  # a file of an earlier version has none
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if known is not None and known != read_card(folder).hash_of(tensors):
        got = f"other bytes, or other settings in {CARD}, than were saved"
        raise DualSLMError(f"{folder / WEIGHTS} is damaged", got=got, do=do)
    if strange := [key for key, value in tensors.items() if value.dtype not in FLOATS]:
        got = f"{strange[0]} of type {tensors[strange[0]].dtype}"
        raise DualSLMError(f"{folder / WEIGHTS} holds no adapters' weights", got=got, do=do)
    if strange := [key for key, value in tensors.items() if not bool(value.float().isfinite().all())]:
        # One alone makes every embedding no number, and every reply an empty one, without a word.
        raise DualSLMError(f"{folder / WEIGHTS} is damaged", got=f"{strange[0]} with values that are no numbers", do=do)
    return {key: value.to(device) for key, value in tensors.items()}


def upload(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Creates the hub repository where it is missing and uploads the folder; returns the commit's address."""
    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    return str(api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Upload dualslm adapters"))


def record_parts(encoder: Any, llm: Any) -> dict[Kind, Record]:
    """The record of every file of a `SpeechEncoder` and a `FrozenLM`."""
    parts: dict[Kind, Any] = {"encoder": encoder, "LLM": llm}
    return {kind: frozen_files.record(kind, part.name, part.revision) for kind, part in parts.items()}


def card_of(model: Any) -> Card:
    """What a `DualSLM` says of itself."""
    # adapters with a recipe have learnt, though nobody has said what
    unknown = model.limits == UNSTATED or (model.limits == UNTRAINED and model.recipe)
    return Card(
        encoder=model.encoder.name,
        llm=model.llm.name,
        encoder_revision=model.encoder.revision,
        llm_revision=model.llm.revision,
        encoder_fingerprint=fingerprint(model.encoder),
        llm_fingerprint=fingerprint(model.llm),
        encoder_files=model.frozen_files["encoder"],
        llm_files=model.frozen_files["LLM"],
        window=model.encoder.window,
        recipe=model.recipe,
        metrics=model.metrics,
        aligned=model.aligned.as_json(),
        limits=None if unknown else model.limits,
        generation=model.generation.beyond_the_first,
        paralinguistic=model.settings["paralinguistic"],
        linguistic=model.settings["linguistic"],
    )


def check_build(card: Card, model: Any, name: str | os.PathLike[str]) -> None:
    """Refuses to go on from adapters that a `DualSLM` is not built for.

    Args:
        card: of the adapters.
        model: the `DualSLM`.
        name: how the user calls the adapters.

    Raises:
        DualSLMError: they read other frames, or are of other sizes or parts.
    """
    if card.window != model.encoder.window:
        got = f"window {card.window}, not {model.encoder.window}"
        raise DualSLMError(f"the adapters in {name} learnt from other frames", got=got, do="set model.window")
    saved = {"paralinguistic": card.paralinguistic, "linguistic": card.linguistic}
    other = [line for part, own in model.settings.items() for line in build_differences(part, saved[part], own)]
    if other:
        do = "write their values in the recipe, or begin from fresh ones"
        raise DualSLMError(f"the adapters in {name} are of another build", got="; ".join(other), do=do)


def generation_of(card: Card) -> GenerationSettings:
    """How a card wants replies to be drawn.

    Raises:
        DualSLMError: by settings that this version does not know.
    """
    try:
        return replace(GREEDY, **card.generation)
    except (TypeError, DualSLMError) as error:
        do = "use a newer version, or take the setting out of its card"
        got = f"{error.wrong}: {error.got}" if isinstance(error, DualSLMError) else str(error)
        raise DualSLMError("the checkpoint asks for settings that are not known", got=got, do=do) from error


def check_parts(card: Card, encoder: Any, llm: Any, *, verify: bool = False, llm_here: bool = True) -> None:
    """Refuses frozen parts that are not those of a card.

    Args:
        card: of the adapters.
        encoder: the `SpeechEncoder`.
        llm: the `FrozenLM`.
        verify: compare every byte of their files, and not some values of each tensor alone.
        llm_here: whether the LLM's weights are here; of one that runs elsewhere its other files are compared.

    Raises:
        DualSLMError: another part.
    """
    check_fingerprint(encoder, card.encoder_fingerprint, part="encoder", name=encoder.name)
    check_fingerprint(llm, card.llm_fingerprint, part="LLM", name=llm.name)
    known: dict[Kind, tuple[Any, Record]] = {"encoder": (encoder, card.encoder_files), "LLM": (llm, card.llm_files)}
    for kind, (part, files) in known.items():
        here = llm_here or kind == "encoder"
        if verify and not files:
            do = "leave out --verify, or save the adapters with this version"
            raise DualSLMError(f"the {kind} cannot be verified", got="a card without its files", do=do)
        frozen_files.check(kind, part.name, part.revision, files, verify=verify, here=here)


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


def _check_fields(card: Card) -> None:
    """Refuses fields of other types, and settings that the recipe's own classes refuse."""
    for name, kind in get_type_hints(Card).items():
        value = getattr(card, name)
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        plain = [get_origin(one) or one for one in kinds if get_origin(one) is not Literal]
        if plain and (not isinstance(value, tuple(plain)) or isinstance(value, bool)):
            raise TypeError(f"{name} {value!r:.80}")
    if "\0" in card.encoder + card.llm:  # no file system has such a name, and Python raises at the first use
        raise ValueError(f"{card.encoder!r:.80} and {card.llm!r:.80}")
    if card.window not in ("full", "clip"):
        raise ValueError(f"window {card.window!r:.80}")
    Aligned.of(card.aligned)
    settings: dict[str, type] = {"paralinguistic": Paralinguistic, "linguistic": Linguistic}
    for name, kind in settings.items():
        toml.table(kind, {key: value for key, value in getattr(card, name).items() if value is not None}, f"{name}.")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def absolute(name: str) -> str:
    """A folder by its full path, so that a card that names it holds wherever it is read from; a hub id as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _beside(folder: Path, name: str) -> str:
    return str((folder / name).resolve()) if name.startswith(".") else name
