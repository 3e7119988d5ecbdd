"""``/responses`` at OpenAI, and at servers that have it too: bytes through, as in ``openai``."""

from typing import Any

import msgspec

from tollhouse.api.chat import ChatRequest
from tollhouse.api.reasoning import Reasoning
from tollhouse.api.responses import ResponsesRequest
from tollhouse.providers import openai
from tollhouse.providers import parameters as route
from tollhouse.snapshot import Capabilities, Parameters, Provider

_RENAMED = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens"}
_CHAT_ONLY = frozenset(
    (
        *("messages", "n", "stop", "seed", "logprobs", "logit_bias", "functions", "function_call"),
        *("frequency_penalty", "presence_penalty", "response_format", "modalities", "audio"),
        *("prediction", "web_search_options", "verbosity", "stream_options", "tools"),
        *("tool_choice", "thinking"),
    )
)
"""What a route may set for chat completions and ``/responses`` would refuse or read otherwise."""


def native_request(
    request: ResponsesRequest,
    *,
    provider: Provider,
    model: str,
    cap: int | None,
    parameters: Parameters,
) -> tuple[str, bytes]:
    """The URL and body for a provider's own ``/responses``; ``cap`` is in output tokens."""
    fields: dict[str, Any] = dict(request.fields)
    route.apply(
        fields,
        parameters,
        cap,
        caps=("max_output_tokens",),
        otherwise="max_output_tokens",
        put=_put,
    )
    if request.model != model:
        fields["model"] = model
    return f"{provider.base_url}/responses", msgspec.json.encode(fields)


def translated_request(
    asked: ChatRequest,
    *,
    provider: Provider,
    model: str,
    cap: int | None,
    parameters: Parameters,
    reasoning: Reasoning | None = None,
    capabilities: Capabilities | None = None,
) -> tuple[str, bytes]:
    """The URL and body of the chat completion that a request was translated to."""
    if "max_tokens" in asked.fields and provider.base_url.startswith("https://api.openai.com/"):
        # OpenAI's reasoning models refuse max_tokens; older compatible servers know only that.
        fields = dict(asked.fields)
        fields["max_completion_tokens"] = fields.pop("max_tokens")
        asked = msgspec.structs.replace(
            asked, fields=fields, max_tokens=None, max_completion_tokens=asked.max_tokens
        )
    return openai.chat_request(
        asked,
        provider=provider,
        model=model,
        cap=cap,
        parameters=parameters,
        reasoning=reasoning,
        capabilities=capabilities,
    )


def _put(fields: dict[str, Any], name: str, value: Any, replace: bool) -> None:
    """One of the route's parameters, which are in chat's words, in those of ``/responses``."""
    if name in _CHAT_ONLY:
        return
    if name == "reasoning_effort":
        given = fields.get("reasoning")
        reasoning = (
            msgspec.json.decode(given, type=dict[str, msgspec.Raw])
            if isinstance(given, msgspec.Raw)
            else given or {}
        )
        if replace or "effort" not in reasoning:
            fields["reasoning"] = {**reasoning, "effort": value}
        return
    route.put(fields, _RENAMED.get(name, name), value, replace)
