"""What L and P of a checkpoint tell without the LLM, what the LLM makes of L, and twenty answers.

L is read by nearest token: an embedding is the token in whose direction it points, or none. P is read by nearest word
of an attribute. Both are what alignment trained (`dualslm/training/align.py`), so that they say how far it got, and
not how well the LLM understands. Intervals resample speakers.

Dimensions: L groups of frames, M embeddings of P, V tokens that may be read, D width of the LLM.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualslm.audio import SAMPLE_RATE, load
from dualslm.conversation import Conversation, Speech, View
from dualslm.errors import DualSLMError
from dualslm.evaluation.metrics.bootstrap import figure
from dualslm.evaluation.metrics.figure import Figure
from dualslm.evaluation.metrics.wer import raw, require_whisper, whisper, word_errors
from dualslm.files import replacing
from dualslm.model.dualslm import DualSLM
from dualslm.model.generation import GenerationSettings
from dualslm.model.nearest import all_groups, nearest_tokens, read_tone, read_words
from dualslm.prompt import render
from dualslm.training.align import label_values
from dualslm.training.spelling import Spelling

Row: TypeAlias = Mapping[str, Any]
Figures: TypeAlias = dict[str, Any]

REPLY_CLIPS = 21  # recordings whose replies are compared; a reply of a small LLM takes a second
REPLY_TOKENS = 32
SYSTEM = "You are a warm friend. Answer in one or two short sentences."
ASKED = {"speakers": 10, "each": 2}  # twenty answers
BATCH = 8  # recordings that Whisper's own decoder reads at once
LEAK_REGULARIZATION = 0.005  # assumed: 1,152 features of some 700 recordings


@dataclass(frozen=True)
class Exam:
    """What is measured, and on what.

    Attributes:
        checkpoint: folder of the adapters.
        encoder: hub id or folder of the encoder; what the checkpoint names unless given.
        llm: hub id or folder of the LLM; what the checkpoint names unless given.
        manifests: folder of the manifests of `corpora`.
        most: number of recordings of a set at most.
        whisper: hub id or folder of the whole Whisper.
        min_token_count: that of L's alignment, which words.toml has.
    """

    checkpoint: str
    encoder: str | None
    llm: str | None
    manifests: Path
    most: int
    whisper: str
    min_token_count: int = 20

    @cached_property
    def model(self) -> DualSLM:
        """The checkpoint with its frozen parts."""
        return DualSLM.from_pretrained(self.checkpoint, encoder=self.encoder, llm=self.llm).eval()

    @cached_property
    def tokens_V(self) -> Tensor:
        """The tokens that the training manifests are aligned with: no other was ever taught to L."""
        parts = self.sets("words-train", None) | self._some("words-altered") | self._some("words-synthetic")
        return self.tokens_of(clip(row)["transcript"] for rows in parts.values() for row in rows)

    def tokens_of(self, texts: Iterable[str]) -> Tensor:
        """The tokens that alignment with some transcripts teaches."""
        return Spelling(self.model.llm.tokenizer, texts, self.min_token_count).tokens_V

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """The values of each attribute that P was trained on, by the manifests that its recipe names."""
        named = [Path(name) for name in self.model.recipe.get("data", {}).get("train", ())]
        files = [file for file in named if file.stem.startswith("tone") and file.exists()]
        rows = [row for file in files for row in rows_of(file)]
        if not rows:
            rows = [row for own in self.sets("tone-train*-labelled", None).values() for row in own]
        return label_values(Speech(None, labels=clip(row)["labels"]) for row in rows)

    def sets(self, pattern: str, most: int | None = 0) -> dict[str, list[Row]]:
        """The rows of the manifests of a pattern, by name; the same ones for every checkpoint.

        Args:
            pattern: of the files' names.
            most: number of rows of each; that of the exam unless given, all where it is None.

        Raises:
            DualSLMError: there is none.
        """
        found = self._some(pattern)
        if not found:
            raise DualSLMError(f"no {pattern}.jsonl in {self.manifests}", got="none", do="run the step corpora first")
        if most is None:
            return found
        count = most or self.most
        return {name: random.Random(f"exam/{name}").sample(rows, min(count, len(rows))) for name, rows in found.items()}

    def _some(self, pattern: str) -> dict[str, list[Row]]:
        return {file.stem: rows_of(file) for file in sorted(self.manifests.glob(f"{pattern}.jsonl"))}


def rows_of(file: Path) -> list[Row]:
    """The lines of a manifest."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def clip(row: Row) -> Mapping[str, Any]:
    """The recording of a line of `corpora`."""
    part: Mapping[str, Any] = row["turns"][-1]["parts"][0]
    return part


# ---------------------------------------------------------------------- L


def word_counts(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[Any]:
    """Errors and words of each reference (N, 2), after Whisper's normalizer."""
    pairs = [(whisper(said), whisper(heard)) for said, heard in zip(references, hypotheses, strict=True)]
    return np.array([(word_errors(said, heard), len(said)) for said, heard in pairs])


def word_rate(references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str]) -> Figure:
    """The word error rate after Whisper's normalizer, with the interval over speakers."""
    require_whisper()
    counts = word_counts(references, hypotheses)
    # A reference of hesitations alone has no words after the normalizer, and could not be wrong.
    has_words = counts[:, 1] > 0
    return figure(counts[has_words], [name for name, keep in zip(speakers, has_words, strict=True) if keep])


def measure_words(exam: Exam) -> Figures:
    """The word error rate of L by nearest token, on every set of tests."""
    tokenizer = exam.model.llm.tokenizer
    out: Figures = {}
    for name, rows in exam.sets("words-test-*").items():
        groups = (all_groups(exam.model, exam.model.hear([Speech(clip(row)["audio"])])) for row in rows)
        heard = [tokenizer.decode(nearest_tokens(exam.model, embeds_LD, exam.tokens_V)) for embeds_LD in groups]
        out[name] = _words_figure(rows, heard)
    return out


def measure_decoder(exam: Exam) -> Figures:
    """The word error rate of Whisper's own decoder on the same recordings: what the encoder's output holds."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(exam.whisper, dtype=torch.float32).eval()
    features = WhisperFeatureExtractor.from_pretrained(exam.whisper)
    tokenizer = AutoTokenizer.from_pretrained(exam.whisper)
    # English is said and not guessed: of short clips the guess is often another language.
    begin = torch.tensor(
        [tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"])]
    )
    out: Figures = {}
    for name, rows in exam.sets("words-test-*").items():
        heard: list[str] = []
        for start in range(0, len(rows), BATCH):
            waves = [load(clip(row)["audio"]) for row in rows[start : start + BATCH]]
            given = features(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            drawn = model.generate(given, decoder_input_ids=begin.repeat(len(waves), 1), max_new_tokens=100)
            heard += tokenizer.batch_decode(drawn, skip_special_tokens=True)
        out[name] = _words_figure(rows, heard)
    return out


def _words_figure(rows: Sequence[Row], heard: Sequence[str]) -> Figures:
    return word_rate([clip(row)["transcript"] for row in rows], heard, [row["speaker"] for row in rows]).as_json()


# ---------------------------------------------------------------------- P


def measure_tone(exam: Exam) -> Figures:
    """The share of recordings whose label is P's nearest word, by attribute, beside that of the commonest label."""
    model = exam.model
    values = exam.values
    out: Figures = {}
    for set_name, rows in exam.sets("tone-test*-labelled", None).items():
        hits: dict[str, list[tuple[bool, str]]] = defaultdict(list)
        truth: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            shares = read_tone(model, model.hear([Speech(clip(row)["audio"])]), values)
            for name, value in clip(row)["labels"].items():
                if value in values.get(name, ()):
                    said = max(shares[name], key=shares[name].__getitem__)
                    hits[name].append((said == value, row["speaker"]))
                    truth[name][value] += 1
        for name, own in hits.items():
            commonest = 100 * max(truth[name].values()) / len(own)
            out[f"{set_name} {name}"] = {**_share(own).as_json(), "commonest": round(commonest, 1)}
    return out


def _share(hits: Sequence[tuple[bool, str]]) -> Figure:
    return figure(np.array([(int(hit), 1) for hit, _ in hits]), [speaker for _, speaker in hits])


# ---------------------------------------------------------------------- the LLM


def measure_likelihood(exam: Exam) -> Figures:
    """How likely the LLM's own reply to the text is, given text or given L: nats a token, less is better.

    The reply is greedy, so that text has the smallest figure that there is; without L's help an LLM would guess.
    """
    model = exam.model
    rows = [row for own in exam.sets("words-test-*").values() for row in own if len(raw(clip(row)["transcript"])) > 3]
    rows = random.Random("likelihood").sample(rows, min(REPLY_CLIPS, len(rows)))
    said = [Conversation(SYSTEM).user(Speech(clip(row)["audio"], transcript=clip(row)["transcript"])) for row in rows]
    text, spoken = View("none", "text"), View("none", "speech")
    settings = GenerationSettings(max_new_tokens=REPLY_TOKENS)
    replies = model.generate([render(one, model.llm.tokenizer, text) for one in said], generation=settings)
    for conversation, reply in zip(said, replies, strict=True):
        conversation.assistant(reply)
    skips = model.ling.skip
    out: Figures = {"n": len(rows), "text": _nats(model, said, text)}
    for name, skip in (("all groups", False), ("silence skipped", True)):
        # An L without the middle of the tokens cannot skip; its checkpoint was aligned from zero.
        if skip <= skips:
            model.ling.skip = skip
            out[name] = _nats(model, said, spoken)
    model.ling.skip = skips
    # What is lost by the words that L gets wrong, and not by how its embeddings say them.
    audios = [clip(row)["audio"] for row in rows]
    words = [read_words(model, model.hear([Speech(audio)])) or "..." for audio in audios]
    read = [Conversation(SYSTEM).user(Speech(*pair)) for pair in zip(audios, words, strict=True)]
    for conversation, reply in zip(read, replies, strict=True):
        conversation.assistant(reply)
    out["read as text"] = _nats(model, read, text)
    return out


def _nats(model: DualSLM, conversations: Iterable[Conversation], view: View) -> float:
    total = 0.0
    tokens = 0
    for conversation in conversations:
        # `cut_off`: many replies end at the longest length, where no end is to be learnt.
        prompt = render(conversation, model.llm.tokenizer, view, supervise="last", cut_off=True)
        loss = model([prompt])
        total += float(loss.nll_B.sum())
        tokens += int(loss.tokens_B.sum())
    return total / tokens


def measure_leak(exam: Exam) -> Figures:
    """How well a linear reader finds emotion in L, which should not hold it, beside the encoder's layer of P."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise DualSLMError(
            "leak needs scikit-learn", got=str(error), do="pip install 'dualslm[instruments]'"
        ) from error
    learnt = [row for rows in exam.sets("tone-train-ravdess", None).values() for row in rows]
    tested = [row for rows in exam.sets("tone-test-ravdess", None).values() for row in rows]
    out: Figures = {}
    for name, look in (("L", _mean_of_l), ("encoder", _moments_of_layer)):
        known = np.stack([look(exam.model, clip(row)["audio"]) for row in learnt])
        scaler = StandardScaler().fit(known)
        reader = LogisticRegression(C=LEAK_REGULARIZATION, max_iter=300)
        reader.fit(scaler.transform(known), [clip(row)["labels"]["emotion"] for row in learnt])
        found = reader.predict(scaler.transform(np.stack([look(exam.model, clip(row)["audio"]) for row in tested])))
        hits = [
            (bool(one == clip(row)["labels"]["emotion"]), row["speaker"])
            for one, row in zip(found, tested, strict=True)
        ]
        out[name] = _share(hits).as_json()
    return out


def _mean_of_l(model: DualSLM, audio: str) -> Any:
    """The mean of what L gives the LLM: what a linear reader can find of the whole recording."""
    (embeds_LD,) = model.adapt("ling", model.hear([Speech(audio)]))
    return embeds_LD.float().mean(0).numpy()


def _moments_of_layer(model: DualSLM, audio: str) -> Any:
    frames_TD = model.hear([Speech(audio)]).layers_NBTD[0, 0].float()
    return torch.cat([frames_TD.mean(0), frames_TD.std(0)]).numpy()


# ---------------------------------------------------------------------- all of them

MEASURES: Mapping[str, Callable[[Exam], Figures]] = {
    "words": measure_words,
    "decoder": measure_decoder,
    "tone": measure_tone,
    "likelihood": measure_likelihood,
    "leak": measure_leak,
}


def run(exam: Exam, names: Sequence[str], out: Path) -> None:
    """Measures what is named and writes it to a result file, beside what stands there."""
    if unknown := [name for name in names if name not in MEASURES]:
        raise DualSLMError("unknown measure", got=", ".join(unknown), do=f"name {', '.join(MEASURES)}")
    for name in names:
        with torch.no_grad():
            found = MEASURES[name](exam)
        print(name, json.dumps(found), flush=True)
        # Written after each: the next one may lack a package, and each takes minutes.
        before = json.loads(out.read_text()) if out.exists() else {}
        _write(out, {**before, "checkpoint": exam.checkpoint, name: found})


def ask(exam: Exam, out: Path, seed: int) -> None:
    """Writes twenty replies, each beside what was said and what L reads, to be judged by eye."""
    by_speaker: dict[str, list[Row]] = defaultdict(list)
    for rows in exam.sets("words-test-*", None).values():
        for row in rows:
            if 1.2 < row["seconds"] < 9 and len(raw(clip(row)["transcript"])) > 3:
                by_speaker[row["speaker"]].append(row)
    rng = random.Random(f"ask/{seed}")
    several = sorted(speaker for speaker, rows in by_speaker.items() if len(rows) >= ASKED["each"])
    speakers = rng.sample(several, min(ASKED["speakers"], len(several)))
    chosen = [row for speaker in speakers for row in rng.sample(by_speaker[speaker], ASKED["each"])]
    model = exam.model
    answers = []
    with torch.no_grad():
        for row in chosen:
            path = clip(row)["audio"]
            groups_LD = all_groups(model, model.hear([Speech(path)]))
            read = model.llm.tokenizer.decode(nearest_tokens(model, groups_LD, exam.tokens_V))
            # With P and without it: a P that no stage of the LLM has taught may do harm.
            views = ("speech,speech", "none,speech")
            replies = {view: model.reply(path, view=view, system=SYSTEM, max_new_tokens=40) for view in views}
            answers.append({"id": row["id"], "said": clip(row)["transcript"], "L reads": read, "replies": replies})
            print(json.dumps(answers[-1], ensure_ascii=False), flush=True)
    _write(out, {"checkpoint": exam.checkpoint, "system": SYSTEM, "answers": answers})


def _write(out: Path, result: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
