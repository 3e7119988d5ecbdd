"""Endpoints of OpenAI-compatible providers other than chat: the same path, the same bytes.

Only the model's name is replaced, and on completions what the route says of parameters and of the
output cap. A route's parameters are not put into other bodies: a default temperature for chat would
make a provider refuse an embedding.
"""

from typing import Any

import msgspec

from tollhouse.api.passthrough import JSONRequest
from tollhouse.snapshot import Parameters, Provider

_NULL = msgspec.Raw(b"null")


def json_request(
    request: JSONRequest, *, path: str, provider: Provider, model: str
) -> tuple[str, bytes]:
    """The URL and body to send; ``path`` begins after ``/v1``."""
    fields: dict[str, Any] = dict(request.fields)
    fields["model"] = model
    return f"{provider.base_url}{path}", msgspec.json.encode(fields)


def completion_request(
    request: JSONRequest,
    *,
    provider: Provider,
    model: str,
    cap: int | None,
    parameters: Parameters,
) -> tuple[str, bytes]:
    """The URL and body for a text completion; ``cap`` is the most output tokens allowed."""
    fields: dict[str, Any] = dict(request.fields)
    for name, value in parameters.defaults.items():
        if fields.get(name, _NULL) == _NULL:
            fields[name] = value
    fields.update(parameters.overrides)
    fields["model"] = model
    if cap is not None:
        asked = fields.get("max_tokens")
        if isinstance(asked, msgspec.Raw):
            asked = msgspec.json.decode(asked)
        fields["max_tokens"] = min(asked, cap) if isinstance(asked, int) else cap
    if request.stream and not request.wants_usage:
        options = request.fields.get("stream_options", _NULL)
        given = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None)
        fields["stream_options"] = {**(given or {}), "include_usage": True}
    return f"{provider.base_url}/completions", msgspec.json.encode(fields)
