"""nginx in front of gateways, with the configuration that people run."""

import json

import programs
from harness import ROOT, Server, free_port

CONFIG = ROOT / "deploy" / "nginx.conf"


class Nginx(Server):
    """One nginx before two gateways. `/health` through it is ready when one of them answers."""

    def __init__(self, world, gateways):
        port, home = free_port(), world.home / "nginx"
        home.mkdir()
        text, ours = CONFIG.read_text(), {"listen 8080": f"listen 127.0.0.1:{port}"}
        for number, gateway in enumerate(gateways, 1):
            ours[f"server gateway-{number}:8080"] = f"server {gateway.host.address}:{gateway.port}"
        for theirs, address in ours.items():
            assert text.count(theirs) == 1, f"{CONFIG} has {theirs!r} {text.count(theirs)} times"
            text = text.replace(theirs, address)
        (home / "nginx.conf").write_text(text)
        # One process: killed with the tests, it leaves no workers behind.
        arguments = ["-p", home, "-c", home / "nginx.conf", "-g", "daemon off; master_process off;"]
        super().__init__("nginx", arguments, world.logs / "nginx.log", port, "/health", program=programs.nginx())

    def requests(self):
        """What its log says of each request so far, the newest last."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
