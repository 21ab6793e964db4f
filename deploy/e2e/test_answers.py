"""What the official client gets when all is well."""

import asyncio
import json

import openai
import pytest

from asking import MODEL, Streamed, chat, client_of, messages, raw_chat
from harness import get, until
from scripted import Scripted, honest


def test_a_chat_is_answered_with_its_usage(client):
    answer = chat(client)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_ends_once_and_says_why(client):
    stream = Streamed(client)
    assert stream.error is None and stream.text and len(stream.finishes) == 1
    assert stream.usage is None, "nobody asked for the usage"


def test_a_stream_carries_its_usage_where_asked(client):
    stream = Streamed(client, stream_options={"include_usage": True})
    assert stream.whole and stream.chunks[-1].choices == []
    usage = stream.usage
    assert 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_models_are_listed_and_found_by_name(client):
    assert MODEL in [model.id for model in client.models.list()]
    found = client.models.retrieve(MODEL)
    assert found.id == MODEL and found.object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody-serves-this")


def test_embeddings_come_one_for_each_input(client):
    answer = client.embeddings.create(model=MODEL, input=["one", "two", "three"])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(len(item.embedding) > 0 for item in answer.data)
    assert all(isinstance(number, float) for number in answer.data[0].embedding)
    assert answer.usage.prompt_tokens > 0
    assert len(client.embeddings.create(model=MODEL, input="alone").data) == 1


def test_the_second_form_of_the_paths_answers_alike(three):
    other = openai.OpenAI(base_url=f"{three.gateway.url}/api/v1", api_key="unused", max_retries=0)
    assert MODEL in [model.id for model in other.models.list()]
    assert other.embeddings.create(model=MODEL, input="x").data[0].embedding


def test_answers_name_request_replica_and_attempts(client):
    first, second = raw_chat(client), raw_chat(client)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-pointsman-replica"]
    assert first.headers["x-pointsman-attempts"] == "1"
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=messages(), stream=True, max_tokens=4
    ) as stream:
        assert stream.headers["x-request-id"] and stream.headers["x-pointsman-replica"]
        stream.read()


def test_many_streams_at_once_all_come_to_their_end(three):
    async def one(client):
        stream = await client.chat.completions.create(model=MODEL, messages=messages(), stream=True, max_tokens=16)
        return [c.choices[0].finish_reason async for c in stream if c.choices][-1]

    async def all_of_them():
        async with openai.AsyncOpenAI(
            base_url=f"{three.gateway.url}/v1", api_key="unused", max_retries=0, timeout=60
        ) as client:
            return await asyncio.gather(*(one(client) for _ in range(60)))

    assert all(reason in ("stop", "length") for reason in asyncio.run(all_of_them()))


def test_health_and_metrics_speak_of_this_gateway(three, client):
    chat(client)
    url = three.gateway.url
    status, health = get(f"{url}/health")
    assert status == 200 and {"status", "healthy", "service", "version", "checks"} <= json.loads(health).keys()
    assert get(f"{url}/health", {"accept": "text/plain"}) == (200, "ok")
    metrics = get(f"{url}/metrics")[1]
    for name in (
        "gateway_requests_total",
        "gateway_request_duration_seconds",
        "gateway_tokens_used_total",
    ):
        assert name in metrics


def test_fields_nobody_has_heard_of_pass_both_ways(world):
    upstream = world.adopt(Scripted("plain", honest))
    client = client_of(world.serve(upstreams=[upstream.url]))
    sent = {"x_deep": {"a": [1, {"b": None}]}, "session_id": "mine", "user_id": "me"}
    answer = chat(client, extra_body=sent)
    assert answer.model_extra["x_future"] == {"a": [1, None]}
    assert answer.choices[0].message.model_extra["x_mood"] == "fine"
    assert upstream.bodies[-1]["x_deep"] == sent["x_deep"]
    assert not {"session_id", "user_id"} & upstream.bodies[-1].keys(), "these are ours alone"
    stream = Streamed(client)
    assert stream.chunks[0].model_extra["x_future"] == {"a": 1} and stream.text == "one two"


def test_our_clients_key_never_reaches_an_upstream(world):
    upstream = world.adopt(Scripted("plain", honest))
    client = client_of(world.serve(upstreams=[upstream.url]), key="pm-clients-own")
    forged = {"X-Session-Id": "session-of-ann", "X-Pointsman-Session": "sess_00f067aa0ba902b7"}
    chat(client, extra_headers=forged)
    told = json.dumps(upstream.headers).lower()
    assert "pm-clients-own" not in told
    # Workers of ours hear a session's hash; whoever else serves a model hears of no session at all.
    assert "session-of-ann" not in told and "x-pointsman" not in told and "sess_" not in told, told


def test_an_idempotency_key_asks_the_replica_once(world):
    upstream = world.adopt(Scripted("plain", honest))
    client = client_of(world.serve(upstreams=[upstream.url]))
    twice = [chat(client, extra_headers={"Idempotency-Key": "order-7"}) for _ in range(2)]
    assert twice[0].id == twice[1].id and len(upstream.bodies) == 1
    chat(client, extra_headers={"Idempotency-Key": "order-8"})
    assert len(upstream.bodies) == 2


def test_the_whole_gateway_runs_with_nothing_given(world):
    gateway = world.serve()
    stream = Streamed(client_of(gateway))
    assert stream.whole
    until("it says how to try it", lambda: "curl" in gateway.said())
