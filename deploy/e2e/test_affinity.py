"""Who is asked: a session stays where its cache is, and newcomers spread."""

from asking import client_of, raw_chat, replica_of
from harness import endpoints


def sessions_spread_and_stay(client, **by):
    def asked(name):
        return {replica_of(client, **by[kind](name)) for kind in by for _ in range(3)}

    homes = [asked(f"session-{n}") for n in range(16)]
    assert all(len(home) == 1 for home in homes), homes
    assert len(set.union(*homes)) >= 2, "sixteen sessions on one replica of three"


def test_a_session_named_in_the_body_stays_on_its_replica(client):
    sessions_spread_and_stay(client, body=lambda name: {"extra_body": {"session_id": name}})


def test_a_session_named_in_a_header_stays_on_its_replica(client):
    sessions_spread_and_stay(client, header=lambda name: {"extra_headers": {"X-Session-Id": name}})


def test_body_and_header_name_the_same_session(client):
    sessions_spread_and_stay(
        client,
        body=lambda name: {"extra_body": {"session_id": name}},
        header=lambda name: {"extra_headers": {"X-Session-Id": name}},
    )


def test_a_dead_replica_moves_only_its_own_sessions(world):
    replicas = {name: world.replica(name, ttft="1ms", gap="1ms") for name in ("r1", "r2", "r3")}
    config = {"version": 1, "models": {"demo": {"endpoints": endpoints(*replicas.values())}}}
    client = client_of(world.serve(config=config))

    def homes():
        return {n: replica_of(client, extra_body={"session_id": f"s{n}"}) for n in range(24)}

    before = homes()
    victim = before[0]
    replicas[victim].kill()
    after = homes()
    assert victim not in after.values()
    assert {n: home for n, home in after.items() if before[n] != victim} == {
        n: home for n, home in before.items() if home != victim
    }


def test_a_lower_tier_is_asked_only_when_the_upper_is_gone(world):
    first, second = world.replica("first", ttft="1ms"), world.replica("second", ttft="1ms")
    tiers = [{**endpoints(first)[0], "priority": 1}, {**endpoints(second)[0], "priority": 2}]
    client = client_of(world.serve(config={"version": 1, "models": {"demo": {"endpoints": tiers}}}))
    assert {replica_of(client) for _ in range(6)} == {"first"}
    first.kill()
    moved = raw_chat(client)
    assert moved.headers["x-pointsman-replica"] == "second"
    assert int(moved.headers["x-pointsman-attempts"]) == 2
