"""The command `pointsman-worker`. Everything is told by environment variables."""

from __future__ import annotations

import asyncio
import http.client
import signal
import sys
from http import HTTPStatus
from typing import NoReturn

from pointsman_worker import __version__
from pointsman_worker.domain.backend import StartFailed
from pointsman_worker.infrastructure import backends, logs, settings
from pointsman_worker.interface.process import Process

USAGE = """\
pointsman-worker: serves one model over gRPC to Pointsman's gateways.

Environment variables say all of it; the one without a default is MODEL_NAME. Try: MODEL_NAME=demo pointsman-worker

  --probe    asks the worker that runs with the same environment whether it is ready, and exits 0 or 1
  --version  prints the version
  --help     prints this
"""
BAD_SETTINGS = 2
CANNOT_START = 1
PROBE_SECONDS = 3.0


def main() -> None:
    """Runs the worker. Exit status: 0 after a drain, 1 where it cannot start or a probe fails, 2 at a bad setting."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        return
    if arguments == ["--version"]:
        sys.stdout.write(f"pointsman-worker {__version__}\n")
        return
    if arguments not in ([], ["--probe"]):
        _fail(BAD_SETTINGS, f"unknown argument `{arguments[0]}`; see pointsman-worker --help")
    try:
        told = settings.read()
    except settings.BadSettings as error:
        _fail(BAD_SETTINGS, str(error))
    if arguments:
        sys.exit(_probe(told.http[0]))
    logs.set_up(told.log_level, told.log_format, told.model, told.instance_id)
    try:
        backend = backends.make(told)
    except StartFailed as error:
        _fail(BAD_SETTINGS, str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # While the model loads; afterwards a signal drains.
    try:
        asyncio.run(Process(told, backend).run())
    except StartFailed as error:
        _fail(CANNOT_START, str(error))
    except settings.BadSettings as error:
        _fail(BAD_SETTINGS, str(error))


def _probe(address: settings.Address) -> int:
    """Asks `/ready`, for a container's health check: 0 where it answers 200, else 1."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    connection = http.client.HTTPConnection(host, address.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/ready")
        return 0 if connection.getresponse().status == HTTPStatus.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


def _fail(status: int, why: str) -> NoReturn:
    """One line, and out."""
    sys.stderr.write(f"pointsman-worker: {' '.join(why.split())}\n")
    sys.exit(status)
