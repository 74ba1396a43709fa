"""A plain classifier of emotions: emotion2vec+ through FunASR, an optional package.

It was fine-tuned on emotions by its authors, and is not the row of the paper's Table II: see `emotion_features.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualslm.audio import load
from dualslm.conversation import Reply, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.systems.item import Item

DEFAULT = "iic/emotion2vec_plus_large"


def funasr_model(source: str) -> Any:
    """One of FunASR's models.

    Args:
        source: FunASR's name of the model, or a folder.

    Raises:
        DualSLMError: FunASR is not installed.
    """
    try:
        from funasr import AutoModel
    except ImportError as error:
        raise DualSLMError("emotion2vec runs through FunASR", got=str(error), do="pip install funasr") from error
    # FunASR looks for a newer version of itself on the network at every start, unless that is disabled.
    return AutoModel(model=source, disable_update=True)


class Emotion2Vec:
    """Its answer is the bare name of the likeliest emotion, in English.

    Args:
        source: FunASR's name of the model, or a folder.
        name: name in reports.

    Raises:
        DualSLMError: FunASR is not installed.
    """

    reads_prompts = False

    def __init__(self, source: str = DEFAULT, *, name: str = "emotion2vec") -> None:
        self.source = source
        self.name = name
        self.model = funasr_model(source)

    @property
    def about(self) -> Mapping[str, Any]:
        """The model."""
        return {"kind": "emotion2vec", "model": self.source}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """It knows emotions alone."""
        return "no recording" if not item.speech.audio else None if item.task == "emotion" else "no emotion asked"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """The likeliest emotion of each recording."""
        replies = []
        for item in items:
            samples = load(item.speech.audio)  # type: ignore[arg-type]
            (found,) = self.model.generate(samples, granularity="utterance", extract_embedding=False)
            best = max(zip(found["scores"], found["labels"], strict=True))[1]
            replies.append(Reply(str(best).rpartition("/")[2].strip("<>")))  # labels are "Chinese/English", or "<unk>"
        return replies
