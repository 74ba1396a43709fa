"""An LLM is tried at load: what cannot be served rightly is refused by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.factory import FAMILIES, SMALL, UNUSUAL, save_encoder, save_llm
from torch import Tensor

import dualslm.tiny
from dualslm.conversation import Conversation
from dualslm.errors import DualSLMError
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.model.embedding_only import embedding_only
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import splice
from dualslm.model.llm import FrozenLM
from dualslm.model.llm_probe import probe
from dualslm.model.rope import LengthRope
from dualslm.prompt import Prompt, Text, render

REFUSED = {
    "gemma3n": "reads token ids beside its embeddings",
    "gemma4": "cannot be run on embeddings and a cache",
    "falcon_mamba": "goes on from a cache otherwise than without one",
    "mamba2": "goes on from a cache otherwise than without one",
    "rwkv": "goes on from a cache otherwise than without one",
    "minimax": "cannot be run on embeddings and a cache",
}
TALK = ["I lost my umbrella.", "The speaker sounds sad, and talks slowly.", "Write down what is said.", "hello!"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", list(REFUSED))
def test_an_llm_that_cannot_be_served_is_refused_by_name(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = save_llm(tmp_path, family)
    with pytest.raises(DualSLMError) as caught:
        FrozenLM.from_pretrained(str(folder), dtype=dtype)
    message = str(caught.value)
    assert message.startswith(f"an LLM of type '{UNUSUAL[family]['model_type']}' {REFUSED[family]}")
    assert "; choose an LLM that" in message
    assert "\n" not in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *sorted(UNUSUAL.keys() - REFUSED.keys())])
def test_the_others_are_loaded(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    llm = FrozenLM.from_pretrained(str(save_llm(tmp_path, family)), dtype=dtype)
    assert llm.dtype == dtype


def test_the_probe_takes_no_time() -> None:
    llm = FrozenLM.from_pretrained(str(Path(dualslm.tiny.__file__).parent / "weights" / "llm"))
    took = []
    for _ in range(3):
        before = time.process_time()
        probe(llm)
        took.append(time.process_time() - before)
    assert min(took) < 0.3


Broken = Callable[[FrozenLM], None]


def adds_the_mean(llm: FrozenLM) -> None:
    """Looks ahead: every position sees all."""
    llm.model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: (inputs[0] + inputs[0].mean(1, keepdim=True), *inputs[1:])
    )


def hears_tokens_alone(llm: FrozenLM) -> None:
    """Takes the tokens that the probe reads for whatever it is given."""
    table_VD = llm.input_embeddings.weight

    def known(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids_BT = torch.linspace(0.1, 0.9, inputs[0].shape[1]).mul(len(table_VD)).long()[None]
        return (table_VD[ids_BT].expand_as(inputs[0]), *inputs[1:])

    llm.model.model.layers[0].register_forward_pre_hook(known)


def forgets_padding(llm: FrozenLM) -> None:
    read = llm.model.forward
    llm.model.forward = lambda **given: read(**{**given, "attention_mask": None, "position_ids": None})


def overflows(llm: FrozenLM) -> None:
    read = llm.embed
    llm.embed = lambda ids: read(ids) * 1e38 * 1e38  # type: ignore[method-assign]


def steps_alone(llm: FrozenLM) -> None:
    """Goes on from a cache by single tokens, as some recurrent models do, and begins anew with several."""
    read = llm.model.forward

    def forward(**given: Any) -> Any:
        several = "inputs_embeds" in given and given["inputs_embeds"].shape[1] > 1
        cache = given.get("past_key_values")
        begun = cache is not None and cache.get_seq_length() > 0
        return read(**(given | ({"past_key_values": None} if several and begun else {})))

    llm.model.forward = forward


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (adds_the_mean, "looks ahead"),
        (hears_tokens_alone, "does not hear an embedding that is no token's"),
        (forgets_padding, "reads a prompt that is padded otherwise than alone"),
        (steps_alone, "reads several tokens after a cache otherwise than without one"),
        (overflows, "reads token ids beside its embeddings"),
    ],
)
def test_each_part_of_the_probe_can_fail(tmp_path: Path, break_it: Broken, message: str) -> None:
    llm = FrozenLM.from_pretrained(str(save_llm(tmp_path)))
    break_it(llm)
    with pytest.raises(DualSLMError, match=message):
        probe(llm)


def test_an_llm_elsewhere_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(DualSLMError, match="looks token ids up in every layer"):
        embedding_only(str(save_llm(tmp_path, "gemma3n")), revision=None, dtype=torch.float32, device="cpu")


def test_a_token_beyond_the_table_is_refused_by_name(tmp_path: Path) -> None:
    llm = FrozenLM.from_pretrained(str(save_llm(tmp_path)))
    llm.tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    beyond = len(llm.tokenizer) - 1
    typed = render(Conversation().user("a <image_soft_token>"), llm.tokenizer)
    assert llm.embed_text(typed).isfinite().all()  # as text it does no harm
    prompt = Prompt((Text((5, beyond)),), ())
    for read in (llm.embed_text, lambda one: splice([one], llm, lambda *_: torch.empty(0), id)):
        with pytest.raises(DualSLMError, match="no embedding for: got '<image_soft_token>', id"):
            read(prompt)


# ---------------------------------------------------------------------- positions that depend on the length


@pytest.fixture(scope="module", params=["longrope", "dynamic"])
def long(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DualSLM:
    folder = tmp_path_factory.mktemp("parts")
    return DualSLM.from_parts(str(save_encoder(folder / "encoder")), str(save_llm(folder / "llm", request.param)))


def base_reply(llm: FrozenLM, ids: list[int], tokens: int) -> list[int]:
    """What the LLM itself gives when it reads everything from the beginning for each token."""
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids = [*ids, int(llm(llm.embed(torch.tensor([ids])))[0, -1].argmax())]
    return ids[start:]


@pytest.mark.parametrize("length", [20, 60, 64, 65, 90])
def test_a_reply_past_the_original_length_is_the_one_from_scratch(long: DualSLM, length: int) -> None:
    llm = long.llm
    assert llm.length_rope == LengthRope(64, dynamic="dynamic" in str(llm.model.config.rope_parameters))
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(7, 300, (length,), generator=generator).tolist()
    llm(llm.embed(torch.tensor([ids * 3])))  # a longer prompt before it leaves nothing behind
    stops, llm.stops = llm.stops, frozenset()
    steps = llm.decode(llm.prefill([llm.embed(torch.tensor(ids))]), GenerationSettings(10))
    assert [token for (token,) in steps] == base_reply(llm, ids, 10)
    llm.stops = stops


def test_a_long_talk_gets_the_replies_from_scratch(long: DualSLM) -> None:
    session = Session(long, Conversation("Answer."), generation=GenerationSettings(12))
    session.context = int(str(SMALL["max_position_embeddings"]))
    for said in TALK:
        got = session.reply(said)
        earlier = Conversation("Answer.", session.conversation.turns[:-1])
        assert got == long.reply(earlier, max_new_tokens=12)
    assert session.times is not None
    assert session.times.positions > 64


def test_a_long_prompt_does_not_move_a_short_one(long: DualSLM) -> None:
    talks = [Conversation().user("hi"), Conversation().user("x y z " * 30)]
    alone = [long.reply(talk, max_new_tokens=8) for talk in talks]
    assert long.reply(talks, max_new_tokens=8) == alone
    embeds = [long.llm.embed_text(render(talk, long.llm.tokenizer)) for talk in talks]
    with pytest.raises(DualSLMError, match="would move each other's positions: got 2 of up to"):
        long.llm.prefill(embeds)
