"""The README.md of a checkpoint: `modelcard.md` filled with what its card says, and the hub's front matter (ours).

Nothing is made up: what a card does not tell, the page says is not stated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import tomli_w

from dualslm.errors import for_markdown, one_line
from dualslm.pocket import HUB_IDS

if TYPE_CHECKING:
    from dualslm.model.checkpoint import Card

TEMPLATE = Path(__file__).with_suffix(".md")
NOT_STATED = "not stated"


def modelcard(card: Card, repo: str = "this repository") -> str:
    """The page of a checkpoint.

    Args:
        card: of the checkpoint.
        repo: the hub id that it is to have.
    """
    words = {
        "repo": one_line(repo),
        "llm_name": for_markdown(card.llm.rstrip("/").rsplit("/", 1)[-1]),
        "metrics": _metrics(card.metrics),
        "recipe": _recipe(card.recipe),
        "limits": f" It {for_markdown(card.limits)}." if card.limits else "",
        "licence": f"The adapters: {for_markdown(card.license or 'their licence is ' + NOT_STATED)}.",
    }
    for name in ("llm", "encoder", "llm_revision", "encoder_revision", "llm_fingerprint", "encoder_fingerprint"):
        words[name] = for_markdown(getattr(card, name) or NOT_STATED)
    return _front(card) + Template(TEMPLATE.read_text(encoding="utf-8")).substitute(words)


def _front(card: Card) -> str:
    """What the hub reads: base models by their ids, never a folder of somebody's machine."""
    lines = ["library_name: dualslm", "pipeline_tag: audio-text-to-text", "tags:", "- speech", "- paralinguistics"]
    lines += [f"license: {for_markdown(card.license)}"] if card.license else []
    named = [for_markdown(HUB_IDS.get(base, base)) for base in (card.llm, card.encoder)]
    bases = [base for base in named if not base.startswith((".", "/"))]
    lines += ["base_model:", *(f"- {base}" for base in bases), "base_model_relation: adapter"] if bases else []
    return "\n".join(["---", *lines, "---", "", ""])


def _metrics(found: Mapping[str, Any]) -> str:
    rows = [f"| {for_markdown(name)} | {for_markdown(value)} |" for name, value in _flat(found)]
    return "\n".join(["| what | value |", "|---|--:|", *rows]) if rows else f"Nothing is {NOT_STATED[4:]}."


def _flat(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A table of tables as lines."""
    for key, value in found.items():
        name = before + str(key).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _recipe(raw: Mapping[str, Any]) -> str:
    """A recipe as a card keeps it → the TOML that trains the same again."""
    if not raw:
        return f"The recipe is {NOT_STATED}."
    named = {("stage" if key == "stages" else key): value for key, value in raw.items()}
    return f"With `dualslm train` and this recipe:\n\n```toml\n{tomli_w.dumps(_told(named))}```"


def _told(value: Any) -> Any:
    """Without what is None, which TOML cannot say."""
    if isinstance(value, Mapping):
        return {key: _told(part) for key, part in value.items() if part is not None}
    return [_told(part) for part in value] if isinstance(value, (list, tuple)) else value
