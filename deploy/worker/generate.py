"""Makes the stubs of the wire, and their types, from `proto/`: `python generate.py FOLDER`.

Needs `grpcio-tools` and `mypy-protobuf` in the same environment. What is made is never committed: the `.proto` file is
the only source. It is made into `target/worker/wire` for the checks (check.sh), and into the wheel by hatch_build.py.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "proto"
FILES = ("pointsman/inference/v1/inference.proto",)


def generate(target: Path) -> None:
    """Fills `target` anew. Raises `SystemExit` with one line where that cannot be done."""
    if not PROTO.is_dir():
        sys.exit("generate.py: no proto/ two folders up; build from a checkout of the whole repository")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    plugins = [f"--plugin={_program(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *plugins, *outputs, *FILES]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"generate.py: protoc failed\n{made.stderr}")


def _program(name: str) -> str:
    """Where a plugin is: beside this Python, or on the path, as in the environments that wheels are built in."""
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        sys.exit(f"generate.py: no {name}; pip install './deploy/worker[dev]'")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python generate.py FOLDER")
    generate(Path(sys.argv[1]))
