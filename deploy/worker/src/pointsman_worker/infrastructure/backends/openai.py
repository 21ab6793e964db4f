"""Any server that speaks the OpenAI API: vLLM, SGLang, llama.cpp, Ollama, providers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncGenerator

import httpx

from pointsman_worker.domain.backend import Backend, Traits
from pointsman_worker.domain.failures import BackendFailed, CannotResume, InvalidQuestion, Unavailable
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.infrastructure.backends import openai_seam, openai_words, sse
from pointsman_worker.infrastructure.settings import OpenAI, Settings

CONNECT_SECONDS = 5.0
TROUBLE_SECONDS = 3.0
"""How long the list of models may take. A server that computes at its limit is slow with it, and works."""
SILENT_MAX = 3
"""So many looks in a row must end in silence before a server that answered is taken for gone."""
SPOKE_SECONDS = 5.0
"""A server that said something of an answer since then is there, however slow it is to list its models."""
ERROR_BYTES_MAX = 64 * 1024
BILL_SECONDS = 5.0
"""How long a complete answer waits for its bill."""
CONNECTIONS_SPARE = 4
"""For the look whether the server is there, beside the requests."""


class OpenAICompatible:
    """Asks one server. It continues an answer where the operator says that the server does: `openai_seam` has how."""

    def __init__(self, settings: OpenAI, connections: int, model: str = "") -> None:
        self.traits = Traits("openai", openai_seam.fingerprint(model, settings.continues))
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self._connections = connections + CONNECTIONS_SPARE
        self._answered = False
        self._silent = 0
        self._spoke = -math.inf

    async def start(self) -> None:
        """Prepares the client. The server may come later."""
        headers = {"Accept": "text/event-stream"}
        if self._settings.api_key:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        idle = self._settings.idle_seconds
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(idle, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=self._connections),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def trouble(self) -> str:
        """Whether the server answers at all; what it answers to a list of models says little of it.

        Silence is trouble of a server that answered when it has lasted, and nothing else was heard of it meanwhile: at
        its limit it is slow, and to take it away just then is to put its load on the others.
        """
        words = "the server at OPENAI_BASE_URL cannot be reached"
        try:
            async with asyncio.timeout(TROUBLE_SECONDS):
                answer = await self._ready().get(f"{self._settings.base_url}/models")
        except (httpx.TimeoutException, TimeoutError) as error:
            return f"{words}: {type(error).__name__}" if self._is_gone() else ""
        except httpx.HTTPError as error:
            self._answered = False
            return f"{words}: {type(error).__name__}"
        self._answered, self._silent = True, 0
        if answer.status_code in (401, 403):
            return f"the server at OPENAI_BASE_URL refuses OPENAI_API_KEY ({answer.status_code})"
        if answer.status_code >= 500:
            return f"the server at OPENAI_BASE_URL answers {answer.status_code}"
        return ""

    def _is_gone(self) -> bool:
        """Whether one more look that ended in silence says so."""
        if time.monotonic() - self._spoke <= SPOKE_SECONDS:
            self._answered, self._silent = True, 0
            return False
        self._silent += 1
        self._answered = self._answered and self._silent < SILENT_MAX
        return not self._answered

    def kv_used_permille(self) -> int | None:
        """The API does not tell."""
        return None

    async def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Streams a chat completion. Closing the generator closes the connection, and so stops the server."""
        if question.resume and question.max_tokens_open == 0:
            yield Piece(finish_reason="length")
            return
        seam = openai_seam.Seam(question) if self._settings.continues else None
        body = openai_words.body(openai_seam.asked(question) if seam else question, self._settings.model)
        url = f"{self._settings.base_url}/chat/completions"
        try:
            async with self._ready().stream("POST", url, json=body, headers=dict(question.trace)) as answer:
                await _check(answer)
                async with contextlib.aclosing(_pieces(answer, question.parameters.choices, seam)) as pieces:
                    async for piece in pieces:
                        self._spoke = time.monotonic()
                        yield piece
        except InvalidQuestion as error:
            if not question.resume:
                raise
            # The caller's question was good enough for whoever began.
            raise CannotResume("the backend does not take what continues an answer") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unavailable("the backend cannot be reached") from error
        except httpx.TimeoutException as error:
            raise BackendFailed(f"the backend was silent for {self._settings.idle_seconds:g} s") from error
        except httpx.HTTPError as error:
            raise BackendFailed("the connection to the backend broke") from error

    def _ready(self) -> httpx.AsyncClient:
        if self._client is None:
            raise Unavailable("the backend has not been started")
        return self._client


def build(settings: Settings) -> Backend:
    """Makes it."""
    return OpenAICompatible(settings.openai, settings.concurrency, settings.model)


async def _check(answer: httpx.Response) -> None:
    """Raises what a bad status means, and `BackendFailed` where no event stream comes."""
    if answer.status_code != 200:
        raise openai_words.refusal(answer.status_code, await _error(answer), answer.headers)
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        raise BackendFailed("the backend sent no event stream; OPENAI_BASE_URL may name something else")


async def _error(answer: httpx.Response) -> object:
    """The error object of a bad answer, where it has one."""
    text = b""
    async for chunk in answer.aiter_bytes():
        text += chunk
        if len(text) > ERROR_BYTES_MAX:
            return None
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told.get("error", told) if isinstance(told, dict) else None


async def _pieces(answer: httpx.Response, choices: int, seam: openai_seam.Seam | None) -> AsyncGenerator[Piece, None]:
    """The pieces of the stream, up to `[DONE]`, its end, or the bill not coming."""
    events = sse.events(answer.aiter_bytes())
    ended: set[int] = set()
    while True:
        try:
            async with asyncio.timeout(BILL_SECONDS if len(ended) >= choices else None):
                data = await anext(events, None)
        except TimeoutError:
            return
        except httpx.HTTPError:
            if len(ended) >= choices:
                return
            raise
        if data is None or data.strip() == "[DONE]":
            return
        told = openai_words.pieces(data)
        for piece in seam.pass_on(told) if seam else told:
            if piece.finish_reason:
                ended.add(piece.choice)
            yield piece
