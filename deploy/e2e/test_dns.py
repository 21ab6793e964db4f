"""Workers behind a name: addresses come and go, and a gateway that starts while the name is gone serves what it knew.

The gateway is on a host of its own, with an `/etc/hosts` of its own: what stands there is what the system's resolver
says.
"""

import re
import shutil
from pathlib import Path

import pytest

from asking import chat, client_of
from distributed import ONE, TENANT, degraded, homes, part, until_asked
from harness import Process, Server, World, free_port, get, new_key, until
from load import Load
from network import Network

NAME, PORT = "workers.test", 50_055
SOURCE = f"registry dns {NAME}:{PORT}"
TABLE_BYTES = 512  # Always as many, so that a change is one write and no reader sees half of it.


class Names:
    """What the resolver of one host knows."""

    def __init__(self, network, host):
        # `ip netns exec` puts what is here in the place of the machine's own.
        self._place = Path("/etc/netns") / network.space(host)
        self._place.mkdir(parents=True)
        (self._place / "nsswitch.conf").write_text("hosts: files dns\n")
        # Nobody answers there, which is soon said.
        (self._place / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        (self._place / "hosts").write_text(" " * TABLE_BYTES)
        self.say()

    def say(self, *addresses):
        """From now on the name has these."""
        lines = ["127.0.0.1 localhost", *(f"{address} {NAME}" for address in addresses)]
        text = "\n".join(lines) + "\n#"
        # In its place: the gateway's view of it is this very file.
        with open(self._place / "hosts", "r+b", buffering=0) as table:
            table.write(text.ljust(TABLE_BYTES).encode())

    def close(self):
        """The machine has no such place any more."""
        shutil.rmtree(self._place, ignore_errors=True)


class Behind(World):
    """Two workers, each on a host of its own, and a gateway that is told a name."""

    def __init__(self, name, network):
        super().__init__(name)
        (self.key, self.digest), self.admin = new_key(), free_port()
        self.hosts = {host: network.host(host) for host in ("one", "two", "front")}
        self.names = self.adopt(Names(network, "front"))
        self.workers = {host: self._worker(host) for host in ("one", "two")}

    def called(self, worker):
        """What a gateway calls a worker."""
        return f"{NAME}/{self.hosts[worker].address}:{PORT}"

    def address(self, worker):
        """Where it is."""
        return self.hosts[worker].address

    def _worker(self, name):
        arguments = ["worker", "--model", ONE, "--backend", "hash"]
        arguments += ["--listen", f"{self.address(name)}:{PORT}", "--metrics-listen", "off"]
        worker = Process(name, arguments, self.logs / f"{name}.log", host=self.hosts[name])
        self._closing.append(worker.kill)
        return worker

    def open(self):
        """The gateway."""
        host, port = self.hosts["front"], free_port()
        dns = [{"host": NAME, "port": PORT, "model": ONE}]
        config = {
            "version": 1,
            "data": {"dir": str(self.data)},
            "server": {"admin": {"addr": f"{host.address}:{self.admin}"}},
            "discovery": {"dns": dns},
            "routing": {"breaker": {"ejection_base": "500ms", "slow_start": "0s"}, "max_retries": 3},
            "tenants": {TENANT: {"daily_tokens": 1_000_000}},
            "keys": [{"name": "k", "hash": self.digest, "tenant": TENANT, "user": "ann"}],
        }
        self.write(config)
        arguments = ["serve", "--listen", f"{host.address}:{port}", "--config", self.config]
        self.gateway = Server("gateway", arguments, self.logs / "gateway.log", port, "/ready", host=host)
        self._closing.append(self.gateway.kill)
        return self.gateway

    def age(self):
        """How old the gateway's figures say the name's last answer is, in seconds."""
        page = get(f"http://{self.hosts['front'].address}:{self.admin}/metrics")[1]
        figure = rf'^pointsman_registry_stale_seconds{{source="{SOURCE.removeprefix("registry ")}"}} (\S+)$'
        return float(re.search(figure, page, re.MULTILINE).group(1))


@pytest.fixture
def behind(request):
    """A name with nobody behind it yet."""
    with Network() as network, Behind(request.node.name, network) as world:
        yield world


def says(gateway, words):
    """What `/health` says of the name, once it says these words."""
    return until(f"it says {words!r}", lambda: re.search(words, part(gateway, SOURCE)))


def test_addresses_of_a_name_come_and_go_and_the_last_answer_outlives_the_name_and_a_restart(behind):
    one, two = behind.called("one"), behind.called("two")
    behind.names.say(behind.address("one"), behind.address("two"))
    gateway = behind.open()
    says(gateway, "^2 workers$")
    assert SOURCE not in degraded(gateway)
    until_asked(gateway, behind.key, ONE, one), until_asked(gateway, behind.key, ONE, two)

    # One address goes away, and who was there: nobody who asks meanwhile is failed.
    behind.names.say(behind.address("one"))
    with Load(gateway, key=behind.key, workers=2, model=ONE) as load:
        load.more(5)
        says(gateway, "^1 workers$")
        behind.workers["two"].kill()
        load.more(20)
    tally = load.tally
    assert (tally.refused, tally.silent, tally.lost, tally.cut) == ([], 0, 0, 0), tally
    assert set(homes(gateway, behind.key, ONE).values()) == {one}

    # The name itself goes: what it said before stands, with its age.
    behind.names.say()
    says(gateway, rf"DNS .*{NAME}.*what it said \d+ s ago stands, 1 workers")
    assert SOURCE in degraded(gateway) and get(f"{gateway.url}/ready")[0] == 200
    assert chat(client_of(gateway, key=behind.key), model=ONE, max_tokens=2).choices

    # Another process begins while it is gone: with what was kept, and says so.
    assert gateway.stop() == 0
    gateway.start()
    says(gateway, r"not heard yet: 1 workers as it listed them \d+ s ago|what it said \d+ s ago stands, 1 workers")
    assert SOURCE in degraded(gateway)
    assert set(homes(gateway, behind.key, ONE).values()) == {one}
    assert behind.age() > 0, "its age is a figure too"

    # It comes back, with both.
    behind.workers["two"].start()
    behind.names.say(behind.address("one"), behind.address("two"))
    says(gateway, "^2 workers$")
    until_asked(gateway, behind.key, ONE, two)
    assert SOURCE not in degraded(gateway) and behind.age() == 0
