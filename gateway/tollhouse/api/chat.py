"""Chat completions: what callers send and what they get, in OpenAI's shape.

Source of the format: the OpenAI API reference, "Create chat completion". A request's fields are
kept as the bytes that came (``msgspec.Raw``), so that what the gateway does not need to change
reaches the provider unchanged, unknown fields included.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.api import sse
from tollhouse.api.usage import Usage
from tollhouse.errors import RequestError, StatusError


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


class _Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """What the gateway reads of one stream chunk; tolerant, since it is the provider's."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None

    @property
    def has_content(self) -> bool:
        """Whether a caller would see something of the answer in it, or that it is over."""
        return any(
            choice.finish_reason is not None
            or any(value and name != "role" for name, value in (choice.delta or {}).items())
            for choice in self.choices or ()
        )

    @property
    def finishes(self) -> bool:
        return any(choice.finish_reason is not None for choice in self.choices or ())


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_chunk_decoder = msgspec.json.Decoder(Chunk)
_answer_decoder = msgspec.json.Decoder(_Answer)


def read_chunk(data: bytes) -> Chunk | None:
    """The chunk in an event's data, or None when it is not one."""
    try:
        return _chunk_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer, None where there is none. Raises ValueError unless JSON."""
    try:
        return _answer_decoder.decode(body).usage
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("the answer is not JSON") from error


class StreamWatch:
    """Looks at a chat completion's chunks as they pass; every one goes on in its own bytes.

    Usage is always asked of the provider; its chunk goes on only if the caller wants it too.
    """

    def __init__(self, *, wants_usage: bool) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self.usage: Usage | None = None
        self._wants_usage = wants_usage

    def fresh(self) -> "StreamWatch":
        return StreamWatch(wants_usage=self._wants_usage)

    def see(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data == b"[DONE]":
            self.done = self.begun = True
            return sse.DONE
        chunk = read_chunk(data) if data else None
        if chunk is None:
            return event
        if chunk.error is not None:
            raise StatusError(_status_of(chunk.error), data)
        self.finished = self.finished or chunk.finishes
        self.begun = self.begun or chunk.has_content
        if chunk.usage is not None:
            self.usage = chunk.usage
            if not chunk.choices and not self._wants_usage:
                return b""
        return event

    def ending(self) -> bytes:
        return sse.DONE


def _status_of(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def model_list(models: list[tuple[str, str]]) -> bytes:
    """The body of ``GET /v1/models`` for (id, owner) pairs."""
    entries = [
        {"id": model, "object": "model", "created": 0, "owned_by": owner} for model, owner in models
    ]
    return msgspec.json.encode({"object": "list", "data": entries})


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
