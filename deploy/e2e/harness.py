"""Starts and stops what the tests talk to: replicas and gateways, each a process of its own.

Only the standard library, so that the Node tests can use the same worlds. Every wait has a deadline, every process is
stopped by its id (and, on Linux, dies with this one), and what each printed is kept in `<target>/e2e/logs`.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_MAX = 30.0  # A debug build on a busy two-core machine, recovery of a journal included.
STOP_MAX = 20.0  # Longer than the grace time the tests configure.
COMMAND_MAX = 60.0  # Verifying a journal replays it, with every invariant checked.

# What would change a gateway's behaviour if the person running the tests has it set.
OUR_VARIABLES = re.compile(
    r"^(OPENAI|ALIYUN|GATEWAY|CHAT_SERVICE|TOKEN_SERVICE|AUTH|DB|REDIS"
    r"|MYSQL|CONSUL|LLM|LOG|METRICS|OTEL|POINTSMAN)(_|$)"
)


def binary():
    """The program under test, as `cargo xtask test` names it."""
    path = os.environ.get("POINTSMAN_BIN")
    if not path:
        sys.exit("POINTSMAN_BIN names no binary: run these tests by `cargo xtask test`")
    return path


def place():
    """Where logs go: below the target directory."""
    return Path(os.environ.get("POINTSMAN_E2E_DIR", ROOT / "target" / "e2e"))


def free_port():
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, seconds=START_MAX):
    """Waits for `condition` to return something true, and returns it; fails naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


def get(url, headers=None, seconds=5.0):
    """Status and body of a GET; (0, "") where nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")
    except OSError:
        return 0, ""


def _die_with_parent():
    """Asks Linux to kill the child when the test run is killed itself."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Host:
    """Where a process runs: its address, and the words before its program that put it there."""

    def __init__(self, address="127.0.0.1", enter=()):
        self.address, self.enter = address, list(enter)


HERE = Host()


class Process:
    """A running program, `pointsman` unless another is named, with its log."""

    def __init__(self, name, arguments, log, env=None, program=None, host=HERE):
        self.name, self.log, self.host = name, log, host
        self._arguments = [*host.enter, str(program or binary()), *map(str, arguments)]
        self._env = {k: v for k, v in os.environ.items() if not OUR_VARIABLES.match(k)}
        self._env.update(env or {})
        self.start()

    def start(self):
        """Starts it (again), appending to the same log."""
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._env,
                preexec_fn=_die_with_parent,
            )

    def alive(self):
        """Whether it still runs."""
        return self.child.poll() is None

    def signal(self, number):
        """Sends a signal to this process and no other."""
        if self.alive():
            self.child.send_signal(number)

    def kill(self):
        """SIGKILL: no goodbye."""
        self.signal(signal.SIGKILL)
        self.child.wait(STOP_MAX)

    def wait(self, seconds=STOP_MAX):
        """Its exit status."""
        return self.child.wait(seconds)

    def stop(self):
        """SIGTERM, then SIGKILL where that is not heeded."""
        self.signal(signal.SIGTERM)
        try:
            return self.child.wait(STOP_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop on SIGTERM") from None

    def said(self):
        """Everything it printed so far."""
        return self.log.read_text(errors="replace")


class Server(Process):
    """A process that answers HTTP at `url` once it is ready."""

    def __init__(self, name, arguments, log, port, ready, env=None, program=None, host=HERE):
        self.port, self.url, self._ready = port, f"http://{host.address}:{port}", ready
        super().__init__(name, arguments, log, env, program, host)

    def start(self):
        super().start()
        self._await()

    def _await(self):
        def answers():
            if not self.alive():
                raise AssertionError(f"{self.name} ended with {self.child.returncode}:\n{self.said()[-2000:]}")
            return self._answers()

        until(f"{self.name} is ready", answers)

    def _answers(self):
        return get(self.url + self._ready)[0] == 200


class World:
    """Some replicas, a gateway over them, and its data directory; everything goes when it is closed."""

    def __init__(self, name):
        self.name = re.sub(r"\W+", "-", name)
        self.logs = place() / "logs" / self.name
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        # Short, because a socket's path inside must stay below 108 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="pointsman-"))
        self.data = self.home / "data"
        self.config = self.home / "config.yaml"
        self.gateway, self._closing = None, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def replica(self, name, model="demo", **options):
        """A demo replica. `ttft="0ms"` becomes `--ttft 0ms`."""
        port = free_port()
        arguments = ["demo-replica", "--listen", f"127.0.0.1:{port}", "--model", model]
        for option, value in options.items():
            arguments += ["--" + option.replace("_", "-"), value]
        server = Server(name, arguments, self.logs / f"{name}.log", port, "/v1/models")
        self._closing.append(server.kill)
        return server

    def adopt(self, closeable):
        """Anything else with a `close`, closed with this world."""
        self._closing.append(closeable.close)
        return closeable

    def serve(self, upstreams=(), config=None, env=None):
        """The gateway, by `--upstream` or by a configuration; one for each world."""
        assert self.gateway is None, "one data directory has one gateway"
        port = free_port()
        arguments = ["serve", "--listen", f"127.0.0.1:{port}", "--data", self.data]
        for upstream in upstreams:
            arguments += ["--upstream", upstream]
        if config is not None:
            self.write(config)
            arguments += ["--config", self.config]
        log = self.logs / "gateway.log"
        self.gateway = Server("gateway", arguments, log, port, "/ready", env)
        self._closing.append(self.gateway.kill)
        return self.gateway

    def write(self, config):
        """Replaces the configuration in one step, as an editor or Kubernetes does. (JSON is YAML.)"""
        text = config if isinstance(config, str) else json.dumps(config, indent=1)
        draft = self.config.with_suffix(".draft")
        draft.write_text(text)
        draft.rename(self.config)

    def close(self):
        """Kills what still runs, newest first, and forgets the data."""
        while self._closing:
            self._closing.pop()()
        shutil.rmtree(self.home, ignore_errors=True)


def command(*arguments):
    """Runs `pointsman ...` to its end."""
    return subprocess.run(
        [binary(), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=COMMAND_MAX,
        stdin=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not OUR_VARIABLES.match(k)},
        check=False,
    )


def new_key():
    """A fresh API key and the hash that stands for it in a configuration."""
    printed = command("key", "new")
    assert printed.returncode == 0, printed.stderr
    key = re.search(r"^\s*key:\s*(pm-\S+)", printed.stdout, re.MULTILINE)
    digest = re.search(r"^\s*hash:\s*\"?(sha256:[0-9a-f]+)", printed.stdout, re.MULTILINE)
    assert key and digest, printed.stdout
    return key.group(1), digest.group(1)


def endpoints(*servers):
    """Endpoints of a model in the configuration, named as the servers are."""
    return [{"url": server.url, "name": server.name} for server in servers]
