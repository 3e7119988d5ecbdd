"""Streams of ``/v1/responses``: events made from chat chunks, or a provider's own.

Source of the format: the OpenAI API reference, "Responses streaming events". ``sequence_number``
counts every event; an item's ``output_index`` is its place in the response's ``output``.
"""

from typing import Any

import msgspec

from tollhouse.api import additions, envelope, estimate, shape, sse
from tollhouse.api.additions import Origin
from tollhouse.api.answers import status_of
from tollhouse.api.responses import ResponsesRequest
from tollhouse.api.responses_answer import (
    Frame,
    Logprobs,
    Message,
    ToolCall,
    logprobs_of,
    outcome,
    read_native_usage,
    refusal_part,
    text_part,
)
from tollhouse.api.usage import Usage
from tollhouse.api.usage import read as read_usage
from tollhouse.errors import BrokenAnswer, RequestError, StatusError

_NULL = msgspec.Raw(b"null")
_OVER = ("response.completed", "response.incomplete", "response.failed")
"""The events that hold the whole response, its usage included."""


class _Choice(msgspec.Struct):
    index: int = 0
    delta: Message | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: int | None = None
    response: dict[str, msgspec.Raw] | None = None
    delta: Any = None
    error: Any = None
    code: str | None = None
    message: str | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_event_decoder = msgspec.json.Decoder(_Event)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Item:
    """An output item under way: what it is, where it stands, and its text so far.

    ``call_id`` and ``name`` are a function call's.
    """

    __slots__ = ("call_id", "citations", "index", "kind", "logprobs", "name", "pieces")

    def __init__(self, kind: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.call_id: str | None = None
        self.name = ""
        self.pieces: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.citations: list[dict[str, Any]] = []


class TranslatedWatch:
    """Makes a response's events of a chat completion's chunks, each as soon as it comes."""

    def __init__(self, frame: Frame, origin: Origin) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self._counted: Usage | None = None
        self._characters = 0
        self._frame = frame
        self._origin = origin
        self._underlying = _NULL
        self._finish_reason: str | None = None
        self._number = 0
        self._started = False
        self._words: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._output: dict[int, dict[str, Any]] = {}
        self._items = 0

    @property
    def usage(self) -> Usage | None:
        if self._counted is None and self._characters:
            return _estimated(self._frame.request, self._characters)
        return self._counted

    def fresh(self) -> "TranslatedWatch":
        return TranslatedWatch(self._frame, self._origin)

    def see(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if not data:
            return event
        if data == b"[DONE]":
            self.done = self.begun = True
            return self.ending()
        try:
            chunk = _chunk_decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BrokenAnswer("a stream event is not a chat completion chunk") from None
        if chunk.error is not None:
            raise StatusError(status_of(chunk.error), data)
        if chunk.model != _NULL:
            self._underlying = chunk.model
        events = [] if self._started else self._start()
        if chunk.usage != _NULL:
            self._counted = read_usage(chunk.usage)
        for choice in chunk.choices or ():
            if choice.index != 0:
                continue
            if choice.delta is not None:
                events += self._grow(choice.delta, logprobs_of(choice.logprobs))
            if choice.finish_reason is not None:
                self._finish_reason = choice.finish_reason
                self.finished = self.begun = True
        return b"".join(events)

    def ending(self) -> bytes:
        """The events that close every open item and the response."""
        status, reason = outcome(self._finish_reason)
        events = [] if self._started else self._start()
        events += self._close_words(status)
        for call in self._calls.values():
            events += self._close_call(call, status)
        response = self._frame.response(status, self._whole_items(), self._counted, reason=reason)
        response = additions.response(
            {**response, "model": self._underlying},
            self._origin,
            self._origin.price(self._counted),
        )
        events.append(self._event(f"response.{status}", response=response))
        return b"".join(events)

    def broken(self, error: RequestError) -> bytes:
        """How a stream that has begun ends in failure: no ``response.completed`` follows."""
        shown = {"code": "server_error", "message": error.message}
        response = self._frame.response("failed", self._whole_items(), error=shown)
        return self._event("response.failed", response=response) + error_event(error, self._number)

    def _start(self) -> list[bytes]:
        self._started = True
        response = self._frame.response("in_progress", [])
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def _grow(self, delta: Message, logprobs: list[dict[str, Any]]) -> list[bytes]:
        events: list[bytes] = []
        thoughts = "" if self._origin.exclude_reasoning else delta.thoughts
        for kind, piece in (
            ("reasoning", thoughts),
            ("text", delta.text),
            ("refusal", delta.refusal),
        ):
            if piece:
                events += self._grow_words(kind, piece, logprobs)
        if delta.annotations:
            events += self._cite(delta.citations)
        if delta.images:
            for url in delta.pictures:
                events += self._show_image(url)
        for call in delta.tool_calls or ():
            events += self._grow_call(call)
        if events:
            self.begun = True
        return events

    def _grow_words(self, kind: str, piece: str, logprobs: list[dict[str, Any]]) -> list[bytes]:
        item, events = self._open_words(kind)
        item.pieces.append(piece)
        self._characters += len(piece)
        place = self._place(item)
        if kind == "reasoning":
            event = self._event("response.reasoning_summary_text.delta", **place, delta=piece)
        elif kind == "text":
            item.logprobs += logprobs
            event = self._event(
                "response.output_text.delta", **place, delta=piece, logprobs=logprobs
            )
        else:
            event = self._event("response.refusal.delta", **place, delta=piece)
        events.append(event)
        return events

    def _open_words(self, kind: str) -> tuple[_Item, list[bytes]]:
        """The item that words of this kind belong to, and the events that begin a new one."""
        item = self._words
        if item is not None and item.kind == kind:
            return item, []
        events = self._close_words("completed")
        item = self._words = self._open(kind)
        shown = self._shown(item, "", "in_progress", empty=True)
        events.append(self._added(item, shown))
        events.append(self._part_event("added", item, shown["id"], ""))
        return item, events

    def _cite(self, citations: list[dict[str, Any]]) -> list[bytes]:
        """Each page once: some servers repeat in every chunk what they have cited so far."""
        if not citations:
            return []
        item, events = self._open_words("text")
        for cited in citations:
            if cited not in item.citations:
                events.append(
                    self._event(
                        "response.output_text.annotation.added",
                        **self._place(item),
                        annotation_index=len(item.citations),
                        annotation=cited,
                    )
                )
                item.citations.append(cited)
        return events

    def _show_image(self, url: str) -> list[bytes]:
        events = self._close_words("completed")
        item = self._open("image")
        begun = self._frame.image_item(item.index, None, "in_progress")
        events.append(self._added(item, begun))
        place = {"item_id": begun["id"], "output_index": item.index}
        events.append(self._event("response.image_generation_call.completed", **place))
        events.append(self._done(item, url, "completed"))
        return events

    def _close_words(self, status: str) -> list[bytes]:
        item = self._words
        if item is None:
            return []
        self._words = None
        text = "".join(item.pieces)
        place = self._place(item)
        if item.kind == "reasoning":
            event = self._event("response.reasoning_summary_text.done", **place, text=text)
        elif item.kind == "text":
            event = self._event(
                "response.output_text.done", **place, text=text, logprobs=item.logprobs
            )
        else:
            event = self._event("response.refusal.done", **place, refusal=text)
        part = self._part_event("done", item, place["item_id"], text)
        return [event, part, self._done(item, text, status)]

    def _grow_call(self, piece: ToolCall) -> list[bytes]:
        function = piece.function
        # Some servers count every call as 0, or none: a new id beside a name is a new call.
        key = piece.index if piece.index is not None else max(self._calls, default=0)
        call = self._calls.get(key)
        events: list[bytes] = []
        named = function is not None and function.name
        if call is not None and piece.id and named and piece.id != call.call_id:
            key = max(self._calls) + 1
            call = None
        if call is None:
            events = self._close_words("completed")
            call = self._calls[key] = self._open("call")
            call.name = (function and function.name) or ""
            call.call_id = piece.id
            shown = self._shown(call, "", "in_progress")
            events.append(self._added(call, shown))
        if function is not None and function.arguments:
            call.pieces.append(function.arguments)
            self._characters += len(function.arguments)
            events.append(
                self._event(
                    "response.function_call_arguments.delta",
                    **self._place(call),
                    delta=function.arguments,
                )
            )
        return events

    def _close_call(self, call: _Item, status: str) -> list[bytes]:
        arguments = "".join(call.pieces) or "{}"
        event = self._event(
            "response.function_call_arguments.done",
            **self._place(call),
            name=call.name,
            arguments=arguments,
        )
        return [event, self._done(call, arguments, status)]

    def _open(self, kind: str) -> _Item:
        item = _Item(kind, self._items)
        self._items += 1
        return item

    def _added(self, item: _Item, shown: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=item.index, item=shown)

    def _done(self, item: _Item, text: str, status: str) -> bytes:
        shown = self._output[item.index] = self._shown(item, text, status)
        return self._event("response.output_item.done", output_index=item.index, item=shown)

    def _shown(self, item: _Item, text: str, status: str, *, empty: bool = False) -> dict[str, Any]:
        """The item as the caller sees it; ``empty`` before it has a part."""
        frame = self._frame
        if item.kind == "reasoning":
            return frame.reasoning_item(item.index, text, status)
        if item.kind == "call":
            return frame.call_item(item.index, item.call_id, item.name, text, status)
        if item.kind == "image":
            return frame.image_item(item.index, text, status)
        return frame.message_item(item.index, [] if empty else [_part(item, text)], status)

    def _part_event(self, what: str, item: _Item, item_id: str, text: str) -> bytes:
        place = {"item_id": item_id, "output_index": item.index}
        if item.kind == "reasoning":
            part = {"type": "summary_text", "text": text}
            name = f"response.reasoning_summary_part.{what}"
            return self._event(name, **place, summary_index=0, part=part)
        name = f"response.content_part.{what}"
        return self._event(name, **place, content_index=0, part=_part(item, text))

    def _place(self, item: _Item) -> dict[str, Any]:
        """What says of an event which item, and which part of it, it is about."""
        name, index = self._frame.name, item.index
        if item.kind == "call":
            return {"item_id": f"fc_{name}_{index}", "output_index": index}
        if item.kind == "reasoning":
            return {"item_id": f"rs_{name}_{index}", "output_index": index, "summary_index": 0}
        return {"item_id": f"msg_{name}_{index}", "output_index": index, "content_index": 0}

    def _whole_items(self) -> list[dict[str, Any]]:
        return [self._output[index] for index in sorted(self._output)]

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._number
        self._number += 1
        event = {"type": kind, "sequence_number": number, **fields}
        if self._origin.strict:
            event = shape.only(shape.RESPONSE_EVENTS, event)
        return named_event(kind, event)


def _part(item: _Item, text: str) -> dict[str, Any]:
    if item.kind != "text":
        return refusal_part(text)
    return text_part(text, item.logprobs, item.citations)


class NativeWatch:
    """Looks at a provider's own events as they pass.

    The caller's name for the model stands in them, and in the last one what the response cost and
    who answered.
    """

    def __init__(self, origin: Origin, request: ResponsesRequest) -> None:
        self.begun = False
        self.finished = False
        self.done = False
        self._counted: Usage | None = None
        self._characters = 0
        self._origin = origin
        self._request = request
        self._number = 0
        self._failed = b""

    @property
    def usage(self) -> Usage | None:
        if self._counted is None and self._characters:
            return _estimated(self._request, self._characters)
        return self._counted

    def fresh(self) -> "NativeWatch":
        return NativeWatch(self._origin, self._request)

    def see(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if not data:
            return event
        try:
            seen = _event_decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return event
        kind = seen.type
        if kind == "error" or (seen.error is not None and not kind):
            error = seen.error or {"message": seen.message, "code": seen.code}
            raise StatusError(status_of(error), msgspec.json.encode({"error": error}))
        if seen.sequence_number is not None:
            self._number = seen.sequence_number + 1
        if seen.response is None:
            self.begun = self.begun or kind.endswith((".delta", ".done"))
            self._characters += estimate.characters(seen.delta)
            return self._made(event, kind, data) if self._origin.strict else event
        usage = read_native_usage(seen.response)
        if usage is not None:
            self._counted = usage
        shown: dict[str, Any] = {**seen.response}
        if kind in _OVER:
            price = self._origin.price(usage)
            shown = additions.response(shown, self._origin, price)
        elif "model" in shown:
            shown["model"] = self._origin.requested_model
        event = self._made(event, kind, data, response=shown)
        if kind == "response.failed":
            self._failed = event
            failure = msgspec.json.decode(seen.response.get("error", _NULL))
            raise StatusError(status_of(failure), msgspec.json.encode({"error": failure}))
        if kind in ("response.completed", "response.incomplete"):
            self.begun = self.finished = self.done = True
        return event

    def ending(self) -> bytes:
        return b""

    def broken(self, error: RequestError) -> bytes:
        """How a stream that has begun ends in failure: the provider's own words come first."""
        return self._failed + error_event(error, self._number)

    def _made(self, event: bytes, kind: str, data: bytes, **changed: object) -> bytes:
        """The event with these fields changed, cut to shape for a strict caller."""
        try:
            fields = {**_fields_decoder.decode(data), **changed}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return event
        made = (
            additions.strictly(shape.RESPONSE_EVENTS, fields)
            if self._origin.strict
            else msgspec.json.encode(fields)
        )
        # What came as several lines goes on as several.
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), made.replace(b"\n", b"\ndata: "))


def _estimated(request: ResponsesRequest, written: int) -> Usage:
    """Where a stream is cut off before the provider has counted."""
    given = msgspec.json.decode(request.input) if request.input is not None else None
    return estimate.usage([request.instructions, given], written)


def named_event(kind: str, payload: object) -> bytes:
    """An event with its name beside the data, as the Responses protocol has it."""
    return b"event: " + kind.encode() + b"\n" + sse.event(payload)


def error_event(error: RequestError, number: int) -> bytes:
    """The last event of a failed stream.

    Its fields stand flat, as the protocol documents them, and as ``error``, by which OpenAI's
    SDKs know to raise.
    """
    shown = envelope.error_object(error)["error"]
    flat = {name: shown[name] for name in ("code", "message", "param")}
    return named_event(
        "error", {"type": "error", "sequence_number": number, **flat, "error": shown}
    )
