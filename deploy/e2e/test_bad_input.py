"""What a hostile or broken client sends: a clear refusal, and the gateway goes on."""

import http.client
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from asking import MODEL, chat, client_of
from harness import ROOT, get

BLNS = ROOT / ".." / "shared" / "data" / "blns" / "blns.json"
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def strings():
    if not BLNS.parent.is_dir():
        pytest.skip("THE HOSTILE STRINGS WERE NOT TRIED: the shared data folder is not beside this clone")
    return json.loads(BLNS.read_text())


@pytest.fixture(autouse=True)
def still_serving(three):
    """Whatever a test sent, afterwards the gateway answers as before, and knows of nothing in flight."""
    yield
    assert three.gateway.alive() and chat(client_of(three.gateway)).choices
    assert "panicked" not in three.gateway.said()


def all_of(strings, ask):
    """Asks with each string, eight at a time; returns the statuses by string."""

    def one(text):
        try:
            ask(text)
        except openai.APIStatusError as error:
            assert error.body and error.body["message"], text
            return error.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(strings, pool.map(one, strings), strict=True))


def test_hostile_prompts_are_answered(three, strings):
    client = client_of(three.gateway)
    statuses = all_of(strings, lambda text: chat(client, text, max_tokens=1))
    assert set(statuses.values()) == {200}, {t: s for t, s in statuses.items() if s != 200}


def test_hostile_model_names_are_refused(three, strings):
    client = client_of(three.gateway)
    statuses = all_of(strings, lambda text: chat(client, model=text, max_tokens=1))
    assert set(statuses.values()) <= {400, 404}, {t: s for t, s in statuses.items() if s < 400 or s > 404}


def test_hostile_session_ids_are_names_like_any_other(three, strings):
    client = client_of(three.gateway)
    statuses = all_of(strings, lambda text: chat(client, max_tokens=1, extra_body={"session_id": text}))
    assert set(statuses.values()) <= {200, 400}
    assert list(statuses.values()).count(200) > len(statuses) // 2
    headers = [text for text in strings if text.strip() == text and text.isprintable() and text.isascii()]
    statuses = all_of(headers, lambda text: chat(client, max_tokens=1, extra_headers={"X-Session-Id": text}))
    assert set(statuses.values()) <= {200, 400}


def send(three, body, headers=None, path=PATH, method="POST"):
    """Status and decoded body of a request made by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", three.gateway.port, timeout=30)
    try:
        connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


BAD_BODIES = {
    "nothing": b"",
    "no json": b'{"model": ',
    "no object": b"[1, 2]",
    "no utf-8": b'{"model": "\xff\xfe"}',
    "a lone surrogate": b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "no model": b'{"messages": [{"role": "user", "content": "x"}]}',
    "no messages": b'{"model": "demo"}',
    "a number for a model": b'{"model": 7, "messages": []}',
    "a text for messages": b'{"model": "demo", "messages": "x"}',
    "a text for a maximum": b'{"model": "demo", "messages": [], "max_tokens": "x"}',
    "a negative maximum": b'{"model": "demo", "messages": [], "max_tokens": -1}',
    "a deep nest": b"[" * 200_000 + b"]" * 200_000,
    "two models": b'{"model": "demo", "model": "demo", "messages": []}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_is_a_bad_request(three, body):
    status, answer = send(three, body)
    assert status == 400 and answer["error"]["message"] and answer["error"]["type"]


def test_an_oversized_body_is_refused_before_it_is_read(three):
    with socket.create_connection(("127.0.0.1", three.gateway.port), timeout=30) as wire:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {1 << 40}\r\n\r\n"
        wire.sendall(head.encode())
        assert wire.recv(64).split()[1] == b"413"


def test_a_nul_in_a_prompt_is_only_a_character(three):
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "a\0b"}]}
    assert send(three, json.dumps(body))[0] == 200


def test_an_unknown_path_and_a_wrong_method_are_json_errors(three):
    for method, path, expected in (("GET", "/v1/nothing", 404), ("DELETE", PATH, 405), ("POST", "/", (404, 405))):
        status, answer = send(three, b"", path=path, method=method)
        assert status in (expected if isinstance(expected, tuple) else (expected,))
        assert answer["error"]["message"]


def test_doubled_headers_are_refused_or_agreed_on(three):
    body = json.dumps({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]})
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nx-session-id: a\r\nx-session-id: b\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", three.gateway.port), timeout=30) as wire:
        wire.sendall((head + body).encode())
        assert wire.recv(64).split()[1] in (b"200", b"400")


def test_slow_headers_do_not_hold_a_connection_for_ever(three):
    with socket.create_connection(("127.0.0.1", three.gateway.port), timeout=90) as wire:
        wire.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ")
        assert get(f"{three.gateway.url}/ready")[0] == 200
        answer = wire.recv(64)
        assert answer == b"" or answer.split()[1] in (b"408", b"400")


def test_random_bytes_are_no_request(three):
    with socket.create_connection(("127.0.0.1", three.gateway.port), timeout=60) as wire:
        wire.sendall(os.urandom(4096) + b"\r\n\r\n")
        answer = wire.recv(64)
        assert answer == b"" or answer.split()[1] in (b"400", b"431")
