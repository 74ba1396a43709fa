"""The frozen causal LM: embed, forward on embeddings, decode with a KV cache (paper eq. 1 and 3).

Any Hugging Face causal LM serves, and none of its weights ever changes. Prompts of a batch are padded on the left and
masked by length, never by a padding token; a prompt alone runs without a mask, so that text without audio gives the
base model's logits bit for bit.

Dimensions: B prompts, T tokens, D width of the LLM, V vocabulary, K positions whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import get_ident

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer

from dualslm.conversation import Reply
from dualslm.errors import DualSLMError
from dualslm.model.configuration import first_line, read_config, read_tokenizer
from dualslm.model.cuda_graphs import GraphDecoder, Step
from dualslm.model.execution import attention_kernels, keep_unpacked, quantization_of
from dualslm.model.generation import GREEDY, GenerationSettings, Sampler, text_of
from dualslm.model.gguf import source_of
from dualslm.model.llm_probe import probe
from dualslm.model.rope import length_rope
from dualslm.prompt import Prompt, Text, stop_ids
from dualslm.recipe import Quantize

WARM_UP_STEPS = 3  # before the first reply: one compiles, one is recorded, one is replayed


@dataclass
class Prefilled:
    """A batch that has been read: what the next token needs.

    Attributes:
        logits_BV: for the next token.
        cache: keys and values of all that was read.
        mask_BT: 1 where a prompt has a token, 0 where it is padded.
    """

    logits_BV: Tensor
    cache: DynamicCache
    mask_BT: Tensor


class FrozenLM(nn.Module):
    """A causal LM whose weights never change, and its tokenizer.

    Args:
        model: the transformers model.
        tokenizer: its tokenizer, whose chat template is used.
        name: the hub id or folder it came from.
        revision: the hub revision it came from.
        identity: its fingerprint where its weights can no longer tell: quantized ("", unknown) or sharded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "",
        revision: str | None = None,
        identity: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name, self.revision, self.identity = name, revision, identity
        self.stops = stop_ids(tokenizer) | _configured_stops(model)
        self.length_rope = length_rope(model)
        self.graph_decoder: GraphDecoder | None = None

    @property
    def width(self) -> int:
        """D, the width of an input embedding."""
        return int(self.input_embeddings.weight.shape[1])

    @property
    def input_embeddings(self) -> nn.Embedding:
        """The input embedding table (V, D)."""
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    @cached_property
    def keeps_every_position(self) -> bool:
        """Whether its cache keeps all keys and values as they were, so that rows can share a reading."""
        layers = DynamicCache(config=self.model.config).layers
        return self.length_rope is None and all(type(layer) is DynamicLayer for layer in layers)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the trunk."""
        return self.input_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the LLM runs."""
        return self.input_embeddings.weight.device

    def train(self, mode: bool = True) -> FrozenLM:
        """Stays in evaluation mode: dropout must not wake up in a frozen part."""
        return super().train(False)

    def some_embeddings(self) -> Tensor:
        """Some 4,096 token embeddings (V, D) from all over the table, as the model reads them, in float32."""
        size = self.input_embeddings.weight.shape[0]
        return self.embed(torch.arange(0, size, max(1, size // 4096), device=self.device)).float()

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...) → input embeddings (..., D), paper eq. 1."""
        with torch.no_grad():
            out: Tensor = self.input_embeddings(ids)
        return out

    def forward(
        self,
        embeds_BTD: Tensor,
        mask_BT: Tensor | None = None,
        *,
        keep_BT: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) after each position, or (K, V) after the K positions that `keep_BT` marks.

        Args:
            embeds_BTD: what comes after the cache.
            mask_BT: 1 for tokens, 0 for left padding, cache included; None when nothing is padded.
            keep_BT: true where logits are wanted: the output head is the dearest part of a step.
            cache: keys and values of what came before; what is read is added to it.

        Raises:
            DualSLMError: a padded batch that is longer than the positions of this LLM allow; see `dualslm.model.rope`.
        """
        if self.length_rope is None:
            return self._read(embeds_BTD, mask_BT, keep_BT, cache)
        return self.length_rope.read(self.model, self._read, embeds_BTD, mask_BT, keep_BT, cache)

    def _read(
        self, embeds_BTD: Tensor, mask_BT: Tensor | None, keep_BT: Tensor | None, cache: DynamicCache | None
    ) -> Tensor:
        positions = None
        if mask_BT is not None:
            # Counted from a prompt's own first token: padding must not shift the positions that the LLM sees.
            positions = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -embeds_BTD.shape[1] :]
        with self._head_reads(keep_BT), attention_kernels(embeds_BTD.device):
            out = self.model(
                inputs_embeds=embeds_BTD,
                attention_mask=mask_BT,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        logits: Tensor = out.logits
        return logits if keep_BT is None else logits[0]

    @contextmanager
    def _head_reads(self, keep_BT: Tensor | None) -> Iterator[None]:
        """Lets the output head see some positions only. `logits_to_keep` takes the same ones for every row.

        Another thread that reads at the same time is left alone.
        """
        if keep_BT is None:
            yield
            return
        head = self.model.get_output_embeddings()
        mine = get_ident()
        hook = head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0][keep_BT][None],) if get_ident() == mine else None
        )
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Tensor], before: Prefilled | None = None) -> Prefilled:
        """Reads prompts of embeddings, each (T, D), after `before` where it is given (then B must be equal).

        Reading in two goes equals reading at once: tested to 1e-4 in float32.

        Raises:
            DualSLMError: a prompt that is longer than the LLM's context.
        """
        embeds_BTD, mask_BT = pad_left(prompts)
        cache = DynamicCache(config=self.model.config)
        if before is not None:
            cache = before.cache
            mask_BT = torch.cat([before.mask_BT, mask_BT], dim=1)
        if self._room is not None and (longest := int(mask_BT.sum(dim=1).max())) > self._room:
            got = f"{longest} positions, where {self._room} are all that it has"
            do = "say it in fewer words, shorter recordings or fewer turns"
            raise DualSLMError("this prompt is too long for the LLM's context", got=got, do=do)
        last_BT = torch.zeros(embeds_BTD.shape[:2], dtype=torch.bool, device=embeds_BTD.device)
        last_BT[:, -1] = True
        logits_BV = self(embeds_BTD, None if bool(mask_BT.all()) else mask_BT, keep_BT=last_BT, cache=cache)
        return Prefilled(logits_BV, cache, mask_BT)

    @torch.no_grad()
    def decode(self, read: Prefilled, generation: GenerationSettings = GREEDY) -> Generator[list[int | None]]:
        """Yields the next token of each reply, None once a reply has ended or is full; the cache grows with them."""
        sample = Sampler(generation, read.logits_BV.device)
        logits_BV = read.logits_BV
        ended = [False] * len(logits_BV)
        longest = self.longest(read, generation)
        with self._steps(read, max(longest)) as step:
            for count in range(1, max(longest) + 1):
                ids_B = sample(logits_BV)
                ids = ids_B.tolist()  # the one time that a step waits for the device
                ended = [done or token in self.stops for token, done in zip(ids, ended, strict=True)]
                yield [None if done else token for token, done in zip(ids, ended, strict=True)]
                ended = [done or count >= most for done, most in zip(ended, longest, strict=True)]
                if all(ended):
                    return
                logits_BV = step(ids_B)

    def longest(self, read: Prefilled, generation: GenerationSettings) -> list[int]:
        """The most tokens of each reply: what was asked for, as far as the context has room, and at least one."""
        most = generation.max_new_tokens
        if self._room is None:
            return [most] * len(read.mask_BT)
        return [max(1, min(most, self._room - length)) for length in read.mask_BT.sum(dim=1).tolist()]

    @property
    def _room(self) -> int | None:
        """Positions that a prompt and its reply may have: of an LLM that stretches its positions as many as come."""
        return self.context if self.length_rope is None else None

    @contextmanager
    def _steps(self, read: Prefilled, max_new_tokens: int) -> Iterator[Step]:
        """The step from token to token: a CUDA graph where that was asked for, or the model as it is."""
        if self.graph_decoder is not None:
            with self.graph_decoder.steps(read.cache, read.mask_BT, max_new_tokens) as step:
                yield step
            return
        mask_BT = read.mask_BT
        padded = not bool(read.mask_BT.all())

        def plain(ids_B: Tensor) -> Tensor:
            nonlocal mask_BT
            mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
            logits_BTV: Tensor = self(self.embed(ids_B[:, None]), mask_BT if padded else None, cache=read.cache)
            return logits_BTV[:, -1]

        yield plain

    def enable_cuda_graphs(self) -> None:
        """Replays decoding steps as CUDA graphs from now on; one short reply is recorded now, others when they come.

        Raises:
            DualSLMError: its cache drops keys (a sliding window), or its positions depend on the length.
        """
        if not self.keeps_every_position:
            raise DualSLMError(
                "this LLM's steps cannot be CUDA graphs",
                got="a cache that drops keys, or positions that depend on the length",
                do="leave CUDA graphs out",
            )
        self.graph_decoder = GraphDecoder(self.model)
        id_B = torch.zeros(1, dtype=torch.long, device=self.device)
        with torch.no_grad(), self._steps(self.prefill([self.embed(id_B)]), WARM_UP_STEPS + 1) as step:
            for _ in range(WARM_UP_STEPS):
                step(id_B)

    def generate(
        self,
        prompts: Sequence[Tensor],
        generation: GenerationSettings = GREEDY,
        *,
        text: Callable[[PreTrainedTokenizerBase, Sequence[int]], str] = text_of,
    ) -> list[Reply]:
        """Whole replies.

        Args:
            prompts: embeddings of each prompt, (T, D).
            generation: settings of the replies.
            text: gives the text of a reply's tokens.
        """
        if self.length_rope is not None and len(prompts) > 1:
            return [reply for prompt_TD in prompts for reply in self.generate([prompt_TD], generation, text=text)]
        replies: list[list[int]] = [[] for _ in prompts]
        finished = [False] * len(prompts)
        read = self.prefill(prompts)
        longest = self.longest(read, generation)  # before the cache grows
        for tokens in self.decode(read, generation):
            for row, token in enumerate(tokens):
                if token is None:
                    finished[row] = len(replies[row]) < longest[row]
                else:
                    replies[row].append(token)
        return [Reply(text(self.tokenizer, ids), end) for ids, end in zip(replies, finished, strict=True)]

    def embed_text(self, prompt: Prompt) -> Tensor:
        """The input embeddings (T, D) of a prompt without slots."""
        ids = [token for segment in prompt.segments if isinstance(segment, Text) for token in segment.ids]
        return self.embed(torch.tensor(self.known(ids), device=self.device))

    def known(self, ids: list[int]) -> list[int]:
        """Token ids as they are.

        Raises:
            DualSLMError: one that the LLM has no embedding for, as of images: looked up, it would end a GPU's process.
        """
        size = self.input_embeddings.weight.shape[0]
        if ids and (beyond := max(ids)) >= size:
            got = f"{self.tokenizer.convert_ids_to_tokens(beyond)!r}, id {beyond} of {size}"
            do = "leave it out, or use the tokenizer that belongs to the LLM"
            raise DualSLMError("a token that the LLM has no embedding for", got=got, do=do)
        return ids

    @property
    def context(self) -> int | None:
        """Positions that it was made for; None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        quantize: Quantize | None = None,
    ) -> FrozenLM:
        """Loads any causal LM with its tokenizer, from the hub, a folder or a GGUF file, in fewer bits if asked.

        Raises:
            DualSLMError: nothing there, not a causal LM, weights that do not match it key for key, or an LLM that
                cannot be served rightly; see `dualslm.model.llm_probe`.
        """
        bits = quantization_of(quantize, device, dtype) if quantize else {}
        source = source_of(name)
        try:
            # A GGUF file names no code; its configuration is read with its tensors.
            config = None if source.gguf_file else read_config(source.name, revision)
            model, info = AutoModelForCausalLM.from_pretrained(
                source.name,
                revision=revision,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=source.gguf_file is None,  # pickles are never opened
                trust_remote_code=False,
                **source.options,
                **bits,
            )
            tokenizer = read_tokenizer(source.name, revision, **source.options)
        # Transformers and the readers of weights and GGUF files fail at a broken folder in dozens of ways of their own,
        # and a configuration may ask for a package that is not here, as of a way of quantizing.
        except Exception as error:
            raise DualSLMError(
                f"cannot load the LLM {name!r}",
                got=first_line(error),
                do="give the hub id of a causal LM that you can reach, or its folder with safetensors weights",
            ) from error
        faults = [f"{key} missing" for key in info["missing_keys"]]
        faults += [f"{key} unexpected" for key in info["unexpected_keys"]]
        if faults or info["mismatched_keys"]:
            raise DualSLMError(
                f"the weights of {name} do not fit",
                got="; ".join(sorted(faults)[:3]) or str(info["mismatched_keys"])[:100],
                do="use a complete checkpoint of a causal LM",
            )
        if quantize:
            keep_unpacked(model)
        else:
            model = model.to(device)
        llm = cls(model, tokenizer, name=name, revision=revision, identity="" if quantize else None)
        probe(llm)
        return llm


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (T, ...) of any lengths → one tensor (B, T, ...) and its mask (B, T), padded on the left."""
    lengths_B = torch.tensor([len(row) for row in rows])
    position_T = torch.arange(int(lengths_B.max()))
    mask_BT = (position_T >= len(position_T) - lengths_B[:, None]).long()
    return pad_sequence(list(rows), batch_first=True, padding_side="left"), mask_BT.to(rows[0].device)


def _configured_stops(model: PreTrainedModel) -> frozenset[int]:
    stops = getattr(model.generation_config, "eos_token_id", None)
    if stops is None:
        return frozenset()
    return frozenset([stops] if isinstance(stops, int) else stops)
