"""Stored sessions through the official client: only what is new is sent, and what was acknowledged stays."""

import json
import threading
import urllib.request

import httpx2
import openai
import pytest

from asking import MODEL, messages
from distributed import ONE, Fleet
from harness import get, new_key, until


def stored(server, key="unused"):
    """The official client where sessions are kept."""
    return openai.OpenAI(base_url=f"{server.url}/api/v1", api_key=key, max_retries=0, timeout=30.0)


def say(client, text, session=None, **options):
    """A turn: whole, or the stream of it."""
    options = {"model": MODEL, "max_tokens": 8, **options}
    extra = {"session_id": session} if session else {}
    return client.chat.completions.create(messages=messages(text), extra_body=extra, **options)


def look(server, path, key="unused", method="GET"):
    """What a path under `/api/v1/sessions` says."""
    headers = {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server.url}/api/v1/sessions{path}", headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def kept(server, session, key="unused"):
    """What is kept of a session: role, text and state of each message."""
    page = look(server, f"/{session}/messages?page_size=100", key)
    assert page["total"] == len(page["data"])
    return [(m["message"]["role"], m["message"]["content"], m["status"]) for m in page["data"]]


@pytest.fixture
def gateway(world):
    """A gateway over one fast replica."""
    replica = world.replica("r", ttft="5ms", gap="10ms")
    return world.serve(upstreams=[replica.url])


def test_a_conversation_of_which_only_what_is_new_is_sent(gateway):
    client = stored(gateway)
    first = say(client, "My name is Ann.")
    # The client keeps members it does not know.
    session = first.session_id
    stream = list(say(client, "What is my name?", session, stream=True))
    assert stream[0].session_id == session
    text = "".join(c.choices[0].delta.content or "" for c in stream)
    third = say(client, "Thank you.", session)
    # The replica saw what was said before: its own count says so.
    assert third.usage.prompt_tokens > first.usage.prompt_tokens + 15
    assert kept(gateway, session) == [
        ("user", "My name is Ann.", "complete"),
        ("assistant", first.choices[0].message.content, "complete"),
        ("user", "What is my name?", "complete"),
        ("assistant", text, "complete"),
        ("user", "Thank you.", "complete"),
        ("assistant", third.choices[0].message.content, "complete"),
    ]
    assert look(gateway, f"/{session}", method="DELETE")["cleared"]
    again = say(client, "My name is Ann.", session)
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert look(gateway, f"/{session}")["message_count"] == 8


def test_an_unknown_session_is_the_clients_not_found(gateway):
    with pytest.raises(openai.NotFoundError) as refused:
        say(stored(gateway), "hi", "sess_" + "0" * 32)
    assert refused.value.code == "session_not_found"


def test_a_gateway_killed_in_the_middle_of_a_turn_has_every_turn_it_acknowledged(world):
    replica = world.replica("r", ttft="5ms", gap="20ms")
    gateway = world.serve(upstreams=[replica.url])
    client = stored(gateway)
    sessions = {}  # Acknowledged turns, by session.
    for life in range(3):
        for number in range(3):
            name = f"{life}-{number}"
            first = say(client, f"turn one of {name}")
            sessions[first.session_id] = [first.choices[0].message.content]
        for session, answers in sessions.items():
            chunks = list(say(client, "another", session, stream=True))
            answers.append("".join(c.choices[0].delta.content or "" for c in chunks))
        session = next(iter(sessions))
        stream = iter(say(client, "cut", session, stream=True, max_tokens=200))
        next(stream), next(stream)
        gateway.kill()
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            list(stream)
        gateway.start()
        for session, answers in sessions.items():
            found = kept(gateway, session)
            assert [text for role, text, _ in found if role == "assistant"] == answers, session
            assert all(state == "complete" for _, _, state in found)
            assert not any(text == "cut" for _, text, _ in found)
    log = gateway.said()
    assert "another" not in log and "turn one" not in log, "a prompt reached the log"


def test_two_gateways_over_one_redis_continue_one_session_in_order():
    key, digest = new_key()
    with Fleet("sessions") as fleet:
        for name in ("w1", "w2"):
            fleet.rust(name)
        one, two = fleet.open(2, digest=digest)
        clients = [stored(one, key), stored(two, key)]
        first = say(clients[0], "hello", model=ONE)
        session = first.session_id
        answers = {}

        def turn(number):
            text = f"turn {number}"
            answers[text] = say(clients[number % 2], text, session, model=ONE).choices[0].message.content

        threads = [threading.Thread(target=turn, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = kept(one, session, key)
        assert found == kept(two, session, key)
        assert len(found) == 10 and len(answers) == 4
        for asked, answered in zip(found[2::2], found[3::2], strict=True):
            assert answered[1] == answers[asked[1]]
        assert fleet.redis.ask("LLEN", f"session_messages:acme%:{session}") == 10
        # One dies in the middle of a turn: the other has all that was acknowledged, and goes on when the lease is over.
        stream = iter(say(clients[0], "cut", session, model=ONE, stream=True, max_tokens=5000))
        next(stream), next(stream)
        one.kill()
        assert kept(two, session, key) == found
        again = say(clients[1], "after", session, model=ONE)
        assert again.session_id == session
        assert len(kept(two, session, key)) == 12
        until("two is well", lambda: get(f"{two.url}/ready")[0] == 200)
