"""Aligns L with the LLM's own token embeddings, without running the LLM (ours; off unless a recipe asks).

The linguistic embeddings stand in for words, so a good place to begin is where the words are: connectionist
temporal classification (CTC) whose classes are the directions of the LLM's token embeddings, and whose blank is
an embedding of nothing. A step costs the adapter alone. How the LLM reads words drawn out over time, and tone
beside them, the stages that follow must still teach.

What did not work (measured on the tiny world, 250 to 500 steps): distances instead of directions (embeddings 3 to
5 times too long); punctuation among the targets, or no blank (one token fills every silence); the padding token's
embedding as the blank (exact tokens with it between them cost the LLM 34 % word errors, with nothing 5 %); a
weaker pull (the words are right by nearest token, and yet the LLM misreads 46 %).

Dimensions: B clips, T frames, L groups of frames, V distinct tokens and the blank, D width of the LLM, S tokens
of a transcript.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dualslm.conversation import Speech
from dualslm.encoder import Frames
from dualslm.errors import DualSLMError
from dualslm.fill import Hear
from dualslm.loss import Loss
from dualslm.model import DualSLM
from dualslm.prompt import Prompt

SHARPNESS = 24.0  # nats by which a token in its own direction beats one at a right angle
BLANK = 0.45  # the likeness at which a token is as good as none
SOFT = 0.25  # what an embedding without any length is divided by, in squared lengths of a token
STRAY = 1.0  # weight of the squared distance from the nearest class, as far as that is certain


def spoken_tokens(model: DualSLM, transcripts: Iterable[str]) -> Tensor:
    """The distinct tokens of transcripts that are spoken (V), sorted: those with a letter or a digit."""
    tokenizer = model.llm.tokenizer
    ids = {token for text in set(transcripts) for token in tokenizer.encode(text, add_special_tokens=False)}
    return torch.tensor(sorted(token for token in ids if any(map(str.isalnum, tokenizer.decode([token])))))


def alignment_loss(model: DualSLM, prompts: Sequence[Prompt], classes_V: Tensor, hear: Hear | None = None) -> Loss:
    """The CTC loss of the prompts' recordings against their transcripts.

    Args:
        model: whose linguistic adapter learns.
        prompts: each with one recording.
        classes_V: the tokens to tell apart, from `spoken_tokens`; others in a transcript are passed over.
        hear: gives frames; `model.hear` when None.

    Returns:
        The summed loss of each recording in nats, and the tokens of its transcript.

    Raises:
        DualSLMError: a recording without a transcript.
    """
    clips = [clip for prompt in prompts for clip in prompt.clips]
    frames = (hear or model.hear)(clips)
    said = [_places(model, clip, classes_V) for clip in clips]
    logits_BLV, strays_B = _closeness(model, frames, classes_V)
    lengths_B = torch.tensor([model.ling.lengths(length) for length in frames.lengths_B.tolist()])
    tokens_B = torch.tensor([len(one) for one in said])
    nll_B = F.ctc_loss(
        logits_BLV.log_softmax(-1).transpose(0, 1),
        pad_sequence(said, batch_first=True).to(logits_BLV.device),
        lengths_B,
        tokens_B,
        reduction="none",
        zero_infinity=True,  # more tokens than groups: too fast to be aligned
    )
    return Loss(nll_B + strays_B, tokens_B.to(nll_B.device))


def _places(model: DualSLM, clip: Speech, classes_V: Tensor) -> Tensor:
    """The transcript of a recording as places among the classes, counted from 1 (S)."""
    if clip.transcript is None:
        raise DualSLMError(f"{clip.audio!s} has no transcript to be aligned with", got="none", do="add one")
    ids_S = torch.tensor(model.llm.tokenizer.encode(clip.transcript, add_special_tokens=False), dtype=torch.long)
    return 1 + torch.searchsorted(classes_V, ids_S[torch.isin(ids_S, classes_V)])


def _closeness(model: DualSLM, frames: Frames, classes_V: Tensor) -> tuple[Tensor, Tensor]:
    """How near each embedding is in direction to each class, as logits (B, L, V), and how far it strays (B).

    Class 0 is the blank: an embedding of nothing, near to no token. Each embedding is drawn to its nearest class
    as far as that class is certain, so that its length becomes a token's too.
    """
    device, unit = model.llm.device, model.ling.project.scale
    tokens_VD = model.llm.embed(classes_V.to(device)).detach().float() / unit
    heard_BLD = model.ling(frames.last_BTD.to(device), frames.lengths_B.to(device)) / unit
    length_BL1 = (heard_BLD.square().mean(-1, keepdim=True) + SOFT).sqrt() * tokens_VD.shape[1] ** 0.5
    likeness_BLV = heard_BLD / length_BL1 @ F.normalize(tokens_VD, dim=-1).T
    logits_BLV = SHARPNESS * F.pad(likeness_BLV, (1, 0), value=BLANK)
    best = logits_BLV.detach().softmax(-1).max(-1)
    nearest_BLD = F.pad(tokens_VD, (0, 0, 1, 0))[best.indices]
    stray_BL = (heard_BLD - nearest_BLD).square().mean(-1) * best.values
    groups_B = -(-frames.lengths_B // model.ling.stack)
    inside_BL = torch.arange(stray_BL.shape[1]) < groups_B[:, None]
    return logits_BLV, STRAY * (stray_BL * inside_BL.to(device)).sum(1)
