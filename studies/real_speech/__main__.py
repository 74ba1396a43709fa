"""The method on real human speech through a real encoder, with one command (docs/real-speech.md).

    python -m studies.real_speech --data FOLDER --encoder FOLDER [--test-dir FOLDER]

FOLDER holds `ravdess/` (actors 1-18), `fsdd/` and perhaps `librispeech/`. A stopped run is resumed. With `--test-dir`,
adapters are trained on all actors that the test folder lacks, and tested on those that it holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dualslm.errors import DualSLMError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.real_speech", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of the three corpora")
    parser.add_argument("--encoder", type=Path, metavar="FOLDER", help="folder of whisper-tiny.en")
    parser.add_argument("--test-dir", type=Path, metavar="FOLDER", help="recordings of other actors, named as RAVDESS")
    parser.add_argument("--work", type=Path, default=Path("runs/real_speech"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("docs/results/real_speech.json"), help="result file")
    parser.add_argument("--arms", default="", metavar="A,B", help="only these comparisons; an empty name for none")
    parser.add_argument("--seeds", default="0", metavar="0,1", help="seeds of the chosen setting")
    parser.add_argument("--speed", type=float, default=1.0, help="factor on the steps of every stage")
    parser.add_argument(
        "--whole-window", action="store_true", help="also run the probe on a window of 30 s: 15 minutes"
    )
    parser.add_argument("--page", action="store_true", help="only write docs/real-speech.md from the result file")
    parser.add_argument(
        "--check", action="store_true", help="only compare docs/real-speech.md: status 1 where it is stale"
    )
    args = parser.parse_args(argv)
    try:
        if args.page or args.check:
            from studies.real_speech import page

            return page.write(args.out, check=args.check)
        if args.data is None or args.encoder is None:
            parser.error("--data and --encoder are required")
        # Imported late: the page needs neither torch nor the corpora.
        from studies.real_speech.run import Study

        study = Study(args.data, args.encoder, args.work, args.out, args.speed)
        seeds = [int(seed) for seed in args.seeds.split(",")]
        if args.test_dir:
            study.test(args.test_dir, seeds)
        else:
            names = args.arms.split(",") if args.arms else None
            study.report(seeds, names, whole_window=args.whole_window)
        return 0
    except DualSLMError as error:
        print("error:", error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
