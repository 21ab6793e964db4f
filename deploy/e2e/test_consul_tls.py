"""A real Consul behind a certificate of an authority of its own: gateways and workers believe it, or say why not."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import programs
from asking import chat, client_of
from distributed import ONE, TWO, Consul, Fleet, PythonWorker, RustWorker, part
from harness import Server, command, free_port, get, new_key, until

TLS = 'ports {{ https = {port} }} cert_file = "{cert}" key_file = "{key}" ca_file = "{ca}" {more}'
ASKS_WHO_CALLS = "verify_incoming_https = true"


class Authority:
    """One of Consul's own making, which vouches for an agent on loopback and for whoever asks it."""

    def __init__(self, home):
        home.mkdir()
        self._home, self.ca = home, home / "consul-agent-ca.pem"
        self._make("ca", "create")
        self._make("cert", "create", "-server")
        self._make("cert", "create", "-client")
        self.agent = home / "dc1-server-consul-0.pem", home / "dc1-server-consul-0-key.pem"
        self.caller = home / "dc1-client-consul-0.pem", home / "dc1-client-consul-0-key.pem"

    def _make(self, *words):
        line = [programs.consul(), "tls", *words]
        subprocess.run(line, cwd=self._home, check=True, timeout=30, capture_output=True)


class Guarded(Fleet):
    """Its agent speaks TLS to everybody but the tests, at `https`. What others are told of it is in `told`."""

    def __init__(self, name, authority, more=""):
        super().__init__(name, redis=False)
        self.https = free_port()
        cert, key = authority.agent
        told = TLS.format(port=self.https, cert=cert, key=key, ca=authority.ca, more=more)
        self.plain = self.keep(Consul(self, more=told, name="guarded"))
        self.url, self.told = f"https://127.0.0.1:{self.https}", {}
        self.key, self.digest = new_key()

    def believing(self, authority, shown=None):
        """From now on others believe that authority, and show what it issued."""
        cert, key = shown.caller if shown else (None, None)
        given = {"ca": authority.ca, "cert": cert, "key": key}
        self.told = {name: str(value) for name, value in given.items() if value}

    def rust(self, name, model=ONE, backend="hash", *more):
        flags = [word for what, path in self.told.items() for word in (f"--consul-{what}", path)]
        worker = RustWorker(self, name, model, backend, SimpleNamespace(url=self.url), *flags, *more)
        self.workers[name] = self.keep(worker)
        return worker

    def python(self, name, model=TWO, backend="hash", **more):
        names = {"ca": "CONSUL_CACERT", "cert": "CONSUL_CLIENT_CERT", "key": "CONSUL_CLIENT_KEY"}
        env = {names[what]: path for what, path in self.told.items()} | {"CONSUL_HTTP_ADDR": self.url}
        worker = self.keep(PythonWorker(self, name, model, backend, self.plain, **env, **more))
        self.workers[name] = worker
        return worker

    def gateway_over(self, name="gateway"):
        """A gateway that need not know anybody."""
        config, port = self.home / f"{name}.yaml", free_port()
        config.write_text(json.dumps(self._config(name, 1_000, self.digest, None, None)))
        arguments = ["serve", "--listen", f"127.0.0.1:{port}", "--config", config]
        return self.keep(Server(name, arguments, self.logs / f"{name}.log", port, "/health"))

    def _config(self, *options):
        config = super()._config(*options)
        config["discovery"] = {"consul": {"addr": self.url, **self.told}}
        return config


@pytest.fixture
def authority(tmp_path):
    """Consul's own."""
    return Authority(tmp_path / "own")


def registry(worker):
    """What a Rust worker says of its registry."""
    return json.loads(get(f"http://127.0.0.1:{worker.pages}/health")[1])["checks"]["registry"]


def served(fleet, *models):
    """Everybody is listed, and asked."""
    (gateway,) = fleet.open(count=1, digest=fleet.digest)
    for model in models:
        assert chat(client_of(gateway, key=fleet.key), model=model, max_tokens=2).choices


def test_workers_of_both_kinds_and_a_gateway_meet_where_an_authority_of_our_own_vouches(request, authority):
    with Guarded(request.node.name, authority) as fleet:
        fleet.believing(authority)
        one, two = fleet.rust("one"), fleet.python("two")
        until("both are listed", lambda: fleet.plain.passing(ONE) == {"one"} and fleet.plain.passing(TWO) == {"two"})
        served(fleet, ONE, TWO)
        assert (one.stop(), two.stop()) == (0, 0)
        assert fleet.plain.passing(ONE) == fleet.plain.passing(TWO) == set(), "both left, over TLS too"


def test_an_agent_that_asks_who_calls_is_shown_a_certificate(request, authority):
    with Guarded(request.node.name, authority, ASKS_WHO_CALLS) as fleet:
        fleet.believing(authority)
        one, two, gateway = fleet.rust("one"), fleet.python("two"), fleet.gateway_over()
        until("the gateway says so", lambda: "discovery.consul.cert" in part(gateway, "registry consul"))
        until("the Rust worker says so", lambda: "--consul-cert" in registry(one))
        until("the Python worker says so", lambda: "CONSUL_CLIENT_CERT" in two.said())
        assert fleet.plain.passing(ONE) == fleet.plain.passing(TWO) == set()
        for process in (one, two, gateway):
            process.kill()
        fleet.workers.clear()
        fleet.believing(authority, shown=authority)
        fleet.rust("one-known"), fleet.python("two-known")
        served(fleet, ONE, TWO)


def test_a_strangers_authority_is_refused_and_that_is_said(request, authority, tmp_path):
    with Guarded(request.node.name, authority) as fleet:
        fleet.believing(Authority(tmp_path / "strange"))
        one, two, gateway = fleet.rust("one"), fleet.python("two"), fleet.gateway_over()
        said = until("the gateway says so", lambda: refused(part(gateway, "registry consul")))
        assert "discovery.consul.ca" in said and "never said who is there" in said
        said = until("the Rust worker says so", lambda: refused(registry(one)))
        assert "--consul-ca" in said
        until("the Python worker says so", lambda: refused(two.said()))
        assert "CONSUL_CACERT" in two.said()
        assert fleet.plain.passing(ONE) == fleet.plain.passing(TWO) == set()
        # What is no authority at all ends the start.
        nothing = tmp_path / "nothing.pem"
        nothing.write_text("nothing")
        fleet.told = {"ca": str(nothing)}
        config = Path(fleet.home / "wrong.yaml")
        config.write_text(json.dumps(fleet._config("wrong", 1_000, fleet.digest, None, None)))
        ended = command("serve", "--listen", f"127.0.0.1:{free_port()}", "--config", config)
        assert ended.returncode != 0 and "discovery.consul" in ended.stderr and "nothing.pem" in ended.stderr


def refused(text):
    """The text, where it says that nobody is believed."""
    return text if "is not believed" in text else ""
