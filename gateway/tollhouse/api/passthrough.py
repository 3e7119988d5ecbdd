"""Endpoints whose bodies the gateway passes on: what it reads of a request and of an answer.

Source of the formats: the OpenAI API reference (embeddings, completions, moderations, images,
audio), and for ``rerank``, which OpenAI does not have, what vLLM and Jina answer. Only the model's
name and whether to stream are read of a request, and only usage of an answer; everything else keeps
the bytes that it came in, but for what ``api.additions`` puts beside it.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

from tollhouse.api import additions, shape, sse
from tollhouse.api.additions import Origin
from tollhouse.api.answers import status_of
from tollhouse.api.shape import Shape
from tollhouse.api.usage import Usage
from tollhouse.api.usage import read as read_usage
from tollhouse.errors import RequestError, StatusError

_NULL = msgspec.Raw(b"null")


class JSONRequest(msgspec.Struct, frozen=True):
    """A request whose ``fields`` hold the bytes of every top-level field, in their order."""

    model: str
    stream: bool
    wants_usage: bool
    fields: dict[str, msgspec.Raw]


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NULL
    error: Any = None


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
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


class Whole:
    """A whole answer: read for its usage, then made into what the caller gets.

    ``cut`` is OpenAI's shape of it, for a strict caller; None where OpenAI has no such answer.
    """

    def __init__(self, cut: Shape | None) -> None:
        self._cut = cut
        self._body = b""
        self._fields: dict[str, msgspec.Raw] | None = None

    def read(self, body: bytes) -> Usage | None:
        """Keep the answer; its usage, None where there is none. Raises ValueError unless JSON."""
        self._body, self._fields = body, None
        try:
            self._fields = _fields_decoder.decode(body)
        except msgspec.ValidationError:
            return None
        except _UNREADABLE as error:
            raise ValueError("the answer is not JSON") from error
        return read_usage(self._fields.get("usage"))

    def made(self, origin: Origin, price: Decimal | None) -> bytes:
        """What the caller gets; ``price`` (USD) is that of the usage."""
        if self._fields is None:
            return self._body
        return additions.passed(self._cut, self._fields, origin, price)


class EventWatch:
    """Looks at the events of any endpoint here as they pass.

    Completions end with ``[DONE]`` and name their model; images and audio have typed events, the
    last of which ends in ``.completed`` or ``.done``. ``hides_usage`` keeps back the chunk that
    only holds usage, from callers who did not ask for it. ``origin`` is asked once per attempt who
    answers.
    """

    def __init__(self, origin: Callable[[], Origin], *, hides_usage: bool) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self.usage: Usage | None = None
        self._ask = origin
        self._hides_usage = hides_usage
        self._typed = False
        self._origin: Origin | None = None
        self._chunks: additions.Chunks | None = None

    def fresh(self) -> "EventWatch":
        return EventWatch(self._ask, hides_usage=self._hides_usage)

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
            raise StatusError(status_of(found.error), data)
        counted = read_usage(found.usage)
        if counted is not None:
            self.usage = counted
        if found.type is not None:
            self._typed = self.begun = True
            last = found.type.endswith((".completed", ".done"))
            self.finished = self.finished or last
            return self._see_typed(event, data, counted, last=last)
        finishes = any(choice.finish_reason is not None for choice in found.choices or ())
        self.begun = self.begun or finishes or any(it.text for it in found.choices or ())
        self.finished = self.finished or finishes
        if self._hides_usage and found.usage != _NULL and not found.choices:
            return b""
        if self._chunks is None:
            self._chunks = additions.Chunks(self._who(), shape.COMPLETION)
        if finishes or counted is not None:
            passed = self._chunks.rewritten(
                data,
                counted,
                finishes=finishes,
                reasons=False,
                shows_usage=not self._hides_usage,
            )
        else:
            passed = self._chunks.plain(data)
        return b"data: " + passed.replace(b"\n", b"\ndata: ") + b"\n\n" if passed else b""

    def ending(self) -> bytes:
        return b"" if self._typed else sse.DONE

    def _see_typed(self, event: bytes, data: bytes, counted: Usage | None, *, last: bool) -> bytes:
        """An event with its own ``type``: only the last, or a strict caller's, is written anew."""
        origin = self._who()
        if not last and not origin.strict:
            return event
        try:
            fields = _fields_decoder.decode(data)
        except _UNREADABLE:
            return event
        if origin.strict:
            made = additions.strictly(shape.EVENTS, fields)
        else:
            made = additions.passed(None, fields, origin, origin.price(counted))
        # The lines before the data name the event.
        before = b"".join(
            line + b"\n" for line in event.splitlines() if line and not line.startswith(b"data")
        )
        return before + b"data: " + made.replace(b"\n", b"\ndata: ") + b"\n\n"

    def _who(self) -> Origin:
        if self._origin is None:
            self._origin = self._ask()
        return self._origin


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
