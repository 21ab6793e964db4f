"""What a worker is called where other names rule."""

from __future__ import annotations

import hashlib
import re

LABEL_MAX = 63
"""A DNS label's longest length in octets (RFC 1035, section 2.3.4)."""
_FOREIGN = re.compile(r"[^A-Za-z0-9-]")


def service_name(model: str) -> str:
    """The name in Consul: `llm-` and the model, where DNS can carry that.

    Every character but ASCII letters, digits and `-` becomes one `-`, and `-` at the end goes. What is then longer
    than a DNS label keeps its first 54 characters, `-`, and 8 hex digits of the SHA-256 of the model's exact name. Of
    a name without any letter or digit (`模型`) those 8 digits are all that follows `llm-`: gateways look for what
    begins so. Two models may share a name (`a.b`, `a-b`): readers go by `meta.model`, which is exact.
    """
    name = _FOREIGN.sub("-", f"llm-{model}").rstrip("-")
    digest = hashlib.sha256(model.encode()).hexdigest()[:8]
    if name == "llm":
        return f"llm-{digest}"
    if len(name) <= LABEL_MAX:
        return name
    return f"{name[: LABEL_MAX - 9]}-{digest}"
