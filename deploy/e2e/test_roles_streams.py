"""The work in two roles: whoever dies in the middle of a resumable stream, its client is told no lie and pays once."""

import json

import pytest

from distributed import ONE, TENANT, Fleet, Raw
from harness import HERE, Server, free_port, get, new_key, until
from resumable import LOST, Resumable, after

TOKENS = 120
QUESTION = "Tell me of points and trains."
UNDRAWN = 4_000  # Too little for anything to be drawn ahead: all that is charged is seen at once.


class Roles(Fleet):
    """Two gateway roles before two chat roles, which share a Redis and spend. `gateways` are the chat roles."""

    def open(self, digest):
        """Starts them, and waits until the chat roles know every worker."""
        common = {
            "version": 1,
            "tenants": {TENANT: {"daily_tokens": UNDRAWN}},
            "keys": [{"name": "k", "hash": digest, "tenant": TENANT, "user": "ann"}],
        }
        chats = []
        for name in ("chat-1", "chat-2"):
            port = free_port()
            chats.append({"url": f"chat://{HERE.address}:{port}", "name": name})
            own = {"discovery": {"consul": {"addr": self.consul.url}}}
            pages = free_port()
            self.gateways.append(self._role("chat", name, port, pages, pages, {**common, **own}))
        for chat in self.gateways:
            until(f"{chat.name} knows everybody", lambda at=chat: self.known(at) == len(self.workers))
        self.fronts = []
        for name in ("gateway-1", "gateway-2"):
            port = free_port()
            self.fronts.append(self._role("gateway", name, port, free_port(), port, {**common, "chats": chats}))
        return self.fronts

    def _role(self, role, name, port, pages, http, config):
        """`port` is where it listens, `http` where it says that it is ready."""
        redis = {"addr": f"{HERE.address}:{self.redis.port}"}
        config["data"] = {"dir": str(self.home / name), "redis": redis}
        config["server"] = {"admin": {"addr": f"{HERE.address}:{pages}"}}
        path = self.home / f"{name}.yaml"
        path.write_text(json.dumps(config, indent=1))
        arguments = ["serve", "--role", role, "--listen", f"{HERE.address}:{port}", "--config", path]
        return self.keep(Server(name, arguments, self.logs / f"{name}.log", http, "/ready", env=self.env))


@pytest.fixture
def roles(request):
    """And two workers that say the same, one token in 20 ms."""
    key, digest = new_key()
    with Roles(request.node.name) as roles:
        roles.key = key
        roles.rust("a", ONE, "hash", "--delay", "20ms"), roles.rust("b", ONE, "hash", "--delay", "20ms")
        roles.open(digest)
        yield roles


def kill_at_twenty(choose):
    """Kills whom it chooses when twenty pieces have come: once, for an error may be the next event."""
    killed = []

    def look(stream):
        if len(stream.pieces) == 20 and not killed:
            killed.append(choose())
            killed[0].kill()

    return look


def keeper(roles):
    """The chat role that keeps the only stream."""
    kept = [chat for chat in roles.gateways if "\npointsman_streams_kept 1\n" in get(f"{chat.url}/metrics")[1]]
    assert len(kept) == 1, [chat.name for chat in kept]
    return kept[0]


def test_a_gateway_role_is_killed_and_its_client_gets_the_whole_answer_on_the_other(roles):
    first, second = roles.fronts
    whole = Raw(second, roles.key, ONE, QUESTION, TOKENS)
    assert whole.done and len(whole.pieces) > 60, whole.pieces
    stream = Resumable(first, roles.key, ONE, QUESTION, TOKENS)
    with pytest.raises(LOST):
        stream.read(kill_at_twenty(lambda: first))
    assert not first.alive() and stream.where == "any-gateway" and stream.dones == 0
    stream.at(second).read()
    # `Resumable` has seen that no number came twice, and none was left out.
    assert stream.dones == 1 and not stream.errors, stream.errors
    assert "".join(stream.pieces) == "".join(whole.pieces)
    assert stream.usage == whole.usage
    # From the beginning, as one asks who has lost everything.
    again = Resumable(second, roles.key, ONE, QUESTION, TOKENS)
    again.id = stream.id
    again.at(second).read()
    assert (again.pieces, again.dones) == (stream.pieces, 1)
    assert roles.settled() == (2 * whole.usage["total_tokens"], 0), "one bill for each"


def test_a_client_moves_between_gateway_roles_while_both_live(roles):
    first, second = roles.fronts
    stream = Resumable(first, roles.key, ONE, QUESTION, TOKENS).read(after(10))
    stream.at(second).read(after(25))
    stream.at(first).read(after(40))
    assert stream.dones == 0, "it runs on"
    stream.at(second).read()
    assert stream.dones == 1 and not stream.errors
    assert roles.settled() == (stream.usage["total_tokens"], 0)


def test_a_chat_role_is_killed_and_its_client_gets_all_it_was_sent_and_an_honest_end(roles):
    first, second = roles.fronts
    killed = []

    def the_keeper():
        killed.append(keeper(roles))
        return killed[0]

    stream = Resumable(first, roles.key, ONE, QUESTION, TOKENS).read(kill_at_twenty(the_keeper))
    assert stream.dones == 0 and len(stream.errors) == 1, stream.errors
    seen = len(stream.pieces)
    stream.at(second).read()
    assert stream.dones == 0 and stream.errors[1]["error"]["code"] == "stream_gateway_lost", stream.errors
    assert len(stream.pieces) >= seen >= 20
    # The one that died settles what it sent, and nothing more.
    killed[0].start()
    until("the killed one settles what it sent", lambda: roles.redis.balance()[1] == 0, 60)
    spent, _ = roles.settled()
    assert 20 <= spent <= len(stream.pieces) + 60, spent


def test_while_redis_is_away_the_other_gateway_finds_the_stream_where_it_is_kept(roles):
    first, second = roles.fronts
    whole = Raw(second, roles.key, ONE, QUESTION, TOKENS)
    stream = Resumable(first, roles.key, ONE, QUESTION, TOKENS)

    def lose_redis_at_ten(stream):
        if len(stream.pieces) == 10:
            roles.redis.kill()
        return len(stream.pieces) >= 30

    stream.read(lose_redis_at_ten)
    stream.at(second).read(after(50))
    assert stream.where == "any-gateway" and stream.dones == 0, "it runs on"
    stream.at(first).read()
    assert stream.dones == 1 and not stream.errors, stream.errors
    assert "".join(stream.pieces) == "".join(whole.pieces) and stream.usage == whole.usage
    roles.redis.start()
    until("both are settled", lambda: roles.redis.balance()[0] == 2 * whole.usage["total_tokens"], 60)
    assert roles.settled() == (2 * whole.usage["total_tokens"], 0)
