"""From tokens to text that may be shown.

Two things hold text back. A character may span tokens, so its first bytes say nothing yet; and the end of what is known
may be the beginning of a stop text, which must never be shown. Both depend on the tokens alone, in order: a worker that
continues an answer feeds the tokens before the seam first and is then where the other worker was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pointsman_worker.domain.failures import CannotResume

Decode = Callable[[Sequence[int]], str]
"""Text of some token ids, with U+FFFD where bytes are no whole character."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
WINDOW_MAX = 64
"""Tokens that stay undecided at most. No character has so many: what ends in U+FFFD that long is really broken."""


class Decoder:
    """Turns ids into text, one at a time, holding incomplete characters back.

    Decodes a window, not all tokens each time. The window starts before what is new, because tokenizers write a token
    differently at the start of a text (a leading space).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0

    def feed(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        self._window.append(token)
        known = self._decode(self._window[: self._told])
        text = self._decode(self._window)
        undecided = len(self._window) - self._told
        nothing_yet = text.endswith(INCOMPLETE) or len(text) <= len(known)
        if nothing_yet and undecided < WINDOW_MAX:
            return ""
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return text[len(known) :]

    def rest(self) -> str:
        """What was held back, broken characters and all."""
        known = self._decode(self._window[: self._told])
        text = self._decode(self._window)
        self._told = len(self._window)
        return text[len(known) :]


class StopFilter:
    """Lets text through up to a stop text, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._reached = False

    def feed(self, text: str) -> str:
        """The text that may be shown. What follows a stop text is dropped."""
        if self._reached:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._reached = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def reached(self) -> bool:
        """Whether a stop text came."""
        return self._reached

    def rest(self) -> str:
        """What was held back for a stop text that did not come."""
        shown, self._held = self._held, ""
        return shown


class Seam:
    """Hides the text that the client of a continued answer already has."""

    def __init__(self, before: str) -> None:
        self._before = before

    def feed(self, text: str) -> str:
        """The part of `text` that lies behind the seam. Raises `CannotResume` where the texts differ."""
        shared = min(len(text), len(self._before))
        if text[:shared] != self._before[:shared]:
            raise CannotResume("the text before the seam is not the text of its tokens")
        self._before = self._before[shared:]
        return text[shared:]

    def check_passed(self) -> None:
        """Raises `CannotResume` where the client has text that the tokens before the seam do not give."""
        if self._before:
            raise CannotResume("the text before the seam is longer than the text of its tokens")


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
