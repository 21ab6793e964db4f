"""Stand-ins for vLLM, torch and transformers at the seam where the backends use them.

The model in them is a hash of all ids so far, so that a continued answer proves that it was fed the right ids. Their
calls have the shapes of the real ones: names, keywords, what is awaited, what is raised.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import sys
import threading
import time
import types
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

END = 256
"""The id that ends an answer; lower ids are bytes."""
LETTERS = "abc é🙂".encode()


def next_token(ids: Sequence[int]) -> int:
    """The token after these. Characters of several bytes are always finished."""
    said = bytes(token for token in ids[-3:] if token < END)
    for letter in ("é", "🙂"):
        whole = letter.encode()
        for length in range(len(whole) - 1, 0, -1):
            if said.endswith(whole[:length]):
                return whole[length]
    number = hashlib.sha256(json.dumps(list(ids)).encode()).digest()[0]
    return END if number < 4 else (97 + number % 5, 32, 0xC3, 0xF0)[min(3, number % 7)]


class Tokenizer:
    """Byte by byte, with a chat template."""

    chat_template = "{{ messages }}"
    eos_token_id = END

    def apply_chat_template(
        self, conversation: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool, return_dict: bool
    ) -> list[int]:
        assert tokenize
        assert add_generation_prompt
        assert not return_dict
        if conversation[0]["role"] == "tool":
            raise ValueError("conversations must begin with something else")
        return list("".join(f"<{said['role']}>{said['content']}\n" for said in conversation).encode())

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return bytes(token for token in ids if token < END).decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(END + 1)}


class SamplingParams:
    """Keeps what it is given, and refuses what vLLM refuses."""

    def __init__(self, **told: Any) -> None:
        if told.get("top_k", 0) < -1:
            raise ValueError("top_k must be 0 (disable), or at least 1")
        self.told = told


class AsyncEngineArgs:
    """Knows a few fields."""

    def __init__(self, model: str, revision: str | None = None, dtype: str = "auto") -> None:
        self.model, self.revision, self.dtype = model, revision, dtype


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class AsyncLLM:
    """An engine whose outputs hold one or two tokens each."""

    made: list[AsyncLLM] = []  # noqa: RUF012 - cleared by `install_vllm`

    def __init__(self, args: AsyncEngineArgs) -> None:
        self.args = args
        self.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace(_commit_hash="c0ffee"))
        self.prompts: list[list[int]] = []
        self.params: list[dict[str, Any]] = []
        self.aborted = 0
        self.dead: Exception | None = None
        self.down = False
        self.delay = 0.0
        AsyncLLM.made.append(self)

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> AsyncLLM:
        if args.model == "absent":
            raise OSError("absent is not a local folder")
        return cls(args)

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    async def check_health(self) -> None:
        if self.dead:
            raise self.dead

    def shutdown(self) -> None:
        self.down = True

    async def generate(self, prompt: dict[str, list[int]], params: SamplingParams, request_id: str) -> Any:
        assert request_id
        self.prompts.append(prompt["prompt_token_ids"])
        self.params.append(params.told)
        try:
            async for output in self._outputs(list(prompt["prompt_token_ids"]), params.told):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise

    async def _outputs(self, ids: list[int], told: dict[str, Any]) -> AsyncGenerator[Any, None]:
        assert told["detokenize"] is False
        assert told["output_kind"] == "delta"
        made: list[int] = []
        most = told["max_tokens"] or 500
        while True:
            await asyncio.sleep(self.delay)
            if self.dead:
                raise self.dead
            fresh: list[int] = []
            for _ in range(1 + len(made) % 2):
                fresh.append(next_token(ids + made + fresh))
                if fresh[-1] == END or len(made) + len(fresh) == most:
                    break
            made += fresh
            reason = "stop" if made[-1] == END else "length" if len(made) == most else None
            said = types.SimpleNamespace(text="", token_ids=fresh, finish_reason=reason)
            yield types.SimpleNamespace(outputs=[said], num_cached_tokens=16, finished=reason is not None)
            if reason:
                return


def module(name: str, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


def install_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `import vllm...` find the fakes."""
    AsyncLLM.made.clear()
    kind = types.SimpleNamespace(DELTA="delta")
    errors = {"EngineDeadError": EngineDeadError, "EngineGenerateError": EngineGenerateError}
    modules: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.sampling_params": {"SamplingParams": SamplingParams, "RequestOutputKind": kind},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.v1.engine.exceptions": errors,
    }
    for name, members in modules.items():
        monkeypatch.setitem(sys.modules, name, module(name, **members))


class Tensor:
    """A vector with a batch of one, and the little arithmetic that the noise needs."""

    device = "cpu"

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        self.shape = (1, len(self.values))

    def tolist(self) -> list[list[float]]:
        return [self.values]

    def clamp(self, *, min: float, max: float) -> Tensor:  # noqa: A002 - torch's names
        return Tensor([sorted((min, value, max))[1] for value in self.values])

    def to(self, device: str) -> Tensor:
        assert device == "cpu"
        return self

    def cpu(self) -> Tensor:
        return self

    def __neg__(self) -> Tensor:
        return Tensor([-value for value in self.values])

    def __add__(self, other: Tensor) -> Tensor:
        return Tensor([one + two for one, two in zip(self.values, other.values, strict=True)])


class Generator:
    """A source of noise of its own."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"
        self.random = random.Random()

    def manual_seed(self, seed: int) -> None:
        assert 0 <= seed < 2**63
        self.random.seed(seed)


class InferenceMode:
    """Changes nothing here."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def rand(shape: tuple[int, int], *, generator: Generator, dtype: str) -> Tensor:
    assert dtype == "float32"
    return Tensor([generator.random.random() for _ in range(shape[1])])


def tensor(values: list[list[int]], *, device: str) -> Tensor:
    assert device == "cpu"
    return Tensor(values[0])


class Warper:
    """Any of the library's warpers: keeps its setting, changes no score."""

    def __init__(self, setting: float) -> None:
        self.setting = setting

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores


class Model:
    """Its scores prefer the hash's token by `margin`; greedy takes that, noise may take another."""

    device = "cpu"

    def __init__(self) -> None:
        self.generation_config = types.SimpleNamespace(eos_token_id=[END], do_sample=False)
        self.config = types.SimpleNamespace(max_position_embeddings=400, _commit_hash="c0ffee")
        self.told: dict[str, Any] = {}
        self.margin = 1.0
        self.steps = 0
        self.delay = 0.0
        self.broken: Exception | None = None
        self.ended = threading.Event()

    def eval(self) -> None:
        pass

    def generate(self, inputs: Tensor, *, attention_mask: Tensor, streamer: Any, **told: Any) -> None:
        assert attention_mask.values == [1] * len(inputs.values)
        self.told = told
        ids = [int(token) for token in inputs.values]
        try:
            streamer.put(inputs.cpu())
            for _ in range(told["max_new_tokens"]):
                self.steps += 1
                time.sleep(self.delay)
                if self.broken:
                    raise self.broken
                ids.append(self._choose(ids, told["logits_processor"]))
                streamer.put(Tensor([ids[-1]]))
                if ids[-1] == END:
                    break
            streamer.end()
        finally:
            self.ended.set()

    def _choose(self, ids: list[int], processors: list[Any]) -> int:
        best = next_token(ids)
        others = list(LETTERS[:4]) if best < 0x80 else []
        scores = Tensor([0.0 if token in others else -1e9 for token in range(END + 1)])
        scores.values[best] = self.margin
        for processor in processors:
            scores = processor(Tensor(ids), scores)
        return scores.values.index(max(scores.values))


class Loader:
    """`AutoTokenizer` and `AutoModelForCausalLM`."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.told: dict[str, Any] = {}

    def from_pretrained(self, path: str, **told: Any) -> Any:
        if path == "absent":
            raise OSError("absent is not a local folder")
        self.told = told
        return self.made


def install_transformers(monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Loader]:
    """Makes `import torch` and `import transformers` find the fakes."""
    model = Model()
    loader = Loader(model)
    torch = module(
        "torch",
        tensor=tensor,
        ones_like=lambda of: Tensor([1] * len(of.values)),
        inference_mode=InferenceMode,
        Generator=Generator,
        rand=rand,
        float32="float32",
        log=lambda of: Tensor([math.log(value) for value in of.values]),
    )
    library = module(
        "transformers",
        AutoTokenizer=Loader(Tokenizer()),
        AutoModelForCausalLM=loader,
        LogitsProcessorList=list,
        TemperatureLogitsWarper=Warper,
        TopKLogitsWarper=Warper,
        TopPLogitsWarper=Warper,
    )
    for name, made in {"torch": torch, "transformers": library}.items():
        monkeypatch.setitem(sys.modules, name, made)
    return model, loader
