"""What OpenAI-compatible servers say, put into our words. No I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pointsman_worker.domain.failures import (
    BackendFailed,
    CredentialsRefused,
    Failure,
    Full,
    InvalidQuestion,
    Unavailable,
    UnknownModel,
)
from pointsman_worker.domain.model import FINISH_REASONS, Piece, Question, Usage

RETRY_MS_DEFAULT = 1000
RETRY_MS_MAX = 600_000
QUOTED_MAX = 500
"""Characters of a server's own message that go to the caller."""
_ENDS = {"function_call": "tool_calls", "max_tokens": "length", "model_length": "length"}
_BROKEN_ENDS = ("abort", "error", "cancelled")
_SPOKEN = frozenset({"role", "content", "reasoning_content", "reasoning", "tool_calls", "refusal"})
_KNOWN = frozenset({"index", "delta", "finish_reason"})
_ACCOUNT = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated", "invalid_api_key")


def body(question: Question, model: str) -> dict[str, Any]:
    """The JSON of the question. Our fields win over those of the caller's extra ones."""
    parameters = question.parameters
    told: dict[str, Any] = dict(parameters.extra)
    told["model"] = model
    told["messages"] = [message.as_openai() for message in question.messages]
    told["stream"] = True
    options = told.get("stream_options")
    told["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    given = {
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "seed": parameters.seed,
        "stop": list(parameters.stop) or None,
    }
    told.update({name: value for name, value in given.items() if value is not None})
    return told


def pieces(data: str) -> list[Piece]:
    """The pieces of one event. Raises the failure that an error event tells, or `BackendFailed` for nonsense."""
    try:
        event = json.loads(data, parse_constant=lambda _: None)
    except ValueError as error:
        raise BackendFailed("the backend sent an event that is not JSON") from error
    if not isinstance(event, dict):
        raise BackendFailed("the backend sent an event that is no object")
    if event.get("error"):
        raise refusal(_status(event["error"]), event["error"], {})
    choices = event.get("choices")
    if choices is None:
        choices = []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BackendFailed("the backend sent `choices` that are no list of objects")
    usage = _usage(event.get("usage"))
    found = [_piece(choice) for choice in choices]
    return [*found, Piece(usage=usage)] if usage else found


def refusal(status: int, error: object, headers: Mapping[str, str]) -> Failure:
    """The failure that an HTTP status and an error object mean."""
    said = error if isinstance(error, dict) else {}
    code = str(said.get("code") or said.get("type") or "")
    message = said.get("message")
    quoted = f": {message[:QUOTED_MAX]}" if isinstance(message, str) else ""
    if status in (401, 402, 403) or code in _ACCOUNT:
        return CredentialsRefused(f"the backend refuses the worker's credentials or account ({status})")
    if status == 404 or code == "model_not_found":
        return UnknownModel("the backend does not know the model that this worker serves")
    if status == 429:
        return Full("the backend is full", _retry_after_ms(headers))
    if status in (400, 413, 415, 422):
        return InvalidQuestion(f"the backend finds the request at fault ({status}){quoted}")
    if status in (408, 502, 503, 504, 529):
        return Unavailable(f"the backend is not available ({status})")
    return BackendFailed(f"the backend failed ({status})")


def _piece(choice: dict[str, Any]) -> Piece:
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise BackendFailed("the backend sent a `delta` that is no object")
    index = choice.get("index", 0)
    calls = delta.get("tool_calls") or []
    if not isinstance(index, int) or not isinstance(calls, list):
        raise BackendFailed("the backend sent an `index` or `tool_calls` of another type")
    text = _string(delta, "content")
    reasoning = _string(delta, "reasoning_content") or _string(delta, "reasoning")
    refused = _string(delta, "refusal")
    extra = {name: value for name, value in delta.items() if name not in _SPOKEN and value is not None}
    extra |= {name: value for name, value in choice.items() if name not in _KNOWN and value is not None}
    return Piece(
        text=text,
        tokens=_tokens(choice, bool(text or reasoning or refused or calls)),
        reasoning=reasoning,
        refusal=refused,
        tool_calls=calls,
        finish_reason=_end(choice.get("finish_reason")),
        choice=index,
        extra=extra,
    )


def _tokens(choice: dict[str, Any], spoke: bool) -> int:
    """How many tokens a chunk holds: as many as it has logprobs, else one. The bill at the end tells the truth."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return len(content) if isinstance(content, list) and content else int(spoke)


def _string(delta: dict[str, Any], name: str) -> str:
    value = delta.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BackendFailed(f"the backend sent `{name}` that is no text")
    # Half a character, as JSON's escapes allow it, is none on the wire.
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _end(reason: object) -> str:
    """One of the wire's reasons. Servers have names of their own for a stop."""
    if not reason:
        return ""
    if reason in _BROKEN_ENDS:
        raise BackendFailed("the backend gave the answer up")
    told = _ENDS.get(str(reason), str(reason))
    return told if told in FINISH_REASONS else "stop"


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0]
    whole = [count for count in counts if isinstance(count, int) and 0 <= count < 2**63]
    if len(whole) != len(counts):
        raise BackendFailed("the backend sent a `usage` whose counts are no whole numbers")
    return Usage(*whole)


def _status(error: object) -> int:
    """The HTTP status that an error event would have had."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) or (isinstance(code, str) and code.isascii() and code.isdecimal()):
        return int(code)
    kind = error.get("type") if isinstance(error, dict) else None
    return {"rate_limit_exceeded": 429, "invalid_request_error": 400, "overloaded_error": 529}.get(str(kind), 500)


def _retry_after_ms(headers: Mapping[str, str]) -> int:
    """`retry-after-ms`, or `retry-after` in seconds; a date is not worth its parsing here."""
    for name, factor in (("retry-after-ms", 1), ("retry-after", 1000)):
        try:
            value = float(headers.get(name, ""))
        except ValueError:
            continue
        if 0 <= value < RETRY_MS_MAX:
            return int(value * factor)
    return RETRY_MS_DEFAULT
