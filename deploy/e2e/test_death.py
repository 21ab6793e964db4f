"""Processes are killed by SIGKILL while clients are at it."""

import httpx2
import openai
import pytest

from asking import Streamed, chat, client_of, replica_of
from harness import command, endpoints, new_key, until
from ledger import audited
from load import Load

LOST = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)


def test_a_killed_replica_fails_no_request_that_had_not_begun_to_stream(world):
    replicas = [world.replica(f"r{n}", ttft="10ms", gap="2ms") for n in (1, 2, 3)]
    gateway = world.serve(upstreams=[replica.url for replica in replicas])
    with Load(gateway, workers=8) as load:
        load.more(30)
        for victim in replicas[:2]:
            victim.kill()
            load.more(30)
            victim.start()
            load.more(30)
    tally = load.tally
    assert tally.refused == []
    assert tally.silent == 0, "a broken stream must not look finished"
    assert tally.lost == 0, "the gateway says what happened, it does not hang up"
    assert tally.answered >= 150 and tally.cut <= 16, tally


def test_a_stream_whose_replica_dies_ends_in_an_error(world):
    replica = world.replica("r1", ttft="1ms", gap="20ms")
    client = client_of(world.serve(upstreams=[replica.url]))
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Go on."}], stream=True, max_tokens=400
    )
    with pytest.raises(openai.APIError) as raised:
        for number, _ in enumerate(stream):
            if number == 5:
                replica.kill()
    assert not isinstance(raised.value, openai.APIConnectionError), "an event, not a lost connection"
    assert raised.value.message


def test_a_returned_replica_is_asked_again(world):
    replicas = [world.replica(f"r{n}", ttft="1ms", gap="1ms") for n in (1, 2)]
    config = {"version": 1, "models": {"demo": {"endpoints": endpoints(*replicas)}}}
    gateway = world.serve(config=config)
    client = client_of(gateway)
    replicas[0].kill()
    for _ in range(8):
        chat(client)
    replicas[0].start()
    with Load(gateway, workers=2, output=2) as load:
        load.more(20)
        until("r1 is asked again", lambda: replica_of(client, max_tokens=1) == "r1", 60)
    assert load.tally.refused == []


def test_a_gateway_killed_under_load_loses_no_charge_and_leaks_no_reservation(world):
    replicas = [world.replica(f"r{n}", ttft="5ms", gap="2ms") for n in (1, 2, 3)]
    key, digest = new_key()
    config = {
        "version": 1,
        "models": {"demo": {"endpoints": endpoints(*replicas), "price": {"input": 1.0, "output": 2.0}}},
        "tenants": {"acme": {"daily_tokens": 50_000_000}},
        "keys": [{"name": "k", "hash": digest, "tenant": "acme", "user": "ann"}],
    }
    gateway = world.serve(config=config)
    with Load(gateway, key=key, tolerate=LOST) as load:
        for _ in range(4):
            load.more(25)
            gateway.kill()
            gateway.start()
        load.more(25)
    assert gateway.stop() == 0
    tally = load.tally
    assert tally.refused == [] and tally.silent == 0
    charged = audited(world.data)
    # One answer is at most its output and a prompt of a few words.
    unseen = tally.cut * (load.output + 64)
    assert tally.tokens <= charged <= tally.tokens + unseen, (tally, charged)


def test_a_second_gateway_on_the_same_data_is_refused(world):
    replica = world.replica("r1", ttft="1ms")
    gateway = world.serve(upstreams=[replica.url])
    second = command("serve", "--listen", "127.0.0.1:0", "--data", world.data, "--upstream", replica.url)
    assert second.returncode != 0 and "data" in (second.stdout + second.stderr)
    assert Streamed(client_of(gateway)).whole
