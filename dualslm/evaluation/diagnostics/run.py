"""Runs the diagnostics on a model and some manifests (`dualslm eval RUN --instruments`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.evaluation.diagnostics.base import Examiner, Result, remembered
from dualslm.evaluation.diagnostics.context import alarm, history
from dualslm.evaluation.diagnostics.items import LIMIT, Material, read
from dualslm.evaluation.diagnostics.leaks import tone_from_words, words_from_tone
from dualslm.evaluation.diagnostics.probes import probes
from dualslm.evaluation.diagnostics.replacement import attribution, equivalence
from dualslm.evaluation.diagnostics.swap import source_swap, style_contrast
from dualslm.model.dualslm import DualSLM
from dualslm.model.inputs import Hear

__all__ = ["DIAGNOSTICS", "LIMIT", "measure", "run"]

DIAGNOSTICS: Mapping[str, Callable[[Examiner, Material], Result]] = {
    "leak-tone": tone_from_words,
    "leak-words": words_from_tone,
    "probes": probes,
    "swap": source_swap,
    "equivalence": equivalence,
    "contrast": style_contrast,
    "attribution": attribution,
    "history": history,
    "alarm": alarm,
}
NEEDS = {  # the kinds of items without which an instrument has nothing to measure
    "leak-tone": ("voices",),
    "leak-words": ("words",),
    "probes": ("words",),
    "swap": ("voices", "words"),
    "equivalence": ("words",),
    "contrast": ("replies",),
    "attribution": ("replies",),
    "history": ("replies",),
    "alarm": ("words",),
}


def run(
    model: DualSLM,
    manifests: Sequence[Path],
    *,
    hear: Hear | None = None,
    names: Sequence[str] = tuple(DIAGNOSTICS),
    limit: int = LIMIT,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Some instruments on some manifests, as the report shows them.

    Args:
        model: with trained adapters.
        manifests: of recordings that the model has not learnt from.
        hear: gives frames, for example from a cache; the model's own ears when None.
        names: of the instruments.
        limit: items of each kind.
        seed: of all draws.
        say: gets a line before each.

    Returns:
        By name: title, rows (label, value, low, high, n and, where it is not 0, zero) and reading.

    Raises:
        DualSLMError: an unknown instrument, a manifest that cannot be read, or scikit-learn missing for the probes.
    """
    if unknown := [name for name in names if name not in DIAGNOSTICS]:
        raise DualSLMError("unknown instrument", got=unknown[0], do=f"choose some of {', '.join(DIAGNOSTICS)}")
    return measure(
        Examiner(model.eval(), hear or remembered(model), seed=seed),
        read(manifests, limit=limit, seed=seed),
        names,
        say,
    )


def measure(
    desk: Examiner,
    material: Material,
    names: Sequence[str] = tuple(DIAGNOSTICS),
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Some instruments at a desk; one that the material has nothing for says so."""
    found = {}
    for name in names:
        say(f"instruments: {name}")
        lacking = [kind for kind in NEEDS[name] if len(getattr(material, kind)) < 2]
        if "voices" in NEEDS[name] and not material.attribute:
            lacking.append("values of a voice that are asked about")
        nothing = Result(name, [], f"Not measured: fewer than two {' and '.join(lacking)} in the manifests.")
        found[name] = (nothing if lacking else DIAGNOSTICS[name](desk, material)).as_json()
    return found
