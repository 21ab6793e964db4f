"""The network between gateways, workers, Redis and Consul is cut, one way or both, or loses packets; nobody dies.

A cut line says nothing: no reset, no refusal. What notices it are deadlines alone, so each bound below is a deadline of
the configuration and some time for a busy machine.
"""

import re

import openai
import pytest

from asking import chat, client_of
from distributed import ONE, Fleet, Raw, Spenders, degraded, homes, part, until_asked
from harness import get, new_key, until
from load import Load
from network import Network

ALLOTMENT = 4_096  # What a gateway may have drawn ahead and not used.
UNDRAWN = 4_000  # A limit too small for that: all that is charged is seen at once.
SILENCE = 1.0  # How long a worker may say nothing, in seconds.
SLACK = 1.5
TIMEOUTS = {"connect": "500ms", "first_token": f"{SILENCE:.0f}s", "between_tokens": f"{SILENCE:.0f}s"}


@pytest.fixture
def fleet(request):
    """Consul and Redis, each on a host of its own, a key, and nobody else yet."""
    with Network() as network, Fleet(request.node.name, network=network) as fleet:
        fleet.key, fleet.digest = new_key()
        yield fleet


def test_a_stream_whose_worker_is_cut_off_goes_on_elsewhere_and_is_billed_once(fleet):
    for name in ("one-a", "one-b"):
        fleet.rust(name, ONE, "hash", "--delay", "10ms")
    (gateway,) = fleet.open(count=1, limit=UNDRAWN, digest=fleet.digest, timeouts=TIMEOUTS)
    question = (gateway, fleet.key, ONE, "Tell me of points and trains.", 100)
    whole = Raw(*question)
    assert whole.done and whole.comments == [] and len(whole.pieces) > 30, whole.pieces
    charged = whole.usage["total_tokens"]
    for way in ("both", "there", "back"):

        def cut_at_ten(stream, way=way):
            if len(stream.pieces) == 10:
                fleet.network.cut(gateway.name, stream.replica, way)

        broken = Raw(*question, on_token=cut_at_ten)
        assert fleet.network.dropped() > 0, way
        (seam,) = broken.comments
        tokens, other = re.fullmatch(r": resumed after (\d+) tokens by ([\w-]+)", seam).groups()
        assert {broken.replica, other} == {"one-a", "one-b"}, way
        assert 10 <= int(tokens) < broken.usage["completion_tokens"], (way, seam)
        assert broken.done and broken.pieces and "".join(broken.pieces) == "".join(whole.pieces), way
        assert broken.usage == whole.usage, way
        assert broken.longest_pause < SILENCE + SLACK, f"{way}: {broken.longest_pause} s between two pieces"
        charged += broken.usage["total_tokens"]
        # Who asks while it is cut off is answered by the other.
        assert chat(client_of(gateway, key=fleet.key), model=ONE, max_tokens=2).choices, way
        fleet.network.heal()
        until(f"all of it is charged after {way}", lambda: fleet.redis.balance()[1] == 0)
    spent, ahead = fleet.settled()
    # Beside the streams there were three short answers.
    assert ahead == 0 and charged < spent <= charged + 3 * 32, (spent, charged)


@pytest.mark.parametrize("way", ["both", "back"])
def test_a_gateway_cut_off_from_redis_spends_what_it_drew_and_then_refuses(fleet, way):
    limit = 40_000
    fleet.rust("one-a"), fleet.rust("one-b")
    gateways = island, mainland = fleet.open(limit=limit, digest=fleet.digest)
    with Spenders([island], fleet.key, ONE, tokens=48) as cut, Spenders([mainland], fleet.key, ONE, tokens=48) as free:
        cut.more(10), free.more(10)
        fleet.network.cut(island.name, "redis", way)
        until("it notices", lambda: "quota" in degraded(island))
        until("it has spent what it drew", lambda: cut.statuses.get(503, 0) > 5)
        with pytest.raises(openai.InternalServerError, match="quota store cannot be reached") as refused:
            chat(client_of(island, key=fleet.key), model=ONE, max_tokens=48)
        assert refused.value.status_code == 503
        assert "quota" not in degraded(mainland)
        free.more(10)
        assert fleet.network.dropped() > 0
        fleet.network.heal()
        until("it notices", lambda: "quota" not in degraded(island))
        cut.more(5)
        cut.finish(), free.finish()
    assert set(cut.statuses) <= {200, 402, 503} and set(free.statuses) <= {200, 402}, (cut.statuses, free.statuses)
    slowest = max(cut.slowest, free.slowest)
    assert slowest < 2.0, f"a request took {slowest:.2f} s"
    answered = cut.tokens + free.tokens
    spent, ahead = fleet.settled()
    unused = len(gateways) * ALLOTMENT
    assert spent + ahead - unused <= answered <= spent + ahead <= limit, (spent, ahead, answered)


def test_a_gateway_cut_off_from_consul_serves_what_it_knows_and_says_how_old_that_is(fleet):
    fleet.rust("one-a")
    island, mainland = fleet.open(digest=fleet.digest)
    fleet.network.cut(island.name, "consul")
    fleet.rust("one-b")
    until("the others hear of a new worker", lambda: fleet.known(mainland) == 2)
    old = re.compile(r"said \d+ s ago stands, 1 workers")
    until("it says how old Consul's word is", lambda: old.search(part(island, "registry consul")))
    assert get(f"{island.url}/ready")[0] == 200
    assert set(homes(island, fleet.key, ONE).values()) == {"one-a"}
    fleet.network.heal()
    until("it hears of the new worker", lambda: fleet.known(island) == 2)
    until_asked(island, fleet.key, ONE, "one-b")


def test_lost_packets_cost_time_and_nothing_else(fleet):
    for name in ("one-a", "one-b"):
        fleet.rust(name, ONE, "hash", "--delay", "1ms")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    question = (gateway, fleet.key, ONE, "Tell me of points and trains.", 100)
    before = Raw(*question)
    for peer in ("one-a", "one-b", "redis", "consul"):
        fleet.network.lose(gateway.name, peer, percent=1)
    with Load(gateway, key=fleet.key, workers=3, model=ONE) as load:
        load.more(30)
        until("packets are lost", lambda: fleet.network.dropped() >= 10)
        load.more(10)
        during = Raw(*question)
    tally = load.tally
    assert (tally.refused, tally.silent, tally.lost, tally.cut) == ([], 0, 0, 0), tally
    assert during.done and during.pieces == before.pieces and during.usage == before.usage
