"""What every role serves at `/metrics` is as Prometheus wants it, and says what operators ask for."""

import itertools

import pytest

from asking import Streamed, chat, client_of, replica_of
from distributed import ONE, TWO, Fleet
from figures import check, page, value
from harness import new_key, until


@pytest.fixture(scope="module")
def pages():
    """A page of each role, after requests that went well, one that had to be tried again, and a registry that died."""
    with Fleet("metrics") as fleet:
        key, digest = new_key()
        for name in ("one-a", "one-b"):
            fleet.rust(name, ONE, "hash")
        python = fleet.python("two-a", TWO, "hash")
        (gateway,) = fleet.open(count=1, digest=digest)
        client = client_of(gateway, key=key)
        for model in (ONE, TWO):
            chat(client, model=model)
            assert Streamed(client, model=model).whole
        fleet.consul.kill()
        home = at_home(client)
        fleet.workers[home].kill()
        assert at_home(client) != home
        ejected, sessions = f'pointsman_breaker_transitions_total{{instance="{home}",to="open"}}', itertools.count()

        def ejects():
            replica_of(client, model=ONE, extra_headers={"X-Session-Id": f"s-{next(sessions)}"})
            return value(page(gateway.url), ejected)

        until(f"{home} is ejected", ejects)
        stale = 'pointsman_registry_stale_seconds{source="consul"}'
        until("the registry is known to be silent", lambda: value(page(gateway.url), stale) > 0)
        (alive,) = (worker for name, worker in fleet.workers.items() if worker.model == ONE and name != home)
        yield {
            "gateway": page(gateway.url),
            "rust worker": page(f"http://127.0.0.1:{alive.pages}"),
            "python worker": page(python.url),
        }


def at_home(client):
    """Who answers one session."""
    return replica_of(client, model=ONE, extra_headers={"X-Session-Id": "s"})


def test_a_page_that_is_not_as_it_should_be_is_found():
    status, said = check("# TYPE wrongTotal counter\nwrongTotal 1\n")
    assert status != 0 and said


@pytest.mark.parametrize("role", ["gateway", "rust worker", "python worker"])
def test_promtool_has_nothing_to_say(pages, role):
    assert len(pages[role].splitlines()) > 10, pages[role]
    status, said = check(pages[role])
    assert (status, said) == (0, ""), said


def test_a_gateway_tells_what_operators_ask_for(pages):
    told = pages["gateway"]
    for series in (
        f'gateway_requests_total{{provider="pointsman",model="{ONE}",status="200"}}',
        "gateway_request_duration_seconds_count",
        'pointsman_attempts_total{instance="two-a",outcome="completed"}',
        "pointsman_retries_total",
        "pointsman_breaker_transitions_total",
        "pointsman_breaker_open",
        "pointsman_affinity_bindings_total",
        "pointsman_affinity_migrations_total",
        'pointsman_registry_stale_seconds{source="consul"}',
    ):
        assert value(told, series) > 0, f"{series} in\n{told}"
    assert "# TYPE pointsman_reservations gauge\npointsman_reservations 0\n" in told


@pytest.mark.parametrize(("role", "model"), [("rust worker", ONE), ("python worker", TWO)])
def test_both_kinds_of_workers_tell_the_same(pages, role, model):
    told = pages[role]
    assert value(told, f'pointsman_worker_requests_total{{model="{model}",outcome="ok"}}') >= 1
    for series in (
        f'pointsman_worker_tokens_total{{model="{model}",type="completion"}}',
        f'pointsman_worker_tokens_total{{model="{model}",type="prompt"}}',
        "pointsman_worker_request_duration_seconds_count",
        "pointsman_worker_first_token_seconds_count",
        "pointsman_worker_running_max",
        "pointsman_worker_backend_ready",
    ):
        assert value(told, series) > 0, f"{series} in\n{told}"
    for name in ("running", "queued", "draining", "registered"):
        assert f"# TYPE pointsman_worker_{name} gauge\n" in told, name
