"""A client of resumable streams, as a program would be written that wants every event once."""

import json

import httpx2

LOST = (httpx2.HTTPError,)


class Resumable:
    """A stream by its events; it may be left, and gone on with at any gateway."""

    def __init__(self, gateway, key, model, text, tokens):
        self.key, self.events, self.errors, self.comments, self.dones = key, [], [], [], 0
        body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens}
        body["messages"] = [{"role": "user", "content": text}]
        self._ask = ("POST", f"{gateway.url}/v1/chat/completions", body)
        self.id, self.where, self.last, self.request_id = None, None, 0, None

    def read(self, on_event=None):
        """Reads on, to the end or until `on_event` says that it is enough. Returns itself."""
        method, url, body = self._ask
        headers = {"authorization": f"Bearer {self.key}", "x-pointsman-resumable": "true"}
        if method == "GET":
            headers["last-event-id"] = str(self.last)
        with httpx2.stream(method, url, json=body, headers=headers, timeout=30) as answer:
            assert answer.status_code == 200, answer.read()
            self.where = answer.headers["x-pointsman-resumable"]
            self.id = self.id or answer.headers["x-pointsman-stream-id"]
            self.request_id = answer.headers["x-request-id"]
            number = None
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    number = int(line.removeprefix("id: "))
                elif line.startswith("data: "):
                    self._event(number, line.removeprefix("data: "))
                    number = None
                    if on_event and on_event(self):
                        return self
                elif line:
                    self.comments.append(line)
        return self

    def at(self, gateway):
        """The same stream, to be gone on with there."""
        self._ask = ("GET", f"{gateway.url}/v1/streams/{self.id}", None)
        return self

    def _event(self, number, data):
        assert not self.dones, f"after [DONE]: {data}"
        if number is not None:
            assert number == self.last + 1, f"{number} after {self.last}"
            self.last = number
        if data == "[DONE]":
            self.dones += 1
            return
        event = json.loads(data)
        (self.errors if "error" in event else self.events).append(event)

    @property
    def pieces(self):
        """What was said, piece by piece."""
        deltas = (event["choices"][0]["delta"] for event in self.events if event.get("choices"))
        return [delta["content"] for delta in deltas if delta.get("content")]

    @property
    def usage(self):
        """The one bill."""
        found = [event["usage"] for event in self.events if event.get("usage")]
        assert len(found) == 1, found
        return found[0]


def after(count):
    """Enough once so many pieces have come."""
    return lambda stream: len(stream.pieces) >= count
