"""Worlds and clients for the tests."""

import pytest

from asking import client_of
from harness import World

_living = []


@pytest.fixture(scope="session")
def three():
    """Three fast replicas behind a gateway that was given nothing but their addresses."""
    with World("three") as world:
        _living.append(world)
        replicas = [world.replica(f"r{n}", ttft="5ms", gap="1ms") for n in (1, 2, 3)]
        world.serve(upstreams=[replica.url for replica in replicas])
        yield world
        _living.remove(world)


@pytest.fixture
def world(request):
    """An empty world of the test's own."""
    with World(request.node.name) as world:
        _living.append(world)
        yield world
        _living.remove(world)


@pytest.fixture
def client(three):
    """A client of `three` that does not hide failures by trying again."""
    return client_of(three.gateway)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Shows the end of every living process's log beside a failure."""
    report = yield
    if report.failed:
        for log in (log for world in _living for log in sorted(world.logs.glob("*.log"))):
            report.sections.append((f"{log.parent.name}/{log.name}", log.read_text(errors="replace")[-3000:]))
    return report
