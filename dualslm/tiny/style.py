"""How something is said: the five attributes of the tiny world (paper §III-B, attribute tasks).

The grammar draws a style for every utterance, the synthesizer renders it, and the attribute tasks ask for it.
No value word occurs under two attributes, so that one word always names one attribute: "sad" can only be an
emotion.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from dualslm.errors import DualSLMError

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gender": ("male", "female"),
        "pitch": ("low", "middle", "high"),
        "tempo": ("slow", "steady", "fast"),
        "energy": ("quiet", "moderate", "loud"),
        "emotion": ("neutral", "happy", "sad", "angry", "afraid"),
    }
)
"""Every attribute with its values, in the order in which captions and probes list them."""

# Were the typical values a rule, a model could answer "emotion" from the pitch alone.
TYPICAL: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "neutral": {"pitch": "middle", "tempo": "steady", "energy": "moderate"},
        "happy": {"pitch": "high", "tempo": "fast", "energy": "loud"},
        "sad": {"pitch": "low", "tempo": "slow", "energy": "quiet"},
        "angry": {"pitch": "middle", "tempo": "fast", "energy": "loud"},
        "afraid": {"pitch": "high", "tempo": "fast", "energy": "quiet"},
    }
)
"""What an emotion usually does to the voice: a tendency in `sample_style`, never a rule."""


@dataclass(frozen=True)
class Style:
    """One way of saying something: a value for each attribute, by default the plainest."""

    gender: str = "female"
    pitch: str = "middle"
    tempo: str = "steady"
    energy: str = "moderate"
    emotion: str = "neutral"

    def __post_init__(self) -> None:
        for name, value in self.labels().items():
            if value not in ATTRIBUTES[name]:
                raise DualSLMError(f"unknown {name}", got=value, do=f"use one of {', '.join(ATTRIBUTES[name])}")

    def labels(self) -> dict[str, str]:
        """The attributes as a dictionary, in the order of `ATTRIBUTES`."""
        return asdict(self)


def parse_style(words: Iterable[str]) -> Style:
    """Read a style from loose words such as `["sad", "fast"]` or `["sad,fast,female"]`.

    Args:
        words: value words in any order, also comma-separated; an attribute without a word keeps its default.

    Raises:
        DualSLMError: a word that is no attribute value, or two values of one attribute.
    """
    owner = {value: name for name, values in ATTRIBUTES.items() for value in values}
    found: dict[str, str] = {}
    for word in (part.strip().lower() for text in words for part in text.split(",")):
        if not word:
            continue
        if word not in owner:
            raise DualSLMError("unknown style word", got=word, do=f"use any of {', '.join(owner)}")
        name = owner[word]
        if found.get(name, word) != word:
            raise DualSLMError(f"two values for {name}", got=f"{found[name]}, {word}", do="give one of them")
        found[name] = word
    return Style(**found)


def sample_style(rng: random.Random, tied: float = 0.5) -> Style:
    """Draw a style; pitch, tempo and energy lean towards what is typical of the emotion.

    Args:
        rng: source of every draw.
        tied: probability that each of the three takes its typical value instead of a uniform draw.
    """
    gender = rng.choice(ATTRIBUTES["gender"])
    emotion = rng.choice(ATTRIBUTES["emotion"])
    drawn = {
        name: typical if rng.random() < tied else rng.choice(ATTRIBUTES[name])
        for name, typical in TYPICAL[emotion].items()
    }
    return Style(gender=gender, emotion=emotion, **drawn)
