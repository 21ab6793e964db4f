#!/usr/bin/env bash
# Checks the Python worker: installs it with what it needs into target/, makes the stubs of the wire, then ruff, mypy and
# its tests. Ends non-zero at the first failure. Needs python3 >= 3.11 with its venv module, and a package index.
# Arguments go to pytest: deploy/worker/check.sh -k resume
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
place="$(cd "$here/../.." && pwd)/target/worker"
venv="$place/venv"
stamp="$venv/installed"

step() { printf '== worker: %s\n' "$*"; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "check.sh: python3 >= 3.11 is needed")'

# The stamp holds all that the environment is made of: another pyproject.toml or another Python makes it anew.
made_of="$(python3 -c 'import sys; print(sys.version)'; cat "$here/pyproject.toml"; echo "$here")"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$made_of" ]; then
    step "install into $venv"
    mkdir -p "$place"
    # Debian's python3 comes without what venv needs.
    python3 -m venv --clear "$venv" || {
        [ "$(id -u)" = 0 ] || { echo "check.sh: please install python3-venv" >&2; exit 1; }
        apt-get update --quiet && apt-get install --yes --no-install-recommends python3-venv
        python3 -m venv --clear "$venv"
    }
    "$venv/bin/python" -m pip install --quiet --editable "${here}[openai,otel,dev]"
    printf '%s\n' "$made_of" >"$stamp"
fi
PATH="$venv/bin:$PATH"

step "stubs"
python "$here/generate.py" "$place/wire"
echo "$place/wire" >"$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pointsman_wire.pth"

cd "$here"
export RUFF_CACHE_DIR="$place/ruff" PYTHONDONTWRITEBYTECODE=1
step "wheel"
rm -rf "$place/wheel"
python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$place/wheel" "$here"
python -c 'import sys, zipfile
names = set(zipfile.ZipFile(sys.argv[1]).namelist())
missing = {"pointsman/inference/v1/inference_pb2.py", "pointsman_worker/py.typed"} - names
sys.exit(f"the wheel lacks {missing}" if missing else 0)' "$place"/wheel/*.whl

step "ruff check"
ruff check . ../e2e
step "ruff format --check"
ruff format --check . ../e2e
step "mypy --strict"
MYPYPATH="src:$place/wire" mypy --strict --cache-dir "$place/mypy" -p pointsman_worker
MYPYPATH="src:$place/wire" mypy --strict --cache-dir "$place/mypy" generate.py hatch_build.py tests
step "pytest"
python -m pytest "$@"
step "all checks passed"
