"""OpenAI's own protocol, and every server that speaks it: bytes through.

Only the fields that have to differ are replaced: the model's name at the provider, the output cap,
the route's parameters, the ways to ask for reasoning and web search that the provider does not
know, and ``stream_options.include_usage``, since spend is counted from usage.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.api.chat import GATEWAY_FIELDS, ChatRequest, encode_fields
from tollhouse.api.reasoning import Reasoning
from tollhouse.providers import parameters as route
from tollhouse.snapshot import Capabilities, Parameters, Provider

_TRUE = msgspec.Raw(b"true")
_NULL = msgspec.Raw(b"null")


def chat_request(
    request: ChatRequest,
    *,
    provider: Provider,
    model: str,
    cap: int | None,
    parameters: Parameters,
    reasoning: Reasoning | None = None,
    capabilities: Capabilities | None = None,
) -> tuple[str, bytes]:
    """The URL and body for a chat completion; ``cap`` is the most output tokens allowed.

    ``reasoning`` is dropped where ``capabilities`` say that the model has none.
    """
    fields: dict[str, Any] = dict(request.fields)
    for name in GATEWAY_FIELDS:
        fields.pop(name, None)
    if reasoning is not None:
        able = capabilities is None or capabilities.reasoning is not False
        _apply_reasoning(fields, reasoning if able else None, parameters.defaults)
    if request.web_search:
        _apply_web_search(fields)
    # OpenAI's reasoning models refuse max_tokens; older compatible servers know only that.
    theirs = provider.base_url.startswith("https://api.openai.com/")
    route.apply(
        fields,
        parameters,
        cap,
        caps=("max_tokens", "max_completion_tokens"),
        otherwise="max_completion_tokens" if theirs else "max_tokens",
    )
    if request.model != model:
        fields["model"] = model
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


def _apply_reasoning(
    fields: dict[str, Any], reasoning: Reasoning | None, defaults: Mapping[str, Any]
) -> None:
    """Leave one form of it, the one that the target takes; None leaves none.

    That is ``reasoning_effort``, unless the route's defaults hold another form: servers differ,
    and a default is where its owner has written down what this one understands.
    """
    for name in ("reasoning", "thinking"):
        fields.pop(name, None)
    if reasoning is None:
        fields.pop("reasoning_effort", None)
    if reasoning is None or reasoning.word is None:
        return
    off = reasoning.effort == "none"
    template = defaults.get("chat_template_kwargs")
    if isinstance(template, dict) and "enable_thinking" in template:
        given = fields.get("chat_template_kwargs")
        own = msgspec.json.decode(given) if isinstance(given, msgspec.Raw) else None
        own = own if isinstance(own, dict) else {}
        fields["chat_template_kwargs"] = {**template, **own, "enable_thinking": not off}
    elif "thinking" in defaults:
        budget = reasoning.max_tokens
        fields["thinking"] = (
            {"type": "disabled" if off else "enabled"}
            if budget is None
            else {"type": "enabled", "budget_tokens": budget}
        )
    elif "reasoning" in defaults:
        # OpenRouter takes one of the two.
        budget = reasoning.max_tokens
        fields["reasoning"] = (
            {"effort": reasoning.effort} if budget is None else {"max_tokens": budget}
        )
    else:
        if fields.get("reasoning_effort", _NULL) == _NULL:
            fields["reasoning_effort"] = reasoning.word
        return
    fields.pop("reasoning_effort", None)


def _apply_web_search(fields: dict[str, Any]) -> None:
    """OpenAI's chat models search by an option of the request, not by a tool.

    Source of the format: the OpenAI API reference, ``web_search_options``. A tool's own options
    go along; its ``user_location`` is nested one deeper there.
    """
    options: dict[str, Any] = {}
    tools = fields.get("tools")
    if isinstance(tools, msgspec.Raw):
        kept = []
        for raw in msgspec.json.decode(tools, type=list[msgspec.Raw] | None) or []:
            tool = msgspec.json.decode(raw)
            if tool.get("type") == "web_search":
                options = _search_options(tool)
            else:
                kept.append(raw)
        if kept:
            fields["tools"] = kept
        else:
            # OpenAI refuses how tools are to be chosen where there are none.
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                fields.pop(name, None)
    if fields.get("web_search_options", _NULL) == _NULL:
        fields["web_search_options"] = options


def _search_options(tool: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    size, location = tool.get("search_context_size"), tool.get("user_location")
    if size is not None:
        options["search_context_size"] = size
    if isinstance(location, dict):
        place = {name: value for name, value in location.items() if name != "type"}
        options["user_location"] = {"type": "approximate", "approximate": place}
    return options
