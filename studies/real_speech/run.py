"""From recordings to figures: prepares, encodes, teaches, examines; every step is skipped where its result stands."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.model.encoder import SpeechEncoder
from dualslm.model.generation import GenerationSettings
from dualslm.training import feature_cache
from dualslm.training.feature_cache import FrameCache, Rule
from dualslm.training.targets import Job
from dualslm.training.targets import write as write_targets
from dualslm.training.teacher import InProcess
from dualslm.training.train import train
from studies.real_speech import corpora, ears, exam, mind, plans, probe
from studies.real_speech.plans import Arm
from studies.real_speech.wording import SPEAKERS

LLM = {"examples": 6000, "steps": 360, "tokens_per_step": 2048, "blends": 160}
STRINGS, SINGLES = 120, 100  # of an FSDD speaker, to learn from
WHOLE_WINDOW = "probe, window of 30 s"
LONG = 80  # tokens of an answer, for LibriSpeech


class Study:
    """One study in one folder.

    Args:
        data: folder of `ravdess`, `fsdd` and `librispeech`.
        encoder: folder of whisper-tiny.en.
        work: what is made is kept here.
        out: the result file.
        speed: factor on the steps of every stage.
    """

    def __init__(self, data: Path, encoder: Path, work: Path, out: Path, speed: float = 1.0) -> None:
        self.data, self.encoder, self.work, self.out, self.speed = data, encoder, work, out, speed
        ears.shorten(encoder, work / "encoder")
        self.actors = corpora.actors(data / "ravdess", work / "ravdess", plans.COPIES)
        corpora.digits(data / "fsdd", work / "fsdd", STRINGS, SINGLES)
        if (data / "librispeech").is_dir():
            corpora.librispeech(data / "librispeech", work / "librispeech")
        mind.build(work / "llm", **LLM)

    # ------------------------------------------------------------------ what is asked for

    def report(self, seeds: Sequence[int], names: Sequence[str] | None, *, whole_window: bool = False) -> None:
        """The chosen setting with each seed, then the comparisons; all learn from `TUNED_WITH`.

        Args:
            seeds: of the chosen setting.
            names: of the comparisons; all unless given.
            whole_window: measure the yardstick on a window of 30 s too, which takes a quarter of an hour.
        """
        found = self._found()
        reported = self._ravdess(plans.REPORTED)
        self._ears_for([*self._ravdess(plans.TUNED_WITH), *reported, *self._digits(SPEAKERS)])
        if "ceiling" not in found:
            self._keep("ceiling", exam.ceiling(self.bare, reported))
        if "probe" not in found:
            self._keep("probe", probe.measure(self._ravdess(plans.TUNED_WITH), reported, self.hear))
        if whole_window and WHOLE_WINDOW not in found:
            self._keep(WHOLE_WINDOW, self._whole_window(reported))
        for seed in seeds:
            self._arm(plans.CHOSEN, seed, self.speed, whole=True)
        for arm in (*plans.TONE, *plans.WHOLE, *plans.ROTATED):
            if names is None or arm.name in names:
                self._arm(arm, 0, self.speed, whole=arm in plans.WHOLE)

    def test(self, folder: Path, seeds: Sequence[int]) -> None:
        """Learns from all actors that a folder does not hold, and reports on those that it holds."""
        held = corpora.actors(folder, self.work / "tested" / folder.resolve().name)
        manifests = [self.work / "tested" / folder.resolve().name / f"{actor}.jsonl" for actor in held]
        learnt = [actor for actor in self.actors if actor not in held]
        self._ears_for(manifests)
        for seed in seeds:
            model = self._taught(plans.CHOSEN, learnt, f"tested-{'-'.join(held)}-{seed}", seed, self.speed)
            found = {"actors": held, "learnt": learnt, "seed": seed, "swap": exam.swap(model, manifests, self.hear)}
            found |= exam.voices(model, manifests, self.hear)
            print(json.dumps(found, indent=1))
            self._keep(f"tested {' '.join(held)} seed {seed}", found)

    # ------------------------------------------------------------------ one arm

    def _arm(self, arm: Arm, seed: int, speed: float, *, whole: bool) -> None:
        """Teaches an arm and asks it, where its figures are not there yet."""
        name = f"{arm.name} seed {seed}"
        if name in self._found():
            return
        began = time.monotonic()
        model = self._taught(arm, plans.TUNED_WITH, f"{_slug(arm.name)}-{seed}", seed, speed)
        reported = self._ravdess(plans.REPORTED)
        found = exam.voices(model, reported, self.hear) if whole else {}
        if arm.tone:
            found = exam.tone(model, reported, self.hear)
        else:
            found["digits"] = exam.spoken(model, self._digits(arm.held), self.hear)
        if arm is plans.CHOSEN:
            found["swap"] = exam.swap(model, reported, self.hear)
            listing = self.work / "librispeech" / "librispeech.jsonl"
            if listing.exists():
                self._ears_for([listing])
                found["librispeech"] = exam.spoken(model, [listing], self.hear, LONG, ("L",))
        about = {"seed": seed, "speed": speed, "adapters": sum(w.numel() for w in model.adapters.parameters())}
        self._keep(name, {**found, **about, "minutes": round((time.monotonic() - began) / 60, 1)})
        print(name, exam.line(found), flush=True)

    def _taught(self, arm: Arm, actors: Sequence[str], name: str, seed: int, speed: float) -> DualSLM:
        """The arm's model after its last stage, from the real loop."""
        for actor in actors:
            job = Job((self.work / "ravdess" / f"{actor}.jsonl",), self.work / "ravdess" / f"{actor}.targets.jsonl")
            if not job.out.exists():
                write_targets(job, InProcess(self.bare.llm, GenerationSettings(max_new_tokens=24)), seed=0, batch=60)
        recipe = plans.recipe_of(arm, self.work, actors, seed, speed)
        folder = train(recipe, self.work / "arms" / name, resume=True, device="cpu")
        return DualSLM.from_pretrained(folder, device="cpu")

    # ------------------------------------------------------------------ parts

    @cached_property
    def bare(self) -> DualSLM:
        """Encoder and LLM with untrained adapters."""
        parts = str(self.work / "encoder"), str(self.work / "llm")
        return DualSLM.from_parts(*parts, paralinguistic={"layer": 0}, device="cpu")

    def _whole_window(self, reported: Sequence[Path]) -> dict[str, Any]:
        """The yardstick on frames of the encoder as it was published."""
        encoder, folder = SpeechEncoder.from_pretrained(str(self.encoder)), self.work / "frames-30"
        learnt = self._ravdess(plans.TUNED_WITH)
        asked = exam.questions([*learnt, *reported], "asr")
        paths = [str(conversation.turns[0].speeches[0].audio) for conversation, _ in asked]
        feature_cache.build(encoder, paths, folder, every_layer=True)
        return probe.measure(learnt, reported, FrameCache(folder, Rule.of(encoder, every_layer=True)).hear)

    def _ears_for(self, manifests: Sequence[Path]) -> None:
        """Encodes what some manifests hold; `self.hear` then gives it."""
        paths = [str(conversation.turns[0].speeches[0].audio) for conversation, _ in exam.questions(manifests, "asr")]
        feature_cache.build(self.bare.encoder, paths, self.work / "frames", every_layer=True)
        self.hear = FrameCache(self.work / "frames", Rule.of(self.bare.encoder, every_layer=True)).hear

    def _ravdess(self, actors: Sequence[str]) -> list[Path]:
        return [self.work / "ravdess" / f"{actor}.jsonl" for actor in actors if actor in self.actors]

    def _digits(self, speakers: Sequence[str]) -> list[Path]:
        return [self.work / "fsdd" / f"{speaker}-test.jsonl" for speaker in speakers]

    def _found(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())["figures"] if self.out.exists() else {}
        return found

    def _keep(self, name: str, figures: dict[str, Any]) -> None:
        result = {
            "command": "python -m studies.real_speech",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "figures": {**self._found(), name: figures},
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.out) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")
