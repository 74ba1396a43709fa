"""From recordings to figures: prepares, encodes, trains, tests; every step is skipped where its result exists."""

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
from dualslm.training.teacher import LocalTeacher
from dualslm.training.train import train
from studies.real_speech import corpora, encoder, exam, llm, plans, probe
from studies.real_speech.plans import Arm
from studies.real_speech.wording import SPEAKERS

LLM = {"examples": 6000, "steps": 360, "tokens_per_step": 2048, "blends": 160}
STRINGS = 120  # strings of digits of an FSDD speaker, for training
SINGLES = 100  # single digits, the same
WHOLE_WINDOW = "probe, window of 30 s"
LIBRISPEECH_TOKENS = 80  # limit of an answer: its sentences are longer than those of the other corpora


class Study:
    """One study in one folder.

    Args:
        data: folder of `ravdess`, `fsdd` and `librispeech`.
        whisper: folder of whisper-tiny.en.
        work: folder of everything that the study makes.
        out: result file.
        speed: factor on the steps of every stage.
    """

    def __init__(self, data: Path, whisper: Path, work: Path, out: Path, speed: float = 1.0) -> None:
        self.whisper = whisper
        self.work = work
        self.out = out
        self.speed = speed
        encoder.shorten(whisper, work / "encoder")
        self.actors = corpora.actors(data / "ravdess", work / "ravdess", plans.COPIES)
        corpora.digits(data / "fsdd", work / "fsdd", STRINGS, SINGLES)
        if (data / "librispeech").is_dir():
            corpora.librispeech(data / "librispeech", work / "librispeech")
        llm.build(work / "llm", **LLM)

    def report(self, seeds: Sequence[int], names: Sequence[str] | None, *, whole_window: bool = False) -> None:
        """Trains and tests the chosen setting with each seed, then the comparisons, all on `plans.TUNED_WITH`.

        Args:
            seeds: seeds of the chosen setting.
            names: names of the comparisons; all unless given.
            whole_window: whether to run the probe on a window of 30 s too, which takes a quarter of an hour.
        """
        found = self._figures()
        reported = self._ravdess(plans.REPORTED)
        self._encode([*self._ravdess(plans.TUNED_WITH), *reported, *self._digits(SPEAKERS)])
        if "ceiling" not in found:
            self._write("ceiling", exam.ceiling(self.frozen, reported))
        if "probe" not in found:
            self._write("probe", probe.measure(self._ravdess(plans.TUNED_WITH), reported, self.hear))
        if whole_window and WHOLE_WINDOW not in found:
            self._write(WHOLE_WINDOW, self._whole_window(reported))
        for seed in seeds:
            self._arm(plans.CHOSEN, seed, whole=True)
        for arm in (*plans.TONE, *plans.WHOLE, *plans.ROTATED):
            if names is None or arm.name in names:
                self._arm(arm, 0, whole=arm in plans.WHOLE)

    def test(self, folder: Path, seeds: Sequence[int]) -> None:
        """Trains on all actors that a folder lacks, and tests on those that it holds.

        Args:
            folder: folder of recordings named as RAVDESS names them.
            seeds: seeds of the chosen setting.
        """
        tested = self.work / "tested" / folder.resolve().name
        held = corpora.actors(folder, tested)
        manifests = [tested / f"{actor}.jsonl" for actor in held]
        training = [actor for actor in self.actors if actor not in held]
        self._encode(manifests)
        for seed in seeds:
            model = self._trained(plans.CHOSEN, training, f"tested-{'-'.join(held)}-{seed}", seed)
            found = {"actors": held, "learnt": training, "seed": seed, "swap": exam.swap(model, manifests, self.hear)}
            found |= exam.voices(model, manifests, self.hear)
            print(json.dumps(found, indent=1))
            self._write(f"tested {' '.join(held)} seed {seed}", found)

    def _arm(self, arm: Arm, seed: int, *, whole: bool) -> None:
        """Trains and tests an arm, where its figures do not exist yet; `whole` asks for all that RAVDESS has."""
        name = f"{arm.name} seed {seed}"
        if name in self._figures():
            return
        began = time.monotonic()
        folder = re.sub(r"\W+", "-", arm.name.lower()).strip("-")
        model = self._trained(arm, plans.TUNED_WITH, f"{folder}-{seed}", seed)
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
                self._encode([listing])
                found["librispeech"] = exam.spoken(model, [listing], self.hear, LIBRISPEECH_TOKENS, ("L",))
        about = {"seed": seed, "speed": self.speed, "adapters": sum(w.numel() for w in model.adapters.parameters())}
        self._write(name, {**found, **about, "minutes": round((time.monotonic() - began) / 60, 1)})
        print(name, exam.line(found), flush=True)

    def _trained(self, arm: Arm, actors: Sequence[str], name: str, seed: int) -> DualSLM:
        """The arm's model after its last stage, by the project's own training loop."""
        # The replies of the last stage are the frozen LLM's own, written once for all arms.
        for actor in actors:
            job = Job((self.work / "ravdess" / f"{actor}.jsonl",), self.work / "ravdess" / f"{actor}.targets.jsonl")
            if not job.out.exists():
                write_targets(
                    job, LocalTeacher(self.frozen.llm, GenerationSettings(max_new_tokens=24)), seed=0, batch=60
                )
        recipe = plans.recipe_of(arm, self.work, actors, seed, self.speed)
        folder = train(recipe, self.work / "arms" / name, resume=True, device="cpu")
        return DualSLM.from_pretrained(folder, device="cpu")

    @cached_property
    def frozen(self) -> DualSLM:
        """Encoder and LLM, with untrained adapters that nobody uses."""
        return DualSLM.from_parts(
            str(self.work / "encoder"), str(self.work / "llm"), paralinguistic={"layer": 0}, device="cpu"
        )

    def _whole_window(self, reported: Sequence[Path]) -> dict[str, Any]:
        """The probe on frames of the encoder as it was published."""
        published = SpeechEncoder.from_pretrained(str(self.whisper))
        training = self._ravdess(plans.TUNED_WITH)
        cache = _frame_cache(published, [*training, *reported], self.work / "frames-30")
        return probe.measure(training, reported, cache.hear)

    def _encode(self, manifests: Sequence[Path]) -> None:
        """Encodes the recordings of some manifests; `self.hear` then gives their frames."""
        self.hear = _frame_cache(self.frozen.encoder, manifests, self.work / "frames").hear

    def _ravdess(self, actors: Sequence[str]) -> list[Path]:
        return [self.work / "ravdess" / f"{actor}.jsonl" for actor in actors if actor in self.actors]

    def _digits(self, speakers: Sequence[str]) -> list[Path]:
        return [self.work / "fsdd" / f"{speaker}-test.jsonl" for speaker in speakers]

    def _figures(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())["figures"] if self.out.exists() else {}
        return found

    def _write(self, name: str, figures: dict[str, Any]) -> None:
        """Adds figures to the result file, at once: a stopped study loses one arm at most."""
        result = {
            "command": "python -m studies.real_speech",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "figures": {**self._figures(), name: figures},
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.out) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


def _frame_cache(speech_encoder: SpeechEncoder, manifests: Sequence[Path], folder: Path) -> FrameCache:
    """A cache with every layer of all recordings of some manifests; those that it lacks are encoded."""
    # Every recording has the transcription task, so that its questions name them all.
    paths = [str(conversation.turns[0].speeches[0].audio) for conversation, _ in exam.questions(manifests, "asr")]
    # Every layer, because the probe and some arms read others than the last: one cache serves all.
    feature_cache.build(speech_encoder, paths, folder, every_layer=True)
    return FrameCache(folder, Rule.of(speech_encoder, every_layer=True))
