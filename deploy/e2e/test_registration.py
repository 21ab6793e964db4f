"""Workers and a real Consul: it is listed while it serves, whatever becomes of the registry."""

import json
import signal
import subprocess
import threading

import pytest

import programs
from asking import Streamed, chat, client_of, raw_chat
from distributed import ONE, TWO, Consul, Fleet, RustWorker
from harness import Server, binary, free_port, get, new_key, until

ACL = 'acl { enabled = true default_policy = "deny" tokens { master = "%s" agent = "%s" } }'
TOKEN = "3f0c9c1e-5ad1-4b7c-9f6e-2f6f3f1d8a01"


@pytest.fixture
def fleet(request):
    """Consul alone; who is asked what needs no ledger."""
    key, digest = new_key()
    with Fleet(request.node.name, redis=False) as fleet:
        fleet.key, fleet.digest = key, digest
        yield fleet


def registry(worker):
    """What a worker says of its registry."""
    status, body = get(f"http://127.0.0.1:{worker.pages}/health")
    assert status == 200, body
    return json.loads(body)["checks"]["registry"]


def figure(worker, name):
    """One of a worker's figures."""
    page = get(f"http://127.0.0.1:{worker.pages}/metrics")[1]
    (line,) = (line for line in page.splitlines() if line.startswith(f"pointsman_worker_{name}{{"))
    return float(line.rpartition(" ")[2])


def test_a_worker_is_listed_as_gateways_read_it_and_gone_before_its_last_stream_ends(fleet):
    worker = fleet.rust("one", ONE, "hash", "--delay", "100ms")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    said = fleet.consul.services(ONE)["one"]
    assert (said["Address"], said["Port"]) == ("127.0.0.1", worker.port)
    assert said["Meta"]["model"] == ONE and said["Meta"]["protocol"] == "grpc"
    assert registry(worker) == "ok" and figure(worker, "registered") == 1
    client = client_of(gateway, key=fleet.key)
    # Some five seconds of it.
    stream = []
    running = threading.Thread(target=lambda: stream.append(Streamed(client, model=ONE, max_tokens=50)))
    running.start()
    until("it has begun", lambda: figure(worker, "running") == 1)
    worker.signal(signal.SIGTERM)
    until("it left", lambda: not fleet.consul.passing(ONE), seconds=3)
    assert worker.alive() and running.is_alive(), "it left while what runs still did"
    running.join(30)
    assert stream[0].whole and worker.wait() == 0, stream[0].error
    assert "left Consul" in worker.said()


def test_a_python_worker_is_listed_while_it_serves_and_gone_when_it_has_left(fleet):
    worker = fleet.python("two", TWO, "hash")
    until("it is listed", lambda: fleet.consul.passing(TWO) == {"two"})
    assert fleet.consul.services(TWO)["two"]["Port"] == worker.listens
    assert worker.stop() == 0
    # At once, and not when its last word has grown old.
    assert fleet.consul.passing(TWO) == set()
    assert fleet.consul.catalog(TWO) == []


def test_a_registry_that_comes_late_dies_and_forgets_is_told_each_time(fleet):
    fleet.consul.kill()
    worker = fleet.rust("one")
    until("it says so", lambda: "not registered: " in registry(worker) and "does not answer" in registry(worker))
    assert get(f"http://127.0.0.1:{worker.pages}/ready")[0] == 200 and figure(worker, "registered") == 0
    fleet.consul.start()
    until("it registers", lambda: fleet.consul.passing(ONE) == {"one"})
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    fleet.consul.forget()
    until("it registers again", lambda: fleet.consul.passing(ONE) == {"one"})
    until("it says so", lambda: registry(worker) == "ok")
    assert chat(client_of(gateway, key=fleet.key), model=ONE).choices
    # Told by somebody else to forget it, Consul has lost a check that is reported to.
    words = ["services", "deregister", f"-http-addr=127.0.0.1:{fleet.consul.port}", "-id=one"]
    subprocess.run([programs.consul(), *words], check=True, timeout=30, capture_output=True)
    until("it hears", lambda: "Consul forgot this worker" in worker.said())
    until("it registers again", lambda: fleet.consul.passing(ONE) == {"one"} and registry(worker) == "ok")
    assert worker.stop() == 0 and fleet.consul.passing(ONE) == set()


def test_a_worker_with_both_doors_is_one_entry_and_over_quic_its_pin_is_in_it(fleet):
    port = free_port()
    worker = fleet.rust("both", ONE, "hash", "--quic-listen", f"127.0.0.1:{port}")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    said = fleet.consul.services(ONE)
    assert set(said) == {"both"} and said["both"]["Port"] == port
    assert said["both"]["Meta"]["protocol"] == "quic" and said["both"]["Meta"]["pin"] in worker.said()
    answer = raw_chat(client_of(gateway, key=fleet.key), model=ONE)
    assert answer.headers["x-pointsman-replica"] == "both"
    assert worker.stop() == 0


def test_a_backend_that_is_away_is_no_worker_to_send_to(fleet):
    port = free_port()
    worker = fleet.rust("beside", "demo", f"openai:http://127.0.0.1:{port}")
    until("it is told", lambda: registry(worker) == "ok")
    assert fleet.consul.passing("demo") == set(), "known, and critical"
    server = fleet.keep(model_server(fleet, port))
    until("its backend is there", lambda: fleet.consul.passing("demo") == {"beside"})
    server.kill()
    until("it is gone", lambda: fleet.consul.passing("demo") == set())


def model_server(world, port):
    """An OpenAI-compatible server at a port of our choice."""
    arguments = ["demo-replica", "--listen", f"127.0.0.1:{port}", "--model", "demo"]
    return Server("server", arguments, world.logs / "server.log", port, "/v1/models")


def test_a_consul_that_wants_a_token_gets_it_and_one_that_is_wrong_is_named(fleet, tmp_path):
    guarded = fleet.keep(Consul(fleet, more=ACL % (TOKEN, TOKEN), name="guarded"))
    secret = tmp_path / "token"
    secret.write_text("very-wrong\n")
    more = ["--consul-token", f"file:{secret}"]
    worker = fleet.keep(RustWorker(fleet, "one", ONE, "hash", guarded, *more))
    until("it says so", lambda: "service:write" in registry(worker))
    assert guarded.services(ONE, TOKEN) == {} and "very-wrong" not in worker.said()
    assert worker.stop() == 0
    secret.write_text(f"{TOKEN}\n")
    worker.start()
    until("it is listed", lambda: guarded.passing(ONE, TOKEN) == {"one"})
    assert worker.stop() == 0 and guarded.services(ONE, TOKEN) == {}
    assert TOKEN not in worker.said()


def test_an_address_that_nobody_can_call_is_refused():
    line = ["worker", "--model", "m", "--backend", "echo", "--consul", "http://127.0.0.1:1", "--advertise", "0.0.0.0:1"]
    run = subprocess.run([binary(), *line], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode != 0
    assert "--advertise" in run.stderr and "nobody can call that" in run.stderr, run.stderr
