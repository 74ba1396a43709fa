"""The LLM of a GGUF file run by llama.cpp, in the place of `ContinuousBatch` (ours).

llama.cpp computes with the file's few bits, and takes embeddings as well as tokens: P, L and text are read position by
position as by PyTorch, and only the rounding of the weights' products differs. On two cores it writes several times as
many tokens a second (docs/benchmarks.md). Each request has a sequence of its own in llama.cpp's cache; what a sequence
has read stays there when its request ends, and the next request takes the sequence with which it shares most.

Dimensions: T positions, D width, V vocabulary.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualslm.errors import DualSLMError
from dualslm.inference.continuous_batch import ActiveRequest, draw
from dualslm.inference.prefix_cache import common_length
from dualslm.model.generation import GenerationSettings, Sampler
from dualslm.model.gguf import local_file
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.llm import FrozenLM

SEQUENCES = 4  # requests at once: each has a whole context of keys and values in memory
MAX_CONTEXT = 4096  # positions, unless asked for: the memory for all of them is taken at once
log = logging.getLogger("dualslm.llama_cpp")
CHUNK = 256  # positions that are read at once


class LlamaCppBatch:
    """The requests that are being answered by llama.cpp. For one thread at a time.

    Args:
        llm: tokenizer, end-of-turn tokens and token embeddings of the same LLM; its layers are not used.
        file: the GGUF file.
        context: positions that prompt and reply of a request may take together; as many as the LLM was made for, and
            `MAX_CONTEXT` at most, when None.
        size: most requests at once.

    Attributes:
        requests: in the order in which they came.

    Raises:
        DualSLMError: llama.cpp is not installed, or cannot run this file beside these embeddings.
    """

    def __init__(self, llm: FrozenLM, file: Path, *, context: int | None = None, size: int = SEQUENCES) -> None:
        self.llm, self.size = llm, size
        self.requests: list[ActiveRequest] = []
        self._cpp = _library()
        self._model = self._cpp.llama_model_load_from_file(str(file).encode(), self._cpp.llama_model_default_params())
        if not self._model:
            raise DualSLMError("llama.cpp cannot read this GGUF file", got=str(file), do="serve without --llama-cpp")
        self._width = self._cpp.llama_model_n_embd(self._model)
        self._vocabulary = self._cpp.llama_vocab_n_tokens(self._cpp.llama_model_get_vocab(self._model))
        if llm.width != self._width:
            do = "name the same LLM in both places"
            raise DualSLMError(f"the adapters' LLM is {llm.width} wide", got=f"a GGUF file of {self._width}", do=do)
        self.context = context or min(MAX_CONTEXT, self._cpp.llama_model_n_ctx_train(self._model))
        self._context = self._made_context()
        self._chunk = self._cpp.llama_batch_init(CHUNK, self._width, 1)
        self._drawn = self._cpp.llama_batch_init(size, 0, 1)
        self._read: list[list[Hashable]] = [[] for _ in range(size)]  # what each sequence holds
        self._sequence: dict[ActiveRequest, int] = {}

    @classmethod
    def of(cls, llm: FrozenLM, *, context: int | None, size: int = SEQUENCES) -> LlamaCppBatch:
        """A batch of an LLM that was loaded from a GGUF file, by the name that it was loaded by.

        Raises:
            DualSLMError: it was loaded from something else, or as when a batch is made.
        """
        return cls(llm, local_file(llm.name, llm.revision), context=context, size=size)

    @property
    def kept_positions(self) -> int:
        """Positions whose keys and values are kept, of requests that run and that have ended."""
        return sum(map(len, self._read))

    def join(self, prompt: PromptEmbeds, generation: GenerationSettings) -> ActiveRequest:
        """Reads a prompt, as far as it is new, and adds it to the batch."""
        assert len(self.requests) < self.size, "the batch is full"
        keys = prompt.salted_keys
        if len(keys) >= self.context:
            do = "serve with a larger --context, or say less"
            raise DualSLMError(f"llama.cpp has {self.context} positions", got=f"a prompt of {len(keys)}", do=do)
        sequence, shared = self._best_sequence(keys, reuse=prompt.reuse)
        self._forget(sequence, shared)
        reused = len(self._read[sequence])  # less than is shared where the cache could not be cut
        logits_V = self._prefill(sequence, prompt.embeds_TD, keys)
        sampler = Sampler(generation, torch.device("cpu"))
        tokens = min(generation.max_new_tokens, self.context - len(keys))
        request = ActiveRequest(keys, len(keys), reused, tokens, sampler, logits_V)
        self._sequence[request] = sequence
        self.requests.append(request)
        return request

    def step(self) -> list[tuple[ActiveRequest, int | None]]:
        """Draws the next token of every request; as `ContinuousBatch.step`."""
        self._read_drawn()
        drawn, going = draw(self.requests, self.llm.stops)
        for request in [request for request in self.requests if request not in going]:
            self.leave(request)
        return drawn

    def leave(self, request: ActiveRequest) -> None:
        """Takes a request out before its reply has ended; nothing happens when it has left already."""
        if self._sequence.pop(request, None) is not None:
            self.requests.remove(request)

    def clear(self) -> None:
        """Forgets the requests that are being answered, and all that was read."""
        for request in list(self.requests):
            self.leave(request)
        for sequence in range(self.size):
            self._forget(sequence, 0)

    # ------------------------------------------------------------------ llama.cpp

    def _made_context(self) -> Any:
        settings = self._cpp.llama_context_default_params()
        settings.n_ctx = self.context * self.size
        settings.n_seq_max = self.size
        settings.n_batch = settings.n_ubatch = CHUNK
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.kv_unified = False  # each sequence has its own share of the positions
        made = self._cpp.llama_init_from_model(self._model, settings)
        if not made:
            do = "serve with a smaller --context, or without --llama-cpp"
            raise DualSLMError("llama.cpp has no room for its cache", got=f"{settings.n_ctx} positions", do=do)
        return made

    def _best_sequence(self, keys: Sequence[Hashable], *, reuse: bool) -> tuple[int, int]:
        """The free sequence that shares the longest beginning with a prompt, and how long it is."""
        free = set(range(self.size)) - set(self._sequence.values())
        shared = {sequence: common_length(self._read[sequence], keys) if reuse else 0 for sequence in free}
        # Among equals the emptiest: what the others hold may still be asked for.
        best = max(free, key=lambda sequence: (shared[sequence], -len(self._read[sequence])))
        # The last position is read in any case, because its logits are needed.
        return best, min(shared[best], len(keys) - 1)

    def _forget(self, sequence: int, after: int) -> None:
        """Drops what a sequence has read after so many positions."""
        memory = self._cpp.llama_get_memory(self._context)
        if not self._cpp.llama_memory_seq_rm(memory, sequence, after, -1):
            self._cpp.llama_memory_seq_rm(memory, sequence, -1, -1)  # caches of some LLMs cannot be cut
            after = 0
        del self._read[sequence][after:]

    def _prefill(self, sequence: int, embeds_TD: Tensor, keys: Sequence[Hashable]) -> Tensor:
        """Reads a prompt from where the sequence stands."""
        rows_TD = np.ascontiguousarray(embeds_TD.float().cpu().numpy())
        for first in range(len(self._read[sequence]), len(keys), CHUNK):
            part_TD = rows_TD[first : first + CHUNK]
            ctypes.memmove(self._chunk.embd, part_TD.ctypes.data, part_TD.nbytes)
            rows = [(sequence, first + row, first + row == len(keys) - 1) for row in range(len(part_TD))]
            self._decode(self._chunk, rows)
            self._read[sequence] += keys[first : first + len(part_TD)]
        return self._logits(-1)

    def _read_drawn(self) -> None:
        """Reads the tokens that were drawn last, which gives the logits for the next ones."""
        unread = [(request, request.unread) for request in self.requests if request.unread is not None]
        if not unread:
            return
        for row, (_, token) in enumerate(unread):
            self._drawn.token[row] = token
        self._decode(self._drawn, [(self._sequence[request], len(request.keys), True) for request, _ in unread])
        for row, (request, token) in enumerate(unread):
            request.keys.append(token)
            self._read[self._sequence[request]].append(token)
            request.logits_V = self._logits(row)
            request.unread = None

    def _decode(self, batch: Any, rows: Sequence[tuple[int, int, bool]]) -> None:
        """Runs the LLM over a batch: of each row the sequence, the position, and whether its logits are wanted."""
        batch.n_tokens = len(rows)
        for row, (sequence, position, wanted) in enumerate(rows):
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        if status := self._cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp gave up with status {status}")

    def _logits(self, row: int) -> Tensor:
        pointer = self._cpp.llama_get_logits_ith(self._context, row)
        logits_V: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))
        return torch.from_numpy(logits_V.copy())  # the next step writes over llama.cpp's own


def _to_log(_level: int, text: bytes, _: Any) -> None:
    """llama.cpp tells much of each file; what a user needs comes as an error of ours."""
    log.debug("%s", text.decode(errors="replace").rstrip())


# kept for as long as the program runs: llama.cpp calls it at any time
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_to_log)


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        do = "pip install 'dualslm[llama-cpp]', which needs a C++ compiler"
        raise DualSLMError("--llama-cpp needs one more package", got="no llama_cpp", do=do) from error
    llama_cpp.llama_log_set(LOG_CALLBACK, None)
    llama_cpp.llama_backend_init()
    return llama_cpp
