"""A prompt and its reply stay within the positions that the LLM was made for, whoever asks."""

from __future__ import annotations

import pytest
import torch
from support.factory import save_encoder, save_llm

from dualslm import DualSLM
from dualslm.conversation import Conversation
from dualslm.errors import DualSLMError
from dualslm.model.generation import GenerationSettings

CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    folder = tmp_path_factory.mktemp("parts")
    encoder = save_encoder(folder / "encoder")
    llm = save_llm(folder / "llm", "llama")
    whole = DualSLM.from_parts(str(encoder), str(llm)).eval()
    whole.llm.model.config.max_position_embeddings = CONTEXT
    whole.llm.stops = frozenset()  # replies go on until they are cut
    return whole


def prompts(model: DualSLM, *lengths: int) -> list[torch.Tensor]:
    return [model.llm.embed(torch.arange(length) % 50) for length in lengths]


def test_a_prompt_beyond_the_context_is_one_line(model: DualSLM) -> None:
    said = Conversation("word " * 200).user("hello")
    for function in (model.reply, lambda said: list(model.stream(said))):
        with pytest.raises(DualSLMError, match=r"too long for the LLM's context: got \d+ positions, where 64"):
            function(said)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT])
def test_a_prompt_that_fills_the_context_gets_one_token(model: DualSLM, length: int) -> None:
    (reply,) = model.llm.generate(
        prompts(model, length), GenerationSettings(max_new_tokens=9), text=lambda _, ids: str(len(ids))
    )
    assert reply.text == "1"
    assert not reply.finished


def test_each_reply_ends_where_its_own_context_is_full(model: DualSLM) -> None:
    settings = GenerationSettings(max_new_tokens=30)
    counts = [
        reply.text
        for reply in model.llm.generate(prompts(model, 20, 50, 60), settings, text=lambda _, ids: str(len(ids)))
    ]
    assert counts == ["30", "14", "4"]
    together = model.llm.generate(prompts(model, 20, 50), settings)
    assert [reply.finished for reply in together] == [False, False]
    assert together == [model.llm.generate([prompt], settings)[0] for prompt in prompts(model, 20, 50)]
