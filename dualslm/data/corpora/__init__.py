"""Corpora: downloaded folders → checked manifests, one for each split (paper §IV-A).

Each corpus is one file; a new one is a file with a `CORPUS` and an entry below. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from dualslm.data.corpora import dailytalk, hf, jsonl, librispeech, meld, styletalk, textrolspeech
from dualslm.data.corpora.base import Corpus
from dualslm.errors import DualSLMError

_ALL = (librispeech, textrolspeech, meld, styletalk, dailytalk, jsonl, hf)
CORPORA: Mapping[str, Corpus] = {module.CORPUS.name: module.CORPUS for module in _ALL}


def get(name: str) -> Corpus:
    """The corpus of a name.

    Raises:
        DualSLMError: there is no such corpus.
    """
    if name not in CORPORA:
        raise DualSLMError(f"no corpus {name!r}", got=name, do=f"choose one of {', '.join(CORPORA)}")
    return CORPORA[name]
