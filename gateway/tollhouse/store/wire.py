"""What is said to a store that is shared: names of counters, and batches as msgpack.

``valkey.lua`` reads it where the store is Valkey or Redis.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tollhouse.errors import StoreError
from tollhouse.store import Count, Kind

encode = msgspec.msgpack.Encoder().encode
_reply = msgspec.msgpack.Decoder(list[Any])

WINDOW, PERIOD, CONCURRENT = 0, 1, 2

Counter = tuple[int, int, int]
"""Kind, ``span`` in ms, ``until`` in ms since the Unix epoch."""


def name(count: Count) -> str:
    """What a counter is called in the store."""
    if count.kind is Kind.WINDOW:
        return f"w{count.span:g}:{count.counter}"
    if count.kind is Kind.PERIOD:
        return f"p{count.since}:{count.counter}"
    return f"c:{count.counter}"


def counter(count: Count) -> Counter:
    """What the store has to know to count."""
    if count.kind is Kind.WINDOW:
        return (WINDOW, math.ceil(count.span * 1000), 0)
    if count.kind is Kind.PERIOD:
        return (PERIOD, 0, count.until * 1000)
    return (CONCURRENT, 0, 0)


class Counters:
    """The counters of one batch, each once; they are referred to by number, from 1."""

    __slots__ = ("_numbers", "kinds", "names")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.kinds: list[Counter] = []

    def number(self, found: str, kind: Counter) -> int:
        """The number of this counter."""
        number = self._numbers.get(found)
        if number is None:
            self.names.append(found)
            self.kinds.append(kind)
            number = self._numbers[found] = len(self.names)
        return number


class Backend(Protocol):
    """The narrow seam to whatever holds the counters."""

    async def call(self, process: str, names: Sequence[str], request: bytes) -> bytes:
        """One round trip of this process about these counters. Raises StoreError."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def decode(reply: bytes) -> list[Any]:
    """What came back, after the word ``ok``. Raises StoreError for anything else."""
    try:
        word, *rest = _reply.decode(reply)
    except (msgspec.MsgspecError, ValueError, TypeError):
        raise StoreError("the store's answer cannot be read") from None
    if word != "ok":
        raise StoreError(f"the store did not take it ({word})")
    return rest
