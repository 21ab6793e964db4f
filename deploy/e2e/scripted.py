"""An upstream that misbehaves in one stated way, and remembers what it was asked.

The demo replica plays honest failures (slow, dying, refusing); what no honest server sends is written here by hand,
so that a test knows every byte.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Scripted:
    """Serves one model on a port of its own, from a thread. `behave` is one of the functions below."""

    def __init__(self, name, behave, model="demo"):
        self.name, self.model, self.behave = name, model, behave
        self.bodies, self.headers = [], []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        """Lets go of whoever still waits, and stops listening."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(script):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path == "/v1/models":
                model = {"id": script.model, "object": "model", "created": 1, "owned_by": "script"}
                whole(self, {"object": "list", "data": [model]})
            else:
                whole(self, {"status": "ok"})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.bodies.append(body)
            script.headers.append(dict(self.headers.items()))
            script.behave(self, script, body)

        def log_message(self, format, *args):
            """Nothing: the tests look at `bodies`."""

    return Handler


def whole(handler, answer, status=200):
    """One JSON body."""
    _bytes(handler, json.dumps(answer).encode(), "application/json", status)


def _bytes(handler, content, kind, status=200):
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def _stream(handler):
    """Opens a stream that ends when the connection does."""
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True

    def send(data):
        text = data if isinstance(data, str) else json.dumps(data)
        handler.wfile.write(f"data: {text}\n\n".encode())
        handler.wfile.flush()

    return send


def _chunk(text, finish=None, **more):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "demo", "choices": [choice], **more}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def honest(handler, script, body):
    """Answers well, with fields nobody has heard of."""
    if body.get("stream"):
        send = _stream(handler)
        send(_chunk("one ", x_future={"a": 1}))
        send(_chunk("two", "stop"))
        if (body.get("stream_options") or {}).get("include_usage"):
            send({**_chunk(""), "choices": [], "usage": USAGE})
        send("[DONE]")
        return
    message = {"role": "assistant", "content": "one two", "x_mood": "fine"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": f"c{len(script.bodies)}", "object": "chat.completion", "created": 1, "model": script.model}
    whole(handler, {**answer, "choices": [choice], "usage": USAGE, "x_future": {"a": [1, None]}})


def silent(handler, script, body):
    """Accepts and never answers."""
    script.closing.wait(60)


def stalling(handler, script, body):
    """Begins a stream and falls silent."""
    _stream(handler)(_chunk("one "))
    script.closing.wait(60)


def truncated(handler, script, body):
    """Ends a stream without `[DONE]` and without a finish reason."""
    _stream(handler)(_chunk("one "))


def babbling(handler, script, body):
    """Sends what is no JSON."""
    if body.get("stream"):
        send = _stream(handler)
        send(_chunk("one "))
        send("{]]\x00 garbage")
    else:
        _bytes(handler, b"\x00\xff<html>", "application/json")


def failing_inside(handler, script, body):
    """Says 200, and then an error."""
    error = {"error": {"message": "out of memory", "type": "server_error", "code": None, "param": None}}
    if body.get("stream"):
        send = _stream(handler)
        send(_chunk("one "))
        send(error)
    else:
        whole(handler, error)


def revoking(handler, script, body):
    """Refuses our key."""
    whole(handler, {"error": {"message": "bad key", "type": "invalid_request_error", "code": "invalid_api_key"}}, 401)


class Stepwise:
    """Sends each token only when the one before has been seen: whoever holds one back on the way gets no further."""

    STEP_MAX = 10.0

    def __init__(self, tokens):
        self.tokens, self.seen = tokens, threading.Semaphore(0)

    def __call__(self, handler, script, body):
        send = _stream(handler)
        for number in range(self.tokens):
            send(_chunk(f"{number} "))
            if not self.seen.acquire(timeout=self.STEP_MAX):
                return
        send({**_chunk("", "stop"), "usage": USAGE})
        send("[DONE]")
