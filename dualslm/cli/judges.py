"""What the options of `dualslm eval` ask judges for."""

from __future__ import annotations

import argparse
from pathlib import Path

from dualslm.errors import DualSLMError
from dualslm.evaluation.judges import protocols as known
from dualslm.evaluation.judges.panel import DEFAULT, Order
from dualslm.evaluation.judges.spec import FORM, JudgeSpec


def order(args: argparse.Namespace) -> Order | None:
    """What the options say; None without a judge.

    Raises:
        DualSLMError: a judge, protocol or pair that is none, or options that need a judge.
    """
    if not args.judge:
        if args.sanity or args.pair or args.protocol or args.controls:
            raise DualSLMError("nobody to judge", got="no --judge", do=f"add --judge {FORM}")
        return None
    pairs = [tuple(text.split(":")) for text in args.pair]
    if wrong := [text for text, pair in zip(args.pair, pairs, strict=True) if len(pair) != 2]:
        raise DualSLMError("--pair names two systems", got=wrong[0], do="write --pair SYSTEM:SYSTEM")
    return Order(
        tuple(JudgeSpec.parse(text) for text in args.judge),
        tuple(known.protocol(name).id for name in args.protocol or DEFAULT),
        args.repeats,
        tuple((one, two) for one, two in pairs),
        args.controls,
        Path(args.judge_cache) if args.judge_cache else None,
    )
