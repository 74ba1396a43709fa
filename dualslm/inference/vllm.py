"""The untouched LLM behind stock vLLM; this process keeps no more of it than its token embeddings (ours).

vLLM started with `--enable-prompt-embeds` takes a prompt as embeddings (`/v1/completions`, `prompt_embeds`): text, P
and L alike, so that it reads position by position what the LLM in process reads, whatever the view and the chat
template. A conversation without a recording goes as token ids. No model class is ported and no weight changes.

Dimensions: T positions of a prompt, D width of the LLM.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dualslm.errors import DualSLMError
from dualslm.inference.backend import Piece, Reason, TokenLogprob, UnavailableError
from dualslm.model.generation import GenerationSettings
from dualslm.model.inputs import PromptEmbeds
from dualslm.model.reasoning import AnswerStream, begins_within, mark_ids, special_tokens

CONNECT_S = 10.0
SILENCE_S = 300.0  # without a byte
MAX_LOGGED = 500  # characters of an error

log = logging.getLogger("dualslm.vllm")


class VLLMBackend:
    """Answers with an LLM that vLLM runs.

    Args:
        url: up to and with /v1, for example http://localhost:8000/v1.
        stops: the tokens at which a reply ends.
        tokenizer: the LLM's, by which its chains of thought are told from its answers; none are cut when None.
        model: as the server calls it; the first that it names when None.
        key: sent as a bearer token.

    Raises:
        DualSLMError: nobody answers there, or not as vLLM does.
    """

    def __init__(
        self,
        url: str,
        stops: frozenset[int],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            got = repr(_without_password(url))
            raise DualSLMError("not a server", got=got, do="write for example http://localhost:8000/v1")
        self.tokenizer = tokenizer
        self.url, self.stops = url.rstrip("/"), sorted(stops)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.web = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S))
        self.model, self._context = self._served(headers, model)
        self._open = 0

    @property
    def context(self) -> int | None:
        """The server's --max-model-len."""
        return self._context

    async def stream(
        self,
        prompt: PromptEmbeds,
        generation: GenerationSettings,
        stop: Sequence[str] = (),
        keep_special: Sequence[str] = (),
    ) -> AsyncGenerator[Piece]:
        """See `Backend.stream`; leaving it closes the connection, on which vLLM stops."""
        body = self._body(prompt, generation, stop)
        tokens = 0
        ended = False
        thoughts = None
        if self.tokenizer is not None:
            thoughts = AnswerStream(begins_within(self.tokenizer, prompt.keys))
            # vLLM would leave out the marks, and not the thought or the call between them
            if mark_ids(self.tokenizer) or not special_tokens(self.tokenizer).keys().isdisjoint(keep_special):
                body["skip_special_tokens"] = False
        self._open += 1
        try:
            async with self.web.stream("POST", self.url + "/completions", json=body) as answer:
                await self._refused(answer)
                async for event in _events(answer):
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    for choice in event.get("choices", ()):
                        reason = _reason(choice)
                        text = choice["text"]
                        if thoughts is not None:
                            text = thoughts.add(text) + (thoughts.rest() if reason else "")
                        if text or reason:
                            ended = ended or reason is not None
                            yield Piece(text, tokens, reason=reason, logprobs=_logprobs(choice))
        except (httpx2.HTTPError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise _failed(f"{type(error).__name__}: {error}", "no connection, or no answer of vLLM's") from error
        finally:
            self._open -= 1
        if not ended:  # a connection that was closed in the middle looks like an end
            raise _failed("a reply without an end", "a reply without an end")

    def state(self) -> Mapping[str, float]:
        """See `Backend.state`."""
        return {"vllm_requests": self._open}

    async def close(self) -> None:
        """See `Backend.close`."""
        await self.web.aclose()

    def _body(self, prompt: PromptEmbeds, generation: GenerationSettings, stop: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, **generation.as_openai()}
        # The stop tokens are those of the chat template; vLLM knows only the eos of the LLM's configuration.
        body |= {"stop": [text for text in stop if text], "stop_token_ids": self.stops, "stream": True}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        salt = prompt.salt if prompt.reuse else secrets.token_hex(16)
        if salt:
            body["cache_salt"] = salt
        if (token_ids := prompt.token_ids) is not None:
            return body | {"prompt": token_ids}
        return body | {"prompt_embeds": packed(prompt.embeds_TD)}

    async def _refused(self, answer: httpx2.Response) -> None:
        if answer.status_code == httpx2.codes.OK:
            return
        said = (await answer.aread()).decode(errors="replace")
        got = f"status {answer.status_code}"
        if answer.status_code == httpx2.codes.BAD_REQUEST:
            _log_error(f"{got}: {said}")
            raise DualSLMError("vLLM refuses this request", got=got, do="start it with --enable-prompt-embeds")
        raise _failed(f"{got}: {said}", got)

    def _served(self, headers: Mapping[str, str], wanted: str | None) -> tuple[str, int | None]:
        try:
            answer = httpx2.get(self.url + "/models", headers=dict(headers), timeout=CONNECT_S)
            answer.raise_for_status()
            served = {one["id"]: one.get("max_model_len") for one in answer.json()["data"]}
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            url = _without_password(self.url)
            got = _without_addresses(f"{type(error).__name__}: {error}")
            do = "start it, or mend the address"
            raise UnavailableError(f"vLLM at {url} does not answer", got=got, do=do) from None
        name = wanted or next(iter(served), "")
        if name not in served:
            raise DualSLMError(
                f"{_without_password(self.url)} has no such model",
                got=repr(name),
                do=f"name one of {', '.join(served)}",
            )
        return name, served[name]


def _failed(what: str, shown: str) -> UnavailableError:
    """The error that a client is told; what vLLM itself says may name machines and folders, and goes to the log."""
    _log_error(what)
    return UnavailableError("vLLM gave up on this reply", got=shown, do="ask again in a moment")


def _log_error(what: str) -> None:
    log.warning("vLLM: %s", _without_addresses(" ".join(what.split()))[:MAX_LOGGED])


def _without_password(url: str) -> str:
    """An address without the name and the password that may stand in it."""
    return re.sub(r"[^/]*@", "", url)


def _without_addresses(text: str) -> str:
    """A text without the addresses that it quotes."""
    return re.sub(r"\b\w+://\S+", "(address)", text)


def packed(embeds_TD: Tensor) -> str:
    """Embeddings as vLLM takes them: a tensor as torch saves it, in base64."""
    file = io.BytesIO()
    torch.save(embeds_TD.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode()


async def _events(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise _failed(str(event["error"]), "an error in the middle of it")
        yield event


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """Of the tokens of one event, as `/v1/completions` states them."""
    stated = choice.get("logprobs") or {}
    tokens = stated.get("tokens") or ()
    top = stated.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(token, logprob, tuple((likeliest or {}).items()))
        for token, logprob, likeliest in zip(tokens, stated.get("token_logprobs") or (), top, strict=False)
    )


def _reason(choice: Mapping[str, Any]) -> Reason | None:
    reason = choice.get("finish_reason")
    if reason in (None, "stop", "length"):
        return reason
    raise _failed(f"ended for {reason}", "an end of vLLM's own")
