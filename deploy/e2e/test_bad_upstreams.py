"""What a broken replica sends: failover where nothing was sent yet, an honest error where something was."""

import openai
import pytest

import scripted
from asking import Streamed, chat, client_of, raw_chat
from harness import endpoints, get, until
from scripted import Scripted

PATIENCE = {"x-request-timeout": "2"}


def over(world, *servers):
    """A client of a gateway over these servers, asked in the order given, by priority."""
    tiers = [{**endpoint, "priority": n + 1} for n, endpoint in enumerate(endpoints(*servers))]
    return client_of(world.serve(config={"version": 1, "models": {"demo": {"endpoints": tiers}}}))


def broken(world, behave):
    """A server with that behaviour."""
    return world.adopt(Scripted("broken", behave))


@pytest.mark.parametrize("behave", [scripted.babbling, scripted.failing_inside, scripted.revoking])
def test_an_answer_that_is_none_is_asked_for_elsewhere(world, behave):
    good = world.adopt(Scripted("good", scripted.honest))
    client = over(world, broken(world, behave), good)
    answer = raw_chat(client)
    assert answer.parse().choices[0].message.content == "one two"
    assert answer.headers["x-pointsman-replica"] == "good" and answer.headers["x-pointsman-attempts"] == "2"


@pytest.mark.parametrize("behave", [scripted.truncated, scripted.babbling, scripted.failing_inside, scripted.stalling])
def test_a_stream_that_breaks_ends_in_an_error_event(world, behave):
    stream = Streamed(over(world, broken(world, behave)), extra_headers=PATIENCE)
    assert stream.text == "one " and stream.finishes == []
    assert isinstance(stream.error, openai.APIError), "and not a connection that is just gone"
    assert not isinstance(stream.error, openai.APIConnectionError)


def test_a_replica_that_never_answers_costs_no_more_than_the_deadline(world):
    with pytest.raises(openai.InternalServerError) as raised:
        chat(over(world, broken(world, scripted.silent)), extra_headers=PATIENCE)
    assert raised.value.status_code == 504


def test_a_revoked_key_is_the_endpoints_fault_and_told_to_the_operator(world):
    good = world.adopt(Scripted("good", scripted.honest))
    revoked = broken(world, scripted.revoking)
    client = over(world, revoked, good)
    for _ in range(5):
        chat(client)
    assert len(revoked.bodies) == 1, "ejected at once"
    until("health names the cause", lambda: "401" in get(f"{world.gateway.url}/health")[1])


def test_a_revoked_key_is_never_shown_as_the_callers(world):
    with pytest.raises(openai.APIStatusError) as raised:
        chat(over(world, broken(world, scripted.revoking)))
    assert raised.value.status_code in (502, 503)


def test_streams_that_break_count_against_the_replica(world):
    bad, good = broken(world, scripted.truncated), world.adopt(Scripted("good", scripted.honest))
    client = over(world, bad, good)
    for _ in range(20):
        Streamed(client)
    assert len(bad.bodies) < 20 and Streamed(client).text == "one two", "the breaker opened"


def test_a_client_that_leaves_ends_the_upstream_call(world):
    replica = world.replica("r1", ttft="1ms", gap="20ms")
    client = over(world, replica)
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "x"}], stream=True, max_tokens=1000
    )
    next(iter(stream))
    stream.close()

    def quiet():
        metrics = get(f"{world.gateway.url}/metrics")[1]
        flying = [line for line in metrics.splitlines() if "in_flight" in line and not line.startswith("#")]
        assert flying, "the gateway counts what is in flight"
        return all(float(line.rsplit(" ", 1)[1]) == 0 for line in flying)

    # The answer itself would take twenty seconds.
    until("nothing is in flight", quiet, 5)
