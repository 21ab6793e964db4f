"""Runs a command (the Node tests) in a world of its own: `node_world.py COMMAND ...`.

The command finds the gateway in `POINTSMAN_URL` and its keys in `POINTSMAN_KEY_RICH`, `_POOR` and `_SLOW`.
"""

import os
import subprocess
import sys

from harness import World, endpoints, new_key
from scripted import Scripted, truncated

COMMAND_MAX = 300.0  # The tests take seconds.


def main(command):
    """The command's exit status."""
    with World("node") as world:
        replicas = [world.replica(f"r{n}", ttft="5ms", gap="1ms") for n in (1, 2, 3)]
        broken = world.adopt(Scripted("broken", truncated, model="broken"))
        env, keys = dict(os.environ), []
        for name, limits in {"rich": {}, "poor": {"daily_tokens": 40}, "slow": {"rpm": 6}}.items():
            env[f"POINTSMAN_KEY_{name.upper()}"], digest = new_key()
            keys.append({"name": name, "hash": digest, "tenant": "acme", "user": name, **limits})
        models = {
            "demo": {"endpoints": endpoints(*replicas)},
            "broken": {"endpoints": endpoints(broken)},
            "gone": {"endpoints": [{"url": "http://127.0.0.1:9", "name": "gone"}]},
        }
        tenants = {"acme": {"daily_tokens": 1_000_000}}
        gateway = world.serve(config={"version": 1, "models": models, "tenants": tenants, "keys": keys})
        env["POINTSMAN_URL"] = gateway.url
        status = subprocess.run(command, env=env, timeout=COMMAND_MAX, check=False).returncode
        if status:
            print(f"---- the end of the gateway's log\n{gateway.said()[-3000:]}")
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
