"""Endpoints whose bodies the gateway passes on: what it reads of a request and of an answer.

Source of the formats: the OpenAI API reference (embeddings, completions, moderations, images,
audio), and for ``rerank``, which OpenAI does not have, what vLLM and Jina answer. Only the model's
name and whether to stream are read of a request, and only usage of an answer; everything else keeps
the bytes that it came in.
"""

from typing import Any

import msgspec

from tollhouse.api import sse
from tollhouse.api.usage import Usage
from tollhouse.errors import RequestError, StatusError


class JSONRequest(msgspec.Struct, frozen=True):
    """A request whose ``fields`` hold the bytes of every top-level field, in their order."""

    model: str
    stream: bool
    wants_usage: bool
    fields: dict[str, msgspec.Raw]


class _Usage(msgspec.Struct):
    """The names that the endpoints have for the same two numbers."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_answer_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse(body: bytes, default_model: str | None) -> JSONRequest:
    """Read what routing needs. Raises RequestError with ``param`` naming the field at fault.

    ``default_model`` is what a request without ``model`` means; None refuses it.
    """
    try:
        fields = _fields_decoder.decode(body)
    except msgspec.ValidationError:
        raise RequestError("invalid_value", "The body must be a JSON object.") from None
    except _UNREADABLE:
        raise RequestError("invalid_json", "The body is not valid JSON in UTF-8.") from None
    model = _read(fields, "model", str, "a string")
    if model is None:
        model = default_model
    if model is None:
        raise missing_model()
    if not model:
        raise RequestError("invalid_value", "`model` is empty.", param="model")
    options = _read(fields, "stream_options", dict[str, Any], "an object") or {}
    return JSONRequest(
        model=model,
        stream=bool(_read(fields, "stream", bool, "true or false")),
        wants_usage=options.get("include_usage") is True,
        fields=fields,
    )


def missing_model() -> RequestError:
    """There is nothing to route by."""
    return RequestError("missing_field", "Send `model`: the name to route by.", param="model")


def read_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer, None where there is none. Raises ValueError unless JSON."""
    try:
        return _counted(_answer_decoder.decode(body).usage)
    except msgspec.ValidationError:
        return None
    except _UNREADABLE as error:
        raise ValueError("the answer is not JSON") from error


def echo(body: bytes, model: str) -> bytes:
    """The answer with the caller's own name for the model, where it names one at all."""
    try:
        fields: dict[str, Any] = dict(_fields_decoder.decode(body))
    except msgspec.ValidationError:
        return body
    own = msgspec.Raw(msgspec.json.encode(model))
    if fields.get("model", own) == own:
        return body
    fields["model"] = own
    return msgspec.json.encode(fields)


class EventWatch:
    """Looks at the events of any endpoint here as they pass.

    Completions end with ``[DONE]`` and name their model; images and audio have typed events, the
    last of which ends in ``.completed`` or ``.done``. ``hides_usage`` keeps back the chunk that
    only holds usage, from callers who did not ask for it.
    """

    def __init__(self, *, model: str, hides_usage: bool) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self.usage: Usage | None = None
        self._model = model
        self._hides_usage = hides_usage
        self._typed = False

    def fresh(self) -> "EventWatch":
        return EventWatch(model=self._model, hides_usage=self._hides_usage)

    def see(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data == b"[DONE]":
            self.done = self.begun = True
            return sse.DONE
        try:
            found = _event_decoder.decode(data)
        except _UNREADABLE:
            return event
        if found.error is not None:
            code = found.error.get("code") if isinstance(found.error, dict) else None
            raise StatusError(
                code if isinstance(code, int) and 400 <= code < 600 else 500,
                data,
            )
        if found.usage is not None:
            self.usage = _counted(found.usage)
        if found.type is not None:
            self._typed = self.begun = True
            self.finished = self.finished or found.type.endswith((".completed", ".done"))
            return event
        for choice in found.choices or ():
            self.begun = self.begun or bool(choice.text) or choice.finish_reason is not None
            self.finished = self.finished or choice.finish_reason is not None
        if self._hides_usage and found.usage is not None and not found.choices:
            return b""
        # Rewritten only where the provider's name for the model is not the caller's.
        echoed = echo(data, self._model)
        return event if echoed is data else b"data: " + echoed + b"\n\n"

    def ending(self) -> bytes:
        return b"" if self._typed else sse.DONE


def _read(fields: dict[str, msgspec.Raw], name: str, kind: Any, words: str) -> Any:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind | None)
    except msgspec.ValidationError:
        raise RequestError("invalid_value", f"`{name}` must be {words}.", param=name) from None
    except _UNREADABLE:
        raise RequestError("invalid_json", "The body is not valid JSON in UTF-8.") from None


def _counted(usage: _Usage | None) -> Usage | None:
    """None where tokens are not what the provider counts: audio is also billed by the second."""
    if usage is None:
        return None
    output = usage.completion_tokens or usage.output_tokens or 0
    for given in (usage.prompt_tokens, usage.input_tokens):
        if given is not None:
            return Usage(prompt_tokens=given, completion_tokens=output)
    if usage.total_tokens is None:
        return None
    return Usage(prompt_tokens=max(0, usage.total_tokens - output), completion_tokens=output)
