"""Which speakers are trained and tested on, and which settings are compared. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualslm.recipe import Kind, Recipe, Stage, ViewDraw, load
from studies.real_speech.wording import SPEAKERS

RECIPE = Path(__file__).with_name("recipe.toml")
TUNED_WITH = tuple(f"actor{number:02d}" for number in range(1, 13))
"""Every setting was chosen by cross-validation among these actors; the reported arms are trained on all of them."""
REPORTED = tuple(f"actor{number:02d}" for number in range(13, 19))
DIGITS_REPORTED = ("theo", "yweweler")
COPIES = 2  # altered copies of every training recording


@dataclass(frozen=True)
class Arm:
    """One setting beside the chosen one.

    Attributes:
        name: name in the tables.
        para: settings that differ in `model.paralinguistic`.
        err: whether stages 2 and 3 have equivalence replacement.
        single: whether one adapter of equal size takes the place of two: everything goes through L.
        tone: whether P is trained and tested alone, which is quick and enough for questions about P.
        aligned: whether P is first aligned with the words of its labels.
        held: the two FSDD speakers of the test set; the other four are in the training data.
    """

    name: str
    para: Mapping[str, Any] = field(default_factory=dict)
    err: bool = True
    single: bool = False
    tone: bool = False
    aligned: bool = True
    held: tuple[str, str] = DIGITS_REPORTED

    @property
    def speakers(self) -> tuple[str, ...]:
        """The FSDD speakers of the training data."""
        return tuple(speaker for speaker in SPEAKERS if speaker not in self.held)


CHOSEN = Arm("chosen")
SINGLE_HIDDEN = 582  # L's hidden width with which it is as large as the two chosen adapters
ROTATED = tuple(
    Arm(f"digits of {one} and {other}", held=(one, other))
    for one, other in (("george", "jackson"), ("lucas", "nicolas"))
)
"""The chosen setting, tested on speakers of digits whose figures nobody had seen when it was chosen."""
SINGLE = Arm("single adapter", single=True)
WHOLE = (Arm("without ERR", err=False), SINGLE)
TONE = (
    Arm("as chosen", tone=True),
    Arm("last layer", {"layer": 4}, tone=True),
    Arm("channels as they are", {"standardize": False}, tone=True),
    Arm("P not aligned first", tone=True, aligned=False),
    Arm("m = 1", {"tokens": 1}, tone=True),
    Arm("m = 16", {"tokens": 16}, tone=True),
    Arm("mean alone", {"deviations": False}, tone=True),
    Arm("learned mix of layers", {"layer": None, "mix": True}, tone=True),
    Arm("a transformer layer", {"layers": 1}, tone=True),
)
TONE_STEPS = 60


def recipe_of(arm: Arm, work: Path, actors: Sequence[str], seed: int, speed: float) -> Recipe:
    """The recipe of an arm.

    Args:
        arm: the arm.
        work: folder of the study.
        actors: actors of RAVDESS in the training data.
        seed: seed of every draw.
        speed: factor on the steps of every stage.
    """
    recipe = load(RECIPE, [f"seed={seed}"])
    para = replace(recipe.model.paralinguistic, **arm.para)
    ling = replace(recipe.model.linguistic, **({"hidden": SINGLE_HIDDEN} if arm.single else {}))
    clips = [work / "ravdess" / f"{actor}.jsonl" for actor in actors]
    copies = [work / "ravdess" / f"copy{n}" / f"{actor}-{n}.jsonl" for actor in actors for n in range(1, COPIES + 1)]
    targets = [work / "ravdess" / f"{actor}.targets.jsonl" for actor in actors]
    strings = [work / "fsdd" / f"{speaker}.jsonl" for speaker in arm.speakers]
    data = replace(
        recipe.data,
        train=tuple(map(str, [*clips, *copies, *strings, *targets])),
        features=str(work / "frames"),
    )
    model = replace(
        recipe.model, encoder=str(work / "encoder"), llm=str(work / "llm"), paralinguistic=para, linguistic=ling
    )
    # A single adapter stands in L's place, where P's alignment has no adapter to align.
    stages = tuple(_stage(stage, arm, speed) for stage in recipe.stages if not (arm.single and "tone" in stage.name))
    if arm.tone:
        aligned = tuple(stage for stage in stages if stage.name == "align_tone" and arm.aligned)
        stages = (*aligned, _tone(recipe, speed))
    return replace(recipe, model=model, data=data, stages=stages)


def _tone(recipe: Recipe, speed: float) -> Stage:
    """One stage that trains P alone."""
    stage = next(stage for stage in recipe.stages if stage.name == "joint")
    kind = Kind(learns=("para",), view=ViewDraw(para=("speech",), ling=("none",)))
    steps = max(1, round(TONE_STEPS * speed))
    return replace(stage, name="tone", steps=steps, linguistic=None, paralinguistic=kind)


def _stage(stage: Stage, arm: Arm, speed: float) -> Stage:
    """A stage of the recipe as the arm changes it."""
    assert stage.steps is not None
    changed: dict[str, Any] = {"steps": max(1, round(stage.steps * speed))}
    if stage.objective != "align":  # an alignment has one adapter and no LLM: nothing to replace
        for name, kind in stage.kinds.items():
            if arm.single:
                kind = replace(kind, learns=("ling",), view=ViewDraw(para=("none",), ling=("speech",)))
            elif not arm.err:
                kind = replace(kind, learns=("para", "ling"), view=ViewDraw())
            changed[name] = kind
    return replace(stage, **changed)
