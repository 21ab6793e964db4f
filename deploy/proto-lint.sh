#!/usr/bin/env bash
# Lints and checks the format of proto/ with buf, which npm brings at this one version into target/buf. The binary is in
# the package: no install script runs. Ends non-zero at the first complaint.
set -euo pipefail
version=1.75.0
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
place="$root/target/buf/$version"
buf="$place/node_modules/.bin/buf"

if [ ! -f "$place/installed" ]; then
    mkdir -p "$place"
    npm install --prefix "$place" --no-save --ignore-scripts --no-audit --no-fund --loglevel=error "@bufbuild/buf@$version"
    touch "$place/installed"
fi
export BUF_CACHE_DIR="$place/cache"
"$buf" lint "$root/proto"
"$buf" format --diff --exit-code "$root/proto"
echo "proto: buf lint and buf format are content"
