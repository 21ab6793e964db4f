"""Steady load from several threads, each answer judged as it comes."""

import itertools
import threading
from dataclasses import dataclass, field

import httpx2
import openai

from asking import MODEL, Streamed, chat, client_of
from harness import until


@dataclass
class Tally:
    """What the clients know."""

    answered: int = 0
    tokens: int = 0  # Of the answers whose usage arrived.
    cut: int = 0  # Streams that had begun, and whatever the test tolerates, ended in an error.
    lost: int = 0  # Of those, streams whose connection broke instead.
    refused: list = field(default_factory=list)  # Failed before anything came.
    silent: int = 0  # Ended without error and without a finish reason: never allowed.


class Load:
    """Runs until left. Every second request streams; the others come whole."""

    def __init__(self, server, key="unused", workers=6, output=24, tolerate=(), model=MODEL):
        self.tally, self.output = Tally(), output
        self._asked = {"model": model, "max_tokens": output}
        self._server, self._key, self._tolerate = server, key, tolerate
        self._stop, self._lock, self._numbers = threading.Event(), threading.Lock(), itertools.count()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        self.crashes = []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        assert not self.crashes, self.crashes

    def more(self, count, seconds=60):
        """Waits for `count` further answers."""
        goal = self.tally.answered + count
        until(f"{count} more answers", lambda: self.tally.answered >= goal or self.crashes, seconds)

    def _work(self):
        try:
            client = client_of(self._server, key=self._key)
            while not self._stop.is_set():
                if next(self._numbers) % 2:
                    self._stream(client)
                else:
                    self._whole(client)
        except Exception as crash:  # noqa: BLE001 - reported by the main thread, whatever it is
            self.crashes.append(repr(crash))

    def _whole(self, client):
        try:
            usage = chat(client, **self._asked).usage
            self._note(answered=1, tokens=usage.total_tokens)
        except openai.APIError as error:
            self._refuse(error)

    def _stream(self, client):
        stream = Streamed(client, **self._asked, stream_options={"include_usage": True})
        if stream.whole:
            self._note(answered=1, tokens=stream.usage.total_tokens)
        elif stream.error is None:
            self._note(silent=1)
        elif stream.begun:
            self._note(cut=1, lost=int(isinstance(stream.error, httpx2.HTTPError)))
        else:
            self._refuse(stream.error)

    def _refuse(self, error):
        if isinstance(error, self._tolerate):
            self._note(cut=1)
            self._stop.wait(0.05)
        else:
            self._note(refused=[f"{type(error).__name__}: {error}"])

    def _note(self, **counts):
        with self._lock:
            for name, count in counts.items():
                setattr(self.tally, name, getattr(self.tally, name) + count)
