"""Which LLM judges, where it is served, and a check that it is none of the systems under test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dualslm.errors import DualSLMError
from dualslm.openai_client import Client, key_of
from dualslm.toml import key_value

FORM = "name=...,base_url=http://.../v1,model=...[,key_env=VARIABLE][,at_once=N][,timeout=S][,max_tokens=N]"
NUMBERS = {"at_once": int, "timeout": float, "max_tokens": int}
CARD_KEYS = frozenset({"llm", "model", "url", "base_url", "name"})  # keys of a system's card that say what it runs on


@dataclass(frozen=True)
class JudgeSpec:
    """One judge.

    Attributes:
        name: name in reports and in the cache.
        base_url: address of the server, up to and including /v1.
        model: name of the model on the server.
        key_env: environment variable that holds the key.
        at_once: number of requests under way at the same time.
        timeout: longest wait for the server, in s.
        max_tokens: longest answer, in tokens.
    """

    name: str
    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    at_once: int = 8
    timeout: float = 120.0
    max_tokens: int = 300

    @classmethod
    def parse(cls, text: str) -> JudgeSpec:
        """Reads `name=qwen,base_url=http://localhost:8000/v1,model=Qwen/Qwen2.5-72B-Instruct`.

        Raises:
            DualSLMError: a missing, unknown or repeated key, or a value that makes no sense.
        """
        wrong = "that names no judge"
        pairs = [key_value(pair, wrong=wrong, do=f"write {FORM}") for pair in text.split(",")]
        given = dict(pairs)
        lacking = [key for key in ("name", "base_url", "model") if not given.get(key)]
        if lacking or len(given) < len(pairs) or not given.keys() <= cls.__dataclass_fields__.keys():
            raise DualSLMError(wrong, got=repr(text), do=f"write {FORM}")
        try:
            return cls(**{key: NUMBERS.get(key, str)(value) for key, value in given.items()})
        except ValueError as error:
            raise DualSLMError(wrong, got=error, do=f"write {FORM}") from error

    def __post_init__(self) -> None:
        for key in NUMBERS:
            if not getattr(self, key) > 0:
                raise DualSLMError(f"{key} of judge {self.name} makes no sense", got=getattr(self, key), do="give more")
        self.client()

    def client(self) -> Client:
        """A client of its server, with the key from the environment."""
        return Client(self.base_url, key_of(self.key_env), self.timeout, self.at_once)


def check(judges: Sequence[JudgeSpec], tested: Sequence[Mapping[str, Any]]) -> None:
    """Refuses two judges of one name, and a judge that is itself a system under test.

    Args:
        judges: judges, at least one.
        tested: cards of the systems under test, which name models and addresses under `CARD_KEYS` at any depth.

    Raises:
        DualSLMError: no judge, two of one name, or one with the model or the address of a system under test.
    """
    names = [judge.name for judge in judges]
    if not names or len({*names}) < len(names):
        raise DualSLMError("judges need names that differ", got=", ".join(names) or "no judge", do=f"write {FORM}")
    # LLMs prefer their own text, so that a score of itself would be worth nothing.
    under_test = {_normalized(text): text for card in tested for text in _names(card)}
    for judge in judges:
        for own in (judge.model, judge.base_url):
            if _normalized(own) in under_test:
                raise DualSLMError(
                    f"judge {judge.name} would judge itself",
                    got=f"{own}, on which a system under test runs ({under_test[_normalized(own)]})",
                    do="let another LLM on another server judge",
                )


def _names(card: Any) -> Iterator[str]:
    """Models and addresses on which a system runs, by its card."""
    if isinstance(card, Mapping):
        for key, value in card.items():
            if isinstance(value, str) and key in CARD_KEYS:
                yield value
            yield from _names(value)
    elif isinstance(card, list | tuple):
        for one in card:
            yield from _names(one)


def _normalized(text: str) -> str:
    """One spelling for each address and for each model; a model loses its owner or folder."""
    # The same weights may be "Qwen/Qwen2.5-7B" to one server and "/models/Qwen2.5-7B" to another.
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text.lower())
        host = "localhost" if parts.hostname in ("127.0.0.1", "::1", "0.0.0.0") else parts.hostname
        return f"//{host}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}{parts.path.rstrip('/')}"
    return text.rstrip("/").rsplit("/", 1)[-1].casefold()
