"""The tiny LLM's tokenizer (ours): byte-level BPE with Qwen2's pre-tokenizer and ChatML's special tokens.

Every word of the world is one token, at the beginning of a text and after a space, so that the linguistic
adapter has one embedding to aim at for each word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dualslm.conversation import Speech
from dualslm.tiny import world
from dualslm.tiny.style import sample_style

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZE = 3072
# Qwen2's own pattern, so that texts are split as a large Qwen LLM splits them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONVERSATIONS = 20_000


def train(seed: int = 0, conversations: int = CONVERSATIONS) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on conversations of the world.

    Args:
        seed: seed of the conversations.
        conversations: number of conversations; the same seed and number give the same ids.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed, conversations), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    return fast


def load_or_train(folder: Path, seed: int = 0, conversations: int = CONVERSATIONS) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder; trained and saved there first where there is none, and never again.

    Args:
        folder: folder of the LLM.
        seed: seed of the conversations.
        conversations: number of conversations to train on.
    """
    # Ids must never change: the weights of the LLM, the adapters and all checkpoints depend on them.
    if not (folder / "tokenizer.json").exists():
        train(seed, conversations).save_pretrained(folder)
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    return fast


def _texts(seed: int, conversations: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer/{seed}")
    seen: set[str] = set()
    for _ in range(conversations):
        utterance = world.sample_utterance(rng, held_out=False, kinds=("event",))
        style = sample_style(rng)
        speech = Speech(transcript=utterance.text, caption=world.caption(style, rng), labels=style.labels())
        sample = world.sample_talk(rng, speech, utterance, style)
        asked = world.questions(speech, rng)
        parts = [part for turn in (*sample.conversation.turns, *asked.turns) for part in turn.parts]
        texts = [part if isinstance(part, str) else part.transcript or "" for part in parts]
        texts += [speech.caption or "", sample.reply.text, sample.conversation.system or "", asked.system or ""]
        yield from texts
        seen |= {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    # So often that BPE merges each word, rare ones too, both with and without a space in front.
    for word in sorted(seen | set(world.vocabulary())):
        yield from [word, f" {word}"] * (conversations // 20)
