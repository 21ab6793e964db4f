"""The distributed form with a process for each role: gateways before chat roles, one auth role, workers behind."""

import json

from distributed import LIMIT, TENANT, Fleet, RustWorker
from harness import Server, free_port, get, until

CHATS, GATEWAYS = ("chat-1", "chat-2"), ("gateway-1", "gateway-2")
METERED, RPM = "metered", 12  # A tenant, and its requests a minute.


class Role(Server):
    """One role, with a port of its own for probes. `rpc` is where it takes calls."""

    def __init__(self, world, role, name, config, rpc):
        self.rpc, self.config, admin = rpc, world.home / f"{name}.yaml", free_port()
        config["server"] = config.get("server", {}) | {"admin": {"addr": f"127.0.0.1:{admin}"}}
        self.config.write_text(
            json.dumps({"version": 1, "log": {"level": "info", "format": "json"}, **config}, indent=1)
        )
        arguments = ["serve", "--role", role, "--listen", f"127.0.0.1:{rpc}", "--config", self.config]
        env = {**world.env, "OTEL_SERVICE_NAME": name}
        # A gateway's own port answers probes too; the others speak gRPC there.
        port = rpc if role == "gateway" else admin
        super().__init__(name, arguments, world.logs / f"{name}.log", port, "/health", env)

    def is_ready(self):
        """Whether it can serve."""
        return get(f"{self.url}/ready")[0] == 200


class Roles(Fleet):
    """One auth role, two chat roles and two gateway roles over one Redis and one Consul."""

    def __init__(self, name):
        super().__init__(name)
        self.auth, self.chats = None, {}

    def quic(self, name, model, backend="hash", *more):
        """A Rust worker that is called over QUIC."""
        return self.rust(name, model, backend, "--quic-listen", f"127.0.0.1:{free_port()}", *more)

    def begin(self, digest, limit=LIMIT, metered=None):
        """Starts all of them, and waits until each can serve and knows every worker. `metered` is the digest of a key
        of a tenant that has `RPM` requests a minute."""
        keys = [{"name": "k", "hash": digest, "tenant": TENANT, "user": "ann"}]
        keys += [{"name": "m", "hash": metered, "tenant": METERED}] if metered else []
        config = {"tenants": {TENANT: {}, METERED: {}}, "keys": keys}
        self.auth = self.keep(Role(self, "auth", "auth", config, free_port()))
        ports = {name: free_port() for name in CHATS}
        for name in CHATS:
            role = Role(self, "chat", name, self._shared(name, ports, limit), ports[name])
            self.chats[name] = self.keep(role)
        for name in GATEWAYS:
            role = Role(self, "gateway", name, self._shared(name, ports, limit), free_port())
            self.gateways.append(self.keep(role))
        self.await_ready()
        return self.gateways

    def _shared(self, name, ports, limit):
        """What gateway and chat roles read: each takes from it what it decides."""
        # One limit for all is kept by whoever hears Redis: a machine that is busy with other things may be slow to.
        redis = {"addr": f"127.0.0.1:{self.redis.port}", "fallback_after": "250ms"}
        return {
            "data": {"dir": str(self.home / name), "redis": redis},
            "auth": {"url": f"auth://127.0.0.1:{self.auth.rpc}"},
            "chats": [{"url": f"chat://127.0.0.1:{port}", "name": chat} for chat, port in ports.items()],
            "discovery": {"consul": {"addr": self.consul.url}},
            "routing": {"breaker": {"ejection_base": "500ms", "slow_start": "0s"}, "max_retries": 3},
            "tenants": {TENANT: {"daily_tokens": limit}, METERED: {"rpm": RPM}},
        }

    def await_ready(self):
        """Waits until every role can serve, and every chat role knows every worker."""
        for chat in self.chats.values():
            until(f"{chat.name} knows everybody", lambda at=chat: self.known(at) == len(self.workers))
        for role in (self.auth, *self.chats.values(), *self.gateways):
            until(f"{role.name} is ready", role.is_ready)

    def settled(self):
        """As of other fleets: the chat roles hold what is held."""
        for gateway in self.gateways:
            assert gateway.stop() == 0, gateway.said()[-2000:]
        self.gateways = list(self.chats.values())
        return super().settled()


def lines(process, message):
    """The JSON lines of this kind that a process wrote; of any, where none is named."""
    told = [json.loads(line) for line in process.said().splitlines() if line.startswith("{")]
    return [line for line in told if message in (None, line["message"])]


def answers(worker):
    """What a worker wrote of its answers."""
    return lines(worker, "answer finished" if isinstance(worker, RustWorker) else "request")


def lines_with(of, **wanted):
    """The lines in which all of this stands, once there is one."""

    def found():
        return [line for line in of() if all(line.get(name) == value for name, value in wanted.items())]

    return until(f"a line with {wanted}", found)


def line_of(of, **wanted):
    """The same where there is but one."""
    (line,) = lines_with(of, **wanted)
    return line
