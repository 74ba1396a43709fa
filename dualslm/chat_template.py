"""What an LLM's chat template does, found by trying it; which tokens control it; text → token ids.

A template comes from a model's folder, so it is somebody else's program: transformers' sandbox keeps it from files and
code, and the limits here from running or growing without end.

A *control token* is one that a chat template writes to mark turns: every special token, and every other added token
that stands in the template or is spelt in brackets. What people type or say may spell such a token out. It must never
become one, or a user could write turns that nobody spoke.

No torch here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock, local
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import Environment, Template, nodes
from jinja2.visitor import NodeTransformer

from dualslm.conversation import Messages, Tools
from dualslm.errors import DualSLMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids: TypeAlias = tuple[int, ...]
OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters around a placeholder
ANCHOR = "\n"
RENDER_SECONDS = 5.0  # a conversation takes a few thousandths
MAX_CHARACTERS_PER_CHARACTER = 10  # of what is rendered, for each of what it is made of
MAX_CHARACTERS = 1_000_000  # and beside that
PLAIN = (  # "User: …", newline, "Assistant:"; a reply ends with eos
    "{{ bos }}{% for m in messages %}"
    "{{ m['role'].capitalize() + ': ' if m['role'] != 'system' }}{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
IN_BRACKETS = re.compile(r"<\S+>|\[\S+\]")
# A tokenizer keeps "split special tokens" as a state of its own, which two threads must not set at once: the text of
# one would be read with the control tokens of the other.
_ENCODING = Lock()


@dataclass(frozen=True)
class ControlTokens:
    """The tokens that mark turns.

    Attributes:
        ids: their ids, by how they are spelt.
        pattern: finds any of them, the longest first.
        takes_before: those that take the white space before them.
        takes_after: those that take the white space after them.
        normalize: what the tokenizer makes of a text before it looks for them; None where it looks at the text itself.
    """

    ids: Mapping[str, int]
    pattern: re.Pattern[str]
    takes_before: frozenset[str]
    takes_after: frozenset[str]
    normalize: Callable[[str], str] | None

    def replaced(self, text: str, placeholder: Callable[[str], str]) -> str:
        """A text with a placeholder for each control token that it spells out."""
        if self.normalize is not None:
            normal = self.normalize(text)
            # Full-width brackets, for example, may become a control token only in the tokenizer's own spelling.
            if len(self.pattern.findall(normal)) > len(self.pattern.findall(text)):
                text = normal
        return self.pattern.sub(lambda match: placeholder(match[0]), text)

    def cut(self, text: str) -> Iterator[str]:
        """The text between control tokens and the tokens themselves, by turns."""
        done = 0
        for match in self.pattern.finditer(text):
            start = len(text[done : match.start()].rstrip()) + done if match[0] in self.takes_before else match.start()
            end = len(text) - len(text[match.end() :].lstrip()) if match[0] in self.takes_after else match.end()
            yield text[done:start]
            yield text[start:end]
            done = end
        yield text[done:]


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer and its chat template do, found by trying.

    Attributes:
        system: the template takes a system text.
        lead: white space between the generation prompt and a reply, which the LLM has to produce.
        end: the token after a reply, else eos.
        anchor: ids of `ANCHOR` where the tokenizer puts a space before every text, as SentencePiece models
            do: a piece then borrows the anchor, lest it begin with a space of its own. Empty elsewhere.
        controls: the tokens that mark turns.
        parsed: those of them that are not special and that the template looks for in a reply, as it does for the end
            of a chain of thought, to drop what stands before it.
    """

    system: bool
    lead: str
    end: int
    anchor: Ids
    controls: ControlTokens
    parsed: frozenset[str]


def format_of(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The chat format of a tokenizer; it is tried once.

    Raises:
        DualSLMError: its template cannot be rendered, or nothing tells where a reply ends.
    """
    return _tried(tokenizer, str(tokenizer.chat_template), tokenizer.eos_token_id, len(tokenizer))


@lru_cache(maxsize=8)
def _tried(tokenizer: PreTrainedTokenizerBase, template: str, eos: int | None, _: int) -> ChatFormat:
    """Template, eos and number of tokens are named for the cache: they can be set anew on the same tokenizer."""
    system, user, reply = ({"role": role, "content": OPEN + role} for role in ("system", "user", "assistant"))
    asked = rendered(tokenizer, [user], generation=True)
    answered = rendered(tokenizer, [user, reply], generation=False)
    before, _separator, after = answered.partition(reply["content"])
    lead = before.removeprefix(asked) if before.startswith(asked) else ""
    try:
        instructed = rendered(tokenizer, [system, user], generation=True)
    except DualSLMError:
        instructed = ""
    one = list(token_ids(tokenizer, "a"))
    spaced = tokenizer.decode(one + one) != tokenizer.decode(one) * 2
    # Some templates build their tokens from pieces, so that only what they render spells them out.
    controls = _controls(tokenizer, "\0".join([template, asked, answered, instructed]))
    return ChatFormat(
        system=system["content"] in instructed,
        lead=lead if lead.isspace() else "",
        end=_end(tokenizer, after.lstrip(), eos),
        anchor=token_ids(tokenizer, ANCHOR) if spaced else (),
        controls=controls,
        parsed=frozenset(_parsed(tokenizer, template, controls)),
    )


def _end(tokenizer: PreTrainedTokenizerBase, after: str, eos: int | None) -> int:
    ids = token_ids(tokenizer, after) if after else ()
    if ids and ids[0] in special_ids(tokenizer):
        return ids[0]
    if eos is None:
        got = "no eos token, and no special token after a reply in the chat template"
        raise DualSLMError("nothing tells where a reply of this LLM ends", got=got, do="set tokenizer.eos_token")
    return int(eos)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of every special and every added token."""
    return frozenset({*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids})


# ---------------------------------------------------------------------- control tokens


def _controls(tokenizer: PreTrainedTokenizerBase, written: str) -> ControlTokens:
    """The control tokens of a tokenizer; `written`: all that its template is known to write."""
    added = tokenizer.added_tokens_decoder
    ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    for number, token in added.items():
        text = token.content
        # Runs of blanks, HTML tags and words that somebody added are not special and are part of ordinary text.
        in_template = text in written and not text.isspace() and not text.isalnum()
        in_brackets = number >= tokenizer.vocab_size and IN_BRACKETS.fullmatch(text) is not None
        if text and (token.special or in_template or in_brackets):
            ids[text] = number
    own = [token for token in added.values() if token.content in ids]
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    looks_later = normalizer is not None and any(token.normalized for token in own)
    return ControlTokens(
        ids=ids,
        pattern=re.compile(_any_of(list(ids)) if ids else r"(?!)"),
        takes_before=frozenset(token.content for token in own if token.lstrip),
        takes_after=frozenset(token.content for token in own if token.rstrip),
        normalize=normalizer.normalize_str if looks_later else None,
    )


def _any_of(words: list[str]) -> str:
    """A pattern of these words, the longest first.

    Written as a tree: some tokenizers have thousands, and each place in a text must not try one after the other.
    """
    if len(words) == 1:
        return re.escape(words[0])
    tails: dict[str, list[str]] = {}
    for word in filter(None, words):
        tails.setdefault(word[0], []).append(word[1:])
    branches = "|".join(re.escape(head) + _any_of(rest) for head, rest in tails.items())
    return f"(?:{branches})" + "?" * ("" in words)


def _parsed(tokenizer: PreTrainedTokenizerBase, template: str, controls: ControlTokens) -> Iterator[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    ask = {"role": "user", "content": "a"}
    for name in controls.ids:
        if name in template and name not in special:
            reply = f"{OPEN}a{name}{OPEN}b"
            try:
                text = rendered(tokenizer, [ask, {"role": "assistant", "content": reply}, ask], generation=True)
            except DualSLMError:
                continue
            if reply not in text:
                yield name


# ---------------------------------------------------------------------- token ids


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids of a text on its own; control tokens in it are control tokens."""
    return _encoded(tokenizer, text)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Token ids of a text on its own; control tokens that it spells out are plain characters.

    Raises:
        DualSLMError: the tokenizer knows no other way to read one.
    """
    controls = format_of(tokenizer).controls
    ids = _encoded(tokenizer, text, split=True)
    forged = {controls.ids[name] for name in controls.pattern.findall(text)}
    if forged.isdisjoint(ids):
        return ids
    # Added tokens that are not special are matched whatever the tokenizer is told. What comes after that, its
    # normalizer, its splits and its model, reads characters.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        splits = [(normal, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(normal)
        ids = tuple(token.id for split, _ in splits for token in backend.model.tokenize(split))
    if not forged.isdisjoint(ids):
        got = next(name for name, number in controls.ids.items() if number in forged and number in ids)
        raise DualSLMError("a control token in this text cannot be read as text", got=repr(got), do="leave it out")
    return ids


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, *, split: bool = False, whole: bool = False) -> Ids:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # of JSON, or of bytes on a command line that are not UTF-8
        got = f"U+{ord(text[error.start]):04X} after {text[max(0, error.start - 20) : error.start]!r}"
        raise DualSLMError("half of a character in a text", got=got, do="write the text in UTF-8") from None
    with _ENCODING:
        return tuple(tokenizer.encode(text, add_special_tokens=whole, split_special_tokens=split))


# ---------------------------------------------------------------------- rendering within limits


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation: bool, tools: Tools = ()) -> str:
    """What `apply_chat_template` renders, in limited time and of limited size.

    Raises:
        DualSLMError: the template refuses the conversation, fails, or runs into a limit.
    """
    own = bool(tokenizer.chat_template)
    given = len(json.dumps([*messages, *tools], ensure_ascii=False))
    # Without a template, a prompt begins as a text of this tokenizer does.
    adds_bos = tokenizer.bos_token_id is not None and _encoded(tokenizer, "a", whole=True)[0] == tokenizer.bos_token_id
    _LIMITS.begin(given)
    try:
        pieces = _compiled(tokenizer.get_chat_template(None if own else PLAIN, list(tools) or None)).generate(
            **tokenizer.special_tokens_map,
            messages=[dict(message) for message in messages],
            tools=list(tools) or None,
            documents=None,
            add_generation_prompt=generation,
            enable_thinking=False,
            bos=tokenizer.bos_token if not own and adds_bos else "",
        )
        return _LIMITS.join(pieces)
    except _LimitError as error:
        do = "set tokenizer.chat_template to one that ends"
        raise DualSLMError("the LLM's chat template does not end", got=str(error), do=do) from None
    except Exception as error:  # a template is a program of somebody else's, and may fail in any way
        got = (str(error).strip() or type(error).__name__).splitlines()[0]
        do = "let user and assistant alternate, beginning with the user, or set tokenizer.chat_template"
        raise DualSLMError("the LLM's chat template refuses this conversation", got=got, do=do) from error


class _LimitError(Exception):
    """A template ran into a limit."""


class _Limits(local):
    """The limits of the rendering that this thread is at, and the operators that may run into them.

    Attributes:
        ends: s, of `time.monotonic`.
        characters: the longest text.
    """

    ends = 0.0
    characters = 0

    def begin(self, given: int) -> None:
        """Limits the rendering of so many characters, which begins now."""
        self.ends = time.monotonic() + RENDER_SECONDS
        self.characters = MAX_CHARACTERS + MAX_CHARACTERS_PER_CHARACTER * given

    def tick(self) -> bool:
        """Looks at the clock."""
        if time.monotonic() > self.ends:
            raise _LimitError(f"no end after {RENDER_SECONDS:g} s")
        return True

    def sized(self, size: int) -> None:
        """Refuses a text of this size before it is made."""
        if size > self.characters:
            raise _LimitError(f"more than {self.characters} characters")

    def join(self, pieces: Iterable[Any]) -> str:
        """The pieces that a template gives, as one text."""
        texts = []
        size = 0
        for piece in pieces:
            texts.append(str(piece))
            size += len(texts[-1])
            self.sized(size)
            self.tick()
        return "".join(texts)

    def times(self, left: Any, right: Any) -> Any:
        """The operator *, which repeats texts and lists too."""
        for some, number in ((left, right), (right, left)):
            if isinstance(number, int) and hasattr(some, "__len__"):
                self.sized(len(some) * number)
        return left * right

    def power(self, left: Any, right: Any) -> Any:
        """The operator **."""
        if isinstance(left, int) and isinstance(right, int):
            self.sized(left.bit_length() * right)
        return left**right

    def plus(self, left: Any, right: Any) -> Any:
        """The operator +, which joins texts and lists too."""
        if hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.sized(len(left) + len(right))
        return left + right


_LIMITS = _Limits()


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """A template in transformers' sandbox, which looks at the clock in every round of every loop."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # Unoptimized: constant expressions, however large, are otherwise worked out before any limit holds.
    environment: Environment = _compile_jinja_template("").environment.overlay(optimized=False)
    limited = {"*": _LIMITS.times, "**": _LIMITS.power, "+": _LIMITS.plus}
    environment.extend(dualslm_tick=_LIMITS.tick, dualslm_join=_LIMITS.join)
    vars(environment).update(intercepted_binops=frozenset(limited))
    vars(environment).update(binop_table={**vars(environment)["binop_table"], **limited})
    tree = _Watched().visit(environment.parse(source)).set_environment(environment)
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


class _Watched(NodeTransformer):
    """Has loops and macros look at the clock, and texts be joined under their limit."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A round of a loop, and each item that its condition looks at."""
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_call("dualslm_tick", []), node.test)
        node.body.insert(0, nodes.ExprStmt(_call("dualslm_tick", [])))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """A call of a macro, which may call itself."""
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("dualslm_tick", [])))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """The operator ~."""
        self.generic_visit(node)
        return _call("dualslm_join", [nodes.List(node.nodes, lineno=node.lineno)])


def _call(attribute: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(attribute), arguments, [], None, None)
