"""What `vllm` and `transformers` share: prompts through the model's own template, and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pointsman_worker.domain.backend import StartFailed
from pointsman_worker.domain.failures import InvalidQuestion
from pointsman_worker.domain.model import Message, Question

IGNORED = frozenset(
    {
        "metadata",
        "n",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
"""Fields that do not change what is said, or that others look after."""
SAMPLE_BYTES = 64 * 1024
SAMPLES = 16
"""Of each file of weights so many parts are hashed: other training changes all of them, and gigabytes take minutes."""


def prompt_ids(tokenizer: Any, question: Question) -> list[int]:
    """Ids of the conversation in the model's own template. Raises `InvalidQuestion` where the template refuses it."""
    said = [_text_only(message).as_openai() for message in question.messages]
    try:
        ids = tokenizer.apply_chat_template(said, tokenize=True, add_generation_prompt=True, return_dict=False)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("jinja2", "builtins"):
            raise
        raise InvalidQuestion("the model's chat template does not take this conversation") from error
    return [int(token) for token in ids]


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Text of ids, without special tokens."""

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    return decode


def refuse_unknown(question: Question, known: frozenset[str]) -> dict[str, Any]:
    """The extra parameters that the backend knows. Raises `InvalidQuestion` at one that would be dropped in silence."""
    extra = {name: value for name, value in question.parameters.extra.items() if value not in (None, [], {})}
    foreign = sorted(set(extra) - known - IGNORED)
    if foreign:
        raise InvalidQuestion(f"`{foreign[0]}`: this backend cannot do that; leave it out, or use BACKEND=openai")
    return {name: value for name, value in extra.items() if name in known}


def fingerprint(kind: str, tokenizer: Any, revision: str) -> str:
    """Hash of all that decides how an answer goes on. Raises `StartFailed` where the model cannot chat."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise StartFailed("MODEL_PATH: its tokenizer has no chat template; give the instruction-tuned model")
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), default=str)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else type(tokenizer).__name__
    digest = hashlib.sha256()
    for part in (kind, revision, vocabulary, rules, json.dumps(template, sort_keys=True)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part.encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def revision(path: str, told: str, commit: object) -> str:
    """Which weights these are: a hash of the files, a commit where a hub tells it, or what the operator says."""
    folder = Path(path)
    if folder.is_dir():
        return f"files:{_files(folder)}"
    if isinstance(commit, str) and commit:
        return f"commit:{commit}"
    return f"named:{path}@{told}"


def _files(folder: Path) -> str:
    digest = hashlib.sha256()
    wanted = (".safetensors", ".bin", ".gguf", "config.json")
    for file in sorted(found for found in folder.iterdir() if found.name.endswith(wanted)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for part in range(SAMPLES):
                content.seek(part * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _text_only(message: Message) -> Message:
    """The message with its text parts joined. Raises `InvalidQuestion` where it holds anything else."""
    if not isinstance(message.content, list):
        return message
    kinds = {part.get("type") if isinstance(part, dict) else None for part in message.content}
    if kinds - {"text"}:
        raise InvalidQuestion("`messages`: this backend reads text alone; use BACKEND=openai for images and sound")
    return replace(message, content=message.plain_text())
