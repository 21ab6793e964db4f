"""Who may import whom, and that a backend's libraries are imported only when it is chosen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pointsman_worker
from pointsman_worker.domain.backend import StartFailed
from pointsman_worker.infrastructure import backends
from pointsman_worker.infrastructure.settings import read

PACKAGE = Path(pointsman_worker.__file__).parent
LAYERS = ("domain", "application", "infrastructure", "interface")
FUNCTION_LINES_MAX = 70


def sources() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 20
    return found


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("at", range(3))
def test_a_layer_imports_only_those_below_it(at: int) -> None:
    forbidden = [f"pointsman_worker.{layer}" for layer in LAYERS[at + 1 :]]
    for source in (PACKAGE / LAYERS[at]).rglob("*.py"):
        bad = [name for name in imported(source) if name.startswith(tuple(forbidden))]
        assert not bad, source


def test_the_domain_and_the_application_know_the_standard_library_alone() -> None:
    for layer in LAYERS[:2]:
        for source in (PACKAGE / layer).rglob("*.py"):
            roots = {name.partition(".")[0] for name in imported(source)} - {"pointsman_worker"}
            assert roots <= sys.stdlib_module_names, source


def test_no_function_is_longer_than_a_reader_holds_in_mind() -> None:
    for source in [*sources(), *Path(__file__).parent.glob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, (source, node.name)


@pytest.mark.parametrize("name", ["echo", "hash", "openai"])
def test_a_backend_brings_no_library_of_another(name: str) -> None:
    code = f"""if True:
        import sys
        from pointsman_worker.infrastructure import backends, settings
        from pointsman_worker.interface import main
        assert not {{"httpx", "vllm", "torch", "transformers", "opentelemetry.sdk"}} & set(sys.modules)
        backends.make(settings.read({{"MODEL_NAME": "demo", "BACKEND": "{name}"}}))
        print(sorted({{"httpx", "vllm", "torch", "transformers"}} & set(sys.modules)))
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == ("['httpx']" if name == "openai" else "[]")


@pytest.mark.parametrize(("backend", "package"), [("openai", "httpx"), ("vllm", "vllm"), ("transformers", "torch")])
def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    for name in ("httpx", "vllm", "vllm.sampling_params", "torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"pointsman_worker.infrastructure.backends.{backend}", raising=False)
    with pytest.raises(StartFailed) as found:
        backends.make(read({"MODEL_NAME": "demo", "BACKEND": backend}))
    expected = f"BACKEND={backend} needs the package `{package}`: pip install './deploy/worker[{backend}]'"
    assert str(found.value) == expected
