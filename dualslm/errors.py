"""What a user is shown: the one error, and text from elsewhere, made safe for terminals, Markdown and HTML.

Anything that a user can cause raises `DualSLMError`; the command line prints its message as one line and
exits with status 2. `assert` is kept for our own bugs.

File names, transcripts, replies and messages of others may hold anything: an escape sequence that rewrites a terminal
or fills a clipboard, a mark that turns the direction of writing, a tag, a link. All of it passes one of the functions
below before anybody reads it.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but tab and newline, of C1 too; separators of lines; marks that turn the direction of writing; and
# halves of characters, as in file names that are not UTF-8, which cannot be printed at all.
ENTITY = re.compile(r"&(?=#?\w+;)")
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

MAX_PART = 2000  # characters of one part of an error


class DualSLMError(ValueError):
    """A mistake that the user can correct.

    Args:
        wrong: what is wrong, in a few words.
        got: what was found instead of what was expected.
        do: what to do next.
    """

    def __init__(self, wrong: str, *, got: object, do: str) -> None:
        self.wrong = wrong
        self.got = got
        self.do = do
        super().__init__(f"{_held(wrong)}: got {_held(got)}; {do}")

    def __reduce__(self) -> tuple[Callable[[], DualSLMError], tuple[()]]:
        """Pickles the error, so that a worker process can raise it in its parent."""
        # Exceptions are rebuilt from `args`, which here is the finished message and not what __init__ takes.
        return partial(type(self), self.wrong, got=self.got, do=self.do), ()


class BrokenModelError(DualSLMError):
    """The model itself cannot answer; what was asked was right."""


def visible(text: object) -> str:
    """Text for a terminal: characters that a terminal would obey are spelt out."""
    return UNSEEN.sub(_spelt, str(text))


def one_line(text: object) -> str:
    """The same on one line."""
    return visible(" ".join(str(text).split()))


def for_json(value: Any, indent: int | None = None) -> str:
    """JSON that may be printed: what a terminal would obey is spelt as JSON spells it."""
    dumped = json.dumps(value, ensure_ascii=False, indent=indent)
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", dumped)


def for_markdown(text: object) -> str:
    """Text for one line or cell of Markdown: no tag, link, picture or new cell begins in it."""
    # a "&" that begins no entity is itself: P&L stays readable in the file too
    line = ENTITY.sub("&amp;", one_line(text)).replace("<", "&lt;")
    return line.replace("|", "\\|").replace("](", "]\\(")


def for_html(text: object) -> str:
    """Text for HTML, in an element or a quoted attribute."""
    return html.escape(visible(text))


class Visible(logging.Filter):
    """Makes every message of a logger safe for a terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Spells out what a terminal would obey; keeps every record."""
        record.msg = one_line(record.getMessage())
        record.args = ()
        return True


def new_console(**options: Any) -> Console:
    """A console of rich that prints text from elsewhere as it is read, and obeys none of it.

    Args:
        **options: of `rich.console.Console`.
    """
    made: Console = _visible_console()(**options)
    return made


@lru_cache(1)
def _visible_console() -> Any:
    from rich.console import Console  # 20 ms, which `--help` does not need
    from rich.segment import Segment

    class VisibleConsole(Console):
        """Spells out control characters of every text; those of rich itself are no text."""

        def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
            for segment in super().render(*given, **options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return VisibleConsole


def _held(text: object) -> str:
    """A text of bounded length: a name or a value of a megabyte would push all else out of a terminal."""
    shown = str(text)
    return shown if len(shown) <= MAX_PART else f"{shown[: MAX_PART // 2]} [...] {shown[-MAX_PART // 4 :]}"


def _spelt(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
