"""The few ways in which the tests ask."""

import httpx2
import openai

MODEL = "demo"


def client_of(server, key="unused", **options):
    """The official client, as a user would make it, without retries of its own."""
    options = {"max_retries": 0, "timeout": 30.0, **options}
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


def messages(text="Say something."):
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat(client, text="Say something.", **options):
    """A whole answer."""
    options = {"model": MODEL, "max_tokens": 8, **options}
    return client.chat.completions.create(messages=messages(text), **options)


def raw_chat(client, text="Say something.", **options):
    """A whole answer with its headers."""
    options = {"model": MODEL, "max_tokens": 8, **options}
    return client.chat.completions.with_raw_response.create(messages=messages(text), **options)


def replica_of(client, **options):
    """The name of the replica that answered."""
    return raw_chat(client, **options).headers["x-pointsman-replica"]


class Streamed:
    """A stream read to its end, whichever end that was."""

    def __init__(self, client, text="Say something.", **options):
        self.chunks, self.error, self.begun = [], None, False
        options = {"model": MODEL, "max_tokens": 8, **options}
        try:
            stream = client.chat.completions.create(messages=messages(text), stream=True, **options)
            for chunk in stream:
                self.begun = True
                self.chunks.append(chunk)
        except (openai.APIError, httpx2.HTTPError) as error:
            # The client lets a connection that breaks inside a stream through as its transport's own error.
            self.error = error

    @property
    def text(self):
        """What was said."""
        return "".join(c.choices[0].delta.content or "" for c in self.chunks if c.choices)

    @property
    def finishes(self):
        """Every finish reason, in order."""
        reasons = (c.choices[0].finish_reason for c in self.chunks if c.choices)
        return [reason for reason in reasons if reason]

    @property
    def usage(self):
        """The usage, where a chunk carried it."""
        found = [c.usage for c in self.chunks if c.usage]
        assert len(found) <= 1, found
        return found[0] if found else None

    @property
    def whole(self):
        """Whether it came to a proper end."""
        return self.error is None and len(self.finishes) == 1
