"""The verb `record`. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dualslm.errors import DualSLMError, one_line


def add_record(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `record`."""
    parser.add_argument("out", metavar="FOLDER", help="of the recordings and their list; what is there is kept")
    parser.add_argument("--sentences", metavar="F.txt", help="sentences to read, one a line (default: twenty of ours)")
    parser.set_defaults(verb=_record)


def _record(args: argparse.Namespace) -> int:
    from dualslm.chat.microphone import Microphone
    from dualslm.chat.record import LIST, SENTENCES, record

    sentences = list(SENTENCES if args.sentences is None else _lines(Path(args.sentences)))
    microphone = Microphone()
    listening = f"Read each sentence aloud as you would say it. {microphone.name} is listening."
    print(one_line(listening), file=sys.stderr)
    try:
        done = record(Path(args.out), sentences, microphone.listen, input, print)
    except (EOFError, KeyboardInterrupt):
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    written = f"{done} of {len(sentences)} sentences in {Path(args.out) / LIST}"
    print(one_line(f"{written}; docs/your-own-voice.md goes on from here"))
    return 0


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        do = "name a text file with one sentence a line"
        raise DualSLMError(f"cannot read {file}", got=str(error), do=do) from error
    if not lines:
        raise DualSLMError(f"{file} holds no sentence", got="an empty file", do="write one sentence a line")
    return lines
