"""Puts the stubs of the wire into the wheel, made from `proto/` as it is built."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
from generate import generate


class WireHook(BuildHookInterface[Any]):
    """Runs generate.py into a folder of its own, and adds that to the wheel.

    An editable install gets none: there check.sh makes them, and puts their folder on the path.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together."""
        if version == "editable":
            return
        self._made = tempfile.TemporaryDirectory()
        made = Path(self._made.name)
        generate(made / "wire")
        build_data["force_include"][str(made / "wire" / "pointsman")] = "pointsman"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called once it is written."""
        if version != "editable":
            self._made.cleanup()
