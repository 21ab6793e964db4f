"""What two gateways share over one Redis beside the ledger, in real processes: a rate, a key, sessions' homes."""

import time

import openai
import pytest

from asking import chat, client_of, raw_chat
from distributed import ONE, TENANT, Fleet, degraded, part
from harness import new_key, until

RPM = 12


@pytest.fixture
def fleet(request):
    """Two replicas of one model, and nobody else yet."""
    with Fleet(request.node.name) as fleet:
        fleet.key, fleet.digest = new_key()
        fleet.rust("one-a"), fleet.rust("one-b")
        yield fleet


def asked(fleet, gateway, **options):
    """One answer, or the refusal."""
    try:
        return raw_chat(client_of(gateway, key=fleet.key), model=ONE, **options)
    except openai.APIStatusError as refused:
        return refused


def test_a_tenant_gets_its_rate_once_and_not_from_each_gateway(fleet):
    gateways, began = fleet.open(digest=fleet.digest, rates={"rpm": RPM}), time.monotonic()
    answers = [asked(fleet, gateways[number % 2]) for number in range(3 * RPM)]
    refused = [answer for answer in answers if isinstance(answer, openai.APIStatusError)]
    served = len(answers) - len(refused)
    # One more every five seconds.
    assert RPM <= served <= RPM + (time.monotonic() - began) * RPM / 60, served
    for refusal in refused:
        assert refusal.status_code == 429 and refusal.code == "rate_limited", refusal
        assert 1 <= int(refusal.response.headers["retry-after"]) <= 60 / RPM + 1
    # Without Redis each limits for itself: nobody is refused for want of it, and both say so.
    fleet.redis.kill()
    began = time.monotonic()
    later = [asked(fleet, gateway) for gateway in gateways for _ in range(2)]
    assert time.monotonic() - began < 5
    statuses = {getattr(answer, "status_code", 200) for answer in later}
    assert statuses <= {200, 429}, later
    fleet.redis.start()


def test_a_key_is_answered_once_whichever_gateway_is_asked(fleet):
    first, second = fleet.open(digest=fleet.digest)
    headers = {"Idempotency-Key": "once"}
    assert asked(fleet, first, extra_headers=headers).status_code == 200
    (key,) = fleet.redis.ask("KEYS", "chat:idempotent:*")
    until("the other may know", lambda: fleet.redis.ask("GET", key).startswith("done "))
    again = asked(fleet, second, extra_headers=headers)
    assert (again.status_code, again.code) == (409, "idempotency_done"), again
    other = asked(fleet, second, text="Something else.", extra_headers=headers)
    assert (other.status_code, other.code) == (422, "idempotency_mismatch"), other
    assert asked(fleet, first, extra_headers=headers).status_code == 200  # The same answer once more.


def test_a_session_lives_in_one_place_for_both_moves_once_and_outlives_redis(fleet):
    gateways = fleet.open(digest=fleet.digest)
    key = f"session_affinity:{TENANT}%:chat-1"

    def home(gateway):
        return asked(fleet, gateway, extra_headers={"X-Session-Id": "chat-1"}).headers["x-pointsman-replica"]

    def said():
        return fleet.redis.ask("MGET", key, f"{{{key}}}:epoch") if fleet.redis.ask("EXISTS", key) else None

    before = home(gateways[0])
    until("its home is told", lambda: said() == [before, "1"])
    assert {home(gateway) for gateway in gateways for _ in range(3)} == {before}
    fleet.workers[before].kill()
    after = home(gateways[1])
    assert after != before
    until("its new home is told", lambda: said() == [after, "2"])
    fleet.workers[before].start()
    until("it is listed again", lambda: len(fleet.consul.passing(ONE)) == 2)
    assert {home(gateway) for gateway in gateways for _ in range(3)} == {after}
    fleet.redis.kill()
    assert {home(gateway) for gateway in gateways for _ in range(3)} == {after}
    for gateway in gateways:
        assert "shared limits" in degraded(gateway), part(gateway, "shared limits")
    fleet.redis.start()

    def healed():
        for gateway in gateways:
            home(gateway)
        return not any("shared limits" in degraded(gateway) for gateway in gateways)

    until("it is asked again", healed)
    assert {home(gateway) for gateway in gateways for _ in range(3)} == {after}
    assert said() == [after, "2"]
    assert chat(client_of(gateways[0], key=fleet.key), model=ONE).usage.total_tokens > 0
