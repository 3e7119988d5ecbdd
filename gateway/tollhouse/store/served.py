"""Counters of several workers, kept in the memory of their parent.

Parent and worker have the two ends of a socket pair. On it the worker's ``SharedStore`` says what
it would say to Valkey, and the parent does to a ``MemoryStore`` what ``valkey.lua`` does there.
However a worker ends, its end closes, and what it had reserved is free at that moment. When the
parent ends, its workers do too.

A frame is its length in four bytes, the highest first, then msgpack: the names of counters and
what is asked of them to the parent; from it the answer, in the order in which it was asked.
"""

import asyncio
import socket
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from tollhouse.errors import StoreError
from tollhouse.settings import PARENT_STORE
from tollhouse.store import Count, Kind, wire
from tollhouse.store.counting import Key, holds, key_of
from tollhouse.store.memory import MemoryStore
from tollhouse.store.outbox import member

TIMEOUT = 1.0
"""Seconds that a request waits for the parent at most. Only a machine that is busy makes it late,
so it gets longer than a server behind a network does."""
_LARGEST_FRAME = 16 * 1024 * 1024
_MOST_UNANSWERED = 256
_HEAD = 4

_asked = msgspec.msgpack.Decoder(tuple[list[str], bytes])
_request = msgspec.msgpack.Decoder(list[Any])


class _Frames(asyncio.Protocol):
    """One end of the pair. ``take`` gets whole frames."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer, 0
        buffer += data
        while len(buffer) - at >= _HEAD:
            begin = at + _HEAD
            end = begin + int.from_bytes(buffer[at:begin], "big")
            if end - begin > _LARGEST_FRAME:
                self.hang_up()
                return
            if len(buffer) < end:
                break
            self.take(bytes(buffer[begin:end]))
            at = end
        del buffer[:at]

    @abstractmethod
    def take(self, frame: bytes) -> None:
        """What this end does with a frame of the other's."""

    def send(self, frame: bytes) -> None:
        """Queue a frame; to an end that is closed nothing is sent."""
        if self.transport is not None:
            self.transport.write(len(frame).to_bytes(_HEAD, "big") + frame)

    def hang_up(self) -> None:
        """Let go of the pair; the other end notices."""
        if self.transport is not None:
            self.transport.abort()


class Served:
    """The parent's side: all that workers count is counted in this ``store``."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._workers: set[_Worker] = set()

    async def connect(self) -> tuple[asyncio.Transport, socket.socket]:
        """A pair for one more worker: our end, which is answered until it closes, and the worker's.

        The caller closes both.
        """
        ours, theirs = socket.socketpair()
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Worker(self._store, self._workers), sock=ours
            )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return transport, theirs


class _Worker(_Frames):
    """What one worker asks for, and holds. Its batches come in order and each at most once, except
    for changes whose answer came too late for it."""

    def __init__(self, store: MemoryStore, workers: "set[_Worker]") -> None:
        super().__init__()
        self._counters = store.counters
        self._workers = workers
        self._applied = 0
        self._held: dict[tuple[Key, str], int] = {}
        self._granted: dict[int, tuple[str, int]] = {}
        """Batches whose answers the worker may not have had: what was granted of each, and when."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._workers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._workers.discard(self)
        for (key, _), amount in self._held.items():
            counter = self._counters.get(key)
            if counter is not None:
                counter.held -= amount
        self._held.clear()

    def pause_writing(self) -> None:
        # A worker that takes no answers is asked for no more, so that buffers stay small.
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.transport is not None:
            self.transport.resume_reading()

    def take(self, frame: bytes) -> None:
        names, request = _asked.decode(frame)
        command, _, _, kinds, *arguments = _request.decode(request)
        counters = [_counter(name, *kind) for name, kind in zip(names, kinds, strict=True)]
        answer = _COMMANDS[command](self, counters, *arguments)
        self.send(wire.encode(("ok", *answer)))

    def reserve(
        self,
        counters: "list[_Counter]",
        _generation: int,
        number: int,
        done: list[int],
        requests: list[list[Any]],
    ) -> tuple[list[list[Any]], int]:
        """For each request who had no room, then what is used and when it resets, by twos."""
        answers: list[list[Any]] = []
        granted = ""
        for lease, *wanted in requests:
            counts = [
                _count(counters[at - 1], amount, limit, refuses=refuses, settles=held)
                for at, amount, limit, refuses, held in wanted
            ]
            states, refused = self._counters.take(counts)
            if not refused:
                for index, count in enumerate(counts):
                    if holds(count):
                        name = member(lease, index, count.amount)
                        self._held[key_of(count), name] = count.amount
            granted += "0" if refused else "1"
            answer: list[Any] = [refused]
            for state in states:
                answer += (state.used, round(state.resets * 1000))
            answers.append(answer)
        for known in done:
            self._granted.pop(known, None)
        now = self._counters.now()
        self._granted[number] = (granted, now)
        return answers, now

    def apply(self, counters: "list[_Counter]", number: int, changes: list[list[Any]]) -> list[Any]:
        """Take in what has changed; what was taken in before, is not again."""
        if number <= self._applied:
            return []
        self._applied = number
        now = self._counters.now()
        for at, name, held, charge, age, renews, when in changes:
            count = _count(counters[at - 1], held, 0)
            place = (key_of(count), name)
            if renews:
                if place not in self._held:
                    self._held[place] = held
                    self._counters.find(count).held += held
            elif self._held.pop(place, None) is not None:
                self._counters.find(count).held -= held
            if charge:
                self._counters.charge(count, charge, now - when if when else age)
        return []

    def beat(self, _counters: "list[_Counter]", _lives: bool) -> list[int]:
        """How many workers there are."""
        return [len(self._workers)]

    def fence(self, _counters: "list[_Counter]", _generation: int) -> list[Any]:
        """What was granted in batches whose answers may have come too late."""
        return [[(number, marks, when) for number, (marks, when) in self._granted.items()]]

    def read(self, counters: "list[_Counter]", wanted: list[list[Any]]) -> list[Any]:
        """What is used of each counter and when it resets, by twos."""
        counts = [
            _count(counter, amount, limit, refuses=refuses)
            for counter, (amount, limit, refuses) in zip(counters, wanted, strict=True)
        ]
        answer: list[int] = []
        for state in self._counters.read(counts):
            answer += (state.used, round(state.resets * 1000))
        return [answer]


_COMMANDS: dict[str, Callable[..., Sequence[Any]]] = {
    name: getattr(_Worker, name) for name in ("reserve", "apply", "beat", "fence", "read")
}

_Counter = tuple[str, Kind, float, int, int]
"""Whose it is, kind, ``span``, ``since`` and ``until``, as in a ``Count``."""


def _counter(name: str, kind: int, span: int, until: int) -> _Counter:
    """What ``wire.name`` and ``wire.counter`` said."""
    head, _, counter = name.partition(":")
    if kind == wire.WINDOW:
        return (counter, Kind.WINDOW, span / 1000, 0, 0)
    if kind == wire.PERIOD:
        return (counter, Kind.PERIOD, 0.0, int(head[1:]), until // 1000)
    return (counter, Kind.CONCURRENT, 0.0, 0, 0)


def _count(
    counter: _Counter, amount: int, limit: int, *, refuses: bool = False, settles: bool = False
) -> Count:
    whose, kind, span, since, until = counter
    return Count(whose, kind, limit, amount, span, since, until, settles, refuses)


class Parent(_Frames):
    """The worker's side: a backend of ``SharedStore``. Owns the ``connection``."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._opening = asyncio.Lock()
        self._gone = False
        self._unanswered: deque[asyncio.Future[bytes]] = deque()

    async def call(self, process: str, names: Sequence[str], request: bytes) -> bytes:
        if self.transport is None:
            async with self._opening:
                if self.transport is None:
                    await asyncio.get_running_loop().create_unix_connection(
                        lambda: self, sock=self._connection
                    )
        if self._gone:
            raise StoreError("the parent process is gone")
        if len(self._unanswered) >= _MOST_UNANSWERED:
            raise StoreError("the parent process answers nothing")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._unanswered.append(answer)
        self.send(wire.encode((names, request)))
        return await answer

    def take(self, frame: bytes) -> None:
        answer = self._unanswered.popleft()
        if not answer.done():
            answer.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        while self._unanswered:
            answer = self._unanswered.popleft()
            if not answer.done():
                answer.set_exception(StoreError("the parent process is gone"))

    async def close(self) -> None:
        self._gone = True
        if self.transport is None:
            self._connection.close()
        else:
            self.transport.close()


def address(connection: socket.socket) -> str:
    """What a worker's ``settings.store`` is when it inherits this end."""
    return f"{PARENT_STORE}{connection.fileno()}"


def inherited(store: str) -> socket.socket:
    """The end that ``address`` named, in the process that inherited it."""
    connection = socket.socket(fileno=int(store.removeprefix(PARENT_STORE)))
    connection.set_inheritable(False)
    return connection
