"""Server-sent events.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re

import msgspec

from tollhouse.api import envelope
from tollhouse.errors import BrokenAnswer, RequestError

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event that has not ended by then is refused: nobody sends one, and it would fill memory."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: every reader passes over it, and it shows the connection to be alive."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n|\r\n\n")


class Splitter:
    """Cuts a byte stream into whole events, wherever its chunks were cut."""

    __slots__ = ("_fresh", "_tail")

    def __init__(self) -> None:
        self._fresh = True
        self._tail = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes, each with the blank line that ends it.

        A byte order mark at the start is left out: it would hide the first event's field name.
        Raises BrokenAnswer when an event outgrows ``MAX_EVENT_BYTES``.
        """
        if self._fresh:
            chunk, self._tail = self._tail + chunk, b""
            if len(chunk) < 3 and _BYTE_ORDER_MARK.startswith(chunk):
                self._tail = chunk
                return []
            self._fresh = False
            chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
        if not self._tail and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            return [piece + b"\n\n" for piece in chunk[:-2].split(b"\n\n")]
        # Only the last bytes of what was searched before can be part of a boundary.
        searched = max(0, len(self._tail) - 3)
        data = self._tail + chunk
        events = []
        start = 0
        for found in _BOUNDARY.finditer(data, searched):
            # A chunk may end between the two bytes of the last CRLF: the LF belongs to this event.
            if found.end() == len(data) and data.endswith(b"\r") and found.group() != b"\r\r":
                break
            events.append(data[start : found.end()])
            start = found.end()
        self._tail = data[start:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise BrokenAnswer("a stream event is larger than 16 MiB")
        return events

    def rest(self) -> bytes:
        """What came after the last whole event; some servers leave out the final blank line."""
        rest, self._tail = self._tail, b""
        return rest


def data_of(event: bytes) -> bytes:
    """The event's ``data`` lines joined by newlines; empty for a comment."""
    if (
        event.startswith(b"data: ")
        and event.find(b"\n", 0, len(event) - 2) < 0
        and b"\r" not in event
    ):
        return event[6:].rstrip(b"\n")
    lines = []
    for line in event.splitlines():
        name, colon, value = line.partition(b":")
        if colon and name == b"data":
            lines.append(value[1:] if value.startswith(b" ") else value)
    return b"\n".join(lines)


def event(payload: object) -> bytes:
    """A ``data`` event that holds this as JSON."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def error_event(error: RequestError) -> bytes:
    """How a stream that has begun ends in failure; no ``[DONE]`` follows it."""
    return event(envelope.error_object(error))
