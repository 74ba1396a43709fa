"""Systems behind one protocol: ours, text alone, cascades, servers, Qwen2-Audio, a classifier, the majority."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import soundfile
import torch
from support.evalkit import exam, small_model
from support.factory import CHATML, tokenizer
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from dualslm import openai_client
from dualslm.conversation import ORACLE, TRANSCRIPT, Conversation, Reply, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation import items
from dualslm.evaluation.systems import emotion_features
from dualslm.evaluation.systems.item import Item, card
from dualslm.evaluation.systems.named import Means, checkpoint_of, opened
from dualslm.evaluation.systems.ours import Cascade, Ours, TextLM
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.generation import GenerationSettings
from dualslm.model.llm import FrozenLM
from dualslm.prompt import render

GENERATION = GenerationSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return items.read(exam(tmp_path_factory.mktemp("exam"), 4)).items


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    return small_model(tmp_path_factory.mktemp("parts")).eval()


@pytest.fixture(scope="module")
def llm(model: DualSLM) -> FrozenLM:
    """The LLM of `model`, loaded by itself."""
    return FrozenLM.from_pretrained(model.llm.name)


def of(asked: list[Item], *tasks: str) -> list[Item]:
    return [item for item in asked if item.task in tasks]


def test_ours_answers_as_the_model_does(model: DualSLM, asked: list[Item]) -> None:
    system = Ours(model, GENERATION, "ours")
    for view in (View(), View("speech", "none"), View("none", "speech"), ORACLE, TRANSCRIPT, View("none", "none")):
        found = system.answer(asked[:6], view)
        alone = [model.reply(item.conversation, view=view, generation=GENERATION).strip() for item in asked[:6]]
        assert [answer.text for answer in found] == alone


def test_ours_says_which_answers_were_cut_off(
    model: DualSLM, asked: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Reply(" Yes. ", finished=True), Reply("And then", finished=False)]
    monkeypatch.setattr(model.llm, "generate", lambda prompts, generation: said[: len(prompts)])
    found = Ours(model, GENERATION, "ours").answer(asked[:2], View())
    assert [(answer.text, answer.finished) for answer in found] == [("Yes.", True), ("And then", False)]


def test_likelihoods_are_those_of_the_answers(model: DualSLM, asked: list[Item]) -> None:
    (item, *_) = of(asked, "emotion")
    (answer,) = Ours(model, GENERATION, "ours", with_likelihoods=True).answer([item], View())
    assert list(answer.likelihoods) == list(item.choices or ())
    for choice, value in answer.likelihoods.items():
        said = item.conversation.copy().assistant(item.options()[choice])
        loss = model([render(said, model.llm.tokenizer, View(), supervise="last")])
        assert value == pytest.approx(-float(loss.mean.detach()), abs=1e-5)
    assert (
        not Ours(model, GENERATION, "ours", with_likelihoods=True).answer(of(asked, "asr")[:1], View())[0].likelihoods
    )


def test_text_alone_is_our_own_oracle(model: DualSLM, llm: FrozenLM, asked: list[Item]) -> None:
    text = TextLM(llm, GENERATION, "llm")
    replies = of(asked, "respond", "emotion")
    for view in text.views(replies[0]):
        assert text.answer(replies, view) == Ours(model, GENERATION, "ours").answer(replies, view)
    assert text.unfit(of(asked, "asr")[0]) == "it hears nothing"


def test_a_cascade_reads_what_was_recognised(llm: FrozenLM, asked: list[Item]) -> None:
    recognised: list[str] = []

    def asr(clips: Any) -> list[str]:
        recognised.extend(map(str, clips))
        return [f"i lost my umbrella {Path(str(clip)).stem}" for clip in clips]

    system = Cascade(asr, "perfect", llm, GENERATION, "cascade")
    found = system.answer(asked, None)
    words = {item.id: answer.text for item, answer in zip(asked, found, strict=True) if item.task == "asr"}
    assert words == {item.id: item.truth for item in of(asked, "asr")}
    replies = of(asked, "respond")
    as_text = TextLM(llm, GENERATION, "llm").answer(replies, TRANSCRIPT)
    assert [a for item, a in zip(asked, found, strict=True) if item.task == "respond"] == as_text
    assert len(recognised) == len(set(recognised)) == 4  # each recording once


class _Server(BaseHTTPRequestHandler):
    bodies: ClassVar[list[dict[str, Any]]] = []
    trouble: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.trouble.pop() if self.trouble else 200
        self.bodies.append(body)
        answer = {
            "model": "m",
            "choices": [{"message": {"content": " The speaker sounds sad. "}, "finish_reason": "stop"}],
        }
        data = json.dumps(answer if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(openai_client, "WAIT", 0.01)
    _Server.bodies.clear()
    _Server.trouble[:] = [500, 429]
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    httpd.server_close()


def test_a_server_hears_the_recording(server: str, asked: list[Item]) -> None:
    system = opened(f"server,url={server},model=m,name=rival", Means(asked))
    emotion = of(asked, "emotion")[:3]
    found = system.answer(emotion, None)
    assert [answer.text for answer in found] == ["The speaker sounds sad."] * 3
    assert len(_Server.bodies) == 5  # two were busy, and asked again
    body = next(body for body in _Server.bodies if len(body["messages"]) == 2)
    assert (body["model"], body["temperature"]) == ("m", 0)
    (sound,) = [
        part
        for message in body["messages"]
        for part in (message["content"] if isinstance(message["content"], list) else [])
        if part["type"] == "input_audio"
    ]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])))
    assert rate == 16_000
    assert len(samples) in (4000, 4800, 5600)


def qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio with random weights, saved as its users have it."""
    words = tokenizer(CHATML)
    words.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    text = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(words),
        "max_position_embeddings": 2048,
    }
    audio = {"model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4}
    audio |= {"encoder_ffn_dim": 64, "num_mel_bins": 80, "max_source_positions": 1500}
    config = Qwen2AudioConfig(
        audio_config=audio, text_config=text, audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>")
    )
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # replies that vary
    model.save_pretrained(folder)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
        "{% else %}{% for p in m['content'] %}{% if 'audio_url' in p %}<|audio_bos|><|AUDIO|><|audio_eos|>\n"
        "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80), words, chat_template=template).save_pretrained(folder)
    return folder


def test_qwen2_audio_in_process(tmp_path: Path, asked: list[Item]) -> None:
    folder = qwen2_audio(tmp_path / "qwen2-audio")
    system = opened(f"qwen2-audio,model={folder}", Means(asked, device="cpu", max_new_tokens=5))
    some = [*of(asked, "respond")[:2], *of(asked, "emotion")[:2]]
    together = system.answer(some, None)
    assert together == [system.answer([item], None)[0] for item in some]
    assert len({answer.text for answer in together}) > 1  # the recording and the question both matter
    assert card(system)["model"].endswith("qwen2-audio")
    sly = replace(some[0], conversation=Conversation("<|AUDIO|>", some[0].conversation.turns))
    assert [system.unfit(item) for item in (some[0], sly)] == [None, "spells out a control token"]
    with pytest.raises(DualSLMError, match="cannot load Qwen2-Audio"):
        opened(f"qwen2-audio,model={tmp_path}", Means(asked, device="cpu"))


def test_a_classifier_of_emotions(asked: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "funasr", None)
    with pytest.raises(DualSLMError, match="pip install funasr"):
        opened("emotion2vec", Means(asked))

    class AutoModel:
        def __init__(self, model: str, disable_update: bool) -> None:
            assert model == "iic/emotion2vec_plus_large"

        def generate(self, samples: Any, granularity: str, extract_embedding: bool) -> list[dict[str, Any]]:
            assert len(samples) >= 4000
            return [{"labels": ["生气/angry", "难过/sad", "<unk>"], "scores": [0.2, 0.7, 0.1]}]

    funasr = ModuleType("funasr")
    funasr.AutoModel = AutoModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "funasr", funasr)
    system = opened("emotion2vec", Means(asked))
    assert [answer.text for answer in system.answer(of(asked, "emotion")[:2], None)] == ["sad", "sad"]
    assert system.unfit(of(asked, "asr")[0]) == "no emotion asked"


def test_features_of_emotion2vec_with_a_layer_trained_on_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, tested = (exam(tmp_path / name, 12)[0] for name in ("train", "test"))
    moods = {str(item.speech.audio): item.truth for path in (trained, tested) for item in emotions(path)}
    assert set(moods.values()) > {"sad"}
    monkeypatch.setattr(emotion_features, "load", lambda path: path)

    class AutoModel:
        def __init__(self, model: str, disable_update: bool) -> None:
            assert model == "iic/emotion2vec_base"

        def generate(self, samples: str, granularity: str, extract_embedding: bool) -> list[dict[str, Any]]:
            assert extract_embedding
            features = torch.full((1, 5), 100.0)  # a constant channel teaches nothing and divides by nothing
            features[0, 1:4] = torch.tensor(
                [float(moods[samples] == mood) for mood in sorted({*map(str, moods.values())})]
            )
            return [{"feats": features.numpy()}]

    funasr = ModuleType("funasr")
    funasr.AutoModel = AutoModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "funasr", funasr)
    system = opened(f"emotion2vec-features,train={trained}", Means([]))
    wanted = emotions(tested)
    assert [answer.text for answer in system.answer(wanted, None)] == [item.truth for item in wanted]
    assert card(system)["trained_on"]["recordings"] == 12
    assert system.unfit(items.read([tested], tasks=["asr"]).items[0]) == "no emotion asked"
    with pytest.raises(DualSLMError, match="write emotion2vec-features,train="):
        opened("emotion2vec-features", Means([]))


def emotions(path: Path) -> list[Item]:
    return items.read([path], tasks=["emotion"]).items


def test_llama_omni_says_why_it_cannot_be_run() -> None:
    with pytest.raises(DualSLMError, match=r"LLaMA-Omni cannot be run here: got no model code.*server,url="):
        opened("llama-omni", Means([]))


def test_the_majority(asked: list[Item]) -> None:
    system = opened("majority", Means(asked))
    assert {answer.text for answer in system.answer(of(asked, "emotion"), None)} == {"sad"}  # 2 of 4
    assert system.unfit(of(asked, "respond")[0]) == "no choices"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("server,url=http://x/v1", "write server,url=..,model=.."),
        ("majority,model=x", "does not say what majority is"),
        ("oracle,model=x", "unknown kind of system: got 'oracle'"),
        ("oracle", "unknown kind of system: got 'oracle'"),
        ("server,url=nowhere,model=m", "not a server"),
        ("no/such/run", "no/such/run"),
    ],
)
def test_mistakes_are_explained(spec: str, message: str, asked: list[Item]) -> None:
    with pytest.raises(DualSLMError, match=message.replace("..", r"\.\.\.")):
        opened(spec, Means(asked))


def test_a_run_is_its_last_stage(tmp_path: Path, root: Path) -> None:
    (tmp_path / "recipe.toml").write_text((root / "recipes" / "tiny.toml").read_text())
    with pytest.raises(DualSLMError, match="no checkpoint yet"):
        checkpoint_of(str(tmp_path))
    for name in ("align", "joint"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapters.safetensors").touch()
    assert checkpoint_of(str(tmp_path)) == str(tmp_path / "joint")
    assert checkpoint_of(str(tmp_path / "align")) == str(tmp_path / "align")
    assert checkpoint_of("hub/id") == "hub/id"


def test_likelihoods_encode_a_batch_once_for_all_views(
    model: DualSLM, asked: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = of(asked, "emotion")[:3]
    encoded: list[int] = []
    hear = model.hear

    def counting(clips: Sequence[Speech]) -> Frames:
        encoded.append(len(clips))
        return hear(clips)

    monkeypatch.setattr(model, "hear", counting)
    system = Ours(model, GENERATION, "ours", with_likelihoods=True)
    found = [system.answer(batch, view) for view in (View(), View("speech", "none"), ORACLE, View("none", "speech"))]
    assert encoded == [len(batch)]
    # As each item alone, up to the rounding of another encoder batch.
    (alone,) = Ours(model, GENERATION, "ours", with_likelihoods=True).answer(batch[1:2], View())
    assert found[0][1].likelihoods == pytest.approx(dict(alone.likelihoods), abs=1e-4)
