"""The embedded default: a made world of speech in which every claim can be shown, with nothing downloaded (ours).

`load()` gives the shipped model. `python -m dualslm.tiny build` makes all of it anew: the small LLM, the small
speech encoder, the recordings, the three stages and their figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualslm.model.dualslm import DualSLM

WEIGHTS = Path(__file__).parent / "weights"
ADAPTERS = WEIGHTS / "adapters"
CLIPS = Path(__file__).parent / "wavs"
LIMITS = "knows a made world of some 600 words only; it does not understand real voices"  # on its card
CONTEXT = 320  # tokens: its LLM was trained on conversations of at most four exchanges, which take about 240


def load(*, device: str | None = "cpu", load_llm: bool = True, verify: bool = False) -> DualSLM:
    """The shipped model: encoder, LLM and adapters from the package itself.

    Args:
        device: where the model runs, such as "cpu" or "cuda"; None takes the GPU where there is one. A CPU is quick
            enough for models of this size.
        load_llm: whether to load the whole LLM; False loads its token embeddings alone.
        verify: compare every byte of its frozen parts with its card.
    """
    # Imported here, so that `--help` and the paths above need no torch.
    from dualslm.model.dualslm import DualSLM

    return DualSLM.from_pretrained(ADAPTERS, device=device, load_llm=load_llm, verify=verify)
