"""What every role serves at `/metrics` is as Prometheus wants it, and says what operators ask for."""

import re
import shutil
import subprocess
import sys

import pytest
from asking import chat, client_of
from distributed import ONE, TWO, Fleet
from harness import get, new_key

PROMTOOL_MAX = 30  # Seconds; it takes a fraction of one.


def promtool():
    """Prometheus' own checker, on the PATH."""
    missing = "promtool is missing: `cargo xtask test --only servers` installs it, or put it on the PATH"
    return shutil.which("promtool") or sys.exit(missing)


def check(page):
    """What `promtool check metrics` says of a page: nothing, where all is well."""
    command = [promtool(), "check", "metrics"]
    run = subprocess.run(command, input=page, capture_output=True, text=True, timeout=PROMTOOL_MAX, check=False)
    return run.returncode, (run.stdout + run.stderr).strip()


@pytest.fixture(scope="module")
def pages():
    """A page of each role, after some requests that went well and some that did not."""
    with Fleet("metrics") as fleet:
        key, digest = new_key()
        fleet.rust("one-a", ONE, "hash")
        fleet.python("two-a", TWO, "hash")
        (gateway,) = fleet.open(count=1, digest=digest)
        client = client_of(gateway, key=key)
        for model in (ONE, TWO):
            chat(client, model=model)
            list(client.chat.completions.create(model=model, max_tokens=3, stream=True, messages=[{"role": "user", "content": "x"}]))
        get(f"{gateway.url}/v1/models")
        fleet.workers["one-a"].kill()
        with pytest.raises(Exception, match="503|502|unavailable|nobody"):
            chat(client, model=ONE)
        fleet.rust("one-b", ONE, "hash")
        rust = fleet.workers["one-b"]
        fleet.consul.kill()
        yield {
            "gateway": get(f"{gateway.url}/metrics")[1],
            "rust worker": get(f"http://127.0.0.1:{rust.pages}/metrics")[1],
            "python worker": get(f"{fleet.workers['two-a'].url}/metrics")[1],
        }


def test_a_page_that_is_not_as_it_should_be_is_found():
    status, said = check("# TYPE wrongTotal counter\nwrongTotal 1\n")
    assert status != 0 and said


@pytest.mark.parametrize("role", ["gateway", "rust worker", "python worker"])
def test_promtool_has_nothing_to_say(pages, role):
    assert len(pages[role].splitlines()) > 10, pages[role]
    status, said = check(pages[role])
    assert (status, said) == (0, ""), said
