"""A client's stream, found again on another gateway: because the client moved, or because its gateway was killed."""

import pytest

from distributed import ONE, Fleet, Raw, part
from harness import get, new_key, until
from resumable import LOST, Resumable, after

TOKENS = 120
QUESTION = "Tell me of points and trains."


@pytest.fixture
def fleet(request):
    """Two gateways over one Redis, and two workers that say the same, one token in 20 ms."""
    key, digest = new_key()
    with Fleet(request.node.name) as fleet:
        fleet.key = key
        fleet.rust("a", ONE, "hash", "--delay", "20ms"), fleet.rust("b", ONE, "hash", "--delay", "20ms")
        fleet.open(digest=digest)
        yield fleet


def test_a_client_that_moves_to_another_gateway_gets_one_stream_and_one_bill(fleet):
    first, second = fleet.gateways
    whole = Raw(first, fleet.key, ONE, QUESTION, TOKENS)
    stream = Resumable(first, fleet.key, ONE, QUESTION, TOKENS).read(after(10))
    assert stream.where == "any-gateway" and stream.id.startswith(f"{stream.request_id}.")
    stream.at(second).read(after(25))
    assert stream.dones == 0, "it runs on"
    stream.at(first).read(after(40))
    stream.at(second).read()
    assert stream.dones == 1 and not stream.errors
    assert "".join(stream.pieces) == "".join(whole.pieces)
    assert stream.usage == whole.usage
    other, _ = new_key()
    for key in (other, fleet.key):
        status, _ = get(f"{second.url}/v1/streams/{stream.id}0", {"authorization": f"Bearer {key}"})
        assert status == (404 if key == fleet.key else 401)
    spent, ahead = fleet.settled()
    assert spent + ahead >= 2 * whole.usage["total_tokens"] > spent - whole.usage["total_tokens"]


def test_a_gateway_is_killed_and_its_client_gets_all_it_was_sent_and_an_honest_end(fleet):
    first, second = fleet.gateways

    def kill_at_twenty(stream):
        if len(stream.pieces) == 20:
            first.kill()

    stream = Resumable(first, fleet.key, ONE, QUESTION, TOKENS)
    with pytest.raises(LOST):
        stream.read(kill_at_twenty)
    seen, at = len(stream.pieces), stream.last
    # From the beginning, as one asks who has lost everything.
    again = Resumable(second, fleet.key, ONE, QUESTION, TOKENS)
    again.id = stream.id
    again.at(second).read()
    assert again.pieces[:seen] == stream.pieces, "what was sent is known everywhere"
    assert again.dones == 0 and [error["error"]["code"] for error in again.errors] == ["stream_gateway_lost"]
    # And from where it broke off.
    stream.at(second).read()
    assert stream.dones == 0 and len(stream.errors) == 1
    assert stream.pieces == again.pieces and stream.last >= at
    first.start()
    until("the killed one settles what it sent", lambda: fleet.redis.balance()[1] == 0, 60)
    assert fleet.settled()[0] >= 20


def test_redis_dies_and_a_stream_goes_on_for_its_client_and_is_found_again_later(fleet):
    first, second = fleet.gateways
    # Long enough that Redis is back before its end.
    stream = Resumable(first, fleet.key, ONE, QUESTION, 5 * TOKENS)

    def kill_at_ten(stream):
        if len(stream.pieces) == 10:
            fleet.redis.kill()
        return stream.comments and len(stream.pieces) >= 20

    stream.read(kill_at_ten)
    assert "only this gateway can resume" in stream.comments[0]
    assert get(f"{second.url}/v1/streams/{stream.id}", {"authorization": f"Bearer {fleet.key}"})[0] == 503
    until("it is said", lambda: "resumed only where they run" in part(first, "stream log"))
    assert "\npointsman_streams_cut_off 1\n" in get(f"{first.url}/metrics")[1]
    stream.at(first).read(after(30))
    assert stream.where == "this-gateway"
    fleet.redis.start()

    def is_back(stream):
        # Said in the stream to whoever reads just then, and in its head to whoever comes later.
        return stream.where == "any-gateway" or any("any gateway" in comment for comment in stream.comments)

    stream.at(first).read(is_back)
    assert stream.dones == 0, "it runs on"
    until("it is said again", lambda: part(first, "stream log") == "answers")
    stream.at(second).read()
    assert stream.dones == 1 and not stream.errors
    assert len(stream.pieces) > 100, len(stream.pieces)
