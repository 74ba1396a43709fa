"""Frozen parts are known whole, adapters and their card too, and a card from elsewhere asks for nothing absurd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.factory import save_encoder, save_llm

from dualslm.conversation import Speech
from dualslm.errors import BrokenModelError, DualSLMError
from dualslm.inference.audio_cache import AudioCache
from dualslm.model.checkpoint import read_card, read_weights
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.fingerprint import fingerprint
from dualslm.model.llm import FrozenLM
from dualslm.serve.errors import openai_error
from dualslm.tiny import WEIGHTS

SHUFFLED = 43  # tensors of the shipped LLM, of 74


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random encoder, a random LLM and adapters between them."""
    folder = tmp_path_factory.mktemp("made")
    save_encoder(folder / "encoder")
    save_llm(folder / "llm")
    settings = {"paralinguistic": {"heads": 4, "tokens": 4}, "linguistic": {"hidden": 32}}
    model = DualSLM.from_parts(str(folder / "encoder"), str(folder / "llm"), **settings)  # type: ignore[arg-type]
    model.save_pretrained(folder / "adapters", encoder="../encoder", llm="../llm")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def load(folder: Path, **options: Any) -> DualSLM:
    return DualSLM.from_pretrained(folder / "adapters", device="cpu", **options)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})


def shuffled(tensors: dict[str, torch.Tensor]) -> None:
    """Changes the order of the values of some tensors, but not at their ends, which a fingerprint looks at."""
    long = [key for key, value in tensors.items() if value.numel() > 1024][:SHUFFLED]
    assert len(long) == SHUFFLED
    for number, key in enumerate(long):
        flat = tensors[key].flatten().clone()
        order = torch.randperm(len(flat) - 512, generator=torch.Generator().manual_seed(number))
        flat[256:-256] = flat[256:-256][order]
        tensors[key] = flat.view_as(tensors[key])


def test_shuffled_tensors_are_refused_by_the_shipped_card(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    load(tmp_path / "weights", verify=True)
    file = tmp_path / "weights" / "llm" / "model.safetensors"
    rewrite(file, shuffled)
    known = read_card(WEIGHTS / "adapters").llm_fingerprint
    assert fingerprint(FrozenLM.from_pretrained(str(file.parent))) == known, "or this test shows nothing"
    with pytest.raises(DualSLMError, match="is not the LLM that these adapters were trained with: got other values"):
        load(tmp_path / "weights")


def roll_one(tensors: dict[str, torch.Tensor]) -> None:
    key = max(tensors, key=lambda name: tensors[name].numel())
    tensors[key] = tensors[key].flatten().roll(1).view_as(tensors[key])


def test_rolled_weights_of_the_encoder_are_refused(copy: Path) -> None:
    rewrite(copy / "encoder" / "model.safetensors", roll_one)
    with pytest.raises(DualSLMError, match="is not the encoder"):
        load(copy)


def test_one_value_in_the_middle_is_found_byte_by_byte(copy: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = max(tensors, key=lambda name: tensors[name].numel())
        assert tensors[key].numel() > 2000
        tensors[key].view(-1)[tensors[key].numel() // 2 + 3] += 1

    rewrite(copy / "llm" / "model.safetensors", change)
    load(copy)
    with pytest.raises(DualSLMError, match=r"is not the LLM .* got other bytes in model\.safetensors"):
        load(copy, verify=True)


def settings(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed, indent=3))


def another_template(folder: Path) -> None:
    (folder / "llm" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def another_token(folder: Path) -> None:
    file = folder / "llm" / "tokenizer.json"
    saved = json.loads(file.read_text())
    vocabulary = saved["model"]["vocab"]
    one, other = sorted(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(saved))


def more_tokens(folder: Path) -> None:
    (folder / "llm" / "added_tokens.json").write_text("{}")


CHANGES: dict[str, Callable[[Path], None]] = {
    "chat_template.jinja": another_template,
    "tokenizer.json": another_token,
    "config.json": lambda folder: settings(folder / "llm" / "config.json", rms_norm_eps=0.5),
    "preprocessor_config.json": lambda folder: settings(folder / "encoder" / "preprocessor_config.json", dither=0.1),
    "generation_config.json": lambda folder: settings(folder / "llm" / "generation_config.json", eos_token_id=3),
    "added_tokens.json": more_tokens,
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_tokenizers_and_templates_are_refused(copy: Path, name: str) -> None:
    CHANGES[name](copy)
    with pytest.raises(DualSLMError, match=f"is not the (LLM|encoder) .* got (another|one more file,) {name}"):
        load(copy)


def test_an_llm_elsewhere_is_compared_as_far_as_it_is_here(copy: Path) -> None:
    load(copy, load_llm=False)
    another_template(copy)
    with pytest.raises(DualSLMError, match=r"another chat_template\.jinja"):
        load(copy, load_llm=False)


def test_a_copy_in_another_dtype_and_form_is_the_same(copy: Path) -> None:
    for part in ("encoder", "llm"):
        settings(copy / part / "config.json", transformers_version="99", dtype="float16")
    rewrite(copy / "llm" / "model.safetensors", lambda all_: all_.update({k: v.bfloat16() for k, v in all_.items()}))
    rewrite(copy / "llm" / "model.safetensors", lambda all_: all_.update({k: v.float() for k, v in all_.items()}))
    load(copy)


def test_adapters_of_the_last_version_load_and_cannot_be_verified(copy: Path) -> None:
    file = copy / "adapters" / "config.json"
    card = json.loads(file.read_text())
    new = ("encoder_files", "llm_files", "sha256")
    file.write_text(json.dumps({key: value for key, value in card.items() if key not in new}))
    weights = copy / "adapters" / "adapters.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    load(copy)
    with pytest.raises(DualSLMError, match="the encoder cannot be verified: got a card without its files"):
        load(copy, verify=True)


# ---------------------------------------------------------------------- the card and the adapters


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("paralinguistic", {"tokens": 10**9}),
        ("paralinguistic", {"layers": 10**6}),
        ("paralinguistic", {"heads": 0}),
        ("paralinguistic", {"feedforward": 10**8}),
        ("paralinguistic", {"dropout": "a lot"}),
        ("paralinguistic", {"tokens": True}),
        ("paralinguistic", {"depth": 4}),
        ("linguistic", {"hidden": 10**12}),
        ("linguistic", {"stack": -1}),
        ("linguistic", {"around": 10**7}),
        ("linguistic", {"dropout": float("nan")}),
    ],
)
def test_a_card_asks_for_what_a_recipe_may(copy: Path, part: str, changed: dict[str, Any]) -> None:
    file = copy / "adapters" / "config.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {part: card[part] | changed}))
    with pytest.raises(DualSLMError, match=f"is not a dualslm card of format 1: got .*{part}") as error:
        load(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "7",
        "null",
        '{"model_type": "dualslm"',
        "\udcff",
        '{"model_type": "dualslm", "format": 1}',
        '{"model_type": "dualslm", "format": 2, "format": 1}',
        '{"format": ' + "1" * 5000 + "}",
    ],
)
def test_what_is_no_card_is_one_line(copy: Path, text: str) -> None:
    (copy / "adapters" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DualSLMError, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize(("name", "value"), [("encoder", 3), ("window", "none"), ("limits", ["x"]), ("llm_files", "x")])
def test_fields_have_their_types(copy: Path, name: str, value: Any) -> None:
    settings(copy / "adapters" / "config.json", **{name: value})
    with pytest.raises(DualSLMError, match=f"is not a dualslm card of format 1: got .*{name}"):
        load(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder": "./a\0b"},
        {"llm": "./\ud800"},
        {"limits": "\ud800"},
        {"format": True},
        {"recipe": {"a": [None]}},  # no page could be written when these adapters are saved again
        {"recipe": {"a": {"b": {"c": "\ud800"}}}},
    ],
)
def test_a_card_that_nobody_could_use_or_save_is_refused_when_it_is_read(copy: Path, fields: dict[str, Any]) -> None:
    settings(copy / "adapters" / "config.json", **fields)
    with pytest.raises(DualSLMError, match="is not a dualslm card of format 1"):
        read_card(copy / "adapters")


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": float("nan")},
        {"max_new_tokens": 1.5},
        {"frequency_penalty": "x"},
        {"seed": "x"},
        {"seed": 10**40},
        {"presence_penalty": float("inf")},
        {"logprobs": -5},
    ],
)
def test_a_card_asks_for_settings_of_replies_that_make_sense(copy: Path, asked: dict[str, Any]) -> None:
    settings(copy / "adapters" / "config.json", generation=asked)
    with pytest.raises(DualSLMError, match=f"asks for settings that are not known: got {next(iter(asked))}"):
        load(copy)


def test_heads_of_the_linguistic_adapter_divide_the_width(copy: Path) -> None:
    file = copy / "adapters" / "config.json"
    card = json.loads(file.read_text())
    weights = copy / "adapters" / "adapters.safetensors"
    save_file(load_file(weights), weights)
    settings(file, linguistic=card["linguistic"] | {"layers": 1, "heads": 7})
    with pytest.raises(DualSLMError, match="the linguistic adapter's heads do not divide"):
        load(copy)


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_file_is_no_folder_of_a_model(copy: Path, part: str) -> None:
    """Transformers would open it as a pickle."""
    settings(copy / "adapters" / "config.json", **{part: "../llm/config.json"})
    with pytest.raises(DualSLMError, match="a file, and not a folder"):
        load(copy)


def test_names_that_no_file_system_has_are_one_line() -> None:
    for name in ("a" * 5000, "a\0b", "\ud800"):
        with pytest.raises(DualSLMError, match="cannot find the checkpoint"):
            DualSLM.from_pretrained(name, device="cpu")


def test_a_save_that_fails_leaves_what_was_there(copy: Path) -> None:
    model = load(copy)
    before = {file.name: file.read_bytes() for file in (copy / "adapters").iterdir()}
    model.recipe = {"a": [None]}
    with torch.no_grad():
        model.ling.project.bias.add_(1)
    with pytest.raises(TypeError):
        model.save_pretrained(copy / "adapters")
    assert {file.name: file.read_bytes() for file in (copy / "adapters").iterdir()} == before


def test_a_large_size_is_refused_before_memory_is_taken(copy: Path) -> None:
    """Within the bounds of a recipe this would still be 40 GB."""
    file = copy / "adapters" / "config.json"
    weights = copy / "adapters" / "adapters.safetensors"
    save_file(load_file(weights), weights)  # without the hash, as an outsider would
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"linguistic": {"hidden": 131_072, "stack": 4096}}))
    with pytest.raises(DualSLMError, match="do not fit"):
        load(copy)


def test_settings_belong_to_their_weights(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other numbers of P's tokens have weights of the same shapes."""
    file = copy / "adapters" / "config.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"paralinguistic": card["paralinguistic"] | {"tokens": 5}}))
    with pytest.raises(DualSLMError, match=r"adapters\.safetensors is damaged"):
        load(copy)
    assert "was changed since it was saved" in caplog.text


def test_weights_of_another_type_are_refused(copy: Path) -> None:
    weights = copy / "adapters" / "adapters.safetensors"
    save_file({key: value.to(torch.int32) for key, value in load_file(weights).items()}, weights)
    with pytest.raises(DualSLMError, match=r"holds no adapters' weights: got .* of type torch\.int32"):
        load(copy)


def test_weights_that_are_no_numbers_are_refused(copy: Path) -> None:
    """They would make every reply an empty one, without a word."""
    weights = copy / "adapters" / "adapters.safetensors"
    tensors = load_file(weights)
    tensors["para.project.weight"][0, 0] = float("nan")
    save_file(tensors, weights)  # without the hash, as an outsider would
    with pytest.raises(DualSLMError, match=r"damaged: got para\.project\.weight with values that are no numbers"):
        load(copy)


@pytest.mark.parametrize("name", ["para.project.weight", "ling"])
def test_weights_of_absurd_size_are_told_at_the_first_reply(copy: Path, name: str) -> None:
    """They are numbers, but what they give is none, or one whose square is none."""
    weights = copy / "adapters" / "adapters.safetensors"
    tensors = load_file(weights)
    for key in [key for key in tensors if key.startswith(name) and key.endswith("weight")]:
        tensors[key] = tensors[key] * 1e30
    save_file(tensors, weights)
    model = load(copy)
    sound = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    for reply in (model.reply, lambda audio: AudioCache(model).encode([Speech(audio)])):
        with pytest.raises(BrokenModelError, match="the adapters make no embeddings of this"):
            reply(sound)
    assert openai_error(BrokenModelError("w", got="g", do="d"))[0].status == 500


@pytest.mark.parametrize("part", ["encoder", "llm"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5])
def test_weights_that_were_cut_off_are_one_line(copy: Path, part: str, share: float) -> None:
    file = copy / part / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    for load_llm in (True, False):
        with pytest.raises(DualSLMError, match=r"cannot (read|load)") as error:
            load(copy, load_llm=load_llm)
        assert "\n" not in str(error.value)


def test_whole_numbers_are_no_weights_of_an_encoder(copy: Path) -> None:
    file = copy / "encoder" / "model.safetensors"
    save_file({key: value.to(torch.int8) for key, value in load_file(file).items()}, file)
    with pytest.raises(DualSLMError, match=r"is of torch\.int8"):
        load(copy)


def test_every_flip_in_adapters_is_found(copy: Path) -> None:
    weights = copy / "adapters" / "adapters.safetensors"
    whole = weights.read_bytes()
    right = read_weights(weights.parent)
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        weights.write_bytes(data)
        try:
            read = read_weights(weights.parent)
        except DualSLMError:
            continue
        # The name of the entry that holds the hash: then it is a file of an earlier version.
        assert all(torch.equal(read[key], value) for key, value in right.items())
        assert read.keys() == right.keys()


def test_a_part_that_was_made_in_memory_has_no_record(made: Path) -> None:
    encoder, llm = SpeechEncoder.from_pretrained(str(made / "encoder")), FrozenLM.from_pretrained(str(made / "llm"))
    llm.name = encoder.name = ""
    assert DualSLM(encoder, llm, paralinguistic={"heads": 4}).frozen_files == {"encoder": {}, "LLM": {}}
