"""`python -m dualslm.tiny`: build the embedded default, measure it, ship it, and write it into the README.

build    LLM, encoder, conversations, stages, figures; resumes where it was stopped
eval     measures the shipped model anew and writes docs/results/tiny.json
readme   writes the figures and the demo's output into README.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dualslm.errors import DualSLMError, one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dualslm.tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    build = verbs.add_parser("build", help="make everything anew")
    build.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the build")
    build.add_argument("--device", default=None, help="cpu or cuda; the GPU where there is one")
    build.add_argument(
        "--processes", type=int, default=None, help="how many processes render speech and write examples"
    )
    build.add_argument("--steps", default="llm,encoder,talks,adapters,eval", help="which steps, comma-separated")
    build.add_argument("--quick", action="store_true", help="every step at toy length, in minutes")
    build.add_argument("--ship", action="store_true", help="put the result in the package")
    build.set_defaults(verb=_build)
    measure = verbs.add_parser("eval", help="measure the shipped model")
    measure.add_argument("--out", type=Path, default=Path("docs/results/tiny.json"))
    measure.add_argument("--device", default=None)
    measure.add_argument("--processes", type=int, default=None)
    measure.add_argument("-n", type=int, default=500, help="utterances of each set")
    measure.set_defaults(verb=_eval)
    readme = verbs.add_parser("readme", help="write figures and demo into README.md")
    readme.add_argument("--check", action="store_true", help="only compare: status 1 where it is stale")
    readme.set_defaults(verb=_readme)
    args = parser.parse_args(argv)
    try:
        status: int = args.verb(args)
        return status
    except DualSLMError as error:
        print("error:", one_line(error), file=sys.stderr)
        return 2


# Each verb imports what it needs: torch and transformers take seconds, and `--help` needs neither.


def _build(args: argparse.Namespace) -> int:
    from dualslm.tiny.build import run

    size = run.QUICK if args.quick else run.FULL
    run.run(
        args.out,
        size,
        steps=args.steps.split(","),
        device=args.device,
        processes=args.processes,
        ship=args.ship,
    )
    return 0


def _eval(args: argparse.Namespace) -> int:
    from dualslm.tiny.build import run

    run.measure_shipped(args.out, count=args.n, device=args.device, processes=args.processes)
    return 0


def _readme(args: argparse.Namespace) -> int:
    from dualslm.tiny.build import readme

    return readme.write(check=args.check)


if __name__ == "__main__":
    sys.exit(main())
