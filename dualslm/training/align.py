"""Aligns L and P with the LLM's own token embeddings, without running the LLM (ours; off unless a recipe asks).

The linguistic embeddings stand in for words, so they had better begin near the words' own embeddings. The loss is
connectionist temporal classification (CTC), whose classes are the directions of the LLM's token embeddings and whose
blank is an embedding near to no token. A step runs the adapter alone. That the LLM understands words drawn out over
time, with a tone beside them, is left to the stages that follow.

What did not work (measured on the tiny world, 250 to 500 steps): distances instead of directions (embeddings 3 to
5 times too long); punctuation among the targets, or no blank (one token fills every silence); the padding token's
embedding as the blank (exact tokens with it between them cost the LLM 34 % word errors, with embeddings of length 0
between them 5 %); a weaker pull (the words are right by nearest token, and yet the LLM misreads 46 %).

Where L skips silence (`LinguisticAdapter.skip`), directions are seen from the middle of all token embeddings, and
silence is that middle. Directions seen from zero serve an LLM whose tokens lie about it; those of SmolLM2 lie to one
side (a cosine of 0.42 between any two), and an embedding that is exactly a token's was told from 18,000 others with a
probability of 0.79, seen from their middle with one of 0.997.

P begins near the words of its labels ("angry", "male"): the direction of its mean embedding is classified among the
words of all values of an attribute. Through the LLM a soft prompt is the slowest part to learn: after 200 steps P knew
33 % of eight emotions in real voices, where a linear layer on the same frames reads 74.

Dimensions: B clips, T frames, L groups of frames, M embeddings of P, V distinct tokens and the blank (of P: values of
an attribute), D width of the LLM, S tokens of a transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dualslm.conversation import Speech
from dualslm.errors import DualSLMError
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import Frames
from dualslm.model.inputs import IGNORE_INDEX, Hear
from dualslm.model.loss import Loss
from dualslm.model.nearest import BLANK_COSINE, Aligned, compare_with_tokens, compare_with_words
from dualslm.prompt import Prompt
from dualslm.recipe import Stage
from dualslm.training.spelling import Spelling

LOGIT_SCALE = 24.0  # nats between a token in an embedding's own direction and one at a right angle
CENTERED_BLANK_COSINE = 0.6  # the same, where directions are seen from the middle of all tokens
MAX_NEGATIVES = 3000  # classes that a training step tells apart beside those of a batch's own transcripts
LABEL_SMOOTHING = 0.1  # share of a label's probability that is spread over all values
PULL_WEIGHT = 1.0  # weight of the squared distance from the nearest class, as far as that is certain
TONE_PULL_WEIGHT = 1.0  # weight of P's squared distance from the mix of words that it is classified as


def alignment_loss(model: DualSLM, prompts: Sequence[Prompt], spelling: Spelling, hear: Hear | None = None) -> Loss:
    """The CTC loss of the prompts' recordings against their transcripts.

    Args:
        model: model whose linguistic adapter learns.
        prompts: prompts with at least one recording each.
        spelling: the tokens that are the classes, and each transcript in them; others are passed over.
        hear: gives frames of recordings; `model.hear` when None.

    Returns:
        The summed loss of each prompt's recordings in nats, and the number of tokens in their transcripts.

    Raises:
        DualSLMError: a recording without a transcript.
    """
    clips = [clip for prompt in prompts for clip in prompt.clips]
    frames = (hear or model.hear)(clips)
    classes_V = spelling.tokens_V
    ids = [_class_ids(clip, spelling) for clip in clips]
    weight_V = None
    if model.ling.training and len(classes_V) > MAX_NEGATIVES:
        classes_V, weight_V = _sampled_classes(classes_V, torch.cat(ids))
    targets = [1 + torch.searchsorted(classes_V, ids_S) for ids_S in ids]  # 0 is the blank
    logits_BLV, pull_B = _class_logits(model, frames, classes_V, weight_V)
    lengths_B = torch.tensor([model.ling.lengths(length) for length in frames.lengths_B.tolist()])
    tokens_B = torch.tensor([len(target_S) for target_S in targets])
    nll_B = F.ctc_loss(
        logits_BLV.log_softmax(-1).transpose(0, 1),
        pad_sequence(targets, batch_first=True).to(logits_BLV.device),
        lengths_B,
        tokens_B,
        reduction="none",
        zero_infinity=True,  # more tokens than groups of frames: spoken too fast to be aligned
    )
    return _by_prompt(prompts, nll_B + pull_B, tokens_B.to(nll_B.device))


def _by_prompt(prompts: Sequence[Prompt], nll_B: Tensor, counts_B: Tensor) -> Loss:
    """The loss of each prompt, from that of each recording."""
    owners = [index for index, prompt in enumerate(prompts) for _ in prompt.clips]
    owner_B = torch.tensor(owners, device=nll_B.device)
    zeros = nll_B.new_zeros(len(prompts))
    return Loss(zeros.index_add(0, owner_B, nll_B), zeros.to(counts_B.dtype).index_add(0, owner_B, counts_B))


def _class_ids(clip: Speech, spelling: Spelling) -> Tensor:
    """The tokens of a recording's transcript that are classes (S)."""
    if clip.transcript is None:
        raise DualSLMError(f"{clip.audio!s} has no transcript to be aligned with", got="none", do="add one")
    ids_S = torch.tensor(spelling.ids(clip.transcript), dtype=torch.long)
    return ids_S[torch.isin(ids_S, spelling.tokens_V)]  # a transcript of validation may hold others


def _sampled_classes(classes_V: Tensor, spoken_S: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that are spoken and some of the others, sorted, and what each one's logit gains for those left out.

    With tens of thousands of classes nearly all of a step's work would be theirs.
    """
    others_V = classes_V[~torch.isin(classes_V, spoken_S)]
    drawn_V = others_V[torch.randperm(len(others_V))[:MAX_NEGATIVES]]
    sampled_V = torch.cat([spoken_S.unique(), drawn_V]).sort().values
    gain = torch.tensor(len(others_V) / max(1, len(drawn_V))).log()
    return sampled_V, torch.where(torch.isin(sampled_V, drawn_V), gain, 0.0)


def _class_logits(
    model: DualSLM, frames: Frames, classes_V: Tensor, weight_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The logits of the classes for each embedding (B, L, V), and the loss that pulls embeddings to tokens (B).

    Class 0 is the blank, an embedding near to no token. The pull is the squared distance from the likeliest class,
    weighted by its probability: direction alone would leave the lengths of the embeddings free, and the LLM misreads
    embeddings that are much longer than its own.
    """
    device = model.llm.device
    embeds_BLD = model.ling(frames.last_BTD.to(device), frames.lengths_B.to(device))
    embeds_BLD, tokens_VD, cosine_BLV = compare_with_tokens(model, embeds_BLD, classes_V)
    blank = CENTERED_BLANK_COSINE if model.ling.skip else BLANK_COSINE
    logits_BLV = LOGIT_SCALE * F.pad(cosine_BLV.float(), (1, 0), value=blank)
    if weight_V is not None:
        logits_BLV = logits_BLV + F.pad(weight_V, (1, 0)).to(device)
    # Detached: the pull moves embeddings to the class that they have, and must not make another class likelier.
    best = logits_BLV.detach().softmax(-1).max(-1)
    nearest_BLD = F.pad(tokens_VD, (0, 0, 1, 0))[best.indices]  # the blank's own embedding is zero
    pull_BL = (embeds_BLD - nearest_BLD).square().mean(-1) * best.values
    groups_B = -(-frames.lengths_B // model.ling.stack)
    inside_BL = torch.arange(pull_BL.shape[1], device=groups_B.device) < groups_B[:, None]
    return logits_BLV, PULL_WEIGHT * (pull_BL * inside_BL.to(device)).sum(1)


def label_values(speeches: Iterable[Speech]) -> dict[str, list[str]]:
    """The values that each attribute has among some recordings, sorted; attributes of one value are left out."""
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
        model: model whose paralinguistic adapter learns.
        prompts: prompts with at least one recording each.
        values: values of every attribute, from `label_values`; a label of another value counts for nothing.
        hear: gives frames of recordings; `model.hear` when None.

    Returns:
        The summed loss of each prompt's recordings in nats, and the number of their labels.

    Raises:
        DualSLMError: a recording without any label.
    """
    clips = [clip for prompt in prompts for clip in prompt.clips]
    if unlabelled := next((clip for clip in clips if not clip.labels.keys() & values.keys()), None):
        raise DualSLMError(f"{unlabelled.audio!s} has no label to be aligned with", got="none", do="add one")
    frames = (hear or model.hear)(clips)
    device = model.llm.device
    embeds_BMD = model.para(frames.layers_NBTD.to(device), frames.lengths_B.to(device)) / model.para.project.scale
    compared = compare_with_words(model, embeds_BMD, values)
    nll_B = embeds_BMD.new_zeros(len(clips))
    mix_BD = torch.zeros_like(embeds_BMD[:, 0])
    counts_B = torch.zeros(len(clips), dtype=torch.long, device=device)
    for name, (words_VD, logits_BV) in compared.items():
        index_of = {value: index for index, value in enumerate(values[name])}
        targets = [index_of.get(str(clip.labels.get(name)), IGNORE_INDEX) for clip in clips]
        targets_B = torch.tensor(targets, device=device)
        nll_B = nll_B + F.cross_entropy(
            logits_BV, targets_B, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=LABEL_SMOOTHING
        )
        mix_BD = mix_BD + logits_BV.detach().softmax(-1) @ words_VD
        counts_B = counts_B + (targets_B != IGNORE_INDEX)
    # A recording none of whose labels was known in training has no loss at all, the pull included.
    pull_B = (embeds_BMD - mix_BD[:, None]).square().mean((1, 2)) * (counts_B > 0)
    return _by_prompt(prompts, nll_B + TONE_PULL_WEIGHT * pull_B, counts_B)


def aligned_after(stage: Stage, before: Aligned, values: Callable[[], Mapping[str, Sequence[str]]]) -> Aligned:
    """What can be read of the adapters by nearest token and word after a stage.

    Args:
        stage: that was trained; one that runs the LLM moves the adapters away from words.
        before: what could be read before it.
        values: gives the values of every attribute, from `label_values`.
    """
    if stage.objective != "align":
        return Aligned()
    return replace(before, attributes=values()) if stage.learns == {"para"} else replace(before, words=True)
