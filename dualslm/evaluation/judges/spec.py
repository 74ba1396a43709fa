"""Which LLM judges, where it is served, and that it is none of those on trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dualslm.errors import DualSLMError
from dualslm.openai_client import Client, key_of

FORM = "name=...,base_url=http://.../v1,model=...[,key_env=VARIABLE][,at_once=N][,timeout=S][,max_tokens=N]"
NUMBERS = {"at_once": int, "timeout": float, "max_tokens": int}
OURS = frozenset({"llm", "model", "url", "base_url", "name"})  # keys of a system's card that tell what it runs on


@dataclass(frozen=True)
class JudgeSpec:
    """One judge.

    Attributes:
        name: as reports and the cache call it.
        base_url: up to and with /v1.
        model: as the server calls it.
        key_env: the environment variable that holds the key.
        at_once: requests under way.
        timeout: s without a word from the server.
        max_tokens: of an answer.
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
        pairs = [pair.partition("=")[::2] for pair in text.split(",")]
        given = dict(pairs)
        lacking = [key for key in ("name", "base_url", "model") if not given.get(key)]
        if lacking or len(given) < len(pairs) or not given.keys() <= cls.__dataclass_fields__.keys():
            raise DualSLMError("that names no judge", got=repr(text), do=f"write {FORM}")
        try:
            return cls(**{key: NUMBERS.get(key, str)(value) for key, value in given.items()})
        except ValueError as error:
            raise DualSLMError("that names no judge", got=error, do=f"write {FORM}") from error

    def __post_init__(self) -> None:
        for key in NUMBERS:
            if not getattr(self, key) > 0:
                raise DualSLMError(f"{key} of judge {self.name} makes no sense", got=getattr(self, key), do="give more")
        self.client()

    def client(self) -> Client:
        """Its server, with the key from the environment."""
        return Client(self.base_url, key_of(self.key_env), self.timeout, self.at_once)


def check(judges: Sequence[JudgeSpec], tested: Sequence[Mapping[str, Any]]) -> None:
    """Refuses two judges of one name, and a judge that is what it judges.

    Args:
        judges: that are to judge.
        tested: the cards of the systems on trial: models and addresses by the keys llm, model, url or base_url, at
            any depth.

    Raises:
        DualSLMError: a judge has the model or the address of a system on trial, or another judge's name.
    """
    names = [judge.name for judge in judges]
    if not names or len({*names}) < len(names):
        raise DualSLMError("judges need names that differ", got=", ".join(names) or "no judge", do=f"write {FORM}")
    on_trial = {_known(text): text for card in tested for text in _texts(card)}
    for judge in judges:
        for own in (judge.model, judge.base_url):
            if _known(own) in on_trial:
                raise DualSLMError(
                    f"judge {judge.name} would judge itself",
                    got=f"{own}, on which a system on trial runs ({on_trial[_known(own)]})",
                    do="let another LLM on another server judge",
                )


def _texts(card: Any) -> Iterator[str]:
    """What a card says that its system runs on."""
    if isinstance(card, Mapping):
        for key, value in card.items():
            if isinstance(value, str) and key in OURS:
                yield value
            yield from _texts(value)
    elif isinstance(card, list | tuple):
        for one in card:
            yield from _texts(one)


def _known(text: str) -> str:
    """An address by host and port, a model by its name without the owner or folder, so that spellings do not differ."""
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text.lower())
        host = "localhost" if parts.hostname in ("127.0.0.1", "::1", "0.0.0.0") else parts.hostname
        return f"//{host}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}{parts.path.rstrip('/')}"
    return text.rstrip("/").rsplit("/", 1)[-1].casefold()
