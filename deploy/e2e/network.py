"""A network of the test's own: hosts that are network namespaces, joined by a switch whose cables can be cut.

Every host has one cable to the switch, a bridge in a namespace of its own; this process has one too, so that tests
reach every host whatever is cut between the hosts. A cut is a rule of the switch: what it drops, it drops in silence,
as a broken line does, ARP included. Needs Linux, root, `ip` and `nft`; without them a test fails and says so.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from harness import Host

COMMAND_MAX = 10.0  # Each measures milliseconds.
HOSTS_MAX = 32
NAMESPACE = re.compile(r"^pointsman-(\d+)-")
RULES = "table bridge cables { chain cuts { type filter hook forward priority 0; policy accept\n}\n}"


class Network:
    """Left, it leaves nothing behind; what runs before it that were killed left is taken down at the start.

    `subnet` is the first three numbers of its addresses.
    """

    def __init__(self, subnet=None):
        self._ip = _program("ip", "iproute2")
        self._nft = _program("nft", "nftables")
        needed = "network namespaces need root: run the tests as root (in a container, with NET_ADMIN and SYS_ADMIN)"
        assert os.geteuid() == 0, needed
        self._forget_the_dead()
        pid = os.getpid()
        # One for benchmarks (RFC 2544), if no other is named: no machine's own.
        self._subnet = subnet or f"198.18.{pid % 256}"
        self._prefix, self._cable = f"pointsman-{pid}-", f"pm{pid}"
        self._switch, self._hosts = self._prefix + "switch", {}
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _build(self):
        ip, switch = self._run_ip, self._switch
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        self._rule(RULES)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "tests", "netns", switch)
        self._plug("tests")
        ip("addr", "add", f"{self._subnet}.1/24", "dev", self._cable)
        ip("link", "set", self._cable, "up")

    def _plug(self, cable):
        self._run_ip("-n", self._switch, "link", "set", cable, "master", "bridge", "up")

    def host(self, name):
        """A host of that name, made when it is first asked for."""
        if name not in self._hosts:
            assert len(self._hosts) < HOSTS_MAX, "too many hosts for one test"
            space, address = self.space(name), f"{self._subnet}.{len(self._hosts) + 2}"
            ip = self._run_ip
            ip("netns", "add", space)
            self._hosts[name] = Host(address, [self._ip, "netns", "exec", space])
            ip("link", "add", "cable", "netns", space, "type", "veth", "peer", "name", name, "netns", self._switch)
            self._plug(name)
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", space, "link", "set", device, "up")
            # It leads nowhere, but programs learn from it which address is theirs.
            ip("-n", space, "route", "add", "default", "via", f"{self._subnet}.1")
        return self._hosts[name]

    def space(self, name):
        """The namespace of a host of that name."""
        return self._prefix + name

    def cut(self, one, other, way="both"):
        """From now on nothing gets from one to the other (`way` is "there"), back, or either way."""
        self._drop(one, other, way, "counter drop")

    def lose(self, one, other, percent):
        """Each packet between them, either way, is lost with that chance."""
        self._drop(one, other, "both", f"numgen random mod 100 < {percent} counter drop")

    def _drop(self, one, other, way, verdict):
        ways = {"there": [(one, other)], "back": [(other, one)], "both": [(one, other), (other, one)]}
        for source, target in ways[way]:
            self._rule(f'add rule bridge cables cuts iifname "{source}" oifname "{target}" {verdict}')

    def dropped(self):
        """How many packets the rules in force have dropped."""
        listing = self._rule("list chain bridge cables cuts")
        return sum(map(int, re.findall(r"counter packets (\d+)", listing)))

    def heal(self):
        """Every cable is whole again."""
        self._rule("flush chain bridge cables cuts")

    def close(self):
        """Takes it down. Whoever still runs on it stays, with nothing to talk to."""
        for space in [*map(self.space, self._hosts), self._switch]:
            subprocess.run([self._ip, "netns", "del", space], timeout=COMMAND_MAX, check=False, capture_output=True)
        # Its other end went with the switch; where there never was one, nothing is left to do.
        subprocess.run([self._ip, "link", "del", self._cable], timeout=COMMAND_MAX, check=False, capture_output=True)

    def _forget_the_dead(self):
        for line in self._run_ip("netns", "list").splitlines():
            space = line.split()[0] if line.strip() else ""
            if _is_left_over(space):
                self._run_ip("netns", "del", space)
        for place in Path("/etc/netns").glob("*"):
            if _is_left_over(place.name):
                shutil.rmtree(place, ignore_errors=True)

    def _rule(self, text):
        return _run([self._ip, "netns", "exec", self._switch, self._nft, "-f", "-"], text)

    def _run_ip(self, *words):
        return _run([self._ip, *words])


def _is_left_over(space):
    """Whether it is a space of a run that is gone."""
    owner = NAMESPACE.match(space)
    return bool(owner) and not Path("/proc", owner.group(1)).exists()


def _program(name, package):
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    assert found, f"{name} is missing: `cargo xtask test --only servers` installs it (package {package})"
    return found


def _run(command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=COMMAND_MAX, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout
