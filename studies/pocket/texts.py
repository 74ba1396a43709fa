"""Which texts are spoken: sentences that cover the LLM's commonest tokens, and lists of words for what they lack.

L goes from sound to tokens, and can read no token that it never heard. Recordings of people hold a few thousand
distinct ones; the rest has to be spoken by synthetic voices. Sentences come first: of lists of random words half of
the clips once consisted, and with them L learnt slowly.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dualslm.chat_template import plain_ids
from dualslm.data.corpora.base import table
from dualslm.errors import DualSLMError
from dualslm.files import replacing
from studies.pocket.voices import lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEAKABLE = re.compile(r"[A-Za-z ,.?!;:'-]+")  # digits and signs have several readings: the voice would choose one
MAX_WORDS = 22  # of a sentence; about 8 s, more would need a wider window of the encoder
LIST_WORDS = (3, 9)  # of a list of words
LISTS = "lists"  # the source of lists of words
ALWAYS_CAPITAL = frozenset(["i", "i'm", "i'll", "i've", "i'd"])
TYPOGRAPHY = {0x2018: "'", 0x2019: "'", 0x201C: " ", 0x201D: " ", 0x22: " ", 0x2013: ",", 0x2014: ",", 0xE9: "e"}


class Text(NamedTuple):
    """A text to be spoken, and the name of its source."""

    source: str
    text: str


@dataclass(frozen=True)
class Source:
    """Where texts come from.

    Attributes:
        licence: of the texts, as their publisher states it.
        read: gives the raw texts below a folder of data and a folder of work.
        by_default: whether it is used unless sources are named.
    """

    licence: str
    read: Callable[[Path, Path], Iterator[str]]
    by_default: bool = True


@dataclass(frozen=True)
class Plan:
    """What the texts are to cover.

    Attributes:
        tokens: number of the LLM's commonest tokens.
        each: number of texts that each of them is to stand in.
        words: number of words of all sentences at most; lists for what they lack come on top.
        seed: of every draw.
    """

    tokens: int = 8_000
    each: int = 2
    words: int = 30_000
    seed: int = 0


# ---------------------------------------------------------------------- sources


def _dailytalk(data: Path, _work: Path) -> Iterator[str]:
    for file in sorted((data / "dailytalk").rglob("*metadata*.json")):
        for dialogue in json.loads(file.read_text()).values():
            yield from (str(turn["text"]) for turn in dialogue.values())


def _styletalk(data: Path, _work: Path) -> Iterator[str]:
    for row in _tables(data / "styletalk", ("curr_text", "res_text", "context")):
        # Its contexts hold several turns in one text, each with the letter of the speaker before it.
        for text in (row["curr_text"], row["res_text"], row["context"]):
            yield from re.split(r"(?:^|\s)[AB] ?:", text)


def _meld(data: Path, _work: Path) -> Iterator[str]:
    yield from (row["Utterance"] for row in _tables(data / "meld", ("Utterance",)))


def _prose(_data: Path, work: Path) -> Iterator[str]:
    if (work / "prose.jsonl").exists():
        for line in (work / "prose.jsonl").read_text().splitlines():
            # The last sentence was cut off where the sample ended.
            yield re.sub(r"[^.?!]*$", "", json.loads(line)["text"])


def _wordnet(data: Path, _work: Path) -> Iterator[str]:
    # A line is a synonym set; what stands in quotation marks after its definition are examples of use.
    for file in sorted((data / "wordnet").glob("data.*")):
        for line in file.read_text(errors="replace").splitlines():
            yield from re.findall(r'"([^"]+)"', line.partition(" | ")[2])


def _plain(data: Path, _work: Path) -> Iterator[str]:
    for file in sorted((data / "texts").rglob("*.txt")):
        yield from file.read_text(errors="replace").split("\n\n")


def _librispeech(data: Path, _work: Path) -> Iterator[str]:
    # Chapters of which no recording is at hand: what is tested on is not spoken to L beforehand.
    for file in sorted((data / "librispeech").rglob("*.trans.txt")):
        if any(file.parent.glob("*.flac")):
            continue
        for line in file.read_text().splitlines():
            words = line.partition(" ")[2].lower().split()
            # Without punctuation there is no better place to cut a long reading at.
            parts = -(-len(words) // MAX_WORDS)
            for part in range(parts):
                yield " ".join(words[part * len(words) // parts : (part + 1) * len(words) // parts])


def _tables(folder: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    for file in sorted(folder.rglob("*.csv")):
        yield from table(file, columns)


SOURCES: Mapping[str, Source] = {
    "dailytalk": Source("CC BY-SA 4.0", _dailytalk),
    "styletalk": Source("not stated by its publisher; written by an LLM", _styletalk),
    "prose": Source("sampled from the LLM itself; SmolLM2 is Apache-2.0", _prose),
    "wordnet": Source("WordNet's own, permissive", _wordnet),
    "librispeech": Source("CC BY 4.0; read from books in the public domain", _librispeech),
    "texts": Source("the user's own: *.txt in DATA/texts", _plain),
    # What learns from the script of a television series may not be shippable, so it has to be asked for by name.
    "meld": Source("none: the script of a television series", _meld, by_default=False),
}


def read(data: Path, work: Path, names: Sequence[str] = ()) -> list[Text]:
    """The sentences of some sources, each once.

    Args:
        data: folder of the corpora.
        work: folder of sampled prose.
        names: names in `SOURCES`; those that are on by default unless given.

    Raises:
        DualSLMError: an unknown source.
    """
    if unknown := [name for name in names if name not in SOURCES]:
        raise DualSLMError("unknown source of texts", got=", ".join(unknown), do=f"name {', '.join(SOURCES)}")
    chosen = names or [name for name, source in SOURCES.items() if source.by_default]
    found: dict[str, Text] = {}
    for name in chosen:
        for raw in SOURCES[name].read(data, work):
            for sentence in sentences(clean(raw)):
                found.setdefault(sentence.lower(), Text(name, sentence))
    return list(found.values())


def clean(text: str) -> str:
    """A text without stage directions, quotation marks and doubled punctuation."""
    text = re.sub(r"\([^)]*\)|\[[^]]*\]", " ", text.translate(TYPOGRAPHY))
    text = re.sub(r"\.{2,}|…|-{2,}", ", ", text)
    text = re.sub(r"\s+([,.?!;:])", r"\1", re.sub(r"\s+", " ", text))
    return re.sub(r",+", ",", text).strip(" ,'-")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that can be spoken; long ones are cut at their commas."""
    for sentence in re.split(r"(?<=[.?!])\s+", text):
        parts = [""]
        for clause in re.split(r"(?<=[,;:])\s+", sentence):
            joined = f"{parts[-1]} {clause}".strip()
            if parts[-1] and len(joined.split()) > MAX_WORDS:
                parts.append(clause)
            else:
                parts[-1] = joined
        # A clause of more words without a comma would be spoken for longer than the encoder's windows for clips.
        fitting = (part for part in parts if SPEAKABLE.fullmatch(part) and len(part.split()) <= MAX_WORDS)
        yield from (part for part in fitting if re.search("[aeiouy]", part.lower()))


def names_in(texts: Iterable[str]) -> set[str]:
    """Words, in lower case, that stand with a capital amid sentences more often than without."""
    capital, small = Counter[str](), Counter[str]()
    for text in texts:
        words = re.findall(r"[A-Za-z][A-Za-z']*|[.?!]", text)
        # A text that has no small letter says nothing about capitals.
        if text.isupper():
            continue
        for before, word in pairwise(words):
            if before not in ".?!" and word not in ".?!":
                (capital if word[0].isupper() else small)[word.lower()] += 1
    return {word for word, count in capital.items() if count > 2 * small[word]}


def sentence_case(text: str, names: frozenset[str] | set[str] = frozenset()) -> str:
    """A transcript as a reader would write it: capitals at the start of sentences, of names and of "I".

    Args:
        text: transcript; one in capitals throughout, as many corpora have them, is written anew.
        names: words in lower case, from `names_in`.
    """

    def one(match: re.Match[str]) -> str:
        word = match[0].lower() if text.isupper() else match[0]
        starts = re.fullmatch(r"(.*[.?!])?\s*", text[: match.start()], re.DOTALL) is not None
        is_name = word.lower().removesuffix("'s") in names or word.lower() in ALWAYS_CAPITAL
        return word[:1].upper() + word[1:] if starts or is_name else word

    return re.sub(r"[A-Za-z][A-Za-z']*", one, text.strip())


def for_alignment(text: str, names: frozenset[str] | set[str] = frozenset()) -> str:
    """A transcript for alignment, whose first words look as they do amid a sentence: " we call it bear".

    Alignment takes the tokens of a transcript as they are, and "We", "we" and " we" are three tokens that sound alike.
    With a space before it and a small letter a word has one form wherever it stands.
    """

    def small(match: re.Match[str]) -> str:
        word = match[2]
        keeps = word.lower().removesuffix("'s") in names or word.lower() in ALWAYS_CAPITAL
        return match[1] + (word if keeps else word[0].lower() + word[1:])

    return " " + re.sub(r"(^|[.?!]\s+)([A-Za-z][A-Za-z']*)", small, sentence_case(text, names))


# ---------------------------------------------------------------------- choice


def common_tokens(tokenizer: PreTrainedTokenizerBase, count: int, known: frozenset[str] | set[str]) -> list[int]:
    """The commonest tokens that are a whole word: lower-case letters with a space before them.

    Byte-pair tokenizers number tokens in the order in which they were merged, which is about that of their frequency.

    Args:
        tokenizer: of the LLM.
        count: number of tokens; fewer where there are no more.
        known: words in lower case. Of the tokens, many are no word but the beginning of some, as " gravit" is.
    """
    found = []
    for token in range(len(tokenizer)):
        if len(found) == count:
            break
        word = tokenizer.decode([token])
        if re.fullmatch(r" [a-z]+", word) and word[1:] in known:
            found.append(token)
    return found


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str) -> set[int]:
    """The tokens of a text as alignment sees it."""
    return set(plain_ids(tokenizer, for_alignment(text)))


def choose(
    candidates: Sequence[Text], tokenizer: PreTrainedTokenizerBase, wanted: Iterable[int], plan: Plan
) -> list[Text]:
    """Texts in which every wanted token stands `plan.each` times: sentences as far as they go, then lists of words."""
    rng = random.Random(plan.seed)
    pool = list(candidates)
    rng.shuffle(pool)
    wanted = set(wanted)
    ids = [tokens_of(tokenizer, text.text) & wanted for text in pool]
    said = Counter[int]()
    chosen: dict[int, Text] = {}
    words = 0
    # What nothing has said yet comes first, so that a small number of words still covers much.
    for need in range(1, plan.each + 1):
        for index, text in enumerate(pool):
            if words >= plan.words:
                break
            if index not in chosen and any(said[token] < need for token in ids[index]):
                chosen[index] = text
                said.update(ids[index])
                words += len(text.text.split())
    lists = [
        text
        # One round for each time that is lacking, so that no list says a word twice.
        for need in range(plan.each)
        for text in word_lists(tokenizer, [token for token in sorted(wanted) if said[token] <= need], rng)
    ]
    out = [*chosen.values(), *lists]
    rng.shuffle(out)
    return out


def word_lists(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], rng: random.Random) -> Iterator[Text]:
    """Texts of a few words in random order, a token's word in each."""
    words = [tokenizer.decode([token]).strip() for token in tokens]
    rng.shuffle(words)
    while words:
        size = rng.randint(*LIST_WORDS)
        yield Text(LISTS, " ".join(words[:size]) + rng.choice((".", ".", "?", "")))
        del words[:size]


def write(llm: str, data: Path, work: Path, names: Sequence[str], plan: Plan) -> None:
    """Writes `texts.jsonl`, which `voices` speaks, and says what is covered."""
    tokenizer = _llm(llm).tokenizer
    candidates = read(data, work, names)
    capitals = names_in(text.text for text in candidates)
    wanted = common_tokens(tokenizer, plan.tokens, lexicon())
    chosen = choose(candidates, tokenizer, wanted, plan)
    work.mkdir(parents=True, exist_ok=True)
    with replacing(work / "texts.jsonl") as partial:
        partial.write_text(
            "".join(
                json.dumps({"id": f"{source}-{number:06d}", "source": source, "text": sentence_case(text, capitals)})
                + "\n"
                for number, (source, text) in enumerate(chosen)
            )
        )
    (work / "names.json").write_text(json.dumps(sorted(capitals)) + "\n")
    count = Counter(text.source for text in chosen)
    for source, texts in sorted(count.items()):
        licence = SOURCES[source].licence if source in SOURCES else "words of hibari's lexicon, Apache-2.0"
        print(f"{source}: {texts} texts ({licence})")


# ---------------------------------------------------------------------- prose of the LLM

TOPICS = (
    *("the sea", "a railway journey", "the weather", "a doctor", "a school", "music", "a garden", "cooking", "money"),
    *("a wedding", "a horse", "a newspaper", "a river", "animals", "history", "a letter", "the theatre", "sport"),
    *("food", "an airport", "computers", "a hotel", "medicine", "a family quarrel", "shopping", "astronomy"),
)
OPENINGS = (
    "Chapter {number}\n\nIt was a cold evening when",
    "The following is a short story about {topic}.\n\nOnce",
    'A dialogue between two friends about {topic}.\n\n"Do you',
    "An essay on {topic}\n\nThere are",
    "News report about {topic}:\n\nYesterday",
    "A letter to my sister about {topic}.\n\nMy dear",
    "Interview about {topic}.\n\nQuestion: How did you",
)
SAMPLES_AT_ONCE = 48


def sample_prose(llm: str, out: Path, words: int, seed: int) -> None:
    """Adds prose that the LLM itself writes to a file, until it has so many words.

    What an LLM writes most is what it reads best, and its texts have no owner but its own licence.
    """
    import torch

    from dualslm.model.generation import GenerationSettings

    model = _llm(llm)
    out.parent.mkdir(parents=True, exist_ok=True)
    have = out.read_text().splitlines() if out.exists() else []
    count = sum(len(json.loads(line)["text"].split()) for line in have)
    rng = random.Random(f"{seed}/{len(have)}")
    while count < words:
        opened = [
            rng.choice(OPENINGS).format(topic=rng.choice(TOPICS), number=rng.randint(2, 70))
            for _ in range(SAMPLES_AT_ONCE)
        ]
        # Without the chat template: a chat model asked for prose writes about itself.
        embeds = [model.embed(torch.tensor(plain_ids(model.tokenizer, text))) for text in opened]
        drawn = GenerationSettings(max_new_tokens=130, temperature=1.0, top_p=0.97, seed=rng.getrandbits(31))
        with torch.no_grad():
            texts = [reply.text for reply in model.generate(embeds, drawn)]
        with out.open("a") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        count += sum(len(text.split()) for text in texts)


def _llm(name: str) -> Any:
    from dualslm.model.llm import FrozenLM

    return FrozenLM.from_pretrained(name)
