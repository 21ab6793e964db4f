"""Hugging Face transformers in this process: `generate` in a thread, its tokens streamed out as they come.

Sampling is made a function of (seed, position): the noise of the Gumbel-max trick is added to the scores, and the
largest is taken. So requests share no random state, and a continued answer draws what the unbroken one would have
drawn. (Rounding differs between one long prefill and many short steps; where two tokens are as good as equal, so may
the draw.)
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import secrets
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pointsman_worker.domain.backend import Backend, StartFailed, Traits
from pointsman_worker.domain.failures import InvalidQuestion
from pointsman_worker.domain.model import Piece, Question
from pointsman_worker.domain.text import Decoder
from pointsman_worker.domain.writer import Writer, resumed_ids
from pointsman_worker.infrastructure.backends import tokens
from pointsman_worker.infrastructure.backends.echo import refuse_choices
from pointsman_worker.infrastructure.settings import Local, Settings

KNOWN = frozenset({"repetition_penalty", "top_k"})
AHEAD_MAX = 64
"""Tokens that the model may be ahead of the caller; then it waits."""
ROOM_SECONDS = 0.1
"""How often a waiting model looks whether it is still wanted."""
TOKENS_DEFAULT = 1024
"""Where neither the request nor the model's context bounds the answer."""


class Transformers:
    """One model. `BACKEND_ARGS` go to `AutoModelForCausalLM.from_pretrained`."""

    def __init__(self, settings: Local, concurrency: int) -> None:
        self._settings = settings
        self._torch: Any = importlib.import_module("torch")
        self._library: Any = importlib.import_module("transformers")
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="generate")
        self._model: Any = None
        self._tokenizer: Any = None
        self._defaults: Any = None
        self._context_max: int | None = None
        self.traits = Traits("transformers")

    async def start(self) -> None:
        """Loads the model; takes as long as that takes."""
        path, which = self._settings.path, {"revision": self._settings.revision} if self._settings.revision else {}
        try:
            self._tokenizer = self._library.AutoTokenizer.from_pretrained(path, **which)
            load = self._library.AutoModelForCausalLM.from_pretrained
            self._model = load(path, **which, **self._settings.args)
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise StartFailed(f"MODEL_PATH, BACKEND_ARGS: transformers cannot load the model: {error}") from error
        self._model.eval()
        self._defaults = self._model.generation_config
        config = self._model.config
        longest = getattr(config, "max_position_embeddings", None)
        self._context_max = longest if isinstance(longest, int) else None
        commit = getattr(config, "_commit_hash", None)
        revision = tokens.revision(path, self._settings.revision, commit)
        mark = tokens.fingerprint("transformers", self._tokenizer, revision)
        self.traits = Traits("transformers", mark, resumes_seeded=True)

    async def close(self) -> None:
        """Lets running threads see that nobody waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def trouble(self) -> str:
        """None that could be seen from here."""
        return ""

    def kv_used_permille(self) -> int | None:
        """Each request has a cache of its own."""
        return None

    async def generate(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Streams from a thread. Closing the generator stops the thread at its next token."""
        refuse_choices(question)
        tokens.refuse_unknown(question, KNOWN)
        before = resumed_ids(question)
        prompt = tokens.prompt_ids(self._tokenizer, question)
        room = self._room(question, len(prompt), len(before))
        decoder = Decoder(tokens.decoder(self._tokenizer))
        writer = Writer(question, len(prompt), decoder.feed, decoder.rest)
        unsaid = writer.replay(before)
        if unsaid is not None:
            yield unsaid
        if writer.ended():
            return
        bridge = Bridge(asyncio.get_running_loop())
        settings = self._generation(question, len(prompt), room)
        self._threads.submit(self._run, [*prompt, *before], settings, bridge)
        ends = self._ends()
        said = len(before)
        try:
            while (token := await bridge.take()) is not None and token not in ends:
                said += 1
                yield writer.token(token)
                if writer.ended():
                    return
            yield writer.end("stop" if token in ends or said - len(before) < room else "length")
        finally:
            bridge.stop()

    def _run(self, ids: list[int], settings: dict[str, Any], bridge: Bridge) -> None:
        """The thread: one call of `generate`, from the first token to the last."""
        try:
            inputs = self._torch.tensor([ids], device=self._model.device)
            with self._torch.inference_mode():
                mask = self._torch.ones_like(inputs)
                self._model.generate(inputs, attention_mask=mask, streamer=bridge, **settings)
            bridge.finish(None)
        except NotWanted:
            bridge.finish(None)
        except Exception as error:  # noqa: BLE001 - the loop raises it again
            bridge.finish(error)

    def _generation(self, question: Question, prompt: int, room: int) -> dict[str, Any]:
        """What `generate` is told. It takes the largest score itself: our processors have made the choice by then."""
        parameters, defaults = question.parameters, self._defaults
        sampled = bool(getattr(defaults, "do_sample", False))
        usual = getattr(defaults, "temperature", None) if sampled else 0.0
        temperature = parameters.temperature if parameters.temperature is not None else (usual or 0.0)
        processors = self._library.LogitsProcessorList()
        if temperature > 0:
            top_p = parameters.top_p if parameters.top_p is not None else getattr(defaults, "top_p", None)
            top_k = parameters.extra.get("top_k") or getattr(defaults, "top_k", None)
            seed = parameters.seed if parameters.seed is not None else secrets.randbits(63)
            processors.append(self._library.TemperatureLogitsWarper(float(temperature)))
            if _whole("top_k", top_k):
                processors.append(self._library.TopKLogitsWarper(top_k))
            if top_p is not None and top_p < 1:
                processors.append(self._library.TopPLogitsWarper(float(top_p)))
            processors.append(SeededNoise(self._torch, seed, prompt))
        told: dict[str, Any] = {"max_new_tokens": room, "do_sample": False, "num_beams": 1}
        penalty = parameters.extra.get("repetition_penalty")
        if penalty is not None:
            if not isinstance(penalty, (int, float)) or penalty <= 0:
                raise InvalidQuestion("`repetition_penalty`: give a number above 0")
            told["repetition_penalty"] = float(penalty)
        return {**told, "logits_processor": processors}

    def _room(self, question: Question, prompt: int, before: int) -> int:
        """How many tokens may come. Raises `InvalidQuestion` where the model's context has no place for one."""
        left = question.max_tokens_left
        if self._context_max is None:
            return TOKENS_DEFAULT if left is None else left
        place = self._context_max - prompt - before
        if place < 1:
            raise InvalidQuestion(f"the conversation fills the model's context of {self._context_max} tokens")
        return place if left is None else min(place, left)

    def _ends(self) -> frozenset[int]:
        told = getattr(self._defaults, "eos_token_id", None)
        return frozenset(told if isinstance(told, (list, tuple)) else () if told is None else (told,))


def build(settings: Settings) -> Backend:
    """Makes it."""
    return Transformers(settings.local, settings.concurrency)


class NotWanted(Exception):
    """Ends `generate` from within: nobody waits for its tokens any more."""


class Bridge:
    """The streamer that `generate` puts tokens into, and the loop takes them from. Holds at most `AHEAD_MAX`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD_MAX)
        self._stopped = threading.Event()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Called by `generate`: first with the prompt, then with each token. Raises `NotWanted` once stopped."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in _flat(value.tolist()):
            while not self._room.acquire(timeout=ROOM_SECONDS):
                self._look()
            self._look()
            self._hand_over(token)

    def end(self) -> None:
        """Called by `generate` at its end; `finish` says more."""

    def finish(self, error: Exception | None) -> None:
        """The thread is over, with its error if it had one."""
        self._hand_over(error)

    async def take(self) -> int | None:
        """The next token, or `None` at the end. Raises what the thread raised."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._room.release()
        return item

    def stop(self) -> None:
        """Nobody takes any more."""
        self._stopped.set()

    def _look(self) -> None:
        if self._stopped.is_set():
            raise NotWanted

    def _hand_over(self, item: int | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError as error:
            raise NotWanted from error


class SeededNoise:
    """A logits processor that makes the largest score a sample: Gumbel noise from (seed, position)."""

    def __init__(self, torch: Any, seed: int, prompt: int) -> None:
        self._torch = torch
        self._seed = seed
        self._prompt = prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores with noise added."""
        position = input_ids.shape[-1] - self._prompt
        mixed = hashlib.blake2b(f"{self._seed} {position}".encode(), digest_size=7).digest()
        generator = self._torch.Generator(device="cpu")
        generator.manual_seed(int.from_bytes(mixed, "little"))
        drawn = self._torch.rand(tuple(scores.shape), generator=generator, dtype=self._torch.float32)
        noise = -self._torch.log(-self._torch.log(drawn.clamp(min=1e-20, max=1 - 1e-7)))
        return scores + noise.to(scores.device)


def _whole(name: str, value: Any) -> bool:
    """Whether a count was given. Raises `InvalidQuestion` where it is none."""
    if value is None or value == 0:
        return False
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidQuestion(f"`{name}`: give a whole number of at least 1")
    return True


def _flat(values: Any) -> list[int]:
    """The ids of a tensor of any shape, as lists."""
    if isinstance(values, list):
        return [token for value in values for token in _flat(value)]
    return [int(values)]
