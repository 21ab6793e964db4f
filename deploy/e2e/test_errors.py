"""Each refusal is the exception the official client has for it, and says what to do."""

import openai
import pytest

from asking import Streamed, chat, client_of, raw_chat
from harness import World, endpoints, new_key
from scripted import Scripted, silent

PRICE = {"input": 1.0, "output": 2.0}


class Office:
    """A gateway with keys: a rich one, a poor one and a slow one; models that work, hang and are gone."""

    def __init__(self, world):
        self.world = world
        replica = world.replica("r1", ttft="2ms", gap="1ms")
        hanging = world.adopt(Scripted("hanging", silent, model="hanging"))
        gone = [{"url": "http://127.0.0.1:9", "name": "gone"}]
        self.keys, keys = {}, []
        for name, limits in {
            "rich": {},
            "poor": {"daily_tokens": 40},
            "slow": {"rpm": 6},
        }.items():
            self.keys[name], digest = new_key()
            keys.append({"name": name, "hash": digest, "tenant": "acme", "user": f"u-{name}", **limits})
        config = {
            "version": 1,
            "models": {
                "demo": {"endpoints": endpoints(replica), "price": PRICE},
                "hanging": {"endpoints": endpoints(hanging)},
                "gone": {"endpoints": gone},
            },
            "tenants": {"acme": {"daily_tokens": 1_000_000}},
            "keys": keys,
        }
        self.gateway = world.serve(config=config)

    def client(self, name="rich", **options):
        """A client holding that key."""
        return client_of(self.gateway, key=self.keys[name], **options)


@pytest.fixture(scope="module")
def office():
    with World("errors") as world:
        yield Office(world)


def refused(kind, status, ask):
    """The exception `ask` raises, which must have a message a person can use."""
    with pytest.raises(kind) as raised:
        ask()
    error = raised.value
    assert type(error) is kind and error.status_code == status
    assert error.response.headers["content-type"].startswith("application/json")
    assert len(error.body["message"]) > 10 and {"type", "code", "param"} <= error.body.keys()
    assert error.response.headers["x-request-id"]
    return error


def test_an_unknown_model_is_not_found(office):
    error = refused(openai.NotFoundError, 404, lambda: chat(office.client(), model="no-such-model"))
    assert error.code == "model_not_found" and "no-such-model" in error.message


def test_a_wrong_body_is_a_bad_request_that_names_the_field(office):
    client = office.client()
    error = refused(openai.BadRequestError, 400, lambda: chat(client, extra_body={"messages": 7}))
    assert error.param and error.param.startswith("messages")
    refused(openai.BadRequestError, 400, lambda: chat(client, extra_body={"stream": "yes"}))


def test_a_wrong_key_is_an_authentication_error(office):
    refused(openai.AuthenticationError, 401, lambda: chat(client_of(office.gateway, key="pm-wrong")))


def test_a_spent_quota_is_payment_required_and_not_worth_retrying(office):
    client = office.client("poor", max_retries=2)

    def spend():
        for _ in range(20):
            chat(client, max_tokens=16)

    error = refused(openai.APIStatusError, 402, spend)
    assert error.code == "insufficient_quota"
    assert error.response.headers["x-should-retry"] == "false"
    chat(office.client())  # Another key of the same tenant still may.


def test_a_rate_is_limited_with_a_time_to_come_back(office):
    client = office.client("slow")

    def hurry():
        for _ in range(20):
            chat(client, max_tokens=1)

    error = refused(openai.RateLimitError, 429, hurry)
    assert error.code == "rate_limited"
    assert 1 <= int(error.response.headers["retry-after"]) <= 60


def test_nobody_left_is_service_unavailable(office):
    error = refused(openai.InternalServerError, 503, lambda: chat(office.client(), model="gone"))
    assert error.response.headers["x-pointsman-attempts"]


def test_a_passed_deadline_is_a_gateway_timeout(office):
    def ask():
        chat(office.client(), model="hanging", extra_headers={"x-request-timeout": "1"})

    refused(openai.InternalServerError, 504, ask)


def test_an_error_before_a_stream_is_no_stream(office):
    error = Streamed(office.client(), model="no-such-model").error
    assert type(error) is openai.NotFoundError


def test_a_client_that_retries_by_itself_gets_through_a_rate_limit(office):
    name = "slow"
    raw = raw_chat(office.client(name, max_retries=4, timeout=90), max_tokens=1)
    assert raw.status_code == 200
