"""Nothing in a model's folder is executed, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.factory import save_encoder, save_llm

from dualslm.errors import DualSLMError
from dualslm.model.configuration import read_config
from dualslm.model.embedding_only import embedding_only
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.llm import FrozenLM

PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
OURS = {"DualSLM", "FrozenLM", "SpeechEncoder", "cls"}  # whose own calls of transformers are looked at
NAMES_MODELS = {"from_pretrained", "from_config", "pipeline"}
HOSTILE = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\npathlib.Path('executed').touch()\n"
AUTO_MAP = {
    "AutoConfig": "hostile.Configuration",
    "AutoModel": "hostile.Model",
    "AutoModelForCausalLM": "hostile.Model",
    "AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"],
    "AutoFeatureExtractor": "hostile.Extractor",
}


def test_every_call_says_that_no_code_is_trusted(root: Path) -> None:
    calls = 0
    for path in sorted((root / "dualslm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            attribute = isinstance(node.func, ast.Attribute)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name not in NAMES_MODELS or (owner in OURS and attribute) or owner.endswith("Embedding"):
                continue
            said = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
            assert isinstance(said, ast.Constant), f"{path}:{node.lineno}"
            assert said.value is False, f"{path}:{node.lineno}"
            calls += 1
    assert calls >= 8


def hostile(folder: Path, *, known: bool) -> Path:
    """Adds code to a model's folder, which its files ask for; `known`: transformers has a class of its own too."""
    (folder / "hostile.py").write_text(HOSTILE)
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / name).exists():
            settings = json.loads((folder / name).read_text()) | {"auto_map": AUTO_MAP}
            if not known:
                settings |= {"model_type": "hostile", "tokenizer_class": "Hostile"}
            (folder / name).write_text(json.dumps(settings))
    return folder


LOAD_ALL = """
import sys, torch
from dualslm.errors import DualSLMError
from dualslm.model.embedding_only import embedding_only
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.llm import FrozenLM
for load in (
    lambda: FrozenLM.from_pretrained(sys.argv[1]),
    lambda: embedding_only(sys.argv[1], revision=None, dtype=torch.float32, device="cpu"),
    lambda: SpeechEncoder.from_pretrained(sys.argv[2]),
):
    try:
        load()
        print("loaded")
    except DualSLMError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_folder_is_not_executed_whatever_is_answered(tmp_path: Path, known: bool) -> None:
    folders = [hostile(save(tmp_path / save.__name__), known=known) for save in (save_llm, save_encoder)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, *map(str, folders)],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert not list(tmp_path.rglob("executed"))
    assert "[y/N]" not in done.stdout + done.stderr
    if known:
        assert done.stdout.split() == ["loaded"] * 3
    else:
        assert [line[:9] for line in done.stdout.splitlines()] == ["refused: "] * 3


def test_a_kernel_that_a_configuration_names_is_not_fetched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_llm(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    named = {"attn_implementation": "somebody/kernel", "_experts_implementation": "somebody/experts"}
    for key in ("attn_implementation", "_attn_implementation"):
        (folder / "config.json").write_text(json.dumps(settings | named | {key: "somebody/kernel"}))
        llm = FrozenLM.from_pretrained(str(folder))
        assert llm.model.config._attn_implementation == "sdpa"
        embedding_only(str(folder), revision=None, dtype=torch.float32, device="cpu")
    assert "somebody/kernel, which is no part of transformers" in caplog.text
    (folder / "config.json").write_text(json.dumps(settings | {"attn_implementation": "eager"}))
    assert read_config(str(folder), None)._attn_implementation == "eager"
    assert FrozenLM.from_pretrained(str(folder)).model.config._attn_implementation == "eager"


def test_an_error_about_code_is_one_line_without_advice_to_trust_it(tmp_path: Path) -> None:
    folder = hostile(save_encoder(tmp_path), known=False)
    with pytest.raises(DualSLMError, match="got code of its own in the model's folder, which is never run; "):
        SpeechEncoder.from_pretrained(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Transformers makes an empty one, with which every prompt is silence."""
    save_llm(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for load in (FrozenLM.from_pretrained, lambda name: embedding_only(name, revision=None, **PLAIN)):
        with pytest.raises(DualSLMError, match="cannot load the LLM"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "encoder_layers", 10**9),
        ("config.json", "encoder_attention_heads", 0),
        ("config.json", "encoder_attention_heads", -1),
        ("config.json", "d_model", 10**9),
        ("config.json", "activation_function", "none"),
        ("preprocessor_config.json", "hop_length", -1),
        ("preprocessor_config.json", "hop_length", 10**9),
        ("preprocessor_config.json", "n_fft", "x"),
    ],
)
def test_settings_that_no_encoder_has_are_one_line(tmp_path: Path, file: str, field: str, value: object) -> None:
    save_encoder(tmp_path)
    settings = json.loads((tmp_path / file).read_text()) | {field: value}
    (tmp_path / file).write_text(json.dumps(settings))
    with pytest.raises(DualSLMError, match=r"encoder|extractor"):
        SpeechEncoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 10**9), ("hidden_act", "none"), ("rope", [])])
def test_settings_that_no_llm_has_are_one_line(tmp_path: Path, field: str, value: object) -> None:
    save_llm(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    changed = {"rope_parameters": value} if field == "rope" else {field: value}
    (tmp_path / "config.json").write_text(json.dumps(settings | changed))
    with pytest.raises(DualSLMError, match="cannot load the LLM"):
        FrozenLM.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("generation_config.json", '{"eos_token_id": [1'),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "</s>"}'),
        ("generation_config.json", None),
        ("chat_template.jinja", " \n"),
        ("chat_template.jinja", None),
        ("chat_template.jinja", "a pipe"),
    ],
)
def test_damaged_files_that_transformers_passes_over_are_one_line(
    tmp_path: Path, name: str, damage: str | None
) -> None:
    """None stands for a folder of that name."""
    folder = save_llm(tmp_path / "llm", "qwen2")
    file = folder / name
    file.unlink(missing_ok=True)
    if damage is None:
        file.mkdir()
    elif damage == "a pipe":
        os.mkfifo(file)
    else:
        file.write_text(damage)
    with pytest.raises(DualSLMError, match=re.escape(name)) as refused:
        FrozenLM.from_pretrained(str(folder))
    assert "cannot load the LLM" in str(refused.value)
