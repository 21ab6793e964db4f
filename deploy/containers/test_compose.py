"""deploy/compose.yaml: its schema, its rules, and all of it running, as far as that goes without an engine."""

import json
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from composed import FILE, Composed, in_order, read, seconds, waits
from harness import ROOT, get, new_key, until
from image import RUN_MAX
from network import Network

TOOLS = Path(sys.executable).parent
SERVICES = read()["services"]


def test_it_follows_the_schema():
    words = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=RUN_MAX, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_guarded_watched_and_limited(name):
    service = SERVICES[name]
    ours = service["image"].startswith("pointsman")
    assert ours or re.search(r":\d+\.\d+\.\d+", service["image"]), "no exact version"
    assert ours == ("build" in service)
    assert service["read_only"] and service["cap_drop"] == ["ALL"], "it may more than it must"
    assert ours or int(service["user"].split(":")[0]) > 0, "the Dockerfiles of ours have a user"
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert set(waits(service).values()) <= {"service_healthy"}, waits(service)
    assert service["restart"] == "unless-stopped"


def test_only_nginx_is_reached_from_outside_and_by_default_from_this_machine_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"nginx": ["127.0.0.1:8080:8080"]}
    fronted = {name for name, service in SERVICES.items() if "front" in service["networks"]}
    assert fronted == {"nginx", "gateway-1", "gateway-2"}


def test_who_is_asked_starts_before_who_asks():
    order = in_order(SERVICES)
    for earlier, later in [
        ("consul", "worker"),
        ("worker", "chat-1"),
        ("redis", "chat-2"),
        ("auth", "chat-1"),
        ("auth", "gateway-1"),
        ("chat-2", "gateway-1"),
        ("gateway-2", "nginx"),
    ]:
        assert order.index(earlier) < order.index(later), order


def test_who_drains_is_given_more_time_than_that_takes():
    for name in ("gateway-1", "gateway-2", "chat-1", "chat-2", "auth"):
        config = (FILE.parent / "compose" / f"{SERVICES[name]['configs'][0]['source']}.yaml").read_text()
        drain = seconds(re.search(r"drain_grace: (\w+)", config).group(1))
        assert seconds(SERVICES[name]["stop_grace_period"]) > drain + 5
    worker = SERVICES["worker"]
    assert seconds(worker["stop_grace_period"]) > int(worker["environment"]["DRAIN_SECONDS"]) + 5


def test_what_is_mounted_is_there_and_no_secret_is_in_the_tree():
    spec = read()
    for config in spec["configs"].values():
        assert (FILE.parent / config["file"]).is_file(), config
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert volumes == set(spec["volumes"]), "a volume nobody has, or one nobody declared"
    for secret in spec["secrets"].values():
        path = str((FILE.parent / secret["file"]).resolve().relative_to(ROOT))
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False, timeout=RUN_MAX)
        assert ignored.returncode == 0, f"{path} could be committed"
    told = [f"{key}={value}" for service in SERVICES.values() for key, value in service.get("environment", {}).items()]
    assert not [one for one in told if re.match(r"\w*(KEY|TOKEN|PASSWORD|SECRET)", one)], told


def test_the_worker_is_told_nothing_that_it_does_not_read():
    table = (ROOT / "deploy/worker/README.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", table, re.MULTILINE))
    assert set(SERVICES["worker"]["environment"]) <= documented


def test_every_variable_of_the_file_is_documented_and_no_other():
    named = set(re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text()))
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (ROOT / "docs/containers.md").read_text(), re.MULTILINE)
    assert named == {name for row in rows for name in re.findall(r"\w+", row)}


def test_keys_are_at_the_auth_role_alone():
    having = {name for name, service in SERVICES.items() if "api_key_hash" in service.get("secrets", [])}
    assert having == {"auth"}
    assert "hash" not in re.sub(r"#.*", "", (ROOT / "deploy/compose/roles.yaml").read_text())


def ask(url, key, session):
    """The chat role that answered, through nginx."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "Say this again."}], "max_tokens": 8}
    headers = {"authorization": f"Bearer {key}", "x-session-id": session, "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.loads(answer.read())["choices"][0]["message"]["content"]
        return answer.headers["x-pointsman-replica"]


def answered_at_all(url, key):
    """Whether it is, in this moment."""
    try:
        return ask(url, key, "again")
    except urllib.error.HTTPError:
        return None


def refused(url, key):
    """With which status."""
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(url, key, "stranger")
    return error.value.code


def while_auth_is_away(composed, url, key):
    """Who was let in goes on, strangers are told to come back; then all is as before."""
    stranger, _ = new_key()
    assert refused(url, stranger) == 401
    auth = composed.containers["auth"]
    auth.process.kill()
    until("a stranger is told to come back", lambda: refused(url, new_key()[0]) == 503)
    assert ask(url, key, "known")
    auth.process.start()
    auth.await_health()
    until("a stranger is told that he is one", lambda: refused(url, new_key()[0]) == 401)


def test_all_of_it_starts_in_order_serves_and_leaves_in_time(tmp_path):
    key, digest = new_key()
    hidden = {"redis_password": secrets.token_hex(24) + "\n", "api_key_hash": digest + "\n"}
    with Network("10.213.80") as network, Composed(tmp_path, network, hidden) as composed:
        url = f"http://{composed.containers['nginx'].host.address}:8080"
        answered = {ask(url, key, f"session-{number}") for number in range(24)}
        assert answered == {"chat-1", "chat-2"}, answered
        asked = set()
        for name in ("gateway-1", "gateway-2", "chat-1", "chat-2"):
            admin = f"http://{composed.containers[name].host.address}:9090"
            said = json.loads(get(f"{admin}/health")[1])
            assert said["healthy"], said
            assert said["checks"]["auth"]["detail"] == "auth://auth:8082 answers", said
            figures = get(f"{admin}/metrics")[1]
            assert "gateway_requests_total" in figures
            if name.startswith("chat"):
                assert said["checks"]["registry consul"]["detail"] == "3 workers", said
                asked |= set(re.findall(r'pointsman_attempts_total\{instance="([^"]+)",outcome="completed"', figures))
        assert len(asked) == 3, asked
        while_auth_is_away(composed, url, key)
        # Healthy means more than alive: without its Redis nobody would be let wait for it.
        redis = composed.containers["redis"]
        redis.process.kill()
        assert not redis.healthy()
        redis.process.start()
        redis.await_health()
        until("somebody is answered again", lambda: answered_at_all(url, key))
        logs = "".join(container.process.said() for container in composed.containers.values())
        assert hidden["redis_password"].strip() not in logs and key not in logs
        ended = composed.stop()
    # A server of Consul that does not leave for good ends with 1.
    assert {name: status for name, status in ended.items() if status != 0 and name != "consul"} == {}, ended
