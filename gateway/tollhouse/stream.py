"""A provider's event stream on its way to a caller: forwarded as it comes, watched as it passes.

Each event is sent on at once. A ``Watch`` of the protocol at hand looks into it for what the
gateway must know: usage, an error in mid-stream, the end; and says what of it the caller gets.
"""

import contextlib
from collections.abc import Callable
from typing import Protocol

from tollhouse.api import sse
from tollhouse.api.usage import Usage
from tollhouse.errors import BrokenAnswer, UpstreamError
from tollhouse.transport import Answer, Patience

_LONGEST_PRELUDE = 64
"""How many events without content a stream may begin with before it counts as begun."""
_DRAIN = 0.25
"""Seconds to wait after the last event for the end of the body, to have the connection again."""


class Watch(Protocol):
    """What a protocol makes of the events that pass.

    ``begun`` once a piece of the answer was seen, ``finished`` once the provider said that it is
    complete, ``done`` once nothing comes after.
    """

    begun: bool
    finished: bool
    done: bool

    @property
    def usage(self) -> Usage | None:
        """What the provider has counted so far, or an estimate of it."""
        ...

    def fresh(self) -> "Watch":
        """Another one for another attempt, which has seen nothing."""
        ...

    def see(self, event: bytes) -> bytes:
        """What to send on for a whole event, b"" for nothing.

        Raises StatusError for an event by which the provider reports a failure.
        """
        ...

    def ending(self) -> bytes:
        """What to send after a finished stream whose provider left out the last event."""
        ...


class Watches(Protocol):
    """Where each attempt gets a watch from that has seen nothing; a watch does for its own kind."""

    def fresh(self) -> Watch: ...


class Stream:
    """One stream. ``begin`` waits for the first piece of the answer, ``next`` gives what to send.

    ``patience`` bounds each wait for more once it has begun; ``ended`` is told the outcome, the
    usage and the error once, when the stream is closed.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        watch: Watch,
        patience: Patience,
        ended: Callable[[str, Usage | None, UpstreamError | None], None],
    ) -> None:
        self._answer = answer
        self._watch = watch
        self._patience = patience
        self._ended = ended
        self._splitter = sse.Splitter()
        self._ready: list[bytes] = []
        self._over = False

    @property
    def usage(self) -> Usage | None:
        """What the provider has counted so far, or an estimate of it."""
        return self._watch.usage

    async def begin(self) -> None:
        """Read up to the first event with content; the caller bounds the time this may take.

        Raises UpstreamError when the stream ends or reports an error before that.
        """
        while not self._watch.begun and len(self._ready) < _LONGEST_PRELUDE:
            self._take(await self._answer.chunk())

    async def next(self) -> bytes:
        """The next bytes for the caller, b"" once the stream is over.

        Raises UpstreamError when the stream breaks off, stalls, or reports an error.
        """
        while not self._ready:
            if self._over:
                return b""
            if self._watch.done:
                await self._drain()
                return b""
            self._take(await self._patience.chunk(self._answer))
        ready = self._ready[0] if len(self._ready) == 1 else b"".join(self._ready)
        self._ready.clear()
        return ready

    def close(self, outcome: str, error: UpstreamError | None = None) -> None:
        """Let go of the provider; called exactly once, whatever happened.

        ``outcome`` is ``ok``, ``cancelled``, or the word of the ``error`` that ended it.
        """
        self._answer.close()
        self._ended(outcome, self.usage, error)

    def _take(self, chunk: bytes) -> None:
        watch = self._watch
        for event in self._splitter.feed(chunk) if chunk else self._last_events():
            if watch.done:
                return
            if passed := watch.see(event):
                self._ready.append(passed)
        if not chunk and not watch.done:
            if not watch.finished:
                raise BrokenAnswer("the stream ended in the middle of the answer")
            # Some servers close after the last piece without saying so.
            self._ready.append(watch.ending())
            watch.done = self._over = True

    def _last_events(self) -> list[bytes]:
        rest = self._splitter.rest()
        return [rest.rstrip(b"\r\n") + b"\n\n"] if rest.strip() else []

    async def _drain(self) -> None:
        # The caller has its whole answer; where this fails only the connection is lost.
        with contextlib.suppress(UpstreamError):
            await self._patience.briefly(_DRAIN, self._read_rest())
        self._over = True

    async def _read_rest(self) -> None:
        while await self._answer.chunk():
            pass
