"""A conversation in the terminal: typed, spoken into the microphone, or given as recordings (ours).

A line is a command (`/help`), text, or the paths of recordings with or without a question after them. Ctrl-C stops
the reply, and what was said of it stays in the conversation. After an error, which is one line, it goes on.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from dualslm.audio import SAMPLE_RATE, load
from dualslm.chat import saved
from dualslm.chat.line import path_of, spoken
from dualslm.conversation import Part, Speech, View
from dualslm.errors import DualSLMError, one_line
from dualslm.inference.session import Session, Times
from dualslm.inference.voice_activity import require_speech

if TYPE_CHECKING:
    from rich.console import Console

    from dualslm.chat.microphone import Microphone
    from dualslm.chat.voice import Voice

MAX_WORD_CELLS = 20  # of the terminal; Chinese and Japanese have no spaces, so a whole reply would count as one word
COLOURS = {"neutral": "white", "happy": "yellow", "sad": "blue", "angry": "red", "afraid": "magenta"}


class _Quit(Exception):  # noqa: N818 - no error
    """The conversation is over."""


@dataclass(frozen=True)
class _Command:
    """A slash command.

    Attributes:
        usage: names of its arguments.
        help: description of what it does.
        run: function that does it, given the words after the command.
    """

    usage: str
    help: str
    run: Callable[[Chat, str], None]


class Chat:
    """A session with somebody at a terminal.

    Args:
        session: the conversation, with the model that replies.
        console: console to print on.
        microphone: microphone to listen to; None where there is none.
        no_microphone: reason why there is none, printed at the start.
        read: function that shows a prompt and returns the next line.
        any_sound: whether recordings without speech are answered too.
        voice: reads replies aloud; None for silence.
        tone_of: function that makes a tone of words, or refuses them.

    Attributes:
        tone: recording or caption whose tone is given to what is said; None for its own.
        tone_name: name of the tone, shown in the prompt.
    """

    def __init__(
        self,
        session: Session,
        console: Console,
        microphone: Microphone | None = None,
        no_microphone: str = "",
        read: Callable[[str], str] = input,
        *,
        any_sound: bool = False,
        voice: Voice | None = None,
        tone_of: Callable[[str], Speech] = lambda words: Speech(caption=words),
    ) -> None:
        self.session = session
        self.console = console
        self.microphone = microphone
        self.no_microphone = no_microphone
        self.read = read
        self.any_sound = any_sound
        self.voice = voice
        self.tone_of = tone_of
        self.tone: Speech | None = None
        self.tone_name = ""

    def run(self) -> int:
        """Runs until `/quit` or the end of input; returns the exit status 0."""
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
                # at the prompt Ctrl-C is often one too many after stopping a reply: it must not lose everything
                self._note("\n/quit or Ctrl-D ends the conversation")
            except DualSLMError as error:
                # a message may hold a file name with a line break in it
                self._note(one_line(error), style="red")

    def take(self, line: str) -> None:
        """Does what a line asks for.

        Raises:
            DualSLMError: it cannot be done; the conversation is as it was.
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
        """Says something in the chosen tone and prints the reply as it comes."""
        tone = self.tone
        if tone is not None:
            parts = tuple(part.in_the_tone_of(tone) if isinstance(part, Speech) else part for part in parts)
        self.say_as_is(*parts)

    def say_as_is(self, *parts: Part) -> None:
        """Says something in its own tone and prints the reply as it comes.

        Raises:
            NoSpeechError: nobody speaks in a recording; the conversation is as it was.
        """
        view = self.session.view
        if not self.any_sound and "speech" in (view.para, view.ling):
            for part in parts:
                if isinstance(part, Speech):
                    require_speech(part)
        flow = Flow(self.console)
        if self.voice is not None:
            self.voice.stop()  # whoever says something has heard enough of the last reply
        # closing the generator tells the session how much of the reply was said
        with interruptible() as stopped, closing(self.session.say(*parts)) as pieces:
            # the first piece takes longest: until then the recording is encoded and the prompt is read
            with self.console.status("[dim]listens[/]"):
                piece = next(pieces, None)
            while piece is not None:
                flow.add(piece)
                if self.voice is not None:
                    self.voice.add(piece)
                if stopped():
                    break
                piece = next(pieces, None)
            flow.end()
            if piece is not None:
                self.console.print(" [yellow](stopped)[/]", end="")
            self.console.print()
            if self.voice is not None:
                self._speak_to_the_end(stopped)
        if self.session.times is not None:
            self._note(_times_line(self.session.times))

    def _speak_to_the_end(self, stopped: Callable[[], bool]) -> None:
        """Waits until the reply was said; Ctrl-C silences it."""
        assert self.voice is not None
        if not stopped():
            self.voice.end()
        # a microphone would hear the voice, and a prompt would stand in the middle of the reply
        while not stopped() and not self.voice.wait(0.05):
            pass
        if stopped():
            self.voice.stop()

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

    def _spoken_turn(self, number: str) -> Speech:
        """The recording of a turn, by the number in front of it."""
        turns = [turn for turn in self.session.conversation.turns if turn.role == "user"]
        if not number.isdecimal() or not 1 <= int(number) <= len(turns) or not turns[int(number) - 1].speeches:
            numbers = [str(spoken_number) for spoken_number, turn in enumerate(turns, 1) if turn.speeches]
            do = f"give one of {', '.join(numbers)}" if numbers else "say something first"
            raise DualSLMError("no spoken turn has this number", got=number or "no number", do=do)
        return turns[int(number) - 1].speeches[-1]

    # ------------------------------------------------------------------ commands

    def describe(self, number: str) -> None:
        """Prints the words and the voice of a spoken turn, of the last one unless a number is given."""
        spoken_turns = [turn for turn in self.session.conversation.turns if turn.role == "user" and turn.speeches]
        speech = spoken_turns[-1].speeches[-1] if spoken_turns and not number else self._spoken_turn(number)
        tone = speech.tone
        with self.console.status("[dim]asks for words and voice[/]"):
            words = self.session.describe(speech).words
            # P comes from the tone where the turn has one, so that is whose voice is shown
            attributes = self.session.describe(speech if tone is None or tone.audio is None else tone).attributes
        table = Table.grid(padding=(0, 2))
        table.add_row("[dim]words, from L alone[/]", escape(words))
        if tone is not None and tone.audio is None:
            table.add_row("[dim]voice, given in words[/]", escape(tone.caption or ""))
        else:
            values = [f"[{COLOURS.get(value or '', 'default')}]{value or '?'}[/]" for value in attributes.values()]
            table.add_row("[dim]voice, from P alone[/]", "  ".join(values))
        self.console.print(table)

    def use_tone(self, what: str) -> None:
        """Sets the tone of what will be said: of a recording, in words, or as it is said."""
        if what in ("", "off"):
            self.tone = None
            self.tone_name = ""
            self._note("your own tone")
            return
        named = list(spoken(what))
        self.tone = named[0] if named and isinstance(named[0], Speech) else self.tone_of(what)
        self.tone_name = path_of(what).name if named else what
        self._note(f"what you say now is in the tone of {self.tone_name}; /tone off ends it")

    def swap(self, numbers: str) -> None:
        """Says the words of one turn in the tone of another."""
        words, _, tone = numbers.partition(" ")
        self.say_as_is(self._spoken_turn(words).in_the_tone_of(self._spoken_turn(tone.strip())))

    def use_view(self, text: str) -> None:
        """Sets or prints where P and L come from."""
        if text:
            self.session.view = View.parse(text)
        self._note(f"P from {self.session.view.para}, L from {self.session.view.ling}")

    def save(self, folder: str) -> None:
        """Saves the conversation with its audio."""
        if not folder:
            raise DualSLMError("save it where?", got="no folder", do="write /save FOLDER")
        past = self.session.past
        settings = {"view": str(self.session.view), "past": None if past is None else str(past)}
        path = saved.save(path_of(folder), self.session.conversation, settings)
        self._note(f"saved; dualslm chat --load {shlex.quote(str(path))} goes on with it")

    def undo(self, _: str) -> None:
        """Takes back the last exchange."""
        if self.session.undo() is None:
            raise DualSLMError("nothing to take back", got="an empty conversation", do="say something first")
        self._note("the last exchange is taken back")

    def help(self, _: str) -> None:
        """Prints what can be typed."""
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]hello[/]", "says it in text")
        table.add_row("[bold]a.wav[/]", "says a recording: type its path, or drop the file here")
        table.add_row("[bold]a.wav What is it?[/]", "a recording and a question about it")
        if self.microphone is not None:
            table.add_row("[bold]Enter[/]", "listens to the microphone until you pause")
        table.add_row("[bold]Ctrl-C[/]", "stops the reply; what was said of it stays")
        for name, command in COMMANDS.items():
            table.add_row(f"[bold]{name}[/] {escape(command.usage)}", command.help)
        self.console.print(table)

    def quit(self, _: str) -> None:
        """Ends the conversation."""
        raise _Quit

    # ------------------------------------------------------------------ what is shown

    def _greet(self) -> None:
        if self.microphone is not None:
            self._note(f"press Enter and speak ({self.microphone.name}), type, or name a recording; /help says more")
        else:
            self._note("type something, or name a recording; /help says more")
            if self.no_microphone:
                self._note(self.no_microphone)
        number = 0
        for turn in self.session.conversation.turns:
            number += turn.role == "user"
            text = " ".join(part if isinstance(part, str) else _recording(part) for part in turn.parts)
            start = f"[bold cyan]{number} >[/] " if turn.role == "user" else ""
            self.console.print(start + escape(text), style=None if turn.role == "user" else "green")

    def _prompt(self) -> str:
        """The number of the turn and the tone."""
        number = 1 + sum(turn.role == "user" for turn in self.session.conversation.turns)
        text = f"{number}{f' ({one_line(self.tone_name)})' if self.tone_name else ''} > "
        # \x01 and \x02 tell readline that the colours between them take no room, or long lines would wrap wrongly
        return f"\x01\x1b[1;36m\x02{text}\x01\x1b[0m\x02" if self.console.is_terminal else ""

    def _note(self, text: str, style: str = "dim") -> None:
        # without markup, because messages quote what users type; unwrapped in a pipe, so that a line stays one line
        self.console.print(text, style=style, markup=False, soft_wrap=not self.console.is_terminal)


COMMANDS: Mapping[str, _Command] = {
    "/heard": _Command("[N]", "the words and the voice of the last spoken turn, or of turn N", Chat.describe),
    "/tone": _Command("FILE | WORDS | off", "gives what you say this tone", Chat.use_tone),
    "/swap": _Command("A B", "says the words of turn A in the tone of turn B", Chat.swap),
    "/view": _Command("[P,L]", "where P and L come from: speech, text or none", Chat.use_view),
    "/undo": _Command("", "takes back the last exchange", Chat.undo),
    "/save": _Command("FOLDER", "saves the conversation with its audio", Chat.save),
    "/help": _Command("", "this", Chat.help),
    "/quit": _Command("", "ends the conversation, as Ctrl-D does", Chat.quit),
}


class Flow:
    """Prints a reply as it comes, and breaks lines between words.

    Args:
        console: console to print on; into a pipe lines are not broken.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.column = 0
        self._unfinished = ""  # a word that may go on with the next piece, so where it goes is not known yet

    def add(self, piece: str) -> None:
        """Prints every word that is whole; one that never ends, as in Chinese, as it comes."""
        *whole, self._unfinished = re.split(r"(?=\s)", self._unfinished + piece)
        for word in whole:
            self._put(word)
        if cell_len(self._unfinished) > MAX_WORD_CELLS:
            self.end()

    def end(self) -> None:
        """Prints what is held back."""
        self._put(self._unfinished)
        self._unfinished = ""

    def _put(self, word: str) -> None:
        """Prints a word with the space in front of it, or on a new line without."""
        too_wide = self.column + cell_len(word) > self.console.width
        if too_wide and self.column and self.console.is_terminal:
            self.console.print()
            self.column = 0
            word = word.lstrip()
        self.console.print(word, end="", style="green", markup=False, soft_wrap=True)
        self.column = cell_len(word) - 1 if word.startswith("\n") else self.column + cell_len(word)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Notes the first Ctrl-C, and raises KeyboardInterrupt at the second; gives a function that tells whether it came.

    So a reply stops between two pieces, and not inside a step of the LLM, which would leave its cache half written.
    """
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


def _recording(speech: Speech) -> str:
    """How the greeting shows a recording."""
    if speech.audio is None:
        return f"[{speech.caption or 'silence'}]"
    seconds = len(load(speech.audio, speech.rate)) / SAMPLE_RATE
    return f"({seconds:.1f} s of speech)"


def _times_line(times: Times) -> str:
    """How long a reply took."""
    left_out = f" · {times.left_out} oldest turns left out" if times.left_out else ""
    new = times.positions - times.reused
    speed = f"{times.first_token:.2f} s to the first token · {times.tokens_per_second:.0f} tokens/s"
    # positions that the LLM had read before cost nothing
    return f"{speed} · {new} of {times.positions} new{left_out}"
