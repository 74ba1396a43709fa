"""The adapters against their equations, and their blindness to padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dualslm.errors import DualSLMError
from dualslm.model.adapters import (
    LinguisticAdapter,
    ParalinguisticAdapter,
    pooling_weights,
    random_stretches,
)
from dualslm.model.group_convolution import GroupConvolution


def frames(layers: int, lengths: list[int], width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(layers, len(lengths), max(lengths), width), torch.tensor(lengths)


@given(length=st.integers(1, 400), tokens=st.integers(1, 32))
@settings(max_examples=60, deadline=None)
def test_pooling_is_torchs_adaptive_pooling_of_the_clip_alone(length: int, tokens: int) -> None:
    x_TD = torch.randn(length, 3)
    expected = F.adaptive_avg_pool1d(x_TD.T[None], tokens)[0].T
    weights = pooling_weights(torch.tensor([length]), tokens, length + 7)[0]
    torch.testing.assert_close(weights[:, :length] @ x_TD, expected, atol=1e-5, rtol=1e-5)
    assert not weights[:, length:].any()


@pytest.mark.parametrize(("mix", "deviations"), [(False, False), (True, False), (False, True), (True, True)])
def test_padding_and_company_change_nothing(mix: bool, deviations: bool) -> None:
    para = ParalinguisticAdapter(16, 24, heads=4, tokens=4, depth=3, mix=mix, deviations=deviations).eval()
    ling = LinguisticAdapter(16, 24, hidden=32).eval()
    layers_NBTD, lengths_B = frames(3, [3, 41, 17])
    outside = torch.arange(41) >= lengths_B[:, None]
    loud = layers_NBTD.masked_fill(outside[None, ..., None], 1e4)
    with torch.no_grad():
        p_BMD, l_BLD = para(loud, lengths_B), ling(loud[-1], lengths_B)
        for row, length in enumerate(lengths_B.tolist()):
            alone = layers_NBTD[:, row : row + 1, :length]
            one = torch.tensor([length])
            torch.testing.assert_close(p_BMD[row], para(alone, one)[0], atol=1e-5, rtol=1e-5)
            expected = ling(alone[-1], one)[0]
            assert len(expected) == ling.lengths(length) == -(-length // 5)
            torch.testing.assert_close(l_BLD[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_linguistic_is_equation_5() -> None:
    ling = LinguisticAdapter(16, 24, stack=5, hidden=32, scale=0.5).eval()
    layers_NBTD, lengths_B = frames(1, [20])
    grouped = layers_NBTD[0].reshape(1, 4, 5 * 16)
    hidden = torch.relu(grouped @ ling.widen.weight.T + ling.widen.bias)
    expected = 0.5 * (hidden @ ling.project.weight.T + ling.project.bias)
    torch.testing.assert_close(ling(layers_NBTD[0], lengths_B), expected, atol=1e-5, rtol=1e-5)


def test_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        para, ling = ParalinguisticAdapter(1280, 3584), LinguisticAdapter(1280, 3584)
    count = sum(weight.numel() for part in (para, ling) for weight in part.parameters())
    assert 44e6 < count < 46e6


def test_fresh_embeddings_have_the_spread_of_token_embeddings() -> None:
    layers_NBTD, lengths_B = frames(1, [200], 64)
    para, ling = ParalinguisticAdapter(64, 512, scale=0.02).eval(), LinguisticAdapter(64, 512, scale=0.02).eval()
    for out_BLD in (para(layers_NBTD, lengths_B), ling(layers_NBTD[0], lengths_B)):
        assert 0.002 < float(out_BLD.detach().std()) < 0.03


def test_steps_move_embeddings_by_shares_of_their_own_size() -> None:
    layers_NBTD, lengths_B = frames(1, [200], 64)
    moved = {}
    for scale in (0.02, 1.0):
        torch.manual_seed(0)
        ling = LinguisticAdapter(64, 512, scale=scale)
        adamw = torch.optim.AdamW(ling.parameters(), lr=1e-3)
        before = ling(layers_NBTD[0], lengths_B).detach()
        ling(layers_NBTD[0], lengths_B).sum().backward()
        adamw.step()
        after = ling(layers_NBTD[0], lengths_B).detach()
        moved[scale] = float((after - before).norm() / before.norm())
    assert moved[0.02] == pytest.approx(moved[1.0], rel=1e-3)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(DualSLMError, match=r"7 heads for a width of 16"):
        ParalinguisticAdapter(16, 24, heads=7)


def test_one_layer_is_read_where_a_recipe_names_it() -> None:
    layers_NBTS, lengths_B = torch.randn(3, 2, 7, 16), torch.tensor([7, 4])
    para = ParalinguisticAdapter(16, 24, heads=4, tokens=2, depth=3, layer=1).eval()
    heard = para(layers_NBTS, lengths_B)
    layers_NBTS[1:] = 0.0  # frames of such an adapter hold that layer and the last one
    assert torch.equal(para(layers_NBTS, lengths_B), heard)


@pytest.mark.parametrize("mix", [False, True])
def test_calibrated_channels_have_mean_0_and_deviation_1(mix: bool) -> None:
    scale_S = torch.logspace(-2, 2, 16)
    clips = [5.0 + scale_S * torch.randn(3, frames, 16) for frames in (40, 90)]
    para = ParalinguisticAdapter(16, 24, layers=0, heads=4, tokens=1, depth=3, mix=mix, standardize=True)
    para.calibrate(clips)
    read_TS = torch.cat([para._read(clip[:, None])[0] for clip in clips])
    weights_N = torch.full((3,), 1 / 3) if mix else torch.ones(1)
    torch.testing.assert_close(read_TS.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    wanted = weights_N.square().sum().sqrt()
    torch.testing.assert_close(read_TS.std(0), wanted.expand(16), atol=0.15, rtol=0)
    assert {"centre_NS", "spread_NS"} <= para.state_dict().keys()


def test_what_says_nothing_is_left_out_and_a_drawn_out_token_is_one() -> None:
    ling = LinguisticAdapter(16, 24, hidden=32, skip=True, scale=0.5)
    ling.middle_D.copy_(torch.randn(24))
    dog, cat = torch.randn(2, 24)
    away = torch.stack([0 * dog, dog, 1.2 * dog, 0.01 * cat, dog, cat, 0.1 * dog])
    left = ling.spoken(ling.middle_D + ling.project.scale * away)
    wanted = ling.middle_D + ling.project.scale * torch.stack([1.1 * dog, dog, cat])
    torch.testing.assert_close(left, wanted, atol=1e-5, rtol=1e-5)
    assert len(ling.spoken(ling.middle_D.expand(4, 24))) == 1, "a clip in which all is silent keeps one embedding"


def with_convolutions(count: int, **settings: Any) -> LinguisticAdapter:
    """An adapter whose convolutions have learnt something, which at first they have not."""
    ling = LinguisticAdapter(16, 24, hidden=32, convolutions=count, **settings).eval()
    for convolution in ling.convolutions:
        assert isinstance(convolution, GroupConvolution)
        torch.nn.init.normal_(convolution.back.weight)
    return ling


@pytest.mark.parametrize(("layers", "convolutions"), [(0, 0), (2, 0), (0, 2)])
def test_padding_changes_nothing_where_groups_see_each_other(layers: int, convolutions: int) -> None:
    settings = {"around": 1, "layers": layers, "heads": 4, "dropout": 0.1, "mask": 0.3, "standardize": True}
    ling = with_convolutions(convolutions, **settings)
    clips = [torch.randn(length, 16) for length in (23, 40, 5)]
    lengths = torch.tensor([len(clip) for clip in clips])
    together = ling(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths)
    for row, clip in enumerate(clips):
        alone = ling(clip[None], lengths[row : row + 1])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_a_fresh_convolution_changes_nothing_and_a_trained_one_sees_two_groups_on_either_side() -> None:
    ling, fresh = LinguisticAdapter(16, 24, hidden=32), LinguisticAdapter(16, 24, hidden=32, convolutions=2)
    assert not fresh.load_state_dict(ling.state_dict(), strict=False).unexpected_keys
    frames_1TS, length = torch.randn(1, 50, 16), torch.tensor([50])
    torch.testing.assert_close(fresh(frames_1TS, length), ling(frames_1TS, length))

    trained = with_convolutions(1)
    before_LD = trained(frames_1TS, length)[0]
    frames_1TS[0, 25:30] += 1.0  # the sixth group of ten
    moved_L = (trained(frames_1TS, length)[0] - before_LD).abs().amax(-1) > 1e-6
    assert moved_L.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_training_hides_about_the_share_of_frames() -> None:
    hidden = random_stretches(torch.Size([64, 500]), 0.1)
    assert 0.07 < float(hidden.float().mean()) < 0.13
