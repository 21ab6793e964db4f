"""The command `pointsman-worker`. Everything is told by environment variables."""

from __future__ import annotations

import asyncio
import sys
from typing import NoReturn

from pointsman_worker import __version__
from pointsman_worker.domain.backend import StartFailed
from pointsman_worker.infrastructure import backends, logs, settings
from pointsman_worker.interface.process import Process

USAGE = """\
pointsman-worker: serves one model over gRPC to Pointsman's gateways.

It takes no arguments but --help and --version; environment variables say the rest. The one without a default is
MODEL_NAME. Try: MODEL_NAME=demo pointsman-worker
"""
BAD_SETTINGS = 2
CANNOT_START = 1


def main() -> None:
    """Runs the worker. Exit status: 0 after a drain, 1 where it cannot start, 2 where a setting is wrong."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        return
    if arguments == ["--version"]:
        sys.stdout.write(f"pointsman-worker {__version__}\n")
        return
    if arguments:
        _fail(BAD_SETTINGS, f"unknown argument `{arguments[0]}`; see pointsman-worker --help")
    try:
        told = settings.read()
    except settings.BadSettings as error:
        _fail(BAD_SETTINGS, str(error))
    logs.set_up(told.log_level, told.log_format, told.model, told.instance_id)
    try:
        backend = backends.make(told)
    except StartFailed as error:
        _fail(BAD_SETTINGS, str(error))
    try:
        asyncio.run(Process(told, backend).run())
    except StartFailed as error:
        _fail(CANNOT_START, str(error))


def _fail(status: int, why: str) -> NoReturn:
    """One line, and out."""
    sys.stderr.write(f"pointsman-worker: {' '.join(why.split())}\n")
    sys.exit(status)
