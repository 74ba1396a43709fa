"""Alignment: CTC against the LLM's own token embeddings, the same in any batch, teaching L alone."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trainkit import make

from dualslm.errors import DualSLMError
from dualslm.model.dualslm import DualSLM
from dualslm.model.nearest import BLANK_COSINE, LENGTH_FLOOR, Aligned
from dualslm.recipe import Kind, Recipe, ViewDraw, parse, to_toml
from dualslm.training.align import LOGIT_SCALE, PULL_WEIGHT, alignment_loss, tone_loss
from dualslm.training.dataset import StageDataset
from dualslm.training.spelling import Spelling
from dualslm.training.train import prepare, train


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The miniature's recipe with an aligning stage before the others."""
    made = make(tmp_path_factory.mktemp("kit"))
    words = Kind(learns=("ling",), view=ViewDraw(para=("none",)))
    first = replace(
        made.stages[0], name="align", objective="align", linguistic=words, paralinguistic=None, steps=30, lr=1e-2
    )
    return replace(made, stages=(first, made.stages[0]))


@pytest.fixture(scope="module")
def parts(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[DualSLM, StageDataset, Spelling]:
    from accelerate import Accelerator

    trainer = prepare(recipe, tmp_path_factory.mktemp("run"), Accelerator(cpu=True))
    return trainer.model, trainer.samples(recipe.stages[0], trainer.examples["align"], 0), trainer.spellings[0]


def test_punctuation_is_no_class(parts: tuple[DualSLM, StageDataset, Spelling]) -> None:
    tokenizer = parts[0].llm.tokenizer
    found = Spelling(tokenizer, ["Well, well.", "Hello ..."]).tokens_V
    assert found.tolist() == sorted(set(found.tolist()))
    assert all(any(map(str.isalnum, tokenizer.decode([token]))) for token in found.tolist())


def test_other_prompts_in_a_batch_change_nothing(parts: tuple[DualSLM, StageDataset, Spelling]) -> None:
    model, dataset, spoken = parts
    batch = dataset[0]
    prompts = [sample.prompt for sample in batch.samples]
    together = alignment_loss(model, prompts, spoken, batch.hear)
    for index, prompt in enumerate(prompts):
        alone = alignment_loss(model, [prompt], spoken, batch.hear)
        torch.testing.assert_close(alone.nll_B[0], together.nll_B[index], atol=1e-4, rtol=1e-5)
        assert alone.tokens_B[0] == together.tokens_B[index]


def test_the_loss_is_that_of_all_paths(parts: tuple[DualSLM, StageDataset, Spelling]) -> None:
    """Against a sum over every path, written out."""
    model, dataset, _ = parts
    batch = dataset[0]
    prompt = batch.samples[0].prompt
    clip = prompt.clips[0]
    ids = model.llm.tokenizer.encode(clip.transcript or "", add_special_tokens=False)[:2]
    classes = torch.tensor(sorted(set(ids)))
    short = replace(clip, transcript=model.llm.tokenizer.decode(ids))
    if model.llm.tokenizer.encode(short.transcript or "", add_special_tokens=False) != ids:
        pytest.skip("this tokenizer does not read back its own first two tokens")
    wanted = [1 + classes.tolist().index(token) for token in ids]
    frames = batch.hear([clip])
    frames = replace(frames, layers_NBTD=frames.layers_NBTD[:, :, :20], lengths_B=frames.lengths_B.clamp(max=20))
    spelling = Spelling(model.llm.tokenizer, [short.transcript or ""])
    assert spelling.ids(short.transcript or "") == ids
    found = alignment_loss(model, [replace(prompt, clips=(short,))], spelling, lambda _: frames)
    tokens = model.llm.embed(classes).float() / model.ling.project.scale
    embeds = model.ling(frames.last_BTD, frames.lengths_B)[0].detach() / model.ling.project.scale
    directions = embeds / (embeds.square().sum(-1, keepdim=True) + LENGTH_FLOOR * embeds.shape[1]).sqrt()
    cosine = directions @ torch.nn.functional.normalize(tokens, dim=-1).T
    probs = (LOGIT_SCALE * torch.cat([torch.full((len(embeds), 1), BLANK_COSINE), cosine], 1)).softmax(-1)
    classes_embeds = torch.cat([torch.zeros(1, tokens.shape[1]), tokens])
    total = 0.0
    for path in product(range(len(classes_embeds)), repeat=len(embeds)):
        collapsed = [one for one, before in zip(path, (None, *path[:-1]), strict=True) if one and one != before]
        if collapsed == wanted:
            total += math.prod(float(probs[position, one]) for position, one in enumerate(path))
    best = probs.max(-1)
    pull = ((embeds - classes_embeds[best.indices]).square().mean(-1) * best.values).sum()
    assert float(found.nll_B.detach()) == pytest.approx(-math.log(total) + PULL_WEIGHT * float(pull), rel=1e-4)


def test_it_teaches_words_to_l_alone(recipe: Recipe, tmp_path: Path) -> None:
    import json

    from dualslm.model.checkpoint import read_card, read_weights

    train(recipe, tmp_path / "run", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [row["loss"]["linguistic"] for row in rows if row["stage"] == "align" and "loss" in row]
    assert found[-1] < 0.6 * found[0]
    torch.manual_seed(recipe.seed)
    fresh = DualSLM.from_parts(
        recipe.model.encoder, recipe.model.llm, paralinguistic={"heads": 4, "tokens": 4}, linguistic={"hidden": 32}
    )
    after = read_weights(tmp_path / "run" / "align")
    for key, value in fresh.adapters.state_dict().items():
        same = torch.equal(value, after[key])
        assert same == (key.startswith("para") or key.endswith("scale")), key
    # The next stage runs the LLM, which the adapters follow: then it is asked, and they are no longer read.
    assert read_card(tmp_path / "run" / "align").aligned == {"words": True, "attributes": {}}
    assert not read_card(tmp_path / "run" / recipe.stages[1].name).aligned


def test_only_words_can_be_aligned(recipe: Recipe) -> None:
    text = to_toml(recipe).replace('objective = "reply"', 'objective = "align"')
    with pytest.raises(DualSLMError, match=r"stage\.2\.objective makes no sense"):
        parse(text)


def test_p_moves_to_the_embeddings_of_its_labels_words(recipe: Recipe, tmp_path: Path) -> None:
    from accelerate import Accelerator

    tone = Kind(learns=("para",), view=ViewDraw(ling=("none",)))
    (tmp_path / "run").mkdir()
    stage = replace(recipe.stages[0], name="tone", linguistic=None, paralinguistic=tone, steps=40, lr=1e-2)
    trainer = prepare(replace(recipe, stages=(stage,)), tmp_path / "run", Accelerator(cpu=True))
    trainer.model.eval()  # without dropout
    batch = trainer.samples(stage, trainer.examples["tone"], 0)[0]
    prompts = [sample.prompt for sample in batch.samples]
    # No LLM reads a prompt here, so a micro-batch is filled by the lengths of its recordings.
    groups = [-(-trainer.cache.frames(str(sample.prompt.clips[0].audio)) // 5) for sample in batch.samples]
    assert batch.lengths == groups == sorted(groups)
    before = tone_loss(trainer.model, prompts, trainer.attribute_values, batch.hear)
    alone = tone_loss(trainer.model, prompts[:1], trainer.attribute_values, batch.hear)
    torch.testing.assert_close(alone.nll_B[0], before.nll_B[0], atol=1e-4, rtol=1e-5)
    words = {name: weight.clone() for name, weight in trainer.model.ling.state_dict().items()}
    trainer.run()
    after = tone_loss(trainer.model.eval(), prompts, trainer.attribute_values, batch.hear)
    assert after.nll_B.mean() < 0.8 * before.nll_B.mean()
    assert trainer.model.aligned == Aligned(False, trainer.attribute_values)
    assert all(torch.equal(weight, words[name]) for name, weight in trainer.model.ling.state_dict().items())


def test_a_recording_without_labels_cannot_be_aligned(parts: tuple[DualSLM, StageDataset, Spelling]) -> None:
    model, dataset, _ = parts
    batch = dataset[0]
    with pytest.raises(DualSLMError, match="has no label to be aligned with"):
        tone_loss(model, [batch.samples[0].prompt], {"colour": ["red", "blue"]}, batch.hear)


def test_a_label_that_training_never_had_counts_for_nothing(
    recipe: Recipe, parts: tuple[DualSLM, StageDataset, Spelling]
) -> None:
    model, dataset, _ = parts
    batch = dataset[0]
    prompts = [sample.prompt for sample in batch.samples]
    values = {"emotion": ["happy", "sad"]}
    named = tone_loss(model.eval(), prompts, values, batch.hear)
    clip = replace(prompts[0].clips[0], labels={"emotion": "disgusted"})
    found = tone_loss(model, [replace(prompts[0], clips=(clip,)), *prompts[1:]], values, batch.hear)
    assert (float(found.nll_B[0].detach()), int(found.tokens_B[0])) == (0, 0)
    torch.testing.assert_close(found.nll_B[1:], named.nll_B[1:])
    assert (found.tokens_B[1:] == named.tokens_B[1:]).all()


def test_recordings_of_one_prompt_count_together(parts: tuple[DualSLM, StageDataset, Spelling]) -> None:
    model, dataset, spoken = parts
    batch = dataset[0]
    values = {"emotion": ["happy", "sad"]}
    one, two, three = (sample.prompt for sample in batch.samples[:3])
    both = replace(one, clips=(*one.clips, *two.clips))
    losses: list[tuple[Any, Any]] = [(alignment_loss, spoken), (tone_loss, values)]
    for loss, known in losses:
        apart = loss(model.eval(), [one, two, three], known, batch.hear)
        found = loss(model, [both, three], known, batch.hear)
        torch.testing.assert_close(found.nll_B, torch.stack([apart.nll_B[:2].sum(), apart.nll_B[2]]))
        assert found.tokens_B.tolist() == [int(apart.tokens_B[:2].sum()), int(apart.tokens_B[2])]


def test_what_aligns_is_speech_alone(recipe: Recipe) -> None:
    with pytest.raises(DualSLMError, match=r"view makes no sense: got \[\['speech', 'text'\]\]; align from"):
        replace(recipe.stages[0], linguistic=Kind(learns=("ling",), view=ViewDraw(ling=("speech", "text"))))
