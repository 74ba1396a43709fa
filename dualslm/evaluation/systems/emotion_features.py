"""emotion2vec as in the paper's Table II: its frozen features, with a layer trained on a manifest (MELD's train split).

The classifier that emotion2vec's authors fine-tuned on other corpora is another system (`emotion2vec.py`).

Dimensions: N recordings, D width of the features, C emotions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualslm.audio import load
from dualslm.conversation import Reply, View
from dualslm.errors import DualSLMError
from dualslm.evaluation import items
from dualslm.evaluation.systems.emotion2vec import funasr_model
from dualslm.evaluation.systems.item import Item
from dualslm.files import sha256

DEFAULT = "iic/emotion2vec_base"
WEIGHT_DECAY = 1e-3  # of the squared weights, beside the mean cross-entropy
STEPS = 200  # of L-BFGS at most; it stops by itself where the loss no longer falls


class EmotionFeatures:
    """A linear layer on the features of a whole recording; its answer is the bare name of the likeliest emotion.

    Args:
        train: manifest whose emotions the layer learns.
        source: FunASR's name of the model, or a folder.
        name: name in reports.

    Raises:
        DualSLMError: FunASR is not installed, or the manifest asks for no emotion.
    """

    reads_prompts = False

    def __init__(self, train: Path, source: str = DEFAULT, *, name: str = "emotion2vec-features") -> None:
        self.source = source
        self.name = name
        self.model = funasr_model(source)
        learnt = [item for item in items.read([train], tasks=["emotion"]).items if item.speech.audio]
        if not learnt:
            raise DualSLMError(
                f"nothing to learn from in {train}", got="no recording with an emotion", do="name another"
            )
        self.emotions = sorted({str(item.truth) for item in learnt})
        self.trained_on = {"file": train.name, "sha256": sha256(train), "recordings": len(learnt)}
        classes_N = torch.tensor([self.emotions.index(str(item.truth)) for item in learnt])
        features_ND = self._features(learnt)
        self.mean_D = features_ND.mean(0)
        self.deviation_D = features_ND.std(0, correction=0).clamp_min(1e-6)
        self.layer = _trained(self._scaled(features_ND), classes_N, len(self.emotions))

    @property
    def about(self) -> Mapping[str, Any]:
        """The model and what its layer learnt from."""
        return {"kind": "emotion2vec-features", "model": self.source, "trained_on": self.trained_on}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It knows emotions alone."""
        return "no recording" if not item.speech.audio else None if item.task == "emotion" else "no emotion asked"

    @torch.no_grad()
    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """The likeliest emotion of each recording."""
        logits_NC = self.layer(self._scaled(self._features(items)))
        return [Reply(self.emotions[index]) for index in logits_NC.argmax(-1).tolist()]

    def _features(self, asked: Sequence[Item]) -> Tensor:
        """The features (N, D) of the recordings of some items."""
        rows = []
        for item in asked:
            samples = load(item.speech.audio)  # type: ignore[arg-type]
            (found,) = self.model.generate(samples, granularity="utterance", extract_embedding=True)
            rows.append(torch.as_tensor(found["feats"], dtype=torch.float32).flatten())
        return torch.stack(rows)

    def _scaled(self, features_ND: Tensor) -> Tensor:
        return (features_ND - self.mean_D) / self.deviation_D


def _trained(features_ND: Tensor, classes_N: Tensor, count: int) -> nn.Linear:
    """The linear layer of least cross-entropy; it begins at zero, so that nothing of it is drawn."""
    layer = nn.Linear(features_ND.shape[1], count)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = nn.functional.cross_entropy(layer(features_ND), classes_N) + WEIGHT_DECAY * layer.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return layer
