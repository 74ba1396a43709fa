"""A model whose aligned adapters say the same word in the same voice of every recording."""

from __future__ import annotations

from pathlib import Path

import torch

from dualslm.model.dualslm import DualSLM
from dualslm.model.nearest import Aligned, tone_embedding
from support.factory import save_encoder, save_llm

VALUES = {"gender": ["female", "male"], "tempo": ["fast", "slow"]}
WORD = "umbrella"
TONE = {"gender": "male", "tempo": "fast"}


def aligned_model(folder: Path, *, skip: bool = True) -> DualSLM:
    """Makes the frozen parts in a folder, and adapters that say `WORD` and `TONE` whatever they hear."""
    parts = str(save_encoder(folder / "encoder")), str(save_llm(folder / "llm"))
    model = DualSLM.from_parts(*parts, paralinguistic={"tokens": 2}, linguistic={"skip": skip}).eval()
    word = model.llm.embed(torch.tensor(model.llm.tokenizer(f" {WORD}", add_special_tokens=False)["input_ids"][:1]))
    tone = sum(tone_embedding(model, name, value) for name, value in TONE.items())
    with torch.no_grad():
        for project, embed in ((model.ling.project, word[0]), (model.para.project, tone)):
            project.weight.zero_()
            project.bias.copy_(embed / project.scale)
    model.aligned = Aligned(True, VALUES)
    return model
