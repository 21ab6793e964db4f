"""Where the programs are that are not ours.

What is not there fails with the command that gets it: a test of a server that is skipped proves nothing.
"""

import shutil
import sys

from harness import place


def consul():
    """Consul: on the PATH, or where `cargo xtask services up` leaves it."""
    fetched = place().parent / "services" / "packages" / "consul-root" / "usr" / "bin" / "consul"
    found = shutil.which("consul") or (str(fetched) if fetched.exists() else None)
    return found or sys.exit("consul is missing: `cargo xtask services up` fetches it, or put it on the PATH")


def redis():
    """Redis, on the PATH."""
    missing = "redis-server is missing: `cargo xtask test --only servers` installs it, or put it on the PATH"
    return shutil.which("redis-server") or sys.exit(missing)


def python_worker():
    """The Python worker, in the environment that its own checks make."""
    script = place().parent / "worker" / "venv" / "bin" / "python"
    stubs = place().parent / "worker" / "wire"
    if not (script.exists() and stubs.exists()):
        sys.exit("the Python worker is not installed: `deploy/worker/check.sh` makes target/worker/venv")
    return script


def nginx():
    """nginx, on the PATH or where Debian keeps servers."""
    missing = "nginx is missing: `cargo xtask test --only servers` installs it, or put it on the PATH"
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or sys.exit(missing)
