"""One trace across every process a request goes through, read back from a real collector."""

import json
import re

import httpx2
import pytest

from asking import client_of, messages
from collector import Collector
from distributed import ONE, TWO, Fleet
from harness import Server, free_port, get, new_key, until

SECRETS = {"prompt": "Tell nobody of the swan.", "session": "session-of-ann", "user": "ann-of-acme"}
PARENT = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


@pytest.fixture
def fleet(request):
    """Workers and gateways that send their spans to a collector."""
    with Fleet(request.node.name, redis=False) as fleet:
        fleet.collector = fleet.adopt(Collector(fleet))
        fleet.env = fleet.collector.env
        fleet.key, fleet.digest = new_key()
        yield fleet


def ask(gateway, key, model, stream=False, **headers):
    """One question with everything in it that must not be told; the answer's head, and all of its body."""
    body = {"model": model, "max_tokens": 5, "stream": stream, "user": SECRETS["user"]}
    body["messages"] = messages(SECRETS["prompt"])
    headers = {"authorization": f"Bearer {key}", "x-session-id": SECRETS["session"], **headers}
    answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer


def one(spans, **wanted):
    """The one span of which all of this is true."""
    found = [span for span in spans if all(getattr(span, name) == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, spans)
    return found[0]


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_gateway_attempt_and_worker_are_one_trace(fleet, kind):
    model = {"rust": ONE, "python": TWO}[kind]
    worker = fleet.rust("w", model, "hash") if kind == "rust" else fleet.python("w", model, "hash")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    answer = ask(gateway, fleet.key, model, stream=True, traceparent=f"00-{PARENT[0]}-{PARENT[1]}-01")
    request = answer.headers["x-request-id"]
    spans = fleet.collector.trace(request, 3)

    served = one(spans, name="gateway.chat_completion", kind="server", service="pointsman")
    assert (served.trace, served.parent) == PARENT
    assert served.said["gen_ai.operation.name"] == "chat"
    assert served.said["gen_ai.request.model"] == model
    assert served.said["gen_ai.provider.name"] == "pointsman"
    assert served.said["http.route"] == "/v1/chat/completions"
    assert (served.said["http.response.status_code"], served.said["pointsman.retries"]) == (200, 0)
    assert (served.said["pointsman.replica"], served.said["pointsman.outcome"]) == ("w", "completed")

    attempt = one(spans, name=f"chat {model}", kind="client", service="pointsman", parent=served.id)
    assert (attempt.said["server.address"], attempt.said["server.port"]) == ("127.0.0.1", port_of(worker, kind))
    assert (attempt.said["pointsman.attempt"], attempt.said["pointsman.replica"]) == (1, "w")
    assert attempt.said["pointsman.request_id"] == request
    assert attempt.said["gen_ai.response.model"] == model
    assert "pointsman.first_token" in attempt.events

    asked = one(spans, name="worker.stream_inference", kind="server", service="pointsman-worker", parent=attempt.id)
    assert asked.said["gen_ai.provider.name"] == "hash"
    assert (asked.said["gen_ai.request.model"], asked.said["gen_ai.response.model"]) == (model, model)
    assert (asked.said["pointsman.request_id"], asked.said["pointsman.outcome"]) == (request, "ok")

    for span in spans:
        assert span.said["gen_ai.usage.output_tokens"] == 5, span
        assert span.said["gen_ai.usage.input_tokens"] > 0, span
        assert 0 < span.said["gen_ai.response.time_to_first_chunk"] <= span.seconds + 0.005, span
        assert not span.failed, span
    assert attempt.seconds <= served.seconds
    tells_no_secret(fleet)
    assert logged(gateway, "request finished", request)["trace_id"] == served.trace


def port_of(worker, kind):
    """Where it takes calls; a Python worker's own port is that of its pages."""
    return worker.port if kind == "rust" else worker.listens


def tells_no_secret(fleet):
    """Whatever came over the line."""
    told = fleet.collector.bytes()
    for secret in [*SECRETS.values(), fleet.key, fleet.key.removeprefix("pm-")]:
        assert secret.encode() not in told, secret


def logged(process, message, request):
    """What a process logged of a request."""
    lines = [json.loads(line) for line in process.said().splitlines() if line.startswith("{")]
    found = [line for line in lines if line["message"] == message and line["request_id"] == request]
    assert len(found) == 1, found
    return found[0]


def test_without_a_callers_span_a_trace_begins_and_what_only_looks_is_none(fleet):
    fleet.rust("w", ONE, "hash")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    answer = ask(gateway, fleet.key, ONE, traceparent="00-nonsense")
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        get(gateway.url + path)
    refused = httpx2.post(f"{gateway.url}/v1/chat/completions", json={}, headers={"authorization": "Bearer no"})
    assert refused.status_code == 401
    spans = fleet.collector.trace(answer.headers["x-request-id"], 3)
    assert one(spans, name="gateway.chat_completion").parent == ""
    (root,) = fleet.collector.trace(refused.headers["x-request-id"], 1)
    assert (root.said["http.response.status_code"], root.failed) == (401, False)
    assert root.said["error.type"] and "gen_ai.request.model" not in root.said
    names = {span.name for span in fleet.collector.spans()}
    assert names == {"gateway.chat_completion", f"chat {ONE}", "worker.stream_inference"}
    assert gateway.stop() == 0
    tells_no_secret(fleet)


def test_a_failover_shows_both_attempts(fleet):
    dead, alive = (fleet.rust(name, ONE, "hash") for name in ("dead", "alive"))
    endpoints = [{"url": f"grpc://127.0.0.1:{worker.port}", "name": worker.name} for worker in (dead, alive)]
    gateway = serve(fleet, {"models": {ONE: {"endpoints": endpoints}}})
    dead.kill()
    asked = (ask(gateway, fleet.key, ONE, **{"x-session-id": f"s-{n}"}) for n in range(50))
    answer = next(answer for answer in asked if answer.headers["x-pointsman-attempts"] == "2")
    spans = fleet.collector.trace(answer.headers["x-request-id"], 4)
    served = one(spans, name="gateway.chat_completion")
    first, second = (one(spans, parent=served.id, said=said) for said in attempts(spans))
    assert (first.failed, first.said["error.type"], first.said["server.port"]) == (True, "connect", dead.port)
    assert (first.said["pointsman.replica"], first.said["pointsman.attempt"]) == ("dead", 1)
    assert (second.failed, second.said["pointsman.replica"], second.said["pointsman.attempt"]) == (False, "alive", 2)
    assert one(spans, name="worker.stream_inference").parent == second.id
    assert (served.said["pointsman.retries"], served.said["pointsman.replica"], served.failed) == (1, "alive", False)


def attempts(spans):
    """What the attempts say of themselves, in their order."""
    return sorted((s.said for s in spans if s.kind == "client"), key=lambda said: said["pointsman.attempt"])


def test_a_stream_that_outlives_its_replica_shows_the_seam(fleet):
    for name in ("a", "b"):
        fleet.rust(name, ONE, "hash", "--delay", "20ms")
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    client, count = client_of(gateway, key=fleet.key), 0
    with client.chat.completions.with_streaming_response.create(
        model=ONE, messages=messages(), max_tokens=40, stream=True
    ) as answer:
        request, first = answer.headers["x-request-id"], answer.headers["x-pointsman-replica"]
        for line in answer.iter_lines():
            count += line.startswith("data: {")
            if count == 8:
                fleet.workers[first].kill()
    spans = fleet.collector.trace(request, 4)  # The one that was killed tells nothing any more.
    broken, resumed = attempts(spans)
    assert (broken["pointsman.replica"], broken["error.type"]) == (first, "truncated")
    seam = one(spans, said=resumed).events["pointsman.resumed"]["pointsman.resumed_at"]
    assert resumed["pointsman.resumed_at"] == seam > 0
    rest = one(spans, name="gateway.chat_completion").said["gen_ai.usage.output_tokens"] - seam
    assert (broken["gen_ai.usage.output_tokens"], resumed["gen_ai.usage.output_tokens"]) == (seam, rest)
    worker = one(spans, name="worker.stream_inference").said
    assert (worker["pointsman.resumed_at"], worker["gen_ai.usage.output_tokens"]) == (seam, rest)


def test_a_dead_collector_fails_nobody_and_is_told_once(fleet):
    worker = fleet.rust("w", ONE, "hash")
    fleet.env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    gateway = serve(fleet, {"models": {ONE: {"endpoints": [{"url": f"grpc://127.0.0.1:{worker.port}"}]}}})
    for _ in range(20):
        assert ask(gateway, fleet.key, ONE).elapsed.total_seconds() < 2
    lost = r'^pointsman_trace_spans_total\{outcome="failed"\} (\d+)$'

    def failed():
        found = re.search(lost, get(f"{gateway.url}/metrics")[1], re.MULTILINE)
        return found and int(found.group(1)) >= 40

    until("all of them are counted as lost", failed)
    ask(gateway, fleet.key, ONE)
    assert gateway.stop() == 0
    assert gateway.said().count("takes no spans") == 1


def serve(fleet, config):
    """A gateway of these endpoints alone."""
    port, path = free_port(), fleet.home / "alone.yaml"
    config |= {"version": 1, "data": {"dir": str(fleet.home / "alone")}, "routing": {"max_retries": 3}}
    config |= {"server": {"admin": {"addr": f"127.0.0.1:{free_port()}"}}}
    config |= {"keys": [{"name": "k", "hash": fleet.digest}]}
    path.write_text(json.dumps(config))
    arguments = ["serve", "--listen", f"127.0.0.1:{port}", "--config", path]
    gateway = Server("alone", arguments, fleet.logs / "alone.log", port, "/ready", fleet.env)
    return fleet.keep(gateway)
