"""Aligns L and P with the LLM's own token embeddings, without running the LLM (ours; off unless a recipe asks).

The linguistic embeddings stand in for words, so a good place to begin is where the words are: connectionist
temporal classification (CTC) whose classes are the directions of the LLM's token embeddings, and whose blank is
an embedding of nothing. A step costs the adapter alone. How the LLM reads words drawn out over time, and tone
beside them, the stages that follow must still teach.

What did not work (measured on the tiny world, 250 to 500 steps): distances instead of directions (embeddings 3 to
5 times too long); punctuation among the targets, or no blank (one token fills every silence); the padding token's
embedding as the blank (exact tokens with it between them cost the LLM 34 % word errors, with nothing 5 %); a
weaker pull (the words are right by nearest token, and yet the LLM misreads 46 %).

P begins where the words of its labels are ("angry", "male"): the mean of its embeddings is told from those of the
attribute's other values by direction. Through the LLM a soft prompt is the slowest part to learn: 200 steps taught P
33 % of eight emotions in real voices, where a linear layer on the same frames reads 74.

Dimensions: B clips, T frames, L groups of frames, M embeddings of P, V distinct tokens and the blank (of P: values of
an attribute), D width of the LLM, S tokens of a transcript.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.inputs import Hear
from dualslm.model.loss import Loss
from dualslm.prompt import Prompt

SHARPNESS = 24.0  # nats by which a token in its own direction beats one at a right angle
BLANK = 0.45  # the likeness at which a token is as good as none
SOFT = 0.25  # what an embedding without any length is divided by, in squared lengths of a token
SMOOTHED = 0.1  # of a label's probability is spread over all values
TONE_SHARPNESS = 16.0  # as SHARPNESS, between an attribute's words seen from their mean (some lie close together)
TONE_STRAY = 1.0  # weight of P's squared distance from the blend of words that it is taken for
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
        prompts: each with a recording or more.
        classes_V: the tokens to tell apart, from `spoken_tokens`; others in a transcript are passed over.
        hear: gives frames; `model.hear` when None.

    Returns:
        The summed loss of each prompt's recordings in nats, and the tokens of their transcripts.

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
    return _by_prompt(prompts, nll_B + strays_B, tokens_B.to(nll_B.device))


def _by_prompt(prompts: Sequence[Prompt], nll_B: Tensor, counts_B: Tensor) -> Loss:
    """The loss of each prompt, from that of each recording."""
    places = [place for place, prompt in enumerate(prompts) for _ in prompt.clips]
    places_B, zeros = torch.tensor(places, device=nll_B.device), nll_B.new_zeros(len(prompts))
    return Loss(zeros.index_add(0, places_B, nll_B), zeros.to(counts_B.dtype).index_add(0, places_B, counts_B))


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
    inside_BL = torch.arange(stray_BL.shape[1], device=groups_B.device) < groups_B[:, None]
    return logits_BLV, STRAY * (stray_BL * inside_BL.to(device)).sum(1)


def label_values(speeches: Iterable[Speech]) -> dict[str, list[str]]:
    """The values that each attribute has among some recordings, sorted."""
    found: dict[str, set[str]] = {}
    for speech in speeches:
        for name, value in speech.labels.items():
            found.setdefault(name, set()).add(str(value))
    return {name: sorted(values) for name, values in sorted(found.items()) if len(values) > 1}


def tone_loss(
    model: DualSLM, prompts: Sequence[Prompt], values: Mapping[str, Sequence[str]], hear: Hear | None = None
) -> Loss:
    """The cross-entropy of the prompts' recordings against the words of their labels.

    Args:
        model: whose paralinguistic adapter learns.
        prompts: each with a recording or more.
        values: of every attribute, from `label_values`; a label of another value counts for nothing.
        hear: gives frames; `model.hear` when None.

    Returns:
        The summed loss of each prompt's recordings in nats, and how many labels they have.

    Raises:
        DualSLMError: a recording without any label.
    """
    clips = [clip for prompt in prompts for clip in prompt.clips]
    if nameless := next((clip for clip in clips if not clip.labels.keys() & values.keys()), None):
        raise DualSLMError(f"{nameless.audio!s} has no label to be aligned with", got="none", do="add one")
    frames = (hear or model.hear)(clips)
    device, unit = model.llm.device, model.para.project.scale
    heard_BMD = model.para(frames.layers_NBTD.to(device), frames.lengths_B.to(device)) / unit
    words = {name: torch.stack([_meant(model, word) for word in known]) / unit for name, known in values.items()}
    aside_BD = heard_BMD.mean(1) - sum(words_VD.mean(0) for words_VD in words.values())
    length_B1 = (aside_BD.square().mean(-1, keepdim=True) + SOFT).sqrt() * aside_BD.shape[1] ** 0.5
    nll_B, blend_BD = aside_BD.new_zeros(len(clips)), torch.zeros_like(aside_BD)
    counts_B = torch.zeros(len(clips), dtype=torch.long, device=device)
    for name, words_VD in words.items():
        place_of = {value: place for place, value in enumerate(values[name])}
        places_B = torch.tensor([place_of.get(str(clip.labels.get(name)), -1) for clip in clips], device=device)
        logits_BV = TONE_SHARPNESS * aside_BD / length_B1 @ F.normalize(words_VD - words_VD.mean(0), dim=-1).T
        nll_B = nll_B + F.cross_entropy(
            logits_BV, places_B, ignore_index=-1, reduction="none", label_smoothing=SMOOTHED
        )
        blend_BD = blend_BD + logits_BV.detach().softmax(-1) @ words_VD
        counts_B = counts_B + (places_B >= 0)
    stray_B = (heard_BMD - blend_BD[:, None]).square().mean((1, 2)) * (counts_B > 0)
    return _by_prompt(prompts, nll_B + TONE_STRAY * stray_B, counts_B)


def _meant(model: DualSLM, word: str) -> Tensor:
    """The embedding of a word: the mean of those of its tokens (D)."""
    ids = model.llm.tokenizer.encode(f" {word}", add_special_tokens=False)
    return model.llm.embed(torch.tensor(ids, device=model.llm.device)).detach().float().mean(0)
