"""Two models, two replicas each, two gateways, one Redis, one Consul: all of them real, and all of them mortal."""

import pytest

from asking import Streamed, chat, client_of, raw_chat
from distributed import ONE, TWO, Fleet
from harness import new_key


@pytest.fixture(scope="module")
def whole():
    """The whole of it; nobody dies here."""
    key, digest = new_key()
    with Fleet("distributed") as fleet:
        fleet.rust("one-a"), fleet.rust("one-b", ONE, "echo")
        fleet.python("two-a"), fleet.python("two-b", backend="echo")
        fleet.open(digest=digest)
        fleet.key = key
        yield fleet


def home(client, model, session):
    """Who answers a session."""
    answer = raw_chat(client, model=model, extra_headers={"X-Session-Id": session})
    return answer.headers["x-pointsman-replica"]


@pytest.mark.parametrize("model", [ONE, TWO])
def test_both_replicas_get_work_and_a_session_has_one_home_for_both_gateways(whole, model):
    clients = [client_of(gateway, key=whole.key) for gateway in whole.gateways]
    homes = [{home(client, model, f"session-{n}") for client in clients for _ in range(2)} for n in range(20)]
    assert all(len(seen) == 1 for seen in homes), homes
    assert set.union(*homes) == {name for name, worker in whole.workers.items() if worker.model == model}


def test_the_official_client_is_served_by_both_gateways(whole):
    for gateway in whole.gateways:
        client = client_of(gateway, key=whole.key)
        assert {model.id for model in client.models.list()} == {ONE, TWO}
        for model in (ONE, TWO):
            answer = chat(client, "Repeat these words to me.", model=model)
            assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
            stream = Streamed(client, model=model, stream_options={"include_usage": True})
            assert stream.whole and stream.text and stream.usage.total_tokens > 0
