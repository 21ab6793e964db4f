"""The one place where the wire's messages become ours, and ours the wire's. What cannot be is refused here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman_worker.domain.failures import InvalidQuestion
from pointsman_worker.domain.model import Chunk, Load, Message, Parameters, Question, Resume

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
STOPS_MAX = 64
"""OpenAI allows four; some servers more."""
STOP_CHARACTERS_MAX = 1024
TOKENS_MAX = 2**31 - 1
TEMPERATURE_MAX = 100.0
"""OpenAI allows 2, others more; beyond this it is noise."""
OURS = frozenset({"model", "messages", "max_tokens", "temperature", "top_p", "seed", "stop"})
"""Fields with a place of their own: twice would be two answers to one question."""


def question(request: wire.StreamInferenceRequest, trace: Mapping[str, str]) -> Question:
    """The question. Raises `InvalidQuestion` that names the field."""
    return Question(
        model=request.model,
        messages=tuple(_message(at, message) for at, message in enumerate(request.messages)),
        parameters=_parameters(request.parameters),
        resume=_resume(request.resume) if request.HasField("resume") else None,
        request_id=request.request_id,
        trace=trace,
    )


def response(chunk: Chunk) -> wire.StreamInferenceResponse:
    """The chunk."""
    piece = chunk.piece
    told = wire.StreamInferenceResponse(
        seq=chunk.seq,
        token_count=piece.tokens,
        token_ids=piece.token_ids,
        text=piece.text,
        reasoning=piece.reasoning,
        tool_calls_json=_json(piece.tool_calls),
        refusal=piece.refusal,
        finish_reason=piece.finish_reason,
        choice=piece.choice,
        fingerprint=chunk.fingerprint,
        extra_json=_json(piece.extra),
    )
    if piece.usage is not None:
        told.usage.prompt_tokens = piece.usage.prompt_tokens
        told.usage.completion_tokens = piece.usage.completion_tokens
        told.usage.cached_tokens = piece.usage.cached_tokens
        told.usage.SetInParent()
    if chunk.load is not None:
        told.load.CopyFrom(load(chunk.load))
    return told


def load(busy: Load) -> wire.Load:
    """The load report."""
    return wire.Load(
        queued=busy.queued,
        running=busy.running,
        running_max=busy.running_max,
        kv_used_permille=busy.kv_used_permille,
    )


def _message(at: int, message: wire.Message) -> Message:
    where = f"`messages[{at}]"
    if message.role not in ROLES:
        raise InvalidQuestion(f"{where}.role`: give one of {', '.join(sorted(ROLES))}")
    content: str | list[Any] | None = None
    if message.HasField("text"):
        content = message.text
    elif message.HasField("parts_json"):
        content = _list(f"{where}.parts_json`", message.parts_json)
    return Message(
        role=message.role,
        content=content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=_list(f"{where}.tool_calls_json`", message.tool_calls_json or "[]"),
        extra=_object(f"{where}.extra_json`", message.extra_json or "{}"),
    )


def _parameters(told: wire.Parameters) -> Parameters:
    extra = _object("`parameters.extra_json`", told.extra_json or "{}")
    doubled = sorted(OURS & set(extra))
    if doubled:
        raise InvalidQuestion(f"`parameters.extra_json`: `{doubled[0]}` has a field of its own; give it there")
    choices = extra.get("n")
    if choices is not None and (not isinstance(choices, int) or isinstance(choices, bool) or not 1 <= choices <= 128):
        raise InvalidQuestion("`n`: give a whole number from 1 to 128")
    tokens = told.max_tokens if told.HasField("max_tokens") else None
    if tokens is not None and not 1 <= tokens <= TOKENS_MAX:
        raise InvalidQuestion(f"`max_tokens`: give a whole number from 1 to {TOKENS_MAX}")
    temperature = told.temperature if told.HasField("temperature") else None
    if temperature is not None and not 0 <= temperature <= TEMPERATURE_MAX:
        raise InvalidQuestion(f"`temperature`: give a number from 0 to {TEMPERATURE_MAX}")
    top_p = told.top_p if told.HasField("top_p") else None
    if top_p is not None and not (math.isfinite(top_p) and 0 < top_p <= 1):
        raise InvalidQuestion("`top_p`: give a number above 0, up to 1")
    stops = tuple(told.stop)
    if len(stops) > STOPS_MAX or any(not 0 < len(stop) <= STOP_CHARACTERS_MAX for stop in stops):
        raise InvalidQuestion(f"`stop`: give up to {STOPS_MAX} texts of 1 to {STOP_CHARACTERS_MAX} characters")
    seed = told.seed if told.HasField("seed") else None
    return Parameters(tokens, temperature, top_p, seed, stops, extra)


def _resume(told: wire.Resume) -> Resume:
    if told.token_ids and len(told.token_ids) != told.seq:
        raise InvalidQuestion(f"`resume.token_ids`: {len(told.token_ids)} ids, but `resume.seq` is {told.seq}")
    if told.seq > TOKENS_MAX:
        raise InvalidQuestion(f"`resume.seq`: give a whole number up to {TOKENS_MAX}")
    least = told.tokens_min if told.HasField("tokens_min") else None
    return Resume(told.seq, tuple(told.token_ids), told.text, told.fingerprint, least)


def _list(where: str, text: str) -> list[Any]:
    found = _parsed(text)
    if not isinstance(found, list):
        raise InvalidQuestion(f"{where}: give a JSON array")
    return found


def _object(where: str, text: str) -> dict[str, Any]:
    found = _parsed(text)
    if not isinstance(found, dict):
        raise InvalidQuestion(f"{where}: give a JSON object")
    return found


def _parsed(text: str) -> object:
    """JSON, or `None` where it is none. `NaN`, halves of characters and depths beyond the parser's are none."""
    try:
        found: object = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _json(value: object) -> str:
    """Compact JSON; empty for what is empty. Halves of characters, as some servers cut them, stay escaped."""
    if not value:
        return ""
    told = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        told.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return told
