"""What a gateway says of a call for the log: which session it belongs to, and which try it is.

A session is told by the keyed hash that stands in the gateway's own log. What is not shaped like one may be a user's
word, and comes to stand nowhere.
"""

from __future__ import annotations

import re

SESSION = "x-pointsman-session"
ATTEMPT = "x-pointsman-attempt"
_KEYED = re.compile(r"sess_[0-9a-f]{16}")
_ATTEMPT = re.compile(r"[1-9][0-9]{0,2}")


def session_id(said: str) -> str:
    """The keyed hash of a session; empty where it is none."""
    return said if _KEYED.fullmatch(said) else ""


def retries(said: str) -> int | None:
    """Attempts before this one, by its number, which counts from 1; `None` where that is no number up to 999."""
    return int(said) - 1 if _ATTEMPT.fullmatch(said) else None
