"""Where each role is a process of its own, whoever takes part dies under load, by SIGKILL."""

import re

import pytest

from asking import chat, client_of
from distributed import ONE, Spenders, degraded
from figures import page, value
from harness import new_key, until
from load import Load
from roles import Roles, answers, line_of, lines, lines_with

LIMIT = 30_000  # Tokens of the day.
ALLOTMENT = 4_096  # What a chat role may have drawn ahead and not used.
EACH = 2  # Clients of each gateway.
OUTPUT = 48
STALE = 'pointsman_registry_stale_seconds{source="consul"}'


@pytest.fixture
def fleet(request):
    """Two workers of one model, one called over gRPC and one over QUIC, and nobody else yet."""
    with Roles(request.node.name) as fleet:
        fleet.key, fleet.digest = new_key()
        fleet.rust("over-grpc", ONE, "hash", "--delay", "1ms")
        fleet.quic("over-quic", ONE, "hash", "--delay", "1ms")
        yield fleet


def test_a_chat_role_a_gateway_role_and_redis_die_under_load_and_the_limit_holds(fleet):
    mortal, other = fleet.begin(fleet.digest, limit=LIMIT)
    dying = fleet.chats["chat-1"]

    def spenders(gateway, dies):
        return Spenders([gateway], fleet.key, ONE, tokens=OUTPUT, each=EACH, mortal=dies)

    with spenders(mortal, True) as broken, spenders(other, False) as calm:
        both = (broken, calm)
        for each in both:
            each.more(20)
        assert [each.failed for each in both] == [0, 0], (broken.statuses, calm.statuses)

        dying.kill()
        for each in both:
            each.more(20)
            # What ran there is lost; whoever comes later is sent to the other chat role.
            assert each.failed <= EACH, each.statuses
        dying.start()
        until("it can serve again", dying.is_ready)

        before = calm.failed
        mortal.kill()
        calm.more(30)
        assert calm.failed == before, calm.statuses
        mortal.start()
        until("it can serve again", mortal.is_ready)
        broken.more(10)

        fleet.redis.kill()
        answered = broken.answered + calm.answered
        roles = list(fleet.chats.values())
        until("both chat roles notice", lambda: all("quota" in degraded(role) for role in roles))
        until("some are answered ahead of it", lambda: broken.answered + calm.answered > answered + 10)
        fleet.redis.start()
        until("both chat roles notice", lambda: not any("quota" in degraded(role) for role in roles))
        for each in both:
            each.finish()
    for each in both:
        assert set(each.statuses) <= {0, 200, 402, 502, 503}, each.statuses
        assert each.slowest < 5.0, f"a request took {each.slowest:.2f} s"
    tokens = broken.tokens + calm.tokens
    spent, ahead = fleet.settled()
    assert tokens <= spent + ahead <= LIMIT, (spent, ahead, tokens)
    # What the dead had drawn ahead or were at when they died is spent as far as anybody knows.
    unused = (len(fleet.chats) + 1) * ALLOTMENT + 2 * EACH * 2 * OUTPUT
    assert tokens > LIMIT - unused, f"{tokens} of {LIMIT} could be spent"


def test_a_worker_that_dies_is_a_retry_in_the_logs_of_the_chat_role_and_of_the_other_worker(fleet):
    gateway, _ = fleet.begin(fleet.digest)
    with Load(gateway, key=fleet.key, workers=3, output=OUTPUT, model=ONE) as load:
        load.more(20)
        home = finished(fleet)[-1]["instance_id"]
        fleet.workers[home].kill()
        load.more(30)
    tally = load.tally
    assert (tally.refused, tally.silent, tally.lost, tally.cut) == ([], 0, 0, 0), tally
    assert {line["outcome"] for line in finished(fleet)} == {"completed"}
    again = [line for line in finished(fleet) if line["retries"] > 0]
    assert again, "nobody was asked twice"
    (survivor,) = (worker for name, worker in fleet.workers.items() if name != home)
    for line in again:
        assert line["instance_id"] == survivor.name, line
        wanted = {name: line[name] for name in ("session_id", "model", "instance_id", "retries")}
        # Each chat role counts its own requests: two may have the same id.
        # Each chat role counts its own requests: two may have the same id.
        told = lines_with(lambda: answers(survivor), request_id=line["request_id"], **wanted)
        assert {line["outcome"] for line in told} == {"ok"}, told


def test_a_chat_role_that_starts_while_consul_is_down_serves_from_cache_and_says_how_old_that_is(fleet):
    gateway, _ = fleet.begin(fleet.digest)
    role = fleet.chats["chat-1"]
    fleet.consul.kill()
    until("its word grows old", lambda: value(page(role.url), STALE) >= 1)
    lost = line_of(lambda: [line for line in lines_of(role) if "a registry is lost" in line["message"]], level="WARN")
    assert re.search(r"what it said \d+ s ago stands, 2 workers", lost["message"]), lost
    assert role.stop() == 0
    role.start()
    until("it can serve from what it keeps", role.is_ready)
    assert value(page(role.url), STALE) >= 1
    cached = [line["message"] for line in lines_of(role) if "as it listed them" in line["message"]]
    assert len(cached) == 1 and re.search(r"2 workers as it listed them \d+ s ago", cached[0]), cached
    client = client_of(gateway, key=fleet.key)
    for session in range(8):
        assert chat(client, model=ONE, extra_headers={"X-Session-Id": f"s-{session}"}).choices
    told = [line for line in lines(role, "request finished") if line["outcome"] == "completed"]
    assert told, "nobody asked the one that starts from its cache"
    fleet.consul.start()
    until("Consul is heard again", lambda: value(page(role.url), STALE) == 0)


def finished(fleet):
    """What the chat roles wrote of requests that ended."""
    told = [line for role in fleet.chats.values() for line in lines(role, "request finished")]
    return sorted(told, key=lambda line: line["timestamp"])


def lines_of(process):
    """All that it wrote as JSON."""
    return lines(process, None)
