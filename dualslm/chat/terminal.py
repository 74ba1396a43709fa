"""A talk in the terminal: typed, spoken into the microphone, or given as recordings (ours).

A line is a command (`/help`), recordings by their paths, with a question after them or none, or text. Ctrl-C stops
the reply, which stands as far as it was said. Whatever cannot be done is told in one line, and the talk goes on.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from dualslm.audio import SAMPLE_RATE, load
from dualslm.chat import saved
from dualslm.conversation import Part, Speech, View
from dualslm.errors import DualSLMError
from dualslm.inference.session import Session, Times

if TYPE_CHECKING:
    from rich.console import Console

    from dualslm.chat.microphone import Microphone

RECORDING = re.compile(r"\.(wav|flac|mp3|ogg|opus|aiff?|m4a|aac|w64|caf|au)$", re.IGNORECASE)
WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|(?:\\.|[^\s\\])+)""")
LONG_WORD = 20  # cells
COLOURS = {"neutral": "white", "happy": "yellow", "sad": "blue", "angry": "red", "afraid": "magenta"}


class _Quit(Exception):  # noqa: N818 - no error
    """The talk is over."""


@dataclass(frozen=True)
class _Command:
    """A slash command.

    Attributes:
        usage: its arguments.
        help: what it does.
        run: does it, given the words after the command.
    """

    usage: str
    help: str
    run: Callable[[Chat, str], None]


class Chat:
    """A session with somebody at a terminal.

    Args:
        session: the talk.
        console: to print on.
        microphone: to listen to; None where there is none.
        no_microphone: why there is none, to be said at the start.
        read: gives the next line; Python's `input` unless given.
    """

    def __init__(
        self,
        session: Session,
        console: Console,
        microphone: Microphone | None = None,
        no_microphone: str = "",
        read: Callable[[str], str] = input,
    ) -> None:
        self.session, self.console = session, console
        self.microphone, self.no_microphone, self.read = microphone, no_microphone, read
        self.tone: Speech | None = None
        self.tone_name = ""

    def run(self) -> int:
        """Talks until `/quit` or the end of input; returns the exit status 0."""
        with suppress(ImportError):  # as on Windows
            import readline  # gives `input` its line editing

            readline.parse_and_bind("tab: complete")  # paths
        self._greet()
        while True:
            try:
                self.take(self.read(self._prompt()))
            except (EOFError, _Quit):
                self.console.print()
                return 0
            except KeyboardInterrupt:
                self._note("\n/quit or Ctrl-D ends the talk")
            except DualSLMError as error:
                self._note(" ".join(str(error).split()), style="red")

    def take(self, line: str) -> None:
        """Does what a line asks for.

        Raises:
            DualSLMError: it cannot be done; the talk is as it was.
        """
        line = line.strip()
        name, _, rest = line.partition(" ")
        if name in COMMANDS:
            COMMANDS[name].run(self, rest.strip())
        elif not line:
            self._listen()
        elif parts := list(spoken(line)):
            self.say(*parts)
        elif name.startswith("/"):
            raise DualSLMError("unknown command", got=name, do="see /help")
        else:
            self.say(line)

    def say(self, *parts: Part) -> None:
        """Says something and prints the reply as it comes."""
        self.say_as_is(*(self._toned(part) if isinstance(part, Speech) else part for part in parts))

    def say_as_is(self, *parts: Part) -> None:
        """The same, in the tone in which it was said."""
        flow = Flow(self.console)
        with interruptible() as stopped, closing(self.session.say(*parts)) as pieces:
            with self.console.status("[dim]listens[/]"):
                piece = next(pieces, None)
            while piece is not None:
                flow.add(piece)
                if stopped():
                    break
                piece = next(pieces, None)
            flow.end()
            if piece is not None:
                self.console.print(" [yellow](stopped)[/]", end="")
        self.console.print()
        if self.session.times is not None:
            self._note(_brief(self.session.times))

    # ------------------------------------------------------------------ what is said

    def _listen(self) -> None:
        if self.microphone is None:
            self._note(self.no_microphone or "type something, or name a recording; /help says more")
            return
        with self.console.status("[bold red]speak now[/] [dim](Ctrl-C cancels)[/]"):
            samples = self.microphone.listen()
        if samples is None:
            self._note("nobody spoke")
            return
        self._note(f"{len(samples) / SAMPLE_RATE:.1f} s")
        self.say(Speech(samples))

    def _toned(self, speech: Speech) -> Speech:
        return speech if self.tone is None else speech.in_the_tone_of(self.tone)

    def _spoken_turn(self, number: str) -> Speech:
        """The recording of a turn, by the number in front of it."""
        turns = [turn for turn in self.session.conversation.turns if turn.role == "user"]
        if not number.isdecimal() or not 1 <= int(number) <= len(turns) or not turns[int(number) - 1].speeches:
            numbers = [str(place) for place, turn in enumerate(turns, 1) if turn.speeches]
            do = f"give one of {', '.join(numbers)}" if numbers else "say something first"
            raise DualSLMError("no spoken turn has this number", got=number or "no number", do=do)
        return turns[int(number) - 1].speeches[-1]

    # ------------------------------------------------------------------ commands

    def heard(self, number: str) -> None:
        """Prints what was heard in a spoken turn, the last one unless numbered."""
        spoken_turns = [turn for turn in self.session.conversation.turns if turn.role == "user" and turn.speeches]
        speech = spoken_turns[-1].speeches[-1] if spoken_turns and not number else self._spoken_turn(number)
        with self.console.status("[dim]asks for words and voice[/]"):
            heard = self.session.heard(speech)
            toned = self.session.heard(speech.tone) if speech.tone and speech.tone.audio is not None else heard
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]words, from L alone[/]", escape(heard.words))
        values = [f"[{COLOURS.get(value or '', 'default')}]{value or '?'}[/]" for value in toned.attributes.values()]
        described = speech.tone is not None and speech.tone.audio is None
        voice = escape(speech.tone.caption or "") if described and speech.tone else "  ".join(values)
        table.add_row("[dim]voice, given in words[/]" if described else "[dim]voice, from P alone[/]", voice)
        self.console.print(table)

    def use_tone(self, what: str) -> None:
        """Sets the tone of what will be said: of a recording, in words, or as it is said."""
        if what in ("", "off"):
            self.tone, self.tone_name = None, ""
            self._note("your own tone")
            return
        named = list(spoken(what))
        self.tone = named[0] if named and isinstance(named[0], Speech) else Speech(caption=what)
        self.tone_name = _path(what).name if named else what
        self._note(f"what you say is heard in the tone of {self.tone_name}; /tone off ends it")

    def swap(self, numbers: str) -> None:
        """Says the words of one turn in the tone of another."""
        words, _, tone = numbers.partition(" ")
        self.say_as_is(self._spoken_turn(words).in_the_tone_of(self._spoken_turn(tone.strip())))

    def use_view(self, text: str) -> None:
        """Sets or tells where P and L come from."""
        if text:
            self.session.view = View.parse(text)
        self._note(f"P from {self.session.view.para}, L from {self.session.view.ling}")

    def save(self, folder: str) -> None:
        """Saves the talk with its audio."""
        if not folder:
            raise DualSLMError("save it where?", got="no folder", do="write /save FOLDER")
        past = self.session.past
        settings = {"view": str(self.session.view), "past": None if past is None else str(past)}
        path = saved.save(_path(folder), self.session.conversation, settings)
        self._note(f"saved; dualslm chat --load {shlex.quote(str(path))} goes on with it")

    def undo(self, _: str) -> None:
        """Takes back the last exchange."""
        if self.session.undo() is None:
            raise DualSLMError("nothing to take back", got="an empty talk", do="say something first")
        self._note("the last exchange is taken back")

    def help(self, _: str) -> None:
        """Prints what can be typed."""
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]hello[/]", "says it in text")
        table.add_row("[bold]a.wav[/]", "says a recording: type its path, or drop the file here")
        table.add_row("[bold]a.wav What is it?[/]", "a recording and a question about it")
        if self.microphone is not None:
            table.add_row("[bold]Enter[/]", "listens to the microphone until you pause")
        table.add_row("[bold]Ctrl-C[/]", "stops the reply, which stands as far as it was said")
        for name, command in COMMANDS.items():
            table.add_row(f"[bold]{name}[/] {escape(command.usage)}", command.help)
        self.console.print(table)

    def quit(self, _: str) -> None:
        """Ends the talk."""
        raise _Quit

    # ------------------------------------------------------------------ what is shown

    def _greet(self) -> None:
        if self.microphone is not None:
            self._note(f"press Enter and speak ({self.microphone.name}), type, or name a recording; /help says more")
        else:
            self._note("type something, or name a recording; /help says more")
            self._note(self.no_microphone) if self.no_microphone else None
        number = 0
        for turn in self.session.conversation.turns:
            number += turn.role == "user"
            text = " ".join(part if isinstance(part, str) else _duration(part) for part in turn.parts)
            start = f"[bold cyan]{number} >[/] " if turn.role == "user" else ""
            self.console.print(start + escape(text), style=None if turn.role == "user" else "green")

    def _prompt(self) -> str:
        """The number of the turn and the tone; colours are marked so that line editing does not count them."""
        number = 1 + sum(turn.role == "user" for turn in self.session.conversation.turns)
        text = f"{number}{f' ({self.tone_name})' if self.tone_name else ''} > "
        return f"\x01\x1b[1;36m\x02{text}\x01\x1b[0m\x02" if self.console.is_terminal else ""

    def _note(self, text: str, style: str = "dim") -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=not self.console.is_terminal)


COMMANDS: Mapping[str, _Command] = {
    "/heard": _Command("[N]", "what was heard in the last spoken turn, or in turn N", Chat.heard),
    "/tone": _Command("FILE | WORDS | off", "what you say is heard in this tone", Chat.use_tone),
    "/swap": _Command("A B", "says the words of turn A in the tone of turn B", Chat.swap),
    "/view": _Command("[P,L]", "where P and L come from: speech, text or none", Chat.use_view),
    "/undo": _Command("", "takes back the last exchange", Chat.undo),
    "/save": _Command("FOLDER", "saves the talk with its audio", Chat.save),
    "/help": _Command("", "this", Chat.help),
    "/quit": _Command("", "ends the talk, as Ctrl-D does", Chat.quit),
}


def spoken(line: str) -> Iterator[Part]:
    """The recordings that a line begins with and the text after them; nothing where it begins with none.

    Raises:
        DualSLMError: what is named like a recording is none.
    """
    if "/" in line and _path(line).is_dir():
        raise DualSLMError(f"{line} is a folder", got="no recording", do="name a file in it")
    if _is_file(line):  # a name with spaces that nobody quoted
        yield Speech(load(_path(line)))
        return
    place, found = 0, WORD.match(line)
    while found and (RECORDING.search(_unquoted(found[1])) or (not place and _is_file(found[1]))):
        yield Speech(load(_path(found[1])))
        place, found = found.end(), WORD.match(line, found.end())
    if place and (rest := line[place:].strip()):
        yield rest


def _path(word: str) -> Path:
    """A path as terminals and file managers drop it: quoted, escaped or as a URL."""
    word = _unquoted(word)
    if word.startswith("file://"):
        return Path(unquote(word.removeprefix("file://")))
    return Path(os.path.expanduser(word))  # Path.expanduser fails for unknown users


def _is_file(word: str) -> bool:
    """Whether a word, or a whole line of text, names a file."""
    try:
        return ("/" in word or "." in word) and _path(word).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null in it
        return False


def _unquoted(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1] if quoted else re.sub(r"\\(.)", r"\1", word)


class Flow:
    """Prints a reply as it comes, and breaks lines between words.

    Args:
        console: to print on; into a pipe nothing is broken.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.held, self.column = console, "", 0

    def add(self, piece: str) -> None:
        """Prints every word that is whole; one that never ends, as in Chinese, as it comes."""
        *whole, self.held = re.split(r"(?=\s)", self.held + piece)
        if cell_len(self.held) > LONG_WORD:
            whole, self.held = [*whole, self.held], ""
        for word in whole:
            self._put(word)

    def end(self) -> None:
        """Prints what is held back."""
        self._put(self.held)
        self.held = ""

    def _put(self, word: str) -> None:
        """Prints a word with the space in front of it, or on a new line without."""
        wide = self.column + cell_len(word) > self.console.width
        if wide and self.column and self.console.is_terminal:
            self.console.print()
            self.column, word = 0, word.lstrip()
        self.console.print(word, end="", style="green", markup=False, soft_wrap=True)
        self.column = cell_len(word) - 1 if word.startswith("\n") else self.column + cell_len(word)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, and a second one raised: a reply stops between two pieces, never in the midst of a thought."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _duration(speech: Speech) -> str:
    if speech.audio is None:
        return f"[{speech.caption or 'silence'}]"
    return f"({len(load(speech.audio, speech.rate)) / SAMPLE_RATE:.1f} s of speech)"


def _brief(times: Times) -> str:
    """One line about how long it took."""
    left_out = f" · {times.left_out} oldest turns left out" if times.left_out else ""
    new = times.positions - times.reused
    return (
        f"{times.first_token:.2f} s to the first token · {times.tokens_per_second:.0f} tokens/s"
        f" · {new} of {times.positions} new{left_out}"
    )
