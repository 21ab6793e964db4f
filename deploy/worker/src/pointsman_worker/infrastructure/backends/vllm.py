"""vLLM in this process: its asynchronous engine, fed token ids, answering token ids.

Text is made here and not by vLLM, so that stop texts and characters across the seam of a resume go one way. A resume is
the prompt and the tokens so far as one prompt, which vLLM's prefix cache may even hold. What vLLM counts from the start
of *its* output would then be wrong (penalties, least tokens, grammars): such answers are not continued.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from prometheus_client import REGISTRY

from pointsman_worker.domain.backend import Backend, StartFailed, Traits
from pointsman_worker.domain.failures import BackendFailed, CannotResume, InvalidQuestion, Unavailable
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.domain.text import Decoder
from pointsman_worker.domain.writer import Writer, resumed_ids
from pointsman_worker.infrastructure.backends import tokens
from pointsman_worker.infrastructure.backends.echo import refuse_choices
from pointsman_worker.infrastructure.settings import Local, Settings

COUNTED_FROM_START = frozenset({"frequency_penalty", "min_tokens", "presence_penalty"})
KNOWN = COUNTED_FROM_START | {"ignore_eos", "logit_bias", "min_p", "repetition_penalty", "stop_token_ids", "top_k"}
KV_METRIC = "vllm:kv_cache_usage_perc"
KV_SECONDS = 1.0
"""How old the figure for the cache may be: load reports come once a second and request."""


class Vllm:
    """One engine. `BACKEND_ARGS` are its `AsyncEngineArgs`."""

    def __init__(self, settings: Local, model: str) -> None:
        self._settings = settings
        self._model = model
        self._sampling: Any = importlib.import_module("vllm.sampling_params")
        self._args: Any = importlib.import_module("vllm.engine.arg_utils")
        self._async_llm: Any = importlib.import_module("vllm.v1.engine.async_llm")
        self._errors: Any = importlib.import_module("vllm.v1.engine.exceptions")
        self._engine: Any = None
        self._tokenizer: Any = None
        self._kv: tuple[float, int | None] = (-KV_SECONDS, None)
        self.traits = Traits("vllm")

    async def start(self) -> None:
        """Loads the model; takes as long as that takes."""
        given: dict[str, Any] = {"model": self._settings.path, **self._settings.args}
        if self._settings.revision:
            given["revision"] = self._settings.revision
        try:
            args = self._args.AsyncEngineArgs(**given)
        except TypeError as error:
            raise StartFailed(f"BACKEND_ARGS: {error}; give fields of vLLM's AsyncEngineArgs") from error
        try:
            self._engine = self._async_llm.AsyncLLM.from_engine_args(args)
        except (OSError, RuntimeError, ValueError) as error:
            raise StartFailed(f"MODEL_PATH: vLLM cannot load the model ({type(error).__name__}): {error}") from error
        tokenizer = self._engine.get_tokenizer()
        self._tokenizer = await tokenizer if inspect.isawaitable(tokenizer) else tokenizer
        commit = getattr(getattr(self._engine.model_config, "hf_config", None), "_commit_hash", None)
        revision = tokens.revision(self._settings.path, self._settings.revision, commit)
        self.traits = Traits("vllm", tokens.fingerprint("vllm", self._tokenizer, revision), resumes_seeded=False)

    async def close(self) -> None:
        """Stops the engine and its processes."""
        if self._engine is not None:
            self._engine.shutdown()

    async def trouble(self) -> str:
        """Whether the engine lives."""
        try:
            await self._engine.check_health()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return f"the engine is dead: {type(error).__name__}"
        return ""

    def kv_used_permille(self) -> int | None:
        """From the engine's own metric; the fullest of several engines."""
        now = time.monotonic()
        if now - self._kv[0] >= KV_SECONDS:
            self._kv = (now, _kv_used_permille())
        return self._kv[1]

    async def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Streams from the engine. Closing the generator aborts the request there."""
        refuse_choices(question)
        extra = tokens.refuse_unknown(question, KNOWN)
        counted = sorted(COUNTED_FROM_START & set(extra))
        if question.resume is not None and counted:
            raise CannotResume(f"`{counted[0]}`: an answer with it cannot be continued here")
        before = resumed_ids(question)
        prompt = tokens.prompt_ids(self._tokenizer, question)
        decoder = Decoder(tokens.decoder(self._tokenizer))
        writer = Writer(question, len(prompt), decoder.feed, decoder.rest)
        unsaid = writer.replay(before)
        if unsaid is not None:
            yield unsaid
        if writer.ended():
            return
        params = self._params(question, extra)
        outputs = self._engine.generate(
            {"prompt_token_ids": [*prompt, *before]}, params, f"pointsman-{uuid.uuid4().hex}"
        )
        async with contextlib.aclosing(self._translated(outputs)) as translated:
            async for output in translated:
                for piece in _pieces(writer, output, len(prompt)):
                    yield piece
                if writer.ended() and not output.finished:
                    return  # Closes the engine's generator, which aborts what still runs there.

    def _params(self, question: Question, extra: Mapping[str, Any]) -> Any:
        parameters = question.parameters
        given = {
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
            "seed": parameters.seed,
            **_typed(extra),
        }
        told = {name: value for name, value in given.items() if value is not None}
        try:
            return self._sampling.SamplingParams(
                max_tokens=question.max_tokens_left,
                detokenize=False,
                output_kind=self._sampling.RequestOutputKind.DELTA,
                **told,
            )
        except (TypeError, ValueError) as error:
            raise InvalidQuestion(f"vLLM does not take these parameters: {error}") from error

    async def _translated(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The engine's outputs, its errors turned into ours."""
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield output
        except self._errors.EngineDeadError as error:
            raise Unavailable("the engine is dead") from error
        except self._errors.EngineGenerateError as error:
            raise BackendFailed("the engine failed on this request") from error
        except ValueError as error:
            raise InvalidQuestion(f"vLLM does not take this request: {error}") from error


def build(settings: Settings) -> Backend:
    """Makes it."""
    return Vllm(settings.local, settings.model)


def _pieces(writer: Writer, output: Any, prompt_tokens: int) -> list[Piece]:
    """What one output of the engine says. The token that ends an answer is not told: it has no text."""
    said = output.outputs[0]
    reason = said.finish_reason
    if reason not in (None, "stop", "length"):
        raise BackendFailed("the engine gave the answer up")
    writer.cached_tokens = min(prompt_tokens, max(writer.cached_tokens, output.num_cached_tokens or 0))
    ids = list(said.token_ids)
    if reason == "stop":
        ids = ids[:-1]
    found: list[Piece] = []
    for token in ids:
        found.append(writer.token(int(token)))
        if writer.ended():
            return found
    return [*found, writer.end(reason)] if reason is not None else found


def _typed(extra: Mapping[str, Any]) -> dict[str, Any]:
    """`logit_bias` has token ids for keys, which JSON makes texts."""
    told = dict(extra)
    bias = told.get("logit_bias")
    if bias is None:
        return told
    try:
        told["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidQuestion("`logit_bias`: give an object of token ids and numbers") from error
    return told


def _kv_used_permille() -> int | None:
    """The engine's gauge, from the process's own metrics; `None` where it has none."""
    samples = [
        sample.value
        for family in REGISTRY.restricted_registry([KV_METRIC]).collect()
        for sample in family.samples
        if sample.name == KV_METRIC and 0 <= sample.value <= 1
    ]
    return round(max(samples) * 1000) if samples else None
