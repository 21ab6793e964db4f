"""`cargo xtask dev`, as people type it: what it starts serves, what goes wrong is said, what it stops is gone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from asking import client_of, raw_chat
from distributed import degraded
from harness import OUR_VARIABLES, ROOT, until

RUN_MAX = 180.0
LINE = re.compile(r"^([\w-]+) +127\.0\.0\.1:(\d+) +process (\d+) *(.*)$", re.MULTILINE)


class Dev:
    """One place of its own: another's processes are not touched."""

    def __init__(self, place):
        self.place = place

    def __call__(self, *words):
        """Runs one command; what it printed, and whether it succeeded."""
        program = os.environ.get("POINTSMAN_XTASK") or sys.exit(
            "POINTSMAN_XTASK names no program: use `cargo xtask test`"
        )
        env = {name: value for name, value in os.environ.items() if not OUR_VARIABLES.match(name)}
        env["CARGO_MANIFEST_DIR"] = str(ROOT / "deploy" / "xtask")
        words = [program, "dev", "--place", self.place, *words]
        # A file, not a pipe: what it leaves running would hold that open.
        with (self.place / "said").open("w+") as out:
            done = subprocess.run(
                words, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=RUN_MAX, check=False
            )
            out.seek(0)
            return done.returncode == 0, out.read()

    def running(self, *words):
        """Ports and process ids, by name, of a command that lists them and succeeds."""
        fine, said = self(*words)
        assert fine, said
        return {name: (int(port), int(process)) for name, port, process, _ in LINE.findall(said)}


class Through:
    """Something that is asked at a port."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"


@pytest.fixture
def dev():
    """Nothing runs, and nothing does afterwards."""
    # Short: a socket's path inside must stay below 108 bytes.
    dev = Dev(Path(tempfile.mkdtemp(prefix="pointsman-")))
    try:
        yield dev
    finally:
        for words in (("down",), ("deps", "down")):
            print(dev(*words)[1])
        shutil.rmtree(dev.place)


def test_everything_starts_serves_is_restarted_and_stops(dev):
    for words in (("status",), ("logs",), ("restart",)):
        fine, said = dev(*words)
        assert not fine and "nothing runs: `cargo xtask dev up` starts it" in said, said
    fine, said = dev("up")
    assert not fine and "redis is down: `cargo xtask dev deps up` starts it" in said, said

    servers = dev.running("deps", "up")
    assert set(servers) == {"redis", "consul", "nginx"}
    ours = dev.running("up")
    assert set(ours) == {"worker-1", "worker-2", "auth", "chat-1", "chat-2", "gateway-1", "gateway-2"}
    assert dev.running("up") == ours, "what runs stays"
    key = (dev.place / "dev" / "key").read_text().strip()
    assert (dev.place / "dev" / "key").stat().st_mode & 0o077 == 0
    client = client_of(Through(servers["nginx"][0]), key=key)

    def home(number):
        headers = {"X-Session-Id": f"s{number}"}
        return raw_chat(client, model="words", max_tokens=2, extra_headers=headers).headers["x-pointsman-replica"]

    assert {home(number) for number in range(16)} == {"chat-1", "chat-2"}
    for name in ("gateway-1", "gateway-2"):
        assert degraded(Through(ours[name][0])) == ""

    os.kill(ours["auth"][1], signal.SIGKILL)
    until("it is missed", lambda: "down: auth" in dev("status")[1])
    assert home(0) == home(0), "a key that is known goes on"
    assert dev.running("up", "auth")["auth"][0] == ours["auth"][0]

    after = dev.running("restart", "gateway-1")
    assert after["gateway-1"][0] == ours["gateway-1"][0] and after["gateway-1"][1] != ours["gateway-1"][1]
    fine, said = dev("logs", "gateway-1")
    assert fine and "pointsman 0" in said and key not in said, said

    os.kill(ours["worker-2"][1], signal.SIGKILL)
    until("it is missed", lambda: "down: worker-2" in dev("status")[1])
    assert not dev("status")[0]
    assert dev.running("up", "worker-2")["worker-2"][1] != ours["worker-2"][1]

    everybody = {name: process for name, (_, process) in {**dev.running("status"), **servers}.items()}
    assert dev("down")[0] and dev("deps", "down")[0]
    for name, process in everybody.items():
        assert not alive(process), name
    fine, said = dev("down")
    assert fine and "nothing ran" in said


def test_a_port_that_is_taken_and_a_process_that_dies_are_told_of(dev):
    dev.running("deps", "up")
    ports = dev.place / "dev" / "gateway-1" / "ports"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports.write_text(f"{port} {port + 1 if port < 65535 else port - 1}\n")
        fine, said = dev("up", "gateway-1")
    assert not fine and f"port {port} is taken" in said and str(ports) in said, said
    ports.unlink()
    data = dev.place / "dev" / "gateway-2" / "data"
    data.mkdir(parents=True)
    (data / "FORMAT").write_text("from another time\n")
    fine, said = dev("up", "gateway-2")
    assert not fine and "gateway-2 ended at its start" in said, said
    assert "pointsman cannot serve" in said, "the last lines of its log say why"


def alive(process):
    """Whether a process runs; one that only waits to be forgotten does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
