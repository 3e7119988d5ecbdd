"""The Mock provider beyond chat: every endpoint answers, the same request always the same.

Shapes are those of the OpenAI API reference; ``rerank`` is what vLLM and Jina answer. Files are the
smallest that a decoder takes: a PNG of one pixel, a WAV of a tenth of a second of silence.
"""

import base64
import hashlib
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.providers import mock as chat
from tollhouse.providers.mock import Script
from tollhouse.snapshot import Mock

_DIMENSIONS = 8
_MOST_DIMENSIONS = 4096
_CREATED = 1_700_000_000
_RATE = 8000
"""Samples per second of the silence."""

Reply = tuple[list[bytes], str]
"""The pieces of a body, and its content type."""


def script(mock: Mock, url: str, body: bytes, number: int) -> Script:
    """The script for a request to this URL; ``number`` counts this provider's requests from 1.

    ``body`` is JSON, or a digest of it for an endpoint that takes a form.
    """
    if url.endswith("/chat/completions"):
        return chat.chat_script(mock, body, number)
    for path, answer in _ANSWERS.items():
        if url.endswith(path):
            return chat.script(mock, body, number, answer)
    return Script(status=404, pieces=(_NOTHING_HERE,))


def _embeddings(mock: Mock, body: bytes) -> Reply:
    request = _object(body)
    inputs = _inputs(request.get("input"))
    asked = request.get("dimensions")
    dimensions = asked if isinstance(asked, int) and 0 < asked <= _MOST_DIMENSIONS else _DIMENSIONS
    data = []
    for index, text in enumerate(inputs):
        vector = _unit_vector(text, dimensions)
        packed = request.get("encoding_format") == "base64"
        data.append(
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
                if packed
                else vector,
            }
        )
    tokens = _prompt_tokens(mock, inputs)
    return _json(
        {
            "object": "list",
            "data": data,
            "model": request.get("model"),
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _completion(mock: Mock, body: bytes) -> Reply:
    request = _object(body)
    prompt = "".join(_inputs(request.get("prompt")))
    # The script's text, or the prompt echoed, as on chat.
    messages = [{"role": "user", "content": prompt}]
    text = chat.text(mock, {"messages": messages})
    usage = chat.usage(mock, {"messages": messages})
    head = {
        "id": f"cmpl-mock-{hashlib.sha256(body).hexdigest()[:24]}",
        "object": "text_completion",
        "created": _CREATED,
        "model": request.get("model"),
    }
    if not request.get("stream"):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}
        return _json({**head, "choices": [choice], "usage": usage})
    choices = [
        {"index": 0, "text": piece, "logprobs": None, "finish_reason": None}
        for piece in chat.cut(text, mock.chunks)
    ]
    choices.append({"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"})
    events = [chat.event({**head, "choices": [choice]}) for choice in choices]
    if (request.get("stream_options") or {}).get("include_usage"):
        events.append(chat.event({**head, "choices": [], "usage": usage}))
    return [*events, b"data: [DONE]\n\n"], "text/event-stream"


_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def _moderation(mock: Mock, body: bytes) -> Reply:
    request = _object(body)
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    return _json(
        {
            "id": f"modr-mock-{hashlib.sha256(body).hexdigest()[:24]}",
            "model": request.get("model"),
            "results": [result for _ in _inputs(request.get("input"))],
        }
    )


def _rerank(mock: Mock, body: bytes) -> Reply:
    """Documents by the share of the query's words that they hold."""
    request = _object(body)
    query = str(request.get("query", ""))
    words = set(query.lower().split())
    texts = [
        str(item.get("text", "")) if isinstance(item, dict) else str(item)
        for item in request.get("documents") or []
    ]
    results: list[dict[str, Any]] = [
        {
            "index": index,
            "relevance_score": len(words & set(text.lower().split())) / max(1, len(words)),
            "document": {"text": text},
        }
        for index, text in enumerate(texts)
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    top = request.get("top_n")
    tokens = _prompt_tokens(mock, [query, *texts])
    return _json(
        {
            "id": f"rerank-mock-{hashlib.sha256(body).hexdigest()[:24]}",
            "model": request.get("model"),
            "results": results[: top if isinstance(top, int) else None],
            "usage": {"total_tokens": tokens, "prompt_tokens": tokens},
        }
    )


def _image(mock: Mock, body: bytes) -> Reply:
    """``n`` pictures, as a data URI where a URL was asked for."""
    request = _object(body)
    png = base64.b64encode(_png(hashlib.sha256(body).digest())).decode()
    picture = (
        {"url": f"data:image/png;base64,{png}"}
        if request.get("response_format") == "url"
        else {"b64_json": png}
    )
    count = request.get("n")
    pictures = [picture] * (count if isinstance(count, int) and 0 < count <= 10 else 1)
    prompt = _prompt_tokens(mock, [str(request.get("prompt", ""))])
    usage = {"input_tokens": prompt, "output_tokens": 1, "total_tokens": prompt + 1}
    return _json({"created": _CREATED, "data": pictures, "usage": usage})


def _speech(mock: Mock, body: bytes) -> Reply:
    silence = bytes(2 * _RATE // 10)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _RATE, 2 * _RATE, 2, 16)
    data = struct.pack("<4sI", b"data", len(silence)) + silence
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE")
    return [head + form, data], "audio/wav"


def _transcription(mock: Mock, body: bytes) -> Reply:
    said = mock.text if mock.reply == "Text" and mock.text is not None else chat.DEFAULT_TEXT
    return _json({"text": said})


_ANSWERS: dict[str, Callable[[Mock, bytes], Reply]] = {
    "/embeddings": _embeddings,
    "/completions": _completion,
    "/moderations": _moderation,
    "/rerank": _rerank,
    "/images/generations": _image,
    "/images/edits": _image,
    "/images/variations": _image,
    "/audio/speech": _speech,
    "/audio/transcriptions": _transcription,
    "/audio/translations": _transcription,
}
"""By the end of the URL."""
_NOTHING_HERE = b'{"error":{"message":"The mock provider has no such endpoint.","code":null}}'


def _object(body: bytes) -> dict[str, Any]:
    """The request's fields; none for the digest of a form."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return request if isinstance(request, dict) else {}


def _json(answer: dict[str, Any]) -> Reply:
    return [msgspec.json.encode(answer)], "application/json"


def _inputs(given: Any) -> list[str]:
    """One text for each input: a string, strings, token numbers, lists of those, or parts."""
    if not isinstance(given, list):
        return [str(given)]
    if given and all(isinstance(item, int) for item in given):
        return [str(given)]
    return [str(item.get("text", "")) if isinstance(item, dict) else str(item) for item in given]


def _prompt_tokens(mock: Mock, texts: list[str]) -> int:
    if mock.usage is not None and mock.usage.prompt_tokens is not None:
        return mock.usage.prompt_tokens
    return sum(chat.tokens(text) for text in texts)


def _unit_vector(text: str, dimensions: int) -> list[float]:
    noise = hashlib.shake_256(text.encode()).digest(2 * dimensions)
    raw = [number - 32767.5 for number in struct.unpack(f"<{dimensions}H", noise)]
    length = math.sqrt(sum(number * number for number in raw))
    return [number / length for number in raw]


def _png(colour: bytes) -> bytes:
    """One pixel of the first three bytes as red, green and blue."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + colour[:3])
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts
