"""The majority line: always the commonest label of the test set. It knows the labels; it is a line to beat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dualslm.conversation import Reply, View
from dualslm.evaluation.metrics.labels import commonest
from dualslm.evaluation.systems.item import Item


class Majority:
    """Answers every question of a set with its commonest label.

    Args:
        items: items of all sets.
        name: name in reports.
    """

    reads_prompts = False

    def __init__(self, items: Sequence[Item], name: str = "majority") -> None:
        self.name = name
        # All items are counted before the first is asked, so that the answer depends on no order and no batch.
        gold: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for item in items:
            if item.choices and item.truth:
                gold[_set(item)].append(item.truth)
        self.answers = {which: commonest(labels) for which, labels in gold.items()}

    @property
    def about(self) -> Mapping[str, Any]:
        """What it answers for each set."""
        return {"kind": "majority", "says": {"/".join(which): label for which, label in sorted(self.answers.items())}}

    def views(self, item: Item) -> Sequence[None]:
        """It knows no views."""
        return (None,)

    def unfit(self, item: Item) -> str | None:
        """Choices alone have a commonest one."""
        return None if item.choices else "no choices"

    def answer(self, items: Sequence[Item], view: View | None) -> list[Reply]:
        """The commonest label, as a bare word."""
        return [Reply(self.answers[_set(item)]) for item in items]


def _set(item: Item) -> tuple[str, str, str]:
    return item.corpus, item.split, item.task
