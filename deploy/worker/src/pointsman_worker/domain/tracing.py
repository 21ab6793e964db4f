"""W3C trace context, as far as a log line needs it."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def trace_ids(traceparent: str) -> tuple[str, str]:
    """Trace id and parent span id of a `traceparent`; both empty where it is not valid (W3C Trace Context, 3.2)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (traceparent.startswith("00-") and found[3]):
        return "", ""
    trace, span = found[1], found[2]
    if set(trace) == {"0"} or set(span) == {"0"}:
        return "", ""
    return trace, span
