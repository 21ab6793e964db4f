"""The images: what the linter says, that the context is enough to build from, and that what is in the image runs.

There is no container engine here. What an engine would do with these files is done by hand: the context is copied and
compiled, the root is laid out by the script that the build runs, and entered as the user, with the command, the health check
and the signal of the Dockerfile, on a host of its own.
"""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from harness import ROOT, Process, command, get, place, until
from image import RUN_MAX, Dockerfile, admitted, context, copy_context, lay_out
from network import Network

BINARY, WORKER = "deploy/Dockerfile", "deploy/worker/Dockerfile"
IGNORES = {BINARY: ".dockerignore", WORKER: "deploy/worker/Dockerfile.dockerignore"}
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize("path", IGNORES)
def test_hadolint_has_nothing_to_say(path):
    lint = subprocess.run(
        [TOOLS / "hadolint", path], cwd=ROOT, capture_output=True, text=True, timeout=RUN_MAX, check=False
    )
    assert lint.returncode == 0 and lint.stdout == "", lint.stdout + lint.stderr
    assert "hadolint ignore" not in (ROOT / path).read_text(), "mend it instead"


@pytest.mark.parametrize("path", IGNORES)
def test_an_image_is_pinned_and_is_nobodys_root(path):
    file = Dockerfile(path)
    bases = [rest.split()[0] for rest in file.all("FROM")]
    for base in bases:
        assert base == "scratch" or re.search(r":\d+\.\d+\.\d+-", base), f"{base} is no exact version"
    assert len(bases) == 2, "what builds is not in the image"
    assert int(file.last("USER").split(":")[0]) > 0
    assert file.last("STOPSIGNAL") == "SIGTERM" and "CMD" in file.last("HEALTHCHECK")


@pytest.mark.parametrize("path", IGNORES)
def test_what_is_copied_is_sent_and_nothing_secret_is(path):
    sent = context(IGNORES[path])
    for source in Dockerfile(path).copied():
        assert source == "." or any(each == source or each.startswith(f"{source}/") for each in sent), source
    lines = (ROOT / IGNORES[path]).read_text().splitlines()
    for kept in (
        "target/debug/pointsman",
        ".git/config",
        "deploy/secrets/redis_password",
        ".env",
        "logs/gateway-1.log",
    ):
        assert not admitted(kept, [line for line in lines if line and not line.startswith("#")]), kept


def test_the_rules_of_dockerignore_are_read_as_docker_reads_them():
    lines = ["*", "!deploy", "deploy/worker/tests", "**/__pycache__", "**/*.md", "!deploy/a.md"]
    within = {"deploy/a.rs", "deploy/worker/a.py", "deploy/a.md"}
    without = {"a", "docs/a.rs", "deploy/worker/tests/a.py", "deploy/x/__pycache__/a.pyc", "deploy/x/b.md"}
    assert {path for path in within | without if admitted(path, lines)} == within


def test_the_context_is_enough_to_build_from():
    build = Dockerfile(BINARY).all("RUN")[-1]
    cargo = re.search(r"cargo build --release (--locked --package pointsman) ", build)
    assert cargo, build
    tree = copy_context(place().parent / "containers" / "context")
    # The same resolution and the same sources; checked rather than built, with what this machine has compiled already.
    words = ["cargo", "check", "--offline", *cargo.group(1).split()]
    env = {**os.environ, "CARGO_TARGET_DIR": str(place().parent)}
    subprocess.run(words, cwd=tree, env=env, check=True, timeout=RUN_MAX)


def test_the_builder_is_the_version_that_the_workspace_names():
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    (rust, _) = Dockerfile(BINARY).all("FROM")
    assert rust.startswith(f"rust:{workspace['rust-version']}."), rust
    worker = tomllib.loads((ROOT / "deploy/worker/pyproject.toml").read_text())["project"]
    least = tuple(map(int, worker["requires-python"].removeprefix(">=").split(".")))
    (python, _) = Dockerfile(WORKER).all("FROM")
    assert tuple(map(int, re.match(r"python:(\d+)\.(\d+)", python).groups())) >= least
    assert Dockerfile(WORKER).exec_form("ENTRYPOINT")[0] in worker["scripts"]


def test_what_is_in_the_image_serves_is_well_and_leaves_when_told(tmp_path):
    file, root = Dockerfile(BINARY), lay_out(tmp_path)
    with Network() as network:
        host = network.host("image")
        inside = [*host.enter, "chroot", f"--userspec={file.last('USER')}", str(root)]
        words = [*file.exec_form("ENTRYPOINT"), *file.exec_form("CMD")]
        served = Process("image", [*inside[1:], *words], tmp_path / "image.log", program=inside[0])
        try:
            until("it is well", lambda: _run([*inside, *file.exec_form("HEALTHCHECK")]) == 0)
            api, admin = map(int, file.last("EXPOSE").split())
            assert get(f"http://{host.address}:{api}/health")[0] == 200, "it listens for others than itself"
            assert _run([*inside, *words[:1], "health", f"http://127.0.0.1:{admin}/ready"]) == 0
            assert (root / "data" / "FORMAT").exists()
            served.signal(signal.Signals[file.last("STOPSIGNAL")])
            assert served.wait() == 0, served.said()
            assert _run([*inside, *file.exec_form("HEALTHCHECK")]) == 1, "nobody is there to be well"
        finally:
            served.kill()


def test_the_command_of_the_image_is_the_binarys():
    file = Dockerfile(BINARY)
    name, *rest = file.exec_form("CMD")
    told = command(name, "--help").stdout
    for flag in (word for word in rest if word.startswith("--")):
        assert f"{flag} " in told, flag


def _run(words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False).returncode
