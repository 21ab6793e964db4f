"""Pages of figures: read, looked up, and judged by Prometheus' own checker."""

import shutil
import subprocess
import sys

from harness import get

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


def page(url):
    """What is served there."""
    status, text = get(f"{url}/metrics")
    assert status == 200, text
    return text


def value(text, series):
    """The value of one series, or the sum of those of a name alone; 0 where there is none."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return sum(float(number) for name, _, number in lines if series in (name, name.partition("{")[0]))
