"""A plain classifier of emotions: emotion2vec through FunASR, an optional package (paper Table II)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualslm.audio import load
from dualslm.conversation import Reply, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item

DEFAULT = "iic/emotion2vec_plus_large"


class Emotion2Vec:
    """Its answer is the bare name of the likeliest emotion, in English.

    Args:
        source: FunASR's name of the model, or a folder.
        name: as reports call it.

    Raises:
        DualSLMError: FunASR is not installed.
    """

    def __init__(self, source: str = DEFAULT, *, name: str = "emotion2vec") -> None:
        try:
            from funasr import AutoModel
        except ImportError as error:
            raise DualSLMError("emotion2vec runs through FunASR", got=str(error), do="pip install funasr") from error
        self.source, self.name = source, name
        self.model: Any = AutoModel(model=source, disable_update=True)

    @property
    def about(self) -> Mapping[str, Any]:
        """The model."""
        return {"kind": "emotion2vec", "model": self.source}

    def views(self, item: Item) -> Sequence[None]:
        """It has one way of hearing."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It knows emotions alone."""
        return "no recording" if not item.speech.audio else None if item.task == "emotion" else "no emotion asked"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """The likeliest emotion of each recording."""
        return [Reply(self._one(load(item.speech.audio))) for item in items]  # type: ignore[arg-type]

    def _one(self, samples: Any) -> str:
        (found,) = self.model.generate(samples, granularity="utterance", extract_embedding=False)
        best = max(zip(found["scores"], found["labels"], strict=True))[1]
        return str(best).rpartition("/")[2].strip("<>")  # labels are "Chinese/English"
