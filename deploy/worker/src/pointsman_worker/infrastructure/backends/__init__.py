"""The backends, by name. Each module is imported only when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from pointsman_worker.domain.backend import Backend, StartFailed
from pointsman_worker.infrastructure.settings import Settings

PACKAGES = {"httpx": "openai", "vllm": "vllm", "torch": "transformers", "transformers": "transformers"}
"""Which extra of this package brings what a backend imports."""


def make(settings: Settings) -> Backend:
    """The backend that the settings name. Raises `StartFailed` where its package is not installed."""
    try:
        module = importlib.import_module(f"{__name__}.{settings.backend}")
        build: Callable[[Settings], Backend] = module.build
        return build(settings)
    except ModuleNotFoundError as error:
        raise StartFailed(missing(settings.backend, error)) from error


def missing(backend: str, error: ModuleNotFoundError) -> str:
    """One line: what to install."""
    package = (error.name or "").partition(".")[0]
    extra = PACKAGES.get(package, backend)
    return f"BACKEND={backend} needs the package `{package}`: pip install './deploy/worker[{extra}]'"
