"""W3C trace context, as far as a log line, and whoever is called next, need it."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


_STATE = re.compile(r"[ -~]{1,512}")
"""As much as the standard asks everybody to pass on."""


def trace_headers(traceparent: str, tracestate: str) -> dict[str, str]:
    """What whoever is called hears: nothing without a `traceparent`; a `tracestate` as it came, where it can be one."""
    if not traceparent:
        return {}
    return {"traceparent": traceparent} | ({"tracestate": tracestate} if _STATE.fullmatch(tracestate) else {})


def trace_ids(traceparent: str) -> tuple[str, str]:
    """Trace id and parent span id of a `traceparent`; both empty where it is not valid (W3C Trace Context, 3.2)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (traceparent.startswith("00-") and found[3]):
        return "", ""
    trace, span = found[1], found[2]
    if set(trace) == {"0"} or set(span) == {"0"}:
        return "", ""
    return trace, span
