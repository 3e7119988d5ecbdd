"""OpenAI's own protocol, and every server that speaks it: bytes through.

Only the fields that have to differ are replaced: the model's name at the provider, the output cap,
the route's parameters, and ``stream_options.include_usage``, since spend is counted from usage.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.api.chat import ChatRequest, encode_fields
from tollhouse.snapshot import Parameters, Provider

_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


def chat_request(
    request: ChatRequest,
    *,
    provider: Provider,
    model: str,
    cap: int | None,
    parameters: Parameters,
) -> tuple[str, bytes]:
    """The URL and body for a chat completion; ``cap`` is the most output tokens allowed."""
    fields: dict[str, Any] = dict(request.fields)
    for name, value in parameters.defaults.items():
        if name not in fields or fields[name] == _NULL:
            fields[name] = value
    fields.update(parameters.overrides)
    if request.model != model:
        fields["model"] = model
    if cap is not None:
        _apply_cap(fields, cap, provider)
    if request.stream and not request.wants_usage:
        options = fields.get("stream_options")
        given = (
            msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None)
            if isinstance(options, msgspec.Raw)
            else None
        )
        fields["stream_options"] = {**(given or {}), "include_usage": _TRUE}
    return f"{provider.base_url}/chat/completions", encode_fields(fields)


def headers(provider: Provider) -> dict[str, str]:
    """Headers for every request to this provider, its credential among them."""
    result = {"Content-Type": "application/json", **provider.headers}
    if provider.credential is not None:
        result["Authorization"] = f"Bearer {provider.credential.value}"
    return result


def error_of(body: bytes) -> Mapping[str, Any]:
    """The provider's error as an object with at least ``message``; {} where it is no such thing."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(error, str):
        return {"message": error}
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return error
    return {}


def _apply_cap(fields: dict[str, Any], cap: int, provider: Provider) -> None:
    asked = False
    for name in ("max_tokens", "max_completion_tokens"):
        value = fields.get(name)
        if isinstance(value, msgspec.Raw):
            value = msgspec.json.decode(value)
        if isinstance(value, int):
            asked = True
            fields[name] = min(value, cap)
    if not asked:
        # OpenAI's reasoning models refuse max_tokens; older compatible servers know only that.
        theirs = provider.base_url.startswith("https://api.openai.com/")
        fields["max_completion_tokens" if theirs else "max_tokens"] = cap
