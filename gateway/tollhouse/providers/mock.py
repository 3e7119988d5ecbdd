"""The Mock provider's answers: deterministic, in OpenAI's shape, without any upstream.

Demos, tests and load runs use it. The same request always gets the same answer; only
``fail_with.every_nth`` depends on how many requests came before.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tollhouse.snapshot import Mock, MockFailure

_CREATED = 1_700_000_000
_CHARS_PER_TOKEN = 4
DEFAULT_TEXT = "This is the Tollhouse mock provider."


@dataclass(frozen=True, slots=True)
class Script:
    """What to send: a status, then pieces of the body with ``chunk_delay`` seconds between them.

    ``first_byte_delay`` (seconds) passes before the head. ``disconnect`` breaks the connection
    after the last piece; with no piece and no status there is no answer at all.
    """

    status: int | None
    pieces: tuple[bytes, ...] = field(repr=False)
    content_type: str = "application/json"
    first_byte_delay: float = 0.0
    chunk_delay: float = 0.0
    disconnect: bool = False


def script(
    mock: Mock, body: bytes, number: int, answer: Callable[[Mock, bytes], tuple[list[bytes], str]]
) -> Script:
    """The script for a request; ``number`` counts this provider's requests from 1.

    ``answer`` gives the pieces of the body and its content type, where the provider does not fail.
    """
    failure = mock.fail_with
    failing = failure is not None and number % failure.every_nth == 0
    if failing and failure is not None and failure.after_chunks is None:
        return _refusal(mock, failure)
    pieces, content_type = answer(mock, body)
    disconnect = False
    if failing and failure is not None:
        pieces = pieces[: failure.after_chunks]
        disconnect = failure.disconnect
        if not disconnect:
            pieces.append(b"data: " + _failure_body(failure) + b"\n\n")
    return Script(
        status=200,
        pieces=tuple(pieces),
        content_type=content_type,
        first_byte_delay=mock.first_byte_delay,
        chunk_delay=mock.chunk_delay,
        disconnect=disconnect,
    )


def chat_script(mock: Mock, body: bytes, number: int) -> Script:
    """The script for a chat completion; ``number`` counts this provider's requests from 1."""
    return script(mock, body, number, _chat)


def _chat(mock: Mock, body: bytes) -> tuple[list[bytes], str]:
    request = msgspec.json.decode(body)
    if request.get("stream"):
        return _stream(mock, request, body), "text/event-stream"
    return [_whole(mock, request, body)], "application/json"


def _refusal(mock: Mock, failure: MockFailure) -> Script:
    return Script(
        status=None if failure.disconnect else failure.status or 500,
        pieces=() if failure.disconnect else (_failure_body(failure),),
        first_byte_delay=mock.first_byte_delay,
        disconnect=failure.disconnect,
    )


def _failure_body(failure: MockFailure) -> bytes:
    if failure.body is not None:
        return failure.body.encode()
    error = {"message": "The mock provider was told to fail.", "type": "mock_error", "code": None}
    return msgspec.json.encode({"error": error})


def _whole(mock: Mock, request: dict[str, Any], body: bytes) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": text(mock, request)}
    if mock.reasoning is not None:
        message["reasoning_content"] = mock.reasoning
    if mock.images:
        message["images"] = _images(mock)
    if mock.tool_calls:
        message["content"] = None
        message["tool_calls"] = _tool_calls(mock)
    return msgspec.json.encode(
        {
            "id": _id(body),
            "object": "chat.completion",
            "created": _CREATED,
            "model": request.get("model"),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": _finish_reason(mock),
                }
            ],
            "usage": usage(mock, request),
        }
    )


def _stream(mock: Mock, request: dict[str, Any], body: bytes) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if mock.reasoning is not None:
        deltas += [{"reasoning_content": piece} for piece in cut(mock.reasoning, None)]
    if mock.images:
        deltas.append({"images": _images(mock)})
    if mock.tool_calls:
        for index, call in enumerate(_tool_calls(mock)):
            arguments = call["function"]["arguments"]
            opening = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
            deltas.append({"tool_calls": [opening]})
            deltas += [
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
                for piece in cut(arguments, mock.chunks)
            ]
    else:
        deltas += [{"content": piece} for piece in cut(text(mock, request), mock.chunks)]
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": delta, "finish_reason": None}] for delta in deltas
    ]
    choices.append([{"index": 0, "delta": {}, "finish_reason": _finish_reason(mock)}])
    head = {
        "id": _id(body),
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": request.get("model"),
    }
    events = [event({**head, "choices": choice}) for choice in choices]
    if (request.get("stream_options") or {}).get("include_usage"):
        events.append(event({**head, "choices": [], "usage": usage(mock, request)}))
    return [*events, b"data: [DONE]\n\n"]


def event(chunk: dict[str, Any]) -> bytes:
    """One stream event."""
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def text(mock: Mock, request: dict[str, Any]) -> str:
    """What the script answers to these messages."""
    if mock.reply == "Text":
        return mock.text if mock.text is not None else DEFAULT_TEXT
    for message in reversed(request.get("messages") or []):
        if message.get("role") == "user":
            return _plain(message.get("content"))
    return ""


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        str(part.get("text", "")) for part in parts if isinstance(part, dict) and "text" in part
    )


def cut(whole: str, pieces: int | None) -> list[str]:
    """A text in this many pieces; by default word by word."""
    if pieces is None:
        words = whole.split(" ")
        return [words[0], *(f" {word}" for word in words[1:])]
    size, extra = divmod(len(whole), pieces)
    result = []
    start = 0
    for number in range(pieces):
        end = start + size + (number < extra)
        result.append(whole[start:end])
        start = end
    return result


def _tool_calls(mock: Mock) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_mock_{number}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(mock.tool_calls)
    ]


def _images(mock: Mock) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}} for url in mock.images]


def _finish_reason(mock: Mock) -> str:
    return "tool_calls" if mock.tool_calls else "stop"


def usage(mock: Mock, request: dict[str, Any]) -> dict[str, Any]:
    """The script's usage, or a count of these messages and the answer."""
    said = mock.usage
    prompt = said.prompt_tokens if said is not None else None
    completion = said.completion_tokens if said is not None else None
    if prompt is None:
        prompt = sum(
            tokens(_plain(message.get("content"))) for message in request.get("messages") or []
        )
    if completion is None:
        completion = tokens(text(mock, request)) + tokens(mock.reasoning or "")
    result: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if said is not None and said.cached_tokens is not None:
        result["prompt_tokens_details"] = {"cached_tokens": said.cached_tokens}
    if said is not None and said.reasoning_tokens is not None:
        result["completion_tokens_details"] = {"reasoning_tokens": said.reasoning_tokens}
    return result


def tokens(words: str) -> int:
    """A plausible count: as many as a tokenizer finds in English, roughly."""
    return -(-len(words) // _CHARS_PER_TOKEN)


def _id(body: bytes) -> str:
    return f"chatcmpl-mock-{hashlib.sha256(body).hexdigest()[:24]}"
