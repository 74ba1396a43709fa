"""The study: its rows have the settings that they are named for, and its page finds a planted difference."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from dualslm import DualSLM
from dualslm.errors import DualSLMError
from dualslm.model.encoder import Frames
from dualslm.tiny import WEIGHTS
from dualslm.training.run_folder import held
from dualslm.training.trainer import TrainerState
from studies.tiny_claims import page
from studies.tiny_claims import run as study


def test_every_leg_has_a_recipe_and_a_way_from_the_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # recipes are read from the repository's root
    for leg in study.order():
        (stage,) = study.recipe_of(leg).stages
        assert stage.name == leg.stage
        begins = "joint" if leg.variant.startswith("unaligned") else "align"
        stages = study.STAGES[study.STAGES.index(begins) : study.STAGES.index(leg.stage) + 1]
        assert tuple(one.stage for one in leg.chain) == stages
    without = study.recipe_of(study.Leg("without-err", "disentangle", 0)).stages[0]
    assert without.linguistic
    assert without.linguistic.view.para == ("speech",)
    assert without.linguistic.learns == ("para", "ling")
    single = study.recipe_of(study.Leg("single", "respond", 0)).stages[0]
    assert {kind.view.para for kind in single.kinds.values()} == {("none",)}
    assert single.learns == {"ling"}
    assert study.recipe_of(study.Leg("m-4", "joint", 0)).model.paralinguistic.tokens == 4
    assert study.Leg("fixed-history", "respond", 1).parent == study.Leg("full", "disentangle", 1)


class StoppedError(Exception):
    """Says at which step a run would have gone on."""


class Trainer:
    state = TrainerState()

    def __init__(self, *_: object) -> None:
        pass

    def run(self) -> None:
        raise StoppedError(self.state.step)


def test_a_leg_that_was_stopped_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    leg = study.Leg("unaligned", "joint", 0)
    best_so_far = leg.folder(tmp_path) / "joint" / "adapters.safetensors"
    best_so_far.parent.mkdir(parents=True)
    best_so_far.touch()
    begun = study.Study(tmp_path)
    begun.__dict__ |= {"conversations": {"joint": None}, "cache": None}
    monkeypatch.setattr(study.Study, "model", lambda *_: None)
    monkeypatch.setattr(study, "Trainer", Trainer)
    monkeypatch.setattr(study, "read_state", lambda _: {"stage": 0, "step": 800, "best": 1.0})
    with pytest.raises(StoppedError, match="800"):
        begun.trained(leg)

    with held(leg.folder(tmp_path)), pytest.raises(DualSLMError, match="another process trains in"):
        begun.trained(leg)


def test_one_adapter_has_about_the_weights_of_two() -> None:
    settings: dict[str, Any] = {"paralinguistic": {"dropout": 0.0}, "linguistic": {"hidden": 1024}}
    model = DualSLM.from_parts(str(WEIGHTS / "encoder"), str(WEIGHTS / "llm"), device="cpu", **settings)
    two = sum(weight.numel() for weight in model.adapters.parameters())
    frames = torch.randn(1, 2, 20, model.encoder.width)
    frames[:, 1, 10:] = 0  # the second clip is half as long
    study.one_adapter(model)
    one = sum(weight.numel() for weight in model.adapters["ling"].parameters())
    assert 0.95 < one / two <= 1  # a fair rival: as large, and never larger
    together = model.adapt("ling", Frames(frames, torch.tensor([20, 10])))
    alone = model.adapt("ling", Frames(frames[:, 1:, :10], torch.tensor([10])))
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-4)  # padding changes nothing


def counts(right: float, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[int(rng.random() < right), 1] for _ in range(60)]


def test_the_page_tells_a_difference_from_none() -> None:
    # The second case has the same seed on both sides, so that there is no difference to be found.
    result = {
        "command": "c", "torch": "t", "transformers": "t", "n": 60, "recordings": 1, "fixed": 2,
        "lengths": {"joint": {"steps": 1, "batch": 1}}, "unaligned": {"steps": 2}, "missing": ["mix respond seed 0"],
        "marks": {
            "full/respond/0": {"emotion/P": counts(0.9, 1), "emotion/both": counts(0.5, 2), "energy/P": counts(0.2, 5)},
            "without-err/respond/0": {
                "emotion/P": counts(0.4, 3), "emotion/both": counts(0.5, 2), "energy/P": counts(0.8, 6),
            },
        },
    }  # fmt: skip
    text = page.page(json.loads(json.dumps(result)))
    rows = {row.split(" | ")[0].strip("| "): row for row in text.splitlines() if row.startswith("| ERR")}
    assert "**holds**" in rows["ERR: emotion from P alone"]
    assert "not shown" in rows["ERR: emotion with P and L together"]
    assert "**contradicted**" in rows["ERR: energy from P alone"]
    assert "not measured yet" in rows["ERR: words from L alone"]
    assert "Not done yet: mix respond seed 0" in text


def test_fewer_word_errors_are_better() -> None:
    few = [[0, 5]] * 20
    many = [[2, 5], [3, 5]] * 10
    result = {"marks": {"a/b/0": {"words/L": few}, "c/d/0": {"words/L": many}}}
    found = page.gap(result, page.Claim("", ("a/b", "words/L"), ("c/d", "words/L")))
    assert found
    assert found.value == pytest.approx(50)
    assert found.low > 0


def test_the_page_is_that_of_the_result(root: Path) -> None:
    result = json.loads((root / page.RESULT).read_text())
    assert (root / page.PAGE).read_text() == page.page(result), "run python -m studies.tiny_claims.page"
