"""A process for each role, real servers and workers of every kind: one trace, one session's name in every log, clean
figures, and sessions that are spread and stay."""

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from asking import Streamed, chat, client_of, messages
from collector import Collector
from distributed import ONE, TWO
from figures import check, page, value
from harness import new_key, until
from roles import RPM, Roles, answers, line_of, lines

QUIC = "model-quic"
WORKERS = {ONE: ("grpc-a", "grpc-b"), QUIC: ("quic-a", "quic-b"), TWO: ("python-a",)}
ROOT = "00f067aa0ba902b7"  # The caller's span.
AUTH = "auth.authenticate"
CALLER = {"traceparent": f"00-{{}}-{ROOT}-01", "tracestate": "vendor=some,other=more"}
SECRET = "session-of-ann-that-nobody-is-told"
SESSIONS = 200


@pytest.fixture(scope="module")
def fleet():
    """All of it, with a collector; nobody dies here."""
    (key, digest), (metered, other) = new_key(), new_key()
    with Roles("roles") as fleet:
        fleet.collector = fleet.adopt(Collector(fleet))
        fleet.env = fleet.collector.env
        for name in WORKERS[ONE]:
            fleet.rust(name, ONE)
        for name in WORKERS[QUIC]:
            fleet.quic(name, QUIC)
        for name in WORKERS[TWO]:
            fleet.python(name, TWO)
        fleet.begin(digest, metered=other)
        fleet.key, fleet.metered = key, metered
        yield fleet


def ask(fleet, gateway, model, session=None, **headers):
    """One streamed question, read to its end; its request's id."""
    body = {"model": model, "max_tokens": 5, "stream": True, "messages": messages("Tell nobody of the swan.")}
    headers |= {"authorization": f"Bearer {fleet.key}"} | ({"x-session-id": session} if session else {})
    answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n"), answer.text
    return answer.headers["x-request-id"]


def chain(fleet, trace):
    """The spans of a trace from its root down, once they hang together; and the questions about keys in it."""

    def found():
        spans = [span for span in fleet.collector.spans() if span.trace == trace]
        below, down = {span.parent: span for span in spans if span.name != AUTH}, []
        while len(down) < len(below) and (down[-1].id if down else ROOT) in below:
            down.append(below[down[-1].id if down else ROOT])
        assert len(below) <= 5, spans
        return (down, [span for span in spans if span.name == AUTH]) if len(down) == 5 else None

    return until(f"five spans of {trace}", found)


def test_a_new_keys_question_to_the_auth_role_is_in_its_requests_trace(fleet):
    trace = "4bf92f3577b34da6a3ce929d0e0e473f"
    ask(fleet, fleet.gateways[0], ONE, **CALLER | {"traceparent": CALLER["traceparent"].format(trace)})
    (served, _, in_chat, *_), asked = chain(fleet, trace)
    # The chat role judges the key again. Whoever was asked by another request before knows it already.
    asking = {span.id: span.parent for span in asked if span.kind == "client"}
    assert served.id in asking.values() and set(asking.values()) <= {served.id, in_chat.id}, asked
    told = [span for span in asked if span.kind == "server"]
    assert {span.service for span in told} == {"auth"} and {span.parent for span in told} == set(asking), asked


@pytest.mark.parametrize("model", [ONE, QUIC, TWO])
def test_one_trace_goes_through_gateway_and_chat_role_to_the_worker(fleet, model):
    trace = f"4bf92f3577b34da6a3ce929d0e0e473{list(WORKERS).index(model)}"
    gateway = fleet.gateways[0]
    request = ask(fleet, gateway, model, SECRET, **CALLER | {"traceparent": CALLER["traceparent"].format(trace)})
    (served, to_chat, in_chat, to_worker, in_worker), _ = chain(fleet, trace)

    assert [span.name for span in (served, to_chat, in_chat, to_worker, in_worker)] == [
        "gateway.chat_completion",
        f"chat {model}",
        "chat.stream_chat",
        f"chat {model}",
        "worker.stream_inference",
    ]
    kinds = [span.kind for span in (served, to_chat, in_chat, to_worker, in_worker)]
    assert kinds == ["server", "client", "server", "client", "server"]
    chat_role = fleet.chats[in_chat.service]
    services = [span.service for span in (served, to_chat, in_chat, to_worker, in_worker)]
    assert services == [gateway.name, gateway.name, chat_role.name, chat_role.name, "pointsman-worker"]
    for span in (served, to_chat, in_chat, to_worker, in_worker):
        assert span.said["pointsman.outcome"] in ("completed", "ok"), span
        assert span.state == CALLER["tracestate"] and not span.failed, span
        assert (span.said["gen_ai.usage.output_tokens"], span.said["gen_ai.request.model"]) == (5, model), span

    assert served.said["pointsman.request_id"] == to_chat.said["pointsman.request_id"] == request
    inner = in_chat.said["pointsman.request_id"]
    assert inner == to_worker.said["pointsman.request_id"] == in_worker.said["pointsman.request_id"]
    assert served.said["http.route"] == "/v1/chat/completions" and "http.route" not in in_chat.said
    rpc = {name: in_chat.said[f"rpc.{name}"] for name in ("system", "service", "method")}
    assert rpc == {"system": "grpc", "service": "pointsman.chat.v1.ChatService", "method": "StreamChat"}
    assert (served.said["pointsman.replica"], to_chat.said["server.port"]) == (chat_role.name, chat_role.rpc)
    assert in_chat.said["pointsman.replica"] == to_worker.said["pointsman.replica"] in WORKERS[model]
    assert SECRET.encode() not in fleet.collector.bytes()


@pytest.mark.parametrize("model", [ONE, QUIC, TWO])
def test_one_sessions_hash_is_in_the_json_logs_of_three_processes(fleet, model):
    gateway = fleet.gateways[1]
    request = ask(fleet, gateway, model, SECRET)
    front = line_of(lambda: lines(gateway, "request finished"), request_id=request)
    behind = fleet.chats[front["instance_id"]]
    session, trace = front["session_id"], front["trace_id"]
    assert session.startswith("sess_") and front["retries"] == 0 and front["model"] == model
    middle = line_of(lambda: lines(behind, "request finished"), trace_id=trace)
    worker = fleet.workers[middle["instance_id"]]
    assert (middle["session_id"], middle["model"], middle["retries"]) == (session, model, 0)
    last = line_of(lambda: answers(worker), request_id=middle["request_id"])
    assert (last["session_id"], last["model"], last["retries"]) == (session, model, 0)
    assert (last["instance_id"], last["trace_id"]) == (worker.name, trace)
    for process in (gateway, behind, worker):
        assert SECRET not in process.said(), process.name


def test_the_figures_of_every_role_are_as_prometheus_wants_them(fleet):
    for model in WORKERS:
        assert Streamed(client_of(fleet.gateways[0], key=fleet.key), model=model).whole
    roles = [*fleet.gateways, *fleet.chats.values(), fleet.auth]
    for role in roles:
        told = page(role.url)
        assert len(told.splitlines()) > 10, told
        assert check(told) == (0, ""), role.name
    front, auth = page(fleet.gateways[0].url), page(fleet.auth.url)
    behind = [page(role.url) for role in fleet.chats.values()]
    for series in ("gateway_requests_total", "pointsman_auth_judged_total", "pointsman_auth_asks_total"):
        assert value(front, series) > 0, front
    for series in ("gateway_requests_total", "pointsman_auth_judged_total", "pointsman_quota_store_asks_total"):
        assert sum(value(told, series) for told in behind) > 0, series
    assert 'pointsman_registry_stale_seconds{source="consul"} 0' in behind[0]
    assert value(auth, 'pointsman_auth_answers_total{verdict="known"}') > 0
    assert value(auth, "pointsman_auth_answer_seconds_count") == value(auth, "pointsman_auth_answers_total")
    assert value(auth, 'pointsman_auth_errors_total{kind="malformed"}') == 0 and "pointsman_auth_errors_total" in auth


def chosen(fleet, gateway, model, sessions):
    """The chat role that each session is sent to."""
    body = {"model": model, "max_tokens": 1, "messages": messages()}
    roles = {}
    with httpx2.Client(headers={"authorization": f"Bearer {fleet.key}"}, timeout=30) as client:
        for session in sessions:
            answer = client.post(f"{gateway.url}/v1/chat/completions", json=body, headers={"x-session-id": session})
            assert answer.status_code == 200, answer.text
            roles[session] = answer.headers["x-pointsman-replica"]
    return roles


@pytest.mark.parametrize("model", [ONE, QUIC])
def test_sessions_are_spread_over_roles_and_workers_and_stay_with_both_gateways(fleet, model):
    def finished(role):
        return [line for line in lines(role, "request finished") if line["model"] == model]

    def since():
        told = [line for name, role in fleet.chats.items() for line in finished(role)[before[name] :]]
        return told if len(told) >= 2 * SESSIONS else None

    before = {name: len(finished(role)) for name, role in fleet.chats.items()}
    sessions = [f"{model}-{number}" for number in range(SESSIONS)]
    # One after the other: beside others, one that finds its home too busy is sent elsewhere for that once.
    first, second = (chosen(fleet, gateway, model, sessions) for gateway in fleet.gateways)
    assert first == second, "a session has another chat role at each gateway"
    told = until("every answer is told", since)
    homes = {}
    for line in told:
        homes.setdefault(line["session_id"], set()).add(line["instance_id"])
    assert len(homes) >= SESSIONS
    named = list(homes.values())
    assert all(len(seen) == 1 for seen in named), "a session's worker changed"
    # Of 200 fair draws, beyond 65 in 100 stands one of ten thousand.
    for of in (Counter(first.values()), Counter(worker for seen in named for worker in seen)):
        assert len(of) == 2 and max(of.values()) <= 0.65 * of.total(), of


def test_two_gateway_roles_share_one_rate_to_the_request(fleet):
    def status(number):
        body = {"model": ONE, "max_tokens": 1, "messages": messages()}
        url, headers = fleet.gateways[number % 2].url, {"authorization": f"Bearer {fleet.metered}"}
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30)
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "rate_limited" and int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    began = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        statuses = Counter(pool.map(status, range(3 * RPM)))
    # One more with every whole share of a minute that passed meanwhile.
    more = math.floor((time.monotonic() - began) * RPM / 60)
    assert set(statuses) == {200, 429} and RPM <= statuses[200] <= RPM + more, statuses


def test_the_official_client_is_served_by_every_gateway(fleet):
    for gateway in fleet.gateways:
        client = client_of(gateway, key=fleet.key)
        assert {model.id for model in client.models.list()} == set(WORKERS)
        for model in WORKERS:
            assert chat(client, model=model).usage.completion_tokens <= 8
