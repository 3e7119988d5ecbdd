"""Responses: what callers send to ``POST /v1/responses``.

Source of the format: the OpenAI API reference, "Create a model response". Fields are kept as the
bytes that came, as in ``api.chat``; ``input`` is only looked into where it has to be translated.
"""

from typing import Any

import msgspec

from tollhouse.api import checking
from tollhouse.api.chat import GATEWAY_FIELDS, ModelName, is_web_search
from tollhouse.errors import RequestError


class ResponsesBody(msgspec.Struct):
    """A request for a response. Fields that are not listed reach a provider that has responses."""

    model: ModelName
    input: str | list[Any] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    user: str | None = None
    store: bool | None = None
    truncation: str | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    free_models_only: bool | None = None
    web_search_enabled: bool | None = msgspec.field(default=None, name="webSearchEnabled")


class ResponsesRequest(msgspec.Struct, frozen=True):
    """A checked request. ``fields`` holds the bytes of every top-level field, in their order.

    ``input`` is as it came: a string or a list, None where a stored prompt or state stands in for
    it. ``stateful`` names the first field that only a provider with state of its own can serve.
    """

    model: str
    input: msgspec.Raw | None
    instructions: str | None
    stream: bool
    max_output_tokens: int | None
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any] | None
    text: dict[str, Any]
    reasoning: dict[str, Any]
    include: list[str]
    top_logprobs: int | None
    stateful: str | None
    searches: bool
    """Whether there is a tool that searches the web."""
    has_tools: bool
    """Whether there are tools other than that."""
    free_models_only: bool
    fields: dict[str, msgspec.Raw]


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_checked_decoder = msgspec.json.Decoder(ResponsesBody)
_NULL = msgspec.Raw(b"null")
_RANGES = {"temperature": (0, 2), "top_p": (0, 1), "top_logprobs": (0, 20)}
_STATEFUL = ("previous_response_id", "conversation", "prompt", "background")


def parse(body: bytes) -> ResponsesRequest:
    """Check a request body. Raises RequestError with ``param`` naming the field at fault."""
    checked = checking.decode(_checked_decoder, body)
    fields = checking.decode(_fields_decoder, body)
    stateful = next((name for name in _STATEFUL if getattr(checked, name)), None)
    given = fields["input"] if checked.input is not None else None
    if given is None and stateful in (None, "background"):
        raise RequestError(
            "missing_field", "Send `input`: a text, or a list of items.", param="input"
        )
    _check_ranges(checked)
    fields = {
        name: value
        for name, value in fields.items()
        if value != _NULL and name not in GATEWAY_FIELDS
    }
    tools = checked.tools or []
    if checked.web_search_enabled and not any(_searches(tool) for tool in tools):
        tools = [*tools, {"type": "web_search"}]
        fields["tools"] = msgspec.Raw(msgspec.json.encode(tools))
    return ResponsesRequest(
        model=checked.model,
        input=given,
        instructions=checked.instructions,
        stream=bool(checked.stream),
        max_output_tokens=checked.max_output_tokens,
        tools=tools,
        tool_choice=checked.tool_choice,
        text=checked.text or {},
        reasoning=checked.reasoning or {},
        include=checked.include or [],
        top_logprobs=checked.top_logprobs,
        stateful=stateful,
        searches=any(_searches(tool) for tool in tools),
        has_tools=not all(_searches(tool) for tool in tools),
        free_models_only=checked.free_models_only is True,
        fields=fields,
    )


def with_effort(request: ResponsesRequest, effort: str) -> ResponsesRequest:
    """The request with the effort that its model's name asks for, unless it says one itself."""
    if request.reasoning.get("effort") is not None:
        return request
    reasoning = {**request.reasoning, "effort": effort}
    fields = {**request.fields, "reasoning": msgspec.Raw(msgspec.json.encode(reasoning))}
    return msgspec.structs.replace(request, reasoning=reasoning, fields=fields)


def _searches(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and is_web_search(kind)


def _check_ranges(checked: ResponsesBody) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(checked, name)
        if value is not None and not least <= value <= most:
            raise RequestError(
                "invalid_value",
                f"`{name}` must be between {least} and {most}, not {value:g}.",
                param=name,
            )
    if checked.max_output_tokens is not None and checked.max_output_tokens < 1:
        raise RequestError(
            "invalid_value", "`max_output_tokens` must be at least 1.", param="max_output_tokens"
        )
    if checked.truncation not in (None, "auto", "disabled"):
        raise RequestError(
            "invalid_value", "`truncation` must be `auto` or `disabled`.", param="truncation"
        )
