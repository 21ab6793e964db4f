"""The backends that run a model in this process, against stand-ins for their libraries."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY, Gauge

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.domain.backend import Backend, StartFailed
from pointsman_worker.infrastructure import backends
from pointsman_worker.infrastructure.backends import tokens
from pointsman_worker.infrastructure.backends.transformers import AHEAD_MAX
from pointsman_worker.infrastructure.settings import read

import fake_models
from fake_models import AsyncLLM, EngineDeadError, EngineGenerateError, install_transformers, install_vllm
from test_resume import continued
from worlds import World, ids_of, request, serving, text_of, until

Code = grpc.StatusCode


def make(name: str, **environment: str) -> Backend:
    return backends.make(read({"MODEL_NAME": "demo", "BACKEND": name, **environment}))


@pytest.fixture(params=["vllm", "transformers"])
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two, its libraries replaced."""
    install_vllm(monkeypatch)
    install_transformers(monkeypatch)
    told: str = request.param
    return told


async def seams(world: World, asked: wire.StreamInferenceRequest, reason: str) -> None:
    """Continues an answer at each of its seams."""
    whole = await world.ask(asked)
    assert len(whole) > 5
    assert whole[-1].finish_reason == reason
    for cut in range(len(whole)):
        had = whole[:cut]
        rest = await world.ask(continued(asked, had, whole[0].fingerprint))
        assert text_of(had) + text_of(rest) == text_of(whole), cut
        assert ids_of(had) + ids_of(rest) == ids_of(whole), cut
        assert rest[-1].finish_reason == reason, cut
        assert rest[-1].usage.completion_tokens == whole[-1].usage.completion_tokens, cut


async def test_an_answer_is_told_in_ids_and_text_and_ends_without_its_end_token(name: str) -> None:
    async with serving(make(name)) as world:
        chunks = await world.ask(request("x", temperature=0))
        assert fake_models.END not in ids_of(chunks)
        assert bytes(ids_of(chunks)).decode() == text_of(chunks)
        assert {"é", "🙂"} & set(text_of(chunks))
        assert chunks[-1].finish_reason == "stop"
        assert chunks[-1].usage.prompt_tokens == len("<user>x\n")
        assert chunks[-1].usage.completion_tokens == len(ids_of(chunks))


async def test_at_every_seam_the_continued_answer_equals_the_unbroken_one(name: str) -> None:
    async with serving(make(name)) as world:
        await seams(world, request("x", temperature=0), "stop")
        await seams(world, request("x", temperature=0, max_tokens=17), "length")
        text = text_of(await world.ask(request("x", temperature=0)))
        await seams(world, request("x", temperature=0, stop=["never", text[20:24]]), "stop")


async def test_what_a_backend_cannot_do_is_refused_and_not_dropped(name: str) -> None:
    async with serving(make(name)) as world:
        for extra in ({"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"n": 2}):
            error = await world.fails(request(extra_json=json.dumps(extra)))
            assert error.code() is Code.INVALID_ARGUMENT
            assert next(iter(extra)) in str(error.details())
        assert await world.ask(request(extra_json='{"user": "u", "tools": []}', max_tokens=1))
        picture = wire.Message(role="user", parts_json='[{"type": "image_url"}]')
        tool = wire.Message(role="tool", text="x")
        for message in (picture, tool):
            error = await world.fails(wire.StreamInferenceRequest(model="demo", messages=[message]))
            assert error.code() is Code.INVALID_ARGUMENT


async def test_a_model_that_is_not_there_or_cannot_chat_stops_the_start(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartFailed, match="MODEL_PATH"):
        await make(name, MODEL_PATH="absent").start()
    monkeypatch.setattr(fake_models.Tokenizer, "chat_template", None)
    with pytest.raises(StartFailed, match="chat template"):
        await make(name).start()


async def test_the_fingerprint_changes_with_revision_template_and_vocabulary(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mark() -> str:
        backend = make(name)
        await backend.start()
        return backend.traits.fingerprint

    first = await mark()
    assert first == await mark() != ""
    monkeypatch.setattr(fake_models.Tokenizer, "chat_template", "{{ other }}")
    second = await mark()
    monkeypatch.setattr(fake_models.Tokenizer, "get_vocab", lambda _: {"a": 1})
    assert len({first, second, await mark()}) == 3


def test_the_revision_of_a_folder_is_its_files(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    weights.write_bytes(b"a" * 2_000_000)
    first = tokens.revision(str(tmp_path), "", None)
    assert first == tokens.revision(str(tmp_path), "", "commit-does-not-count-then")
    weights.write_bytes(b"b" * 2_000_000)
    assert tokens.revision(str(tmp_path), "", None) != first
    assert tokens.revision("org/model", "main", "c0ffee") == "commit:c0ffee"
    assert tokens.revision("org/model", "main", None) == "named:org/model@main"


async def test_vllm_is_asked_with_ids_and_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    told = {"MODEL_PATH": "org/model", "MODEL_REVISION": "v1", "BACKEND_ARGS": '{"dtype": "half"}'}
    async with serving(make("vllm", **told)) as world:
        extra = {"top_k": 4, "logit_bias": {"97": -1}, "presence_penalty": 0.5}
        asked = request("x", max_tokens=9, temperature=0.5, top_p=0.5, seed=7, extra_json=json.dumps(extra))
        chunks = await world.ask(asked)
        engine = AsyncLLM.made[0]
        assert (engine.args.model, engine.args.revision, engine.args.dtype) == ("org/model", "v1", "half")
        assert engine.prompts == [list(b"<user>x\n")]
        params = engine.params[0]
        assert (params["max_tokens"], params["temperature"], params["seed"], params["top_k"]) == (9, 0.5, 7, 4)
        assert params["logit_bias"] == {97: -1.0}
        assert chunks[-1].usage.cached_tokens == len("<user>x\n")
        resumed = await world.fails(continued(asked, chunks[:2], chunks[0].fingerprint))
        assert resumed.code() is Code.FAILED_PRECONDITION
        assert "presence_penalty" in str(resumed.details())
        for bad in ('{"top_k": -5}', '{"logit_bias": {"x": 1}}'):
            assert (await world.fails(request(extra_json=bad))).code() is Code.INVALID_ARGUMENT
    assert engine.down


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (EngineDeadError(), Code.UNAVAILABLE),
        (EngineGenerateError(), Code.INTERNAL),
        (ValueError("prompt too long"), Code.INVALID_ARGUMENT),
    ],
)
async def test_what_vllm_raises_has_its_status(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, code: grpc.StatusCode
) -> None:
    install_vllm(monkeypatch)
    backend = make("vllm")
    async with serving(backend) as world:
        assert await backend.trouble() == ""
        AsyncLLM.made[0].dead = raised
        assert (await world.fails(request())).code() is code
        assert await backend.trouble() == f"the engine is dead: {type(raised).__name__}"


async def test_a_cancelled_call_and_a_stop_text_abort_in_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    async with serving(make("vllm")) as world:
        engine = AsyncLLM.made[0]
        whole = text_of(await world.ask(request("x")))
        assert engine.aborted == 0
        await world.ask(request("x", stop=[whole[4:6]]))
        assert engine.aborted == 1
        engine.delay = 0.05
        call = world.stub.StreamInference(request("x"))
        await call.read()
        call.cancel()
        await until(lambda: engine.aborted == 2, 1)


async def test_vllm_tells_the_use_of_its_cache_from_its_own_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    install_vllm(monkeypatch)
    backend = make("vllm")
    assert backend.kv_used_permille() is None
    gauge = Gauge("vllm:kv_cache_usage_perc", "1 means 100 percent", ["engine"])
    try:
        for engine, used in (("0", 0.25), ("1", 0.5)):
            gauge.labels(engine).set(used)
        assert make("vllm").kv_used_permille() == 500
        assert backend.kv_used_permille() is None
    finally:
        REGISTRY.unregister(gauge)


async def test_transformers_samples_by_seed_and_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loader = install_transformers(monkeypatch)
    async with serving(make("transformers", BACKEND_ARGS='{"dtype": "bfloat16"}')) as world:
        assert loader.told == {"dtype": "bfloat16"}
        answers = [await world.ask(request("x", seed=seed, temperature=1, max_tokens=40)) for seed in (1, 1, 2)]
        one, again, two = (ids_of(chunks) for chunks in answers)
        assert one == again != two
        await seams(world, request("x", seed=1, temperature=1, top_p=0.9, max_tokens=40), answers[0][-1].finish_reason)
        assert [processor.setting for processor in model.told["logits_processor"][:2]] == [1.0, 0.9]
        unseeded = [ids_of(await world.ask(request("x", temperature=1, max_tokens=40))) for _ in range(3)]
        assert len({tuple(ids) for ids in unseeded}) > 1
        model.generation_config.do_sample = True
        model.generation_config.temperature = 0.7
        await world.ask(request("x", extra_json='{"top_k": 3, "repetition_penalty": 1.5}'))
        assert [processor.setting for processor in model.told["logits_processor"][:2]] == [0.7, 3]
        assert (model.told["repetition_penalty"], model.told["do_sample"]) == (1.5, False)


def test_the_noise_draws_as_the_probabilities_say(monkeypatch: pytest.MonkeyPatch) -> None:
    install_transformers(monkeypatch)
    from pointsman_worker.infrastructure.backends.transformers import SeededNoise

    torch: Any = __import__("torch")
    scores = fake_models.Tensor([0.0, 1.0986])  # The logarithms of 1 and 3.
    drawn = [SeededNoise(torch, seed, 0)(fake_models.Tensor([0]), scores).values for seed in range(4000)]
    assert 0.22 < sum(values[0] > values[1] for values in drawn) / 4000 < 0.28


async def test_transformers_stops_when_nobody_waits_and_does_not_run_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = install_transformers(monkeypatch)
    monkeypatch.setattr(fake_models, "next_token", lambda _: 97)
    model.config.max_position_embeddings = 10**7
    async with serving(make("transformers")) as world:
        call = world.stub.StreamInference(request("x"))
        await call.read()
        model.delay = 0.01
        began = time.monotonic()
        call.cancel()
        await until(model.ended.is_set, 1)
        assert time.monotonic() - began < 1
        backend: Any = make("transformers")
        await backend.start()
        model.delay, model.steps = 0, 0
        pieces = backend.generate(_question())
        await anext(pieces)
        time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still on purpose: nobody takes tokens
        assert model.steps <= AHEAD_MAX + 2
        await pieces.aclose()


async def test_what_breaks_in_the_thread_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = install_transformers(monkeypatch)
    async with serving(make("transformers")) as world:
        model.broken = RuntimeError("CUDA out of memory, and a prompt")
        error = await world.fails(request())
        assert error.code() is Code.INTERNAL
        assert "prompt" not in str(error.details())
        assert (await world.record()).cause.startswith("RuntimeError at fake_models.py")


async def test_the_models_context_bounds_prompt_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = install_transformers(monkeypatch)
    monkeypatch.setattr(fake_models, "next_token", lambda _: 97)
    async with serving(make("transformers")) as world:
        chunks = await world.ask(request("x", temperature=0))
        assert len(ids_of(chunks)) == model.config.max_position_embeddings - len("<user>x\n")
        assert chunks[-1].finish_reason == "length"
        assert (await world.fails(request("x" * 400))).code() is Code.INVALID_ARGUMENT


def _question() -> Any:
    from pointsman_worker.domain.model import Message, Question

    return Question("demo", (Message("user", "x"),))
