"""Endpoints of OpenAI-compatible providers other than chat: the same path, the same bytes.

Only the model's name is replaced, and on completions what the route says of parameters and of the
output cap. A route's parameters are not put into other bodies: a default temperature for chat would
make a provider refuse an embedding.
"""

from typing import Any

import msgspec

from tollhouse.api.passthrough import JSONRequest
from tollhouse.providers import parameters as route
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
    route.apply(fields, parameters, cap, caps=("max_tokens",), otherwise="max_tokens")
    fields["model"] = model
    if request.stream and not request.wants_usage:
        options = request.fields.get("stream_options", _NULL)
        given = msgspec.json.decode(options, type=dict[str, msgspec.Raw] | None)
        fields["stream_options"] = {**(given or {}), "include_usage": True}
    return f"{provider.base_url}/completions", msgspec.json.encode(fields)
