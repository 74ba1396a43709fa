"""Systems that can be evaluated (docs/evaluation.md): ours, and others behind the same protocol.

A system is one file and one entry of `dualslm.systems.named.SYSTEMS`.
"""

from dualslm.evaluation.systems.item import Item, System

__all__ = ["Item", "System"]
