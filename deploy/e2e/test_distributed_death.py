"""Whoever takes part in the distributed form dies, by SIGKILL unless it says otherwise, while clients are at it."""

import re

import httpx2
import openai
import pytest

from asking import chat, client_of
from distributed import ONE, TWO, Fleet, Raw, Spenders, degraded, homes, part, until_asked
from harness import new_key, until
from load import Load

LOST = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)
ALLOTMENT = 4_096  # What a gateway may have drawn ahead and not used.
UNDRAWN = 4_000  # A limit too small for that: all that is charged is seen at once.


@pytest.fixture
def fleet(request):
    """Consul and Redis, a key, and nobody else yet."""
    with Fleet(request.node.name) as fleet:
        fleet.key, fleet.digest = new_key()
        yield fleet


def test_a_worker_that_stops_or_dies_fails_nobody_and_its_sessions_move(fleet):
    for name in ("one-a", "one-b"):
        fleet.rust(name, ONE, "hash", "--delay", "2ms")
    for name in ("two-a", "two-b"):
        fleet.python(name, TOKEN_DELAY_MS="2")
    first, second = fleet.open(digest=fleet.digest)
    for model, gateway in ((ONE, first), (TWO, second)):
        before = homes(gateway, fleet.key, model)
        assert len(set(before.values())) == 2, before
        with Load(gateway, key=fleet.key, workers=3, model=model) as load:
            for end in ("stop", "kill"):
                victim = before["session-0"]
                load.more(10)
                getattr(fleet.workers[victim], end)()
                load.more(10)
                after = homes(gateway, fleet.key, model)
                assert victim not in after.values(), (end, before, after)
                stayed = {session: home for session, home in before.items() if home != victim}
                assert stayed.items() <= after.items(), (end, before, after)
                fleet.workers[victim].start()
                until_asked(gateway, fleet.key, model, victim)
                before = after
        tally = load.tally
        assert (tally.refused, tally.silent, tally.lost, tally.cut) == ([], 0, 0, 0), (model, tally)


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_a_stream_outlives_its_replica(fleet, kind):
    model = {"rust": ONE, "python": TWO}[kind]
    for name in ("a", "b"):
        if kind == "rust":
            fleet.rust(name, model, "hash", "--delay", "10ms")
        else:
            fleet.python(name, model, "hash", TOKEN_DELAY_MS="10")
    (gateway,) = fleet.open(count=1, limit=UNDRAWN, digest=fleet.digest)
    question = (gateway, fleet.key, model, "Tell me of points and trains.", 100)
    whole = Raw(*question)
    assert whole.done and whole.comments == [] and len(whole.pieces) > 30, whole.pieces

    def kill_at_ten(stream):
        if len(stream.pieces) == 10:
            fleet.workers[stream.replica].kill()

    broken = Raw(*question, on_token=kill_at_ten)
    assert not fleet.workers[broken.replica].alive()
    (seam,) = broken.comments
    tokens, other = re.fullmatch(r": resumed after (\d+) tokens by (\w+)", seam).groups()
    assert {broken.replica, other} == {"a", "b"}
    assert 10 <= int(tokens) < broken.usage["completion_tokens"]
    assert broken.done and "".join(broken.pieces) == "".join(whole.pieces)
    assert broken.usage == whole.usage
    assert broken.longest_pause < 1.5, f"{broken.longest_pause} s between two pieces"
    assert fleet.settled() == (2 * whole.usage["total_tokens"], 0)


def test_redis_dies_and_returns_and_one_limit_holds_for_both_gateways(fleet):
    limit = 30_000
    fleet.rust("one-a"), fleet.rust("one-b")
    gateways = fleet.open(limit=limit, digest=fleet.digest)
    with Spenders(gateways, fleet.key, ONE, tokens=48) as spenders:
        spenders.more(40)
        fleet.redis.kill()
        before = spenders.answered
        until("both notice", lambda: all("quota" in degraded(gateway) for gateway in gateways))
        until("some are answered from what was drawn ahead", lambda: spenders.answered > before + 20)
        fleet.redis.start()
        until("both notice", lambda: not any("quota" in degraded(gateway) for gateway in gateways))
        spenders.finish()
    assert set(spenders.statuses) <= {200, 402, 503}, spenders.statuses
    assert spenders.slowest < 2.0, f"a request took {spenders.slowest:.2f} s"
    spent, ahead = fleet.settled()
    # What was spent while Redis was away is still held there as drawn ahead, beside what is free of that.
    unused = len(gateways) * ALLOTMENT
    assert spent + ahead - unused <= spenders.tokens <= spent + ahead <= limit, (spent, ahead, spenders.tokens)
    assert spenders.tokens > limit - unused - 200, f"{spenders.tokens} of {limit} could be spent"


def test_consul_dies_and_what_it_said_stands_for_gateways_that_run_and_that_start(fleet):
    fleet.rust("one-a"), fleet.rust("one-b")
    fleet.python("two-a", backend="echo")
    gateways = fleet.open(digest=fleet.digest)
    fleet.consul.kill()

    def said(gateway):
        return part(gateway, "registry consul")

    def models(gateway):
        return {model.id for model in client_of(gateway, key=fleet.key).models.list()}

    def serves(gateway):
        client = client_of(gateway, key=fleet.key)
        return all(chat(client, model=model).choices for model in (ONE, TWO) for _ in range(4))

    old = re.compile(r"said \d+ s ago stands, 3 workers")
    for gateway in gateways:
        until("it says how old Consul's word is", lambda at=gateway: old.search(said(at)))
        assert serves(gateway)
    restarted = gateways[0]
    assert restarted.stop() == 0
    restarted.start()
    assert re.search(r"\b\d+ s ago", said(restarted)), said(restarted)
    until("the models are known", lambda: models(restarted) == {ONE, TWO})
    assert serves(restarted)
    fleet.consul.start()
    for gateway in gateways:
        until("Consul is heard again", lambda at=gateway: re.fullmatch(r"\d+ workers", said(at)))
        assert serves(gateway)


def test_a_gateway_killed_under_load_charges_nothing_twice_and_loses_no_charge(fleet):
    for name in ("one-a", "one-b"):
        fleet.rust(name, ONE, "hash", "--delay", "1ms")
    mortal, other = fleet.open(limit=UNDRAWN, digest=fleet.digest)
    with (
        Load(mortal, key=fleet.key, workers=4, output=6, tolerate=LOST, model=ONE) as load,
        Load(other, key=fleet.key, workers=1, output=6, model=ONE) as calm,
    ):
        for _ in range(3):
            load.more(20)
            mortal.kill()
            mortal.start()
        load.more(20)
    assert (calm.tally.refused, calm.tally.cut, calm.tally.silent) == ([], 0, 0), calm.tally
    assert load.tally.refused == [] and load.tally.silent == 0, load.tally
    answered = load.tally.tokens + calm.tally.tokens
    # One answer is at most its output and a prompt of a few words.
    unseen = load.tally.cut * (load.output + 64)
    charged, ahead = fleet.settled()
    assert ahead == 0
    assert answered <= charged <= answered + unseen, (answered, charged, load.tally)
