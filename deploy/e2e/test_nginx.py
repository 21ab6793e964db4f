"""nginx in front of two gateways: it holds nothing back, and a gateway that dies costs the others' requests nothing."""

import json
import threading

import httpx2
import openai
import pytest

from asking import chat, client_of
from distributed import ONE, Fleet
from harness import get, new_key, until
from load import Load
from proxy import Nginx
from scripted import Scripted, Stepwise

LOST = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)


@pytest.fixture
def fleet(request):
    """Consul, a key, and nobody else yet."""
    with Fleet(request.node.name, redis=False) as fleet:
        fleet.key, fleet.digest = new_key()
        yield fleet


class Told:
    """One stream through nginx: what came of it, and the port that it was asked from."""

    def __init__(self, server, key, tokens, model=ONE, on_piece=None):
        self.pieces, self.done, self.error, self.port = 0, False, None, None
        body = {
            "model": model,
            "stream": True,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "Go on."}],
        }
        headers = {"authorization": f"Bearer {key}"}
        try:
            url = f"{server.url}/v1/chat/completions"
            with httpx2.stream("POST", url, json=body, headers=headers, timeout=30) as answer:
                assert answer.status_code == 200, answer.read()
                self.port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
                for line in answer.iter_lines():
                    self.done |= line == "data: [DONE]"
                    if says_something(line):
                        self.pieces += 1
                        if on_piece:
                            on_piece()
        except httpx2.HTTPError as error:
            self.error = error


def says_something(line):
    """Whether a line of a stream has a token in it."""
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line.removeprefix("data: ")).get("choices")
    return bool(choices and choices[0]["delta"].get("content"))


def test_each_token_goes_through_before_the_next_is_written(world):
    steps = Stepwise(12)
    upstream = world.adopt(Scripted("steps", steps))
    gateway = world.serve(upstreams=[upstream.url])
    nginx = Nginx(world, [gateway, gateway])
    world.adopt(Closing(nginx))
    told = Told(nginx, "unused", 64, model="demo", on_piece=steps.seen.release)
    assert told.done and told.pieces == steps.tokens, (told.pieces, told.error)
    assert get(f"{nginx.url}/metrics")[0] == 404, "each gateway's own figures"


def test_a_gateway_that_dies_behind_nginx_takes_only_what_it_was_answering(fleet):
    for name in ("one-a", "one-b"):
        fleet.rust(name, ONE, "hash", "--delay", "25ms")
    gateways = mortal, _ = fleet.open(digest=fleet.digest)
    nginx = Nginx(fleet, gateways)
    fleet.adopt(Closing(nginx))
    tokens, begun, streams = 100, threading.Semaphore(0), []

    def follow():
        streams.append(Told(nginx, fleet.key, tokens, on_piece=begun.release))

    threads = [threading.Thread(target=follow, daemon=True) for _ in range(8)]
    with Load(nginx, key=fleet.key, workers=3, output=4, tolerate=LOST, model=ONE) as load:
        for thread in threads:
            thread.start()
        assert all(begun.acquire(timeout=20) for _ in range(3 * len(threads))), "the streams do not begin"
        load.more(3)
        mortal.kill()
        load.more(20)
        for thread in threads:
            thread.join(30)
    # Each of the three clients can have lost the one answer it was waiting for.
    assert load.tally.cut <= 3 and load.tally.refused == [] and load.tally.silent == 0, load.tally

    def served():
        return {int(line["client"].rsplit(":", 1)[-1]): line["gateway"] for line in nginx.requests()}

    until("nginx has told of every stream", lambda: {told.port for told in streams} <= set(served()))
    dead = [told for told in streams if served()[told.port].endswith(f":{mortal.port}")]
    living = [told for told in streams if told not in dead]
    assert len(streams) == 8 and dead and living, served()
    assert all(told.done and told.error is None for told in living), [told.error for told in living]
    assert not any(told.done for told in dead), "a dead gateway ended a stream well"
    client = client_of(nginx, key=fleet.key)
    for _ in range(20):
        assert chat(client, model=ONE, max_tokens=2).choices
    mortal.start()
    until("it is asked again", lambda: chat(client, model=ONE, max_tokens=2) and _last_gateway(nginx) == mortal.port)


def _last_gateway(nginx):
    last = nginx.requests()[-1]["gateway"]
    return int(last.rsplit(":", 1)[-1])


class Closing:
    """A process, closed with its world."""

    def __init__(self, process):
        self.close = process.kill
