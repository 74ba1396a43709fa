"""Writes where things are into docs/architecture.md: file and line of the definitions that a newcomer asks for first.

    python docs/build/architecture.py [--check]

With `--check` it only compares and returns 1 where the page is stale.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from dualslm.tiny.build.readme import put

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"

# question → the way through the code, from the definition that a reader opens first
WAYS: dict[str, list[tuple[str, str]]] = {
    "Where does a training step happen?": [
        ("dualslm/training/trainer.py", "Trainer.training_step"),
        ("dualslm/model/dualslm.py", "DualSLM.forward"),
        ("dualslm/model/loss.py", "next_token_loss"),
    ],
    "Where do P and L enter the prompt?": [
        ("dualslm/prompt.py", "render"),
        ("dualslm/model/inputs.py", "fill"),
        ("dualslm/model/inputs.py", "splice"),
    ],
    "Where does a request become a reply?": [
        ("dualslm/serve/app.py", "app"),
        ("dualslm/serve/service.py", "Service.stream"),
        ("dualslm/inference/local.py", "LocalBackend.stream"),
    ],
    "Where does a turn of a conversation become a reply?": [
        ("dualslm/inference/session.py", "Session.say"),
        ("dualslm/inference/session.py", "Session.answer"),
        ("dualslm/inference/continuous_batch.py", "ContinuousBatch.step"),
    ],
}


def line_of(path: str, name: str) -> int:
    """The line of a definition; `Class.method` for one in a class."""
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    found: ast.stmt | None = None
    for part in name.split("."):
        definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = next(node for node in body if isinstance(node, definitions) and node.name == part)
        body = found.body
    assert found is not None
    return found.lineno


def table() -> str:
    """The ways as a Markdown table."""
    rows = ["| question | first | then | then |", "|---|---|---|---|"]
    for question, way in WAYS.items():
        cells = [f"[`{name}`](../{path}#L{line_of(path, name)}) {path}:{line_of(path, name)}" for path, name in way]
        rows.append("| " + " | ".join([question, *cells]) + " |")
    return "\n".join([*rows, ""])


def main() -> int:
    """Writes or compares."""
    text = PAGE.read_text()
    fresh = put(text, "ways", table())
    if "--check" in sys.argv[1:]:
        return int(fresh != text)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
