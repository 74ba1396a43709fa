"""The pocket study, one step at a time (docs/pocket.md).

    python -m studies.pocket STEP --data FOLDER --work FOLDER

Steps in their order: prose, texts, voices, corpora, label, replies, then `dualslm train` with the three recipes of
`studies/pocket/recipes/`, and measure, ask, ship. `page` writes the tables of docs/pocket.md from its result file. What
a step has finished is not done again by its next start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dualslm.errors import DualSLMError

LLM = "pocket:llm"
PAGE_RESULT = Path("docs/results/pocket.json")
STAGES_RESULT = Path("docs/results/pocket_stages.json")
OWN_RESULT = Path("docs/results/pocket_own_voice.json")
LOST_RESULT = Path("docs/results/words_lost.json")
START_RESULT = Path("docs/results/pocket_start.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one step and returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return STEPS[args.step](args) or 0
    except DualSLMError as error:
        print("error:", error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.pocket", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="corpora, one a folder")
    parser.add_argument("--work", type=Path, default=Path("runs/pocket"), metavar="FOLDER", help="what is made")
    parser.add_argument("--llm", help="hub id or folder; of texts pocket:llm unless given, of a checkpoint its own")
    parser.add_argument("--encoder", help="hub id or folder; the checkpoint's own unless given")
    parser.add_argument("--seed", type=int, default=0)
    texts = parser.add_argument_group("texts and voices")
    texts.add_argument("--texts", default="", metavar="A,B", help="sources of texts; all but meld unless given")
    texts.add_argument("--words", type=int, default=30_000, help="words of prose, or of the texts chosen")
    texts.add_argument("--tokens", type=int, default=8_000, help="commonest tokens of the LLM that are to be spoken")
    texts.add_argument("--each", type=int, default=2, help="times that each of them is to be spoken")
    texts.add_argument("--shard", default="1/1", metavar="I/N", help="part of the texts that this process speaks")
    measure = parser.add_argument_group("measuring")
    measure.add_argument("--model", default="runs/pocket/words/align", metavar="FOLDER", help="checkpoint to measure")
    measure.add_argument("--only", default="", metavar="A,B", help="words, decoder, tone, likelihood, leak")
    measure.add_argument("--most", type=int, default=150, help="recordings of a set at most")
    measure.add_argument("--whisper", default="openai/whisper-base", help="the whole Whisper, for its own decoder")
    measure.add_argument("--out", type=Path, metavar="FILE", help="result file; below --work unless given")
    parser.add_argument("--check", action="store_true", help="page: only say whether it is up to date")
    return parser


# Imported in each step: a step needs only its own packages, and --help none.


def _prose(args: argparse.Namespace) -> None:
    from studies.pocket import texts

    texts.sample_prose(args.llm or LLM, args.work / "prose.jsonl", args.words, args.seed)


def _texts(args: argparse.Namespace) -> None:
    from studies.pocket import texts

    names = [name for name in args.texts.split(",") if name]
    plan = texts.Plan(args.tokens, args.each, args.words, args.seed)
    texts.write(args.llm or LLM, args.data, args.work, names, plan)


def _voices(args: argparse.Namespace) -> None:
    from studies.pocket import voices

    part, _, parts = args.shard.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise DualSLMError("cannot read --shard", got=repr(args.shard), do="write I/N, for example 1/4")
    voices.speak(args.work / "texts.jsonl", args.work / "voices", int(part), int(parts))


def _corpora(args: argparse.Namespace) -> None:
    from studies.pocket import corpora

    corpora.write(args.data, args.work, args.seed)


def _label(args: argparse.Namespace) -> int:
    from studies.pocket import corpora

    return corpora.label(args.work / "manifests")


def _replies(args: argparse.Namespace) -> None:
    from studies.pocket import replies

    replies.write(args.llm or LLM, args.work / "manifests")


def _ship(args: argparse.Namespace) -> None:
    from studies.pocket import ship

    ship.write(args.model, args.out or ship.ADAPTERS)
    if args.out is None:
        ship.write_recordings(args.work / "manifests", ship.RECORDINGS, args.seed)


def _measure(args: argparse.Namespace) -> None:
    from studies.pocket import measure

    names = [name for name in args.only.split(",") if name] or list(measure.MEASURES)
    exam = measure.Exam(args.model, args.encoder, args.llm, args.work / "manifests", args.most, args.whisper)
    measure.run(exam, names, args.out or args.work / "measured.json")


def _ask(args: argparse.Namespace) -> None:
    from studies.pocket import measure

    exam = measure.Exam(args.model, args.encoder, args.llm, args.work / "manifests", args.most, args.whisper)
    measure.ask(exam, args.out or args.work / "asked.json", args.seed)


def _words_lost(args: argparse.Namespace) -> None:
    from studies.pocket import words_lost

    out = args.out or LOST_RESULT
    words_lost.measure_skipping(args.work, Path(args.model), args.most, out)
    trained = {window: words_lost.train_one(args.work, window, args.seed) for window in words_lost.WINDOWS}
    words_lost.measure_windows(args.work, trained, args.most, out)


def _own_voice(args: argparse.Namespace) -> None:
    from studies.pocket import own_voice

    own_voice.run(args.work, args.model, args.out or OWN_RESULT, args.seed)


def _page(args: argparse.Namespace) -> int:
    from studies.pocket import page

    first = page.write(args.out or PAGE_RESULT, check=args.check)
    second = page.write_stages(STAGES_RESULT, check=args.check)
    return first or second or page.write_start(START_RESULT, check=args.check)


STEPS: Mapping[str, Callable[[argparse.Namespace], int | None]] = {
    "prose": _prose,
    "texts": _texts,
    "voices": _voices,
    "corpora": _corpora,
    "label": _label,
    "replies": _replies,
    "measure": _measure,
    "ask": _ask,
    "ship": _ship,
    "words-lost": _words_lost,
    "own-voice": _own_voice,
    "page": _page,
}

if __name__ == "__main__":
    sys.exit(main())
