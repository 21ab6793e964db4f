"""deploy/compose.yaml without an engine: each container a process on a host of its own, told what compose would tell it.

Commands, environments, mounts, health checks, start order, signals and grace times are read from the file. Our binary is run
inside the root of its image, as its user; the others' programs are this machine's, with the paths that their containers would
mount put in the place of the names those have there.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import programs
from harness import ROOT, Process, until
from image import Dockerfile, lay_out
from ruamel.yaml import YAML

FILE = ROOT / "deploy" / "compose.yaml"
NETNS = Path("/etc/netns")
FILES = {"pointsman": "deploy/Dockerfile", "pointsman-worker": "deploy/worker/Dockerfile"}
CHECK_MAX = 10.0
END_MAX = 10.0


def read():
    """The file, its variables at their defaults, `$$` a dollar."""
    return _defaults(YAML(typ="safe").load(FILE.read_text()))


def _defaults(node):
    if isinstance(node, dict):
        return {key: _defaults(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_defaults(value) for value in node]
    if not isinstance(node, str):
        return node
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", node)
    assert not re.search(r"(?<!\$)\$(?!\$)", text), f"{node!r}: a variable without a default"
    return text.replace("$$", "$")


def seconds(text):
    """Of a duration such as 45s."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def in_order(services):
    """Names, each after what it waits for."""
    ordered = []
    while len(ordered) < len(services):
        able = [name for name in services if name not in ordered and set(waits(services[name])) <= set(ordered)]
        assert able, "services wait for each other"
        ordered += sorted(able)
    return ordered


def waits(service):
    """For whom it waits, and for what."""
    return {name: how["condition"] for name, how in service.get("depends_on", {}).items()}


class Composed:
    """All of it, running: `containers` by name, in their start order. Left, nothing is."""

    def __init__(self, home, network, secrets):
        self.home, self.network, self.spec = home, network, read()
        self.containers, self.secrets = {}, secrets
        services = self.spec["services"]
        replicas = {name: service["deploy"].get("replicas", 1) for name, service in services.items()}
        self._names = [
            (f"{name}-{n + 1}" if count > 1 else name, name) for name, count in replicas.items() for n in range(count)
        ]
        self._order = in_order(services)

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for container in reversed(self.containers.values()):
            container.end()
        for name, _ in self._names:
            shutil.rmtree(NETNS / self.network.space(name), ignore_errors=True)

    def _start(self):
        hosts = {name: self.network.host(name) for name, _ in self._names}
        table = "127.0.0.1 localhost\n" + "".join(f"{host.address} {name}\n" for name, host in hosts.items())
        for name in hosts:
            # `ip netns exec` puts it in the place of the machine's own.
            place = NETNS / self.network.space(name)
            place.mkdir(parents=True)
            (place / "hosts").write_text(table)
        for service in self._order:
            for name in (name for name, of in self._names if of == service):
                self.containers[name] = Container(self, name, self.spec["services"][service], hosts[name], table)
            for container in (c for name, c in self.containers.items() if (name, service) in self._names):
                container.await_health()

    def stop(self):
        """Ends all of them as an engine would, the last first; returns what each exited with."""
        return {name: container.stop() for name, container in reversed(self.containers.items())}


class Container:
    """One of them."""

    def __init__(self, composed, name, spec, host, table):
        self.name, self.spec, self.host = name, spec, host
        self._home = composed.home / name
        self._home.mkdir()
        image = spec["image"].split(":")[0]
        self._file = Dockerfile(FILES[image]) if image in FILES else None
        self._root = lay_out(self._home) if image == "pointsman" else None
        self._places = {}
        self._mount(composed, table)
        entry = spec.get("entrypoint") or self._file.exec_form("ENTRYPOINT")
        words = [*entry, *spec.get("command", [])]
        self._env = {**spec.get("environment", {}), "PATH": self._path(), "PYTHONDONTWRITEBYTECODE": "1"}
        program, *arguments = self._inside(words)
        self.process = Process(name, arguments, self._home / "log", self._env, program)

    def _mount(self, composed, table):
        spec = composed.spec
        for config in self.spec.get("configs", []):
            self._put(config["target"], (FILE.parent / spec["configs"][config["source"]]["file"]).read_text())
        for secret in self.spec.get("secrets", []):
            self._put(f"/run/secrets/{secret}", composed.secrets[secret])
        folders = [volume.split(":")[1] for volume in self.spec.get("volumes", [])] + self.spec.get("tmpfs", [])
        if self._root:
            self._put("/etc/hosts", table)
            assert set(folders) <= {"/data"}, "the image has no other folder to mount over"
            return
        for folder in folders:
            self._place(folder).mkdir(parents=True, exist_ok=True)
        # What is mounted may itself name what is mounted.
        for config in self.spec.get("configs", []):
            path = self._place(config["target"])
            path.write_text(self._local(path.read_text()))

    def _place(self, target):
        """Where a path of the container is here."""
        place = (self._root or self._home) / target.lstrip("/")
        self._places[target] = str(place)
        return place

    def _put(self, target, text):
        place = self._place(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def _local(self, text):
        for target in sorted(self._places, key=len, reverse=True):
            text = re.sub(rf"(?<![\w./-]){re.escape(target)}(?![\w-])", self._places[target], text)
        return text

    def _path(self):
        found = [programs.consul(), programs.redis(), programs.nginx(), programs.python_worker()]
        return os.pathsep.join([*{str(Path(program).parent): None for program in found}, os.environ["PATH"]])

    def _inside(self, words):
        if self._root:
            user = self._file.last("USER")
            return [*self.host.enter, "chroot", f"--userspec={user}", str(self._root), *words]
        return [*self.host.enter, *map(self._local, words)]

    def healthy(self):
        """Whether its health check passes."""
        kind, *words = self.spec["healthcheck"]["test"]
        words = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        told = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": {**os.environ, **self._env}}
        return subprocess.run(self._inside(words), **told, check=False, timeout=CHECK_MAX).returncode == 0

    def await_health(self):
        """Until its health check passes, within the time that the file gives it."""
        check = self.spec["healthcheck"]
        limit = seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])

        def well():
            assert self.process.alive(), f"{self.name} ended:\n{self.process.said()[-2000:]}"
            return self.healthy()

        until(f"{self.name} is healthy", well, limit)

    def end(self):
        """Ends it if it runs, politely: killed, nginx would leave its workers behind."""
        self.process.signal(signal.SIGTERM)
        try:
            self.process.wait(END_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def stop(self):
        """Its exit status after the signal it is ended with; fails where the grace time does not do."""
        assert self.process.alive(), f"{self.name} ended:\n{self.process.said()[-2000:]}"
        began = time.monotonic()
        self.process.signal(signal.Signals[self.spec.get("stop_signal", "SIGTERM")])
        status = self.process.wait(seconds(self.spec["stop_grace_period"]))
        assert time.monotonic() - began < seconds(self.spec["stop_grace_period"])
        return status
