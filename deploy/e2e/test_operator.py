"""What the person who runs it does: explain, verify, reload, drain, and looking for what must not be written."""

import itertools
import json
import signal
import threading
import uuid

import openai
import pytest

from asking import MODEL, Streamed, chat, client_of, messages, raw_chat
from harness import command, endpoints, get, new_key, until
from load import Load


def small(*replicas, **more):
    """A configuration of one model."""
    return {"version": 1, "models": {"demo": {"endpoints": endpoints(*replicas)}}, **more}


def test_explain_names_the_replica_and_the_one_that_failed(world):
    good = world.replica("steady", ttft="1ms", gap="1ms")
    bad = world.replica("shaky", ttft="1ms", gap="1ms")
    client = client_of(world.serve(config=small(good, bad)))
    bad.kill()
    # Conversations that begin alike stay together, so each begins differently.
    answers = [raw_chat(client, text=f"Question {n}.") for n in range(16)]
    twice = [a for a in answers if a.headers["x-pointsman-attempts"] == "2"]
    assert twice, "with one of two replicas dead some request was tried twice"
    request = twice[0].headers["x-request-id"]
    running = command("explain", request, "--data", world.data)
    assert running.returncode == 0, running.stderr
    assert "steady" in running.stdout and "shaky" in running.stdout
    assert world.gateway.stop() == 0
    stopped = command("explain", request, "--data", world.data)
    assert stopped.returncode == 0 and "steady" in stopped.stdout, stopped.stderr


def test_explain_of_a_request_nobody_made_says_what_is_kept(world):
    chat(client_of(world.serve(upstreams=[world.replica("r1", ttft="1ms").url])))
    unknown = command("explain", "req_ff-ffff", "--data", world.data)
    assert unknown.returncode != 0 and "req_ff-ffff" in unknown.stdout + unknown.stderr


def test_a_journal_verifies_until_one_byte_of_it_is_altered(world):
    replicas = [world.replica(f"r{n}", ttft="1ms", gap="1ms", fail_rate="0.1") for n in (1, 2)]
    gateway = world.serve(upstreams=[replica.url for replica in replicas])
    with Load(gateway, output=4, tolerate=openai.APIError) as load:
        load.more(60)
    running = command("journal", "verify", world.data)
    assert running.returncode == 0, running.stdout + running.stderr
    assert gateway.stop() == 0
    stopped = command("journal", "verify", world.data)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    alter_one_byte(world.data)
    altered = command("journal", "verify", world.data)
    assert altered.returncode != 0, altered.stdout
    assert any(c.isdigit() for c in altered.stdout + altered.stderr), "it says at which record"


def alter_one_byte(data):
    """Flips one bit in the middle of what the largest segment holds (the space behind it may be reserved)."""
    segments = sorted((data / "journal").glob("*.seg"), key=lambda path: path.stat().st_size)
    content = bytearray(segments[-1].read_bytes())
    written = len(bytes(content).rstrip(b"\0"))
    assert written > 200
    content[written // 2] ^= 1
    segments[-1].write_bytes(content)


def test_a_changed_file_is_applied_without_touching_a_running_stream(world):
    first, second = (
        world.replica("r1", ttft="1ms", gap="40ms", tokens="150"),
        world.replica("r2", model="other", ttft="1ms"),
    )
    client = client_of(world.serve(config=small(first)))
    streamed = []
    reader = threading.Thread(target=lambda: streamed.append(Streamed(client, max_tokens=150)))
    reader.start()
    both = small(first)
    both["models"]["other"] = {"endpoints": endpoints(second)}
    world.write(both)
    until("the new model is served", lambda: "other" in [m.id for m in client.models.list()])
    assert chat(client, model="other").choices
    assert reader.is_alive(), "the stream was to outlast the change"
    reader.join(30)
    assert streamed[0].whole


def test_a_bad_file_is_refused_and_named_while_the_old_one_stays(world):
    replica = world.replica("r1", ttft="1ms")
    gateway = world.serve(config=small(replica))
    client = client_of(gateway)
    wrong = small(replica)
    wrong["models"]["demo"]["endpionts"] = wrong["models"]["demo"].pop("endpoints")
    world.write(wrong)
    until("health names the mistake", lambda: "endpionts" in get(f"{gateway.url}/health")[1])
    assert "endpionts" in gateway.said() and chat(client).choices
    checked = command("check", "--config", world.config)
    assert checked.returncode != 0 and "endpoints" in checked.stdout + checked.stderr, "did you mean"
    world.write(small(replica))
    until("health is well again", lambda: "endpionts" not in get(f"{gateway.url}/health")[1])
    assert command("check", "--config", world.config).returncode == 0


def test_sigterm_finishes_what_runs_and_takes_nothing_new(world):
    replica = world.replica("r1", ttft="1ms", gap="15ms")
    gateway = world.serve(upstreams=[replica.url])
    client = client_of(gateway)
    stream = client.chat.completions.create(model=MODEL, messages=messages(), stream=True, max_tokens=150)
    chunks = iter(stream)
    next(chunks)
    gateway.signal(signal.SIGTERM)
    until("it is no longer ready", lambda: get(f"{gateway.url}/ready")[0] in (0, 503))
    with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
        chat(client)
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] in ("stop", "length")
    assert gateway.wait() == 0


def test_a_drained_endpoint_gets_nothing_new_until_undrained(world):
    replicas = [world.replica(f"r{n}", ttft="1ms", gap="1ms") for n in (1, 2)]
    client = client_of(world.serve(config=small(*replicas)))

    numbers = itertools.count()

    def asked():
        # Conversations that begin alike stay where they are at home, so each begins as none did before.
        texts = [f"Question {next(numbers)}." for _ in range(24)]
        answers = [raw_chat(client, text=text, max_tokens=1) for text in texts]
        return {answer.headers["x-pointsman-replica"] for answer in answers}

    assert asked() == {"r1", "r2"}
    assert command("drain", "r1", "--data", world.data).returncode == 0
    assert asked() == {"r2"}
    assert "r1" in command("status", "--data", world.data).stdout
    assert command("undrain", "r1", "--data", world.data).returncode == 0
    until("r1 is asked again", lambda: asked() == {"r1", "r2"})


def test_keys_and_prompts_are_written_nowhere(world):
    replica = world.replica("r1", ttft="1ms")
    key, digest = new_key()
    keys = [{"name": "k", "hash": digest, "tenant": "acme", "user": "ann"}]
    config = small(replica, tenants={"acme": {"daily_tokens": 100_000}}, keys=keys)
    gateway = world.serve(config=config, env={"LOG_LEVEL": "debug"})
    client = client_of(gateway, key=key)
    prompt, session = f"prompt-{uuid.uuid4().hex}", f"session-{uuid.uuid4().hex}"
    chat(client, prompt, extra_body={"session_id": session})
    with pytest.raises(openai.APIError):
        chat(client, prompt, model="no-such-model")
    assert gateway.stop() == 0
    places = [gateway.log, *(path for path in world.data.rglob("*") if path.is_file())]
    assert len(places) > 2
    for place in places:
        content = place.read_bytes()
        for secret in (prompt, key, key.removeprefix("pm-"), session):
            assert secret.encode() not in content, f"{secret} stands in {place.name}"


def test_check_shows_every_value_and_hides_secrets(world):
    replica = world.replica("r1", ttft="1ms")
    provider = {"api_key": "sk-very-secret", "base_url": f"{replica.url}/v1"}
    world.write(small(replica, providers={"openai": provider}))
    printed = command("check", "--config", world.config, "--print")
    assert printed.returncode == 0, printed.stderr
    assert "sk-very-secret" not in printed.stdout and replica.url in printed.stdout
    assert json.dumps(replica.name).strip('"') in printed.stdout
