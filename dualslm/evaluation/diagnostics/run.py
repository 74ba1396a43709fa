"""Runs the diagnostics on a model and some manifests (`dualslm eval RUN --instruments`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualslm.errors import DualSLMError
from dualslm.evaluation.diagnostics.base import Examiner, Result, cached_encoder
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
NEEDS = {  # the kinds of items without which a diagnostic has nothing to measure
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
    """Runs diagnostics on manifests.

    Args:
        model: model with trained adapters.
        manifests: manifests of recordings that the model was not trained on.
        hear: gives the frames of recordings, for example from a cache; the model's own encoder, cached, when None.
        names: names of the diagnostics.
        limit: greatest number of items of each kind.
        seed: seed of every draw.
        say: called with a line before each diagnostic.

    Returns:
        By name, what the report shows: title, rows (label, value, low, high, n and, where it is not 0, zero) and
        reading, the explanation.

    Raises:
        DualSLMError: an unknown diagnostic, a manifest that cannot be read, or scikit-learn missing for the probes.
    """
    if unknown := [name for name in names if name not in DIAGNOSTICS]:
        raise DualSLMError("unknown diagnostic", got=unknown[0], do=f"choose some of {', '.join(DIAGNOSTICS)}")
    examiner = Examiner(model.eval(), hear or cached_encoder(model), seed=seed)
    return measure(examiner, read(manifests, limit=limit, seed=seed), names, say)


def measure(
    examiner: Examiner,
    material: Material,
    names: Sequence[str] = tuple(DIAGNOSTICS),
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Runs diagnostics on items; one that has too few items says so."""
    found = {}
    for name in names:
        say(f"diagnostics: {name}")
        # One item has no interval, nor another recording to be swapped with; the report must say so and not fail.
        lacking = [kind for kind in NEEDS[name] if len(getattr(material, kind)) < 2]
        if "voices" in NEEDS[name] and not material.attribute:
            lacking.append("values of a voice that are asked about")
        if lacking:
            result = Result(name, [], f"Not measured: fewer than two {' and '.join(lacking)} in the manifests.")
        else:
            result = DIAGNOSTICS[name](examiner, material)
        found[name] = result.as_json()
    return found
