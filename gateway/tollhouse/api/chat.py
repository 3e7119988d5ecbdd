"""Chat completions: what callers send, in OpenAI's shape.

Source of the format: the OpenAI API reference, "Create chat completion". A request's fields are
kept as the bytes that came (``msgspec.Raw``), so that what the gateway does not need to change
reaches the provider unchanged, unknown fields included.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.errors import RequestError


class _Checked(msgspec.Struct):
    """The fields that the gateway itself reads; null is the same as absent."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: str | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """A checked request. ``fields`` holds the bytes of every top-level field, in their order."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    wants_usage: bool
    max_tokens: int | None
    max_completion_tokens: int | None
    fields: dict[str, msgspec.Raw]


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_checked_decoder = msgspec.json.Decoder(_Checked)


def parse(body: bytes) -> ChatRequest:
    """Check a request body. Raises RequestError with ``param`` naming the field at fault."""
    try:
        checked = _checked_decoder.decode(body)
        fields = _fields_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_value(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("invalid_json", _why_not_json(error)) from None
    if checked.model is None:
        raise RequestError("missing_field", "Send `model`: the name to route by.", param="model")
    if not checked.model:
        raise RequestError("invalid_value", "`model` is empty.", param="model")
    if checked.messages is None:
        raise RequestError(
            "missing_field", "Send `messages`: the conversation so far.", param="messages"
        )
    _check_messages(checked.messages)
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(checked, name)
        if value is not None and value < 1:
            raise RequestError("invalid_value", f"`{name}` must be at least 1.", param=name)
    options = checked.stream_options or {}
    return ChatRequest(
        model=checked.model,
        messages=checked.messages,
        stream=bool(checked.stream),
        wants_usage=options.get("include_usage") is True,
        max_tokens=checked.max_tokens,
        max_completion_tokens=checked.max_completion_tokens,
        fields=fields,
    )


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """A body of these fields; ``msgspec.Raw`` values go out as they came."""
    return msgspec.json.encode(fields)


def _check_messages(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise RequestError(
            "invalid_value", "`messages` must hold at least one message.", param="messages"
        )
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise RequestError(
                "invalid_value",
                f"`messages[{number}].role` must be a string such as `user` or `assistant`.",
                param=f"messages[{number}].role",
            )


_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_TYPES = re.compile(r"Expected `(?P<want>[^`]+)`, got `(?P<got>[^`]+)`")


def _invalid_value(error: msgspec.ValidationError) -> RequestError:
    text, _, path = str(error).partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    found = _TYPES.match(text)
    if found is None:
        return RequestError("invalid_value", f"{text}.", param=param)
    want = " or ".join(
        _WORDS.get(word, word) for word in found["want"].split(" | ") if word != "null"
    )
    got = _WORDS.get(found["got"], found["got"])
    subject = f"`{param}`" if param else "The body"
    return RequestError("invalid_value", f"{subject} must be {want}, not {got}.", param=param)


def _why_not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "The body is nested too deeply."
    if isinstance(error, UnicodeDecodeError):
        return "The body is not valid UTF-8."
    return f"The body is not valid JSON: {error}."


def mistake(error: Exception) -> RequestError:
    """What to answer to a body that a msgspec decoder refused with this error."""
    if isinstance(error, msgspec.ValidationError):
        return _invalid_value(error)
    return RequestError("invalid_json", _why_not_json(error))
