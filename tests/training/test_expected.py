"""`dualslm plan` against what is done: the bytes of `features`, the FLOPs of PyTorch, the examples of training."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import factory
from support.badaudio import wav
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dualslm import recipe as recipes
from dualslm.data.manifest import Examples
from dualslm.errors import DualSLMError
from dualslm.model.encoder import SpeechEncoder
from dualslm.training import estimate, expected, feature_cache, shapes

SECONDS = [1.0, 1.4, 2.0, 2.6, 3.3, 4.0, 4.9, 6.5, 8.0, 9.5, 11.7, 14.0, 17.0, 20.0]
RECIPE = """
[model]
encoder = "{folder}/encoder"
llm = "{folder}/llm"
window = "{window}"
[model.paralinguistic]
{layers}
[data]
train = ["{folder}/train.jsonl"]
validation = ["{folder}/validation.jsonl"]
[[stage]]
name = "one"
lr = 1e-3
batch = 2
epochs = 1
[stage.linguistic]
learns = ["ling"]
"""


def line(name: str, audio: str, **fields: Any) -> dict[str, Any]:
    part = {"audio": audio, "transcript": "One and the same.", "labels": {"gender": "male"}}
    return {"id": name, "tasks": ["asr"], "turns": [{"role": "user", "parts": [part]}], **fields}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    factory.save_encoder(folder / "encoder", width=64, window_s=30)
    factory.save_llm(folder / "llm")
    rng = np.random.default_rng(0)
    rows = []
    for number, seconds in enumerate(SECONDS):
        samples = rng.normal(size=round(seconds * 16_000)).astype(np.float32) / 10
        wav(folder / f"{number}.wav", samples, subtype="PCM_16")
        # Some lines state the length, and one is twice as often as the others.
        rows.append(line(str(number), f"{number}.wav", **({"seconds": seconds} if number % 3 else {})))
    write(folder / "train.jsonl", [*rows[:10], {**rows[0], "id": "again"}])
    write(folder / "validation.jsonl", rows[10:])
    return folder


@pytest.mark.parametrize("window", ["full", "clip"])
@pytest.mark.parametrize("layers", ["", "layer = 1", "mix = true"])
def test_a_plan_is_what_features_writes_and_pytorch_counts(
    folder: Path, tmp_path: Path, window: Any, layers: str
) -> None:
    recipe = recipes.parse(RECIPE.format(folder=folder, window=window, layers=layers))
    found = estimate.estimate(recipe)
    encoder = SpeechEncoder.from_pretrained(str(folder / "encoder"), window=window)
    paths = [str(folder / f"{number}.wav") for number in range(len(SECONDS))]
    para = recipe.model.paralinguistic
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        feature_cache.build(
            encoder, paths, tmp_path / "f", every_layer=para.mix, layer=para.layer, say=lambda line: None
        )
    written = sum(path.stat().st_size for path in (tmp_path / "f").iterdir())
    assert found.cache_bytes == pytest.approx(written, rel=0.1)
    assert found.encoder_flops == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_short_clip_costs_a_whole_window(folder: Path) -> None:
    recipe = recipes.parse(RECIPE.format(folder=folder, window="full", layers=""))
    encoder = shapes.encoder_shape(recipe.model.encoder)
    whole = encoder.flops() + encoder.mel_flops(1500)
    assert estimate.encoding_flops(encoder, 4.0, recipe.model) == whole
    assert estimate.encoding_flops(encoder, 31.0, recipe.model) == 2 * whole
    clip = recipes.parse(RECIPE.format(folder=folder, window="clip", layers="")).model
    assert estimate.encoding_flops(encoder, 4.0, clip) == encoder.flops(250) + encoder.mel_flops(250)
    assert estimate.encoding_flops(encoder, 31.0, clip) == whole + encoder.flops(100) + encoder.mel_flops(100)


def test_counts_are_those_of_training_by_kind_weight_and_stage(tmp_path: Path) -> None:
    both = [line(str(number), f"{number}.wav", tasks=["asr", "gender"]) for number in range(7)]
    write(tmp_path / "a.jsonl", both)
    write(tmp_path / "b.jsonl", [line(f"b{number}", f"b{number}.wav") for number in range(5)])
    write(tmp_path / "also.jsonl", [line(f"c{number}", f"c{number}.wav") for number in range(4)])
    manifests = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "also.jsonl"]
    read = [expected.manifest(path) for path in manifests]
    weights = (0.2, 2.5, 1.0)
    sums = expected.counted([(one, weight) for one, weight in zip(read, weights, strict=True) if one is not None])
    examples = Examples(manifests, weights=weights)
    assert sums["linguistic"].examples == examples.count("linguistic")
    assert sums["paralinguistic"].examples == examples.count("paralinguistic")
    text = RECIPE.format(folder=tmp_path, window="full", layers="").replace("train.jsonl", "a.jsonl")
    text = text.replace(f'"{tmp_path}/llm"', '"Qwen/Qwen2.5-0.5B-Instruct"')
    text = text.replace(f'"{tmp_path}/encoder"', '"openai/whisper-tiny"')
    second = text[text.index("[[stage]]") :].replace('"one"', f'"two"\nalso = ["{tmp_path}/also.jsonl"]')
    found = estimate.estimate(recipes.parse(text + second))
    assert found.steps == {"one": 4, "two": 6}, "7 of 2 a step, and 11"


def test_replies_that_are_not_written_yet_are_expected_once(tmp_path: Path) -> None:
    rows = [line(str(number), f"{number}.wav", tasks=["respond"]) for number in range(6)]
    write(tmp_path / "a.jsonl", rows)
    answer = {"role": "assistant", "parts": ["Yes."]}
    done = [
        {key: value for key, value in row.items() if key != "tasks"}
        | {"kind": "dual", "turns": [*row["turns"], answer], "provenance": {"llm": "x"}}
        for row in rows[:4]
    ]
    write(tmp_path / "a.targets.jsonl", done)
    waiting, answered = (expected.manifest(tmp_path / name) for name in ("a.jsonl", "a.targets.jsonl"))
    assert waiting is not None
    assert answered is not None
    assert expected.counted([(waiting, 1.0)])["dual"].examples == 6
    assert expected.counted([(waiting, 1.0), (answered, 1.0)])["dual"].examples == 6


def test_a_history_costs_its_words_where_it_is_read_and_its_seconds_where_it_is_heard(tmp_path: Path) -> None:
    words = "One and the same."
    speech = {"audio": "0.wav", "transcript": words, "labels": {}}
    turns = [
        {"role": "user", "parts": [speech]},
        {"role": "assistant", "parts": ["Yes."]},
        {"role": "user", "parts": [{**speech, "audio": "1.wav"}]},
        {"role": "assistant", "parts": ["No."]},
    ]
    write(tmp_path / "a.jsonl", [{"id": "0", "kind": "dual", "turns": turns}])
    text = RECIPE.format(folder=tmp_path, window="full", layers="").replace("train.jsonl", "a.jsonl")
    text = text.replace("[stage.linguistic]", "[stage.dual]").replace('["ling"]', '["para", "ling"]')
    text = text.replace(f'"{tmp_path}/llm"', '"Qwen/Qwen2.5-0.5B-Instruct"')
    text = text.replace(f'"{tmp_path}/encoder"', '"openai/whisper-tiny"')
    read, both, heard = (
        estimate.estimate(recipes.parse(text.replace("epochs = 1", f"epochs = 1\nhistory = {history}")))
        for history in ('["text"]', '["text", "speech"]', '["speech"]')
    )
    assert read.stage_flops["one"] < both.stage_flops["one"] < heard.stage_flops["one"]
    found = expected.manifest(tmp_path / "a.jsonl")
    assert found is not None
    lengths = expected.counted([(found, 1.0)])["dual"].lengths
    groups = len(words) * expected.SECONDS_PER_CHARACTER * 10  # ten embeddings a second
    assert lengths.heard == pytest.approx(groups - len(words) / expected.CHARACTERS_PER_TOKEN)


def test_what_prepare_makes_is_assumed_of_each_corpus(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dualslm").symlink_to(root / "dualslm")
    tiny = estimate.estimate(recipes.load(root / "recipes/tiny.toml"))
    assert tiny.examples["paralinguistic"] == 16_000, "the made world's, and not LibriSpeech"
    assert max(tiny.examples.values()) < 20_000
    small = estimate.estimate(recipes.load(root / "recipes/small.toml"))
    assert small.examples["paralinguistic"] == 5 * 212_598, "five questions for each recording"
    paper = estimate.estimate(recipes.load(root / "recipes/paper-qwen.toml"))
    assert paper.examples["paralinguistic"] == 212_598 + 9_988, "a fifth of them, and MELD's emotions"
    slam = estimate.estimate(recipes.load(root / "recipes/slam-asr.toml"))
    assert set(slam.examples) == {"linguistic"}


def test_a_stage_without_examples_is_one_line(folder: Path) -> None:
    text = RECIPE.format(folder=folder, window="full", layers="").replace("[stage.linguistic]", "[stage.dual]")
    with pytest.raises(DualSLMError, match="stage one has no dual examples"):
        estimate.estimate(recipes.parse(text))


# ---------------------------------------------------------------------- sizes

CONFIGS: dict[str, tuple[dict[str, Any], shapes.LLMShape]] = {
    "nested, with defaults left out": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
            },
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1},
        },
        shapes.LLMShape(32, 2, 8, 4, 256, 64, 262_208, tied=True),
    ),
    "spelled as GPT-2's": (
        {"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 99},
        shapes.LLMShape(48, 3, 4, 4, 12, 192, 99, tied=True, gated=False),
    ),
    "a default of its family": (
        {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 32, "vocab_size": 9},
        shapes.LLMShape(64, 2, 32, 32, 2, 22016, 9),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_any_configuration_that_transformers_reads_is_planned(tmp_path: Path, name: str) -> None:
    raw, shape = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert shapes.llm_shape(str(tmp_path)) == shape


@pytest.mark.parametrize("raw", [{"model_type": "mamba2"}, {"model_type": "nonsense"}, {}])
def test_a_configuration_of_another_kind_is_one_line(tmp_path: Path, raw: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(DualSLMError, match="cannot be told") as caught:
        shapes.llm_shape(str(tmp_path))
    assert "\n" not in str(caught.value)


def gguf(path: Path, **extra: int) -> Path:
    """The header of a GGUF file, written by hand."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    sizes = {
        "embedding_length": 64,
        "block_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": 160,
    } | extra
    keys = text("general.architecture") + struct.pack("<I", 8) + text("qwen2")
    for name, value in sizes.items():
        keys += text(f"qwen2.{name}") + struct.pack("<II", 4, value)
    words = [f"word{number}" for number in range(5000)]
    keys += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words))
    keys += text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, len(words)) + bytes(4 * len(words))
    tensors = b"".join(
        text(name) + struct.pack("<IQQIQ", 2, 8, 8, 0, 0) for name in ("token_embd.weight", "blk.0.ffn_gate.weight")
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, len(sizes) + 3) + keys + tensors)
    return path


def test_a_gguf_file_is_planned(tmp_path: Path) -> None:
    path = gguf(tmp_path / "a.gguf")
    assert shapes.llm_shape(str(path)) == shapes.LLMShape(64, 2, 4, 2, 16, 160, 5000, tied=True)
    assert shapes.llm_shape(str(gguf(path, **{"attention.key_length": 32}))).head_width == 32
    known = shapes.KNOWN_LLMS["Qwen/Qwen2.5-0.5B-Instruct"]
    assert shapes.llm_shape("Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf") == known


@pytest.mark.parametrize("damage", ["missing", "text", "cut"])
def test_a_gguf_file_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    path = gguf(tmp_path / "a.gguf")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"no such thing" if damage == "text" else path.read_bytes()[:90])
    with pytest.raises(DualSLMError) as caught:
        shapes.llm_shape(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DualSLMError, match="hf download"):
        shapes.llm_shape("somebody/unknown-GGUF:unknown.gguf")


def test_a_gguf_file_of_a_mixture_of_experts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf(path, expert_count=8)
    with pytest.raises(DualSLMError, match="a mixture of experts; plan the folder"):
        shapes.llm_shape(str(path))
