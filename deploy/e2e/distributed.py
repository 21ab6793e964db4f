"""The distributed form in real processes: Consul, Redis, Rust and Python workers, and gateways that share them all."""

import itertools
import json
import random
import re
import shutil
import socket
import threading
import time

import httpx2
import openai

import programs
from asking import chat, client_of, raw_chat
from harness import HERE, Process, Server, World, free_port, get, until

ONE, TWO = "model-one", "model-two"
LIMIT = 2_000_000  # Tokens a day, where a test is about something else.
TENANT = "acme"
# What a book holds of today, in tokens: the tenant's own balance, and what is set aside, by requests (whose holds have
# a 0 behind the owner's sixteen digits) and ahead of them.
BALANCE = """
local spent, running, ahead = 0, 0, 0
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field:sub(1, 18) == 'B' .. ARGV[1] .. '0' then
    local sums = redis.call('HGET', KEYS[1], field)
    spent = spent + select(17, struct.unpack('<' .. ('d'):rep(17), sums))
  elseif field:sub(1, 1) == 'H' then
    local tokens, _, _, _, pins = unpack(cmsgpack.unpack(redis.call('HGET', KEYS[1], field)))
    -- One that has ended says other things.
    if pins and field:sub(18, 18) == '0' then
      running = running + tokens
    elseif pins then
      ahead = ahead + tokens
    end
  end
end
return {spent, running, ahead}
"""


class Consul(Server):
    """One server that is its own leader."""

    def __init__(self, world, host=HERE, more="", name="consul"):
        port, gossip, server = free_port(), free_port(), free_port()
        arguments = ["agent", "-server", "-bootstrap-expect=1", "-node=pointsman", "-bind=127.0.0.1"]
        arguments += [f"-client={host.address}", "-dns-port=-1", "-grpc-port=-1", "-serf-wan-port=-1"]
        arguments += [f"-http-port={port}", f"-serf-lan-port={gossip}", f"-server-port={server}"]
        # It elects itself in one second instead of five.
        arguments += ["-hcl", f"performance {{ raft_multiplier = 1 }} {more}", f"-data-dir={world.home / name}"]
        ready = "/v1/catalog/services"  # Refused until there is a leader.
        self._data, log = world.home / name, world.logs / f"{name}.log"
        super().__init__(name, arguments, log, port, ready, program=programs.consul(), host=host)

    def passing(self, model, token=""):
        """The instances of a model whose checks pass."""
        return set(self.services(model, token))

    def services(self, model, token=""):
        """The same, with what each said of itself."""
        headers = {"X-Consul-Token": token} if token else {}
        status, body = get(f"{self.url}/v1/health/service/llm-{model}?passing=true", headers=headers)
        listed = json.loads(body) if status == 200 else []
        return {entry["Service"]["ID"]: entry["Service"] for entry in listed}

    def catalog(self, model):
        """All instances of a model that it knows, well or not."""
        status, body = get(f"{self.url}/v1/catalog/service/llm-{model}")
        assert status == 200, body
        return [entry["ServiceID"] for entry in json.loads(body)]

    def forget(self):
        """It comes back with nothing, as an agent does whose disk is gone."""
        self.kill()
        shutil.rmtree(self._data)
        self.start()


class Redis(Server):
    """One primary. After a restart it has all it acknowledged: less than `always` forgets the last second or two."""

    def __init__(self, world, host=HERE):
        home, port = world.home / "redis", free_port()
        home.mkdir()
        # The network is the test's own: nobody else reaches it.
        arguments = ["--bind", host.address, "--protected-mode", "no", "--port", port, "--dir", home]
        arguments += ["--save", "", "--appendonly", "yes"]
        arguments += ["--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        log = world.logs / "redis.log"
        super().__init__("redis", arguments, log, port, "", program=programs.redis(), host=host)

    def _answers(self):
        try:
            return self.ask("PING") == "PONG"
        except (OSError, RedisError):
            return False

    def ask(self, *words):
        """One command and its answer. Raises `RedisError` where that is an error."""
        with socket.create_connection((self.host.address, self.port), timeout=5) as line:
            parts = [str(word).encode() for word in words]
            told = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
            line.sendall(b"*%d\r\n%s" % (len(parts), told))
            with line.makefile("rb") as answer:
                return _reply(answer)

    def balance(self):
        """Of the only tenant, today, in tokens: spent, set aside by requests, set aside ahead of them."""
        books = [key for key in self.ask("KEYS", "pointsman:ledger:*") if key.endswith(":book")]
        assert len(books) == 1, books
        tenant = re.search(r"\{([0-9a-f]{16})\}", books[0]).group(1)
        return self.ask("EVAL", BALANCE, 1, books[0], tenant)


class RedisError(Exception):
    """What Redis answers instead."""


def _reply(answer):
    head = answer.readline().rstrip().decode()
    kind, rest = head[:1], head[1:]
    if kind == "+":
        return rest
    if kind == ":":
        return int(rest)
    if kind == "$" and int(rest) >= 0:
        return answer.read(int(rest) + 2)[:-2].decode()
    if kind == "*" and int(rest) >= 0:
        return [_reply(answer) for _ in range(int(rest))]
    raise RedisError(head)


class RustWorker(Process):
    """`pointsman worker`. It registers itself, and is ready when its port is open."""

    def __init__(self, world, name, model, backend, consul, *more, host=HERE):
        self.port, self.pages, self.model = free_port(), free_port(), model
        arguments = ["worker", "--model", model, "--backend", backend]
        arguments += ["--listen", f"{host.address}:{self.port}"]
        arguments += ["--metrics-listen", f"{host.address}:{self.pages}"]
        arguments += ["--consul", consul.url, "--instance-id", name, *more]
        super().__init__(name, arguments, world.logs / f"{name}.log", env=world.env, host=host)

    def start(self):
        super().start()
        until(f"{self.name} listens", self._listens)

    def _listens(self):
        assert self.alive(), f"{self.name} ended with {self.child.returncode}:\n{self.said()[-2000:]}"
        with socket.socket() as probe:
            return probe.connect_ex((self.host.address, self.port)) == 0


class PythonWorker(Server):
    """`pointsman_worker`. It registers itself."""

    def __init__(self, world, name, model, backend, consul, **more):
        self.model, self.listens, pages = model, free_port(), free_port()
        env = {
            **world.env,
            "MODEL_NAME": model,
            "BACKEND": backend,
            "INSTANCE_ID": name,
            "LISTEN_ADDR": f"127.0.0.1:{self.listens}",
            "METRICS_ADDR": f"127.0.0.1:{pages}",
            "CONSUL_HTTP_ADDR": f"127.0.0.1:{consul.port}",
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }
        log, arguments = world.logs / f"{name}.log", ["-m", "pointsman_worker"]
        super().__init__(name, arguments, log, pages, "/ready", env, program=programs.python_worker())


class Fleet(World):
    """Gateways over one Redis and one Consul, and what that lists."""

    def __init__(self, name, redis=True, network=None):
        super().__init__(name)
        self.network, self.gateways, self.workers, self.env = network, [], {}, {}
        self.consul = self.keep(Consul(self, self._host("consul")))
        self.redis = self.keep(Redis(self, self._host("redis"))) if redis else None

    def _host(self, name):
        """A machine of its own on the network, where there is one."""
        return self.network.host(name) if self.network else HERE

    def rust(self, name, model=ONE, backend="hash", *more):
        """A Rust worker."""
        worker = RustWorker(self, name, model, backend, self.consul, *more, host=self._host(name))
        self.workers[name] = self.keep(worker)
        return worker

    def python(self, name, model=TWO, backend="hash", **more):
        """A Python worker."""
        worker = self.workers[name] = self.keep(PythonWorker(self, name, model, backend, self.consul, **more))
        return worker

    def open(self, count=2, limit=LIMIT, digest=None, timeouts=None, rates=None):
        """So many gateways, ready to serve every worker. `timeouts` are those of `routing`, `rates` the tenant's."""
        for number in range(count):
            name, port = f"gateway-{number + 1}", free_port()
            host, log = self._host(name), self.logs / f"{name}.log"
            config = self.home / f"{name}.yaml"
            config.write_text(json.dumps(self._config(name, limit, digest, timeouts, rates), indent=1))
            arguments = ["serve", "--listen", f"{host.address}:{port}", "--config", config]
            server = Server(name, arguments, log, port, "/ready", env=self.env, host=host)
            self.gateways.append(self.keep(server))
        for gateway in self.gateways:
            until(f"{gateway.name} knows everybody", lambda at=gateway: self.known(at) == len(self.workers))
        return self.gateways

    def _config(self, name, limit, digest, timeouts, rates):
        config = {
            "version": 1,
            "data": {"dir": str(self.home / name)},
            "server": {"admin": {"addr": f"127.0.0.1:{free_port()}"}},
            "discovery": {"consul": {"addr": self.consul.url}},
            # A worker that came back is soon asked again, and no test waits for what chance may do to a budget.
            "routing": {"breaker": {"ejection_base": "500ms", "slow_start": "0s"}, "max_retries": 3},
        }
        if timeouts:
            config["routing"]["timeouts"] = timeouts
        if self.redis:
            # One limit for all is kept by whoever hears Redis: a machine that is busy with other things may be slow to.
            redis = {"addr": f"{self.redis.host.address}:{self.redis.port}", "fallback_after": "250ms"}
            config["data"]["redis"] = redis
        if digest:
            config["tenants"] = {TENANT: {"daily_tokens": limit, **(rates or {})}}
            config["keys"] = [{"name": "k", "hash": digest, "tenant": TENANT, "user": "ann"}]
        return config

    def known(self, gateway):
        """How many workers Consul lists, as this gateway says; none while it says anything else."""
        said = re.match(r"(\d+) workers$", part(gateway, "registry consul"))
        return int(said.group(1)) if said else -1

    def settled(self):
        """What is spent, and what is set aside ahead, once no request holds anything and every gateway has stopped."""
        until("every hold of a request has ended", lambda: self.redis.balance()[1] == 0)
        for gateway in self.gateways:
            assert gateway.stop() == 0, gateway.said()[-2000:]
        spent, running, ahead = self.redis.balance()
        assert running == 0, f"{running} tokens are still set aside"
        return spent, ahead

    def keep(self, process):
        """Kills it with this world."""
        self._closing.append(process.kill)
        return process


def part(gateway, name):
    """What `/health` says of one part; nothing where it does not name it."""
    status, body = get(f"{gateway.url}/health")
    checks = json.loads(body).get("checks", {}) if status == 200 else {}
    return checks.get(name, {}).get("detail", "")


def degraded(gateway):
    """The parts that `/health` says are unwell, in one text."""
    status, body = get(f"{gateway.url}/health")
    checks = json.loads(body)["checks"] if status == 200 else {}
    return " ".join(name for name, check in checks.items() if not check["healthy"])


def homes(gateway, key, model, kind="session", count=20):
    """Who answers each of so many sessions of a kind."""
    client = client_of(gateway, key=key)

    def home(session):
        answer = raw_chat(client, model=model, max_tokens=2, extra_headers={"X-Session-Id": session})
        return answer.headers["x-pointsman-replica"]

    return {f"{kind}-{n}": home(f"{kind}-{n}") for n in range(count)}


def until_asked(gateway, key, model, worker):
    """Waits until new sessions find a worker."""
    rounds = itertools.count()
    until(f"{worker} is asked", lambda: worker in homes(gateway, key, model, next(rounds)).values())


class Raw:
    """A stream as it comes over the line, comments included."""

    def __init__(self, gateway, key, model, text, tokens, on_token=None):
        body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens}
        body["messages"] = [{"role": "user", "content": text}]
        headers = {"authorization": f"Bearer {key}"}
        self.events, self.comments, self.done = [], [], False
        self.longest_pause, last = 0.0, None
        url = f"{gateway.url}/v1/chat/completions"
        with httpx2.stream("POST", url, json=body, headers=headers, timeout=30) as answer:
            assert answer.status_code == 200, answer.read()
            self.replica = answer.headers["x-pointsman-replica"]
            for line in answer.iter_lines():
                self._line(line)
                if not line.startswith("data:"):
                    continue
                now = time.monotonic()
                self.longest_pause, last = max(self.longest_pause, now - (last or now)), now
                if on_token:
                    on_token(self)

    def _line(self, line):
        if line.startswith(":"):
            self.comments.append(line)
        elif line == "data: [DONE]":
            self.done = True
        elif line:
            assert not self.done, f"after [DONE]: {line}"
            self.events.append(json.loads(line.removeprefix("data: ")))

    @property
    def pieces(self):
        """What was said, piece by piece."""
        deltas = (event["choices"][0]["delta"] for event in self.events if event.get("choices"))
        return [delta["content"] for delta in deltas if delta.get("content")]

    @property
    def usage(self):
        """The one bill."""
        found = [event["usage"] for event in self.events if event.get("usage")]
        assert len(found) == 1, found
        return found[0]


class Spenders:
    """Clients that ask until they are told that the limit is spent; each answer is timed and judged as it comes.

    A connection that breaks counts as status 0 where `mortal` says that it may."""

    REST = 0.02  # After a refusal.

    def __init__(self, gateways, key, model, tokens, each=2, mortal=False):
        self._options = {"model": model, "max_tokens": tokens}
        self._lock, self._stop, self._last = threading.Lock(), threading.Event(), threading.Event()
        self.tokens, self.answered, self.slowest, self.statuses, self.crashes = 0, 0, 0.0, {}, []
        self._numbers = itertools.count(random.randrange(1 << 32))
        self._lost = openai.APIConnectionError if mortal else ()
        clients = [client_of(gateway, key=key) for gateway in gateways for _ in range(each)]
        self._threads = [threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        assert not self.crashes, self.crashes

    def more(self, count):
        """Waits for so many more answers."""
        goal = self.answered + count
        until(f"{count} more answers", lambda: self.answered >= goal or self.crashes)

    @property
    def failed(self):
        """How many were neither answered nor told that the limit is spent."""
        return sum(count for status, count in self.statuses.items() if status not in (200, 402))

    def finish(self):
        """From now on who is told that the limit is spent goes home; waits for all of them."""
        self._last.set()
        until("the limit is spent", lambda: not any(thread.is_alive() for thread in self._threads), 60)

    def _work(self, client):
        try:
            while not self._stop.is_set():
                if self._ask(client) == 402 and self._last.is_set():
                    return
        except Exception as crash:  # noqa: BLE001 - reported by the main thread, whatever it is
            self.crashes.append(repr(crash))

    def _ask(self, client):
        began, status, tokens = time.monotonic(), 200, 0
        try:
            # Each a session of its own: where roles are apart, they are spread by that.
            named = {"X-Session-Id": f"spender-{next(self._numbers)}"}
            tokens = chat(client, **self._options, extra_headers=named).usage.total_tokens
        except openai.APIStatusError as error:
            status = error.status_code
        except self._lost:
            status = 0
        took = time.monotonic() - began
        with self._lock:
            self.tokens, self.answered = self.tokens + tokens, self.answered + (status == 200)
            self.slowest = max(self.slowest, took)
            self.statuses[status] = self.statuses.get(status, 0) + 1
        if status != 200:
            self._stop.wait(self.REST)
        return status
