"""The options of `dualslm eval` that are about judges, as an order to the panel."""

from __future__ import annotations

import argparse
from pathlib import Path

from dualslm.errors import DualSLMError
from dualslm.evaluation.judges import protocols as known
from dualslm.evaluation.judges.panel import DEFAULT, Order
from dualslm.evaluation.judges.spec import FORM, JudgeSpec


def order(args: argparse.Namespace) -> Order | None:
    """The order that the options state; None without a judge.

    Raises:
        DualSLMError: a judge, protocol or pair that is malformed or unknown, or options that need a judge.
    """
    if not args.judge:
        # an evaluation takes hours: an option that would silently do nothing is refused before it starts
        if args.sanity or args.pair or args.protocol or args.controls:
            raise DualSLMError("nobody to judge", got="no --judge", do=f"add --judge {FORM}")
        return None
    pairs = [tuple(text.split(":")) for text in args.pair]
    if wrong := [text for text, pair in zip(args.pair, pairs, strict=True) if len(pair) != 2]:
        raise DualSLMError("--pair names two systems", got=wrong[0], do="write --pair SYSTEM:SYSTEM")
    return Order(
        tuple(JudgeSpec.parse(text) for text in args.judge),
        # ids with their version, for example cs-1: a changed protocol never mixes with older verdicts
        tuple(known.protocol(name).id for name in args.protocol or DEFAULT),
        args.repeats,
        tuple((one, two) for one, two in pairs),
        args.controls,
        Path(args.judge_cache) if args.judge_cache else None,
    )
