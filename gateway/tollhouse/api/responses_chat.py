"""A Responses request as a chat completion, for providers that have no ``/responses``.

What a chat completion cannot say is refused with the item or field in ``param``, never dropped,
but for what means nothing there: ``store`` and ``metadata`` belong to a stored response,
``truncation: auto`` leaves the cutting to the provider, and reasoning items of earlier turns are
for the provider that wrote them.
"""

from typing import Any

import msgspec

from tollhouse.api.responses import ResponsesRequest
from tollhouse.errors import RequestError

_NOT_IN_CHAT = frozenset(
    (
        *("input", "instructions", "max_output_tokens", "tools", "tool_choice", "text"),
        *("reasoning", "include", "top_logprobs", "truncation", "store", "metadata", "background"),
        *("stream_options", "max_tool_calls"),
    )
)
_WEB_SEARCH = ("web_search", "web_search_preview")
_ROLES = ("user", "assistant", "system", "developer")
_input_decoder = msgspec.json.Decoder(str | list[dict[str, Any]])


def to_chat(request: ResponsesRequest) -> bytes:
    """The body of the chat completion that asks the same.

    Raises RequestError for what a chat completion cannot ask.
    """
    if request.stateful is not None:
        raise _needs_state(request.stateful)
    fields: dict[str, Any] = {
        name: value for name, value in request.fields.items() if name not in _NOT_IN_CHAT
    }
    fields["messages"] = _messages(request)
    if request.max_output_tokens is not None:
        fields["max_tokens"] = request.max_output_tokens
    if request.tools:
        fields["tools"] = [_tool(tool, number) for number, tool in enumerate(request.tools)]
    if request.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(request.tool_choice)
    if request.top_logprobs is not None:
        fields["top_logprobs"] = request.top_logprobs
    if request.top_logprobs is not None or "message.output_text.logprobs" in request.include:
        fields["logprobs"] = True
    _add_text(fields, request.text)
    _add_reasoning(fields, request.reasoning)
    return msgspec.json.encode(fields)


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    try:
        given = _input_decoder.decode(request.input) if request.input is not None else []
    except msgspec.ValidationError:
        raise RequestError(
            "invalid_value", "`input` must be a string or a list of objects.", param="input"
        ) from None
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for number, item in enumerate(given):
        _add_item(messages, item, f"input[{number}]")
    if not given:
        raise RequestError("invalid_value", "`input` must hold at least one item.", param="input")
    return messages


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], path: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append(_message(item, path))
    elif kind == "function_call":
        call = {
            "id": _text(item, "call_id", path),
            "type": "function",
            "function": {
                "name": _text(item, "name", path),
                "arguments": _text(item, "arguments", path),
            },
        }
        # Chat has the calls of one turn, and the words beside them, in one message.
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        messages.append(
            {
                "role": "tool",
                "tool_call_id": _text(item, "call_id", path),
                "content": _content(output, f"{path}.output"),
            }
        )
    elif kind != "reasoning":
        raise _unsupported(
            f"{path}.type", f"The model's provider cannot take items of type `{kind}`."
        )


def _message(item: dict[str, Any], path: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(
            "invalid_value", f"`{path}.role` must be one of {', '.join(_ROLES)}.",
            param=f"{path}.role",
        )  # fmt: skip
    content = _content(item.get("content"), f"{path}.content")
    if role == "assistant" and isinstance(content, list):
        # Many compatible servers take an assistant's turn only as a plain string.
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    return {"role": role, "content": content}


def _content(given: Any, path: str) -> str | list[dict[str, Any]]:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise RequestError(
            "invalid_value", f"`{path}` must be a string or a list of parts.", param=path
        )
    parts = [_part(part, f"{path}[{number}]") for number, part in enumerate(given)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _part(part: Any, path: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise RequestError("invalid_value", f"`{path}` must be an object.", param=path)
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": _text(part, "text", path)}
        case "refusal":
            return {"type": "refusal", "refusal": _text(part, "refusal", path)}
        case "input_image":
            if part.get("file_id") is not None:
                raise _unsupported(
                    f"{path}.file_id", "Send the image as `image_url`: https, or a data URI."
                )
            image = {"url": _text(part, "image_url", path)}
            if part.get("detail") is not None:
                image["detail"] = part["detail"]
            return {"type": "image_url", "image_url": image}
        case "input_file":
            if part.get("file_url") is not None:
                raise _unsupported(f"{path}.file_url", "Send the file itself as `file_data`.")
            names = ("file_data", "file_id", "filename")
            file = {name: part[name] for name in names if part.get(name) is not None}
            return {"type": "file", "file": file}
        case "input_audio":
            return part
        case kind:
            raise _unsupported(
                f"{path}.type", f"The model's provider cannot take parts of type `{kind}`."
            )


def _tool(tool: dict[str, Any], number: int) -> dict[str, Any]:
    path = f"tools[{number}]"
    kind = tool.get("type")
    if kind == "function":
        _text(tool, "name", path)
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        return {"type": "function", "function": function}
    if isinstance(kind, str) and kind.startswith(_WEB_SEARCH):
        return {**tool, "type": "web_search"}
    raise _unsupported(
        f"{path}.type",
        f"The model's provider has no tool of type `{kind}`; send function or web_search tools.",
    )


def _tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": _text(choice, "name", "tool_choice")}}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        tools = [
            {"type": "function", "function": {"name": tool.get("name")}}
            for tool in choice["tools"]
            if isinstance(tool, dict)
        ]
        mode = choice.get("mode", "auto")
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
    raise _unsupported(
        "tool_choice", "Send `none`, `auto`, `required`, or the name of one of your functions."
    )


def _add_text(fields: dict[str, Any], text: dict[str, Any]) -> None:
    if text.get("verbosity") is not None:
        fields["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None:
        return
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        for name in ("name", "schema"):
            if name not in schema:
                raise RequestError(
                    "missing_field", f"Send `text.format.{name}`.", param=f"text.format.{name}"
                )
        fields["response_format"] = {"type": kind, "json_schema": schema}
    elif kind == "json_object":
        fields["response_format"] = form
    elif kind != "text":
        raise RequestError(
            "invalid_value",
            "`text.format.type` must be `text`, `json_object` or `json_schema`.",
            param="text.format.type",
        )


def _add_reasoning(fields: dict[str, Any], reasoning: dict[str, Any]) -> None:
    effort = reasoning.get("effort")
    if effort is not None:
        if not isinstance(effort, str):
            raise RequestError(
                "invalid_value", "`reasoning.effort` must be a string.", param="reasoning.effort"
            )
        fields["reasoning_effort"] = effort
    # A chat provider shows its reasoning or does not: there is no summary to ask for.
    named = ("effort", "summary", "generate_summary")
    rest = {name: value for name, value in reasoning.items() if name not in named}
    if rest:
        fields["reasoning"] = rest


def _text(item: dict[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if isinstance(value, str):
        return value
    param = f"{path}.{name}"
    if value is None:
        raise RequestError("missing_field", f"Send `{param}`.", param=param)
    raise RequestError("invalid_value", f"`{param}` must be a string.", param=param)


def _unsupported(param: str, message: str) -> RequestError:
    return RequestError("unsupported_parameter", message, param=param)


def _needs_state(name: str) -> RequestError:
    advice = {
        "background": "Leave it out and wait for the answer, or stream it.",
        "prompt": "Send the prompt's text as `instructions` and `input`.",
    }.get(name, "Send the whole conversation so far as `input` instead.")
    return _unsupported(
        name, f"`{name}` needs a provider that keeps responses, and this model has none. {advice}"
    )
