"""A provider's event stream on its way to a caller: forwarded as it comes, watched as it passes.

Every event is sent on in the bytes it came in. It is looked into only for what the gateway must
know: usage, which the caller may not have asked for, an error in mid-stream, and the end.
"""

import asyncio
import time
from collections.abc import Callable

from tollhouse.api import chat, sse
from tollhouse.errors import BrokenAnswer, StatusError, UpstreamError, UpstreamTimeout
from tollhouse.transport import Answer

_LONGEST_PRELUDE = 64
"""How many events without content a stream may begin with before it counts as begun."""
_DRAIN = 0.25
"""Seconds to wait after [DONE] for the end of the body, so that the connection can be reused."""


class Stream:
    """One stream. ``begin`` waits for the first piece of the answer, ``next`` gives what to send.

    ``idle`` and ``total`` are in seconds, ``deadline`` on the clock of ``time.monotonic``;
    ``ended`` is told the outcome and the usage once, when the stream is closed.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        wants_usage: bool,
        idle: float,
        total: float,
        deadline: float,
        ended: Callable[[str, chat.Usage | None], None],
    ) -> None:
        self.usage: chat.Usage | None = None
        self._answer = answer
        self._wants_usage = wants_usage
        self._idle = idle
        self._total = total
        self._deadline = deadline
        self._ended = ended
        self._splitter = sse.Splitter()
        self._ready: list[bytes] = []
        self._begun = False
        self._finished = False
        self._done = False
        self._over = False

    async def begin(self) -> None:
        """Read up to the first event with content; the caller bounds the time this may take.

        Raises UpstreamError when the stream ends or reports an error before that.
        """
        while not self._begun:
            self._take(await self._answer.chunk())
            if len(self._ready) >= _LONGEST_PRELUDE:
                self._begun = True

    async def next(self) -> bytes:
        """The next bytes for the caller, b"" once the stream is over.

        Raises UpstreamError when the stream breaks off, stalls, or reports an error.
        """
        while not self._ready:
            if self._over:
                return b""
            if self._done:
                await self._drain()
                return b""
            left = self._deadline - time.monotonic()
            try:
                async with asyncio.timeout(min(self._idle, left)):
                    chunk = await self._answer.chunk()
            except TimeoutError:
                raise (
                    UpstreamTimeout("idle", self._idle)
                    if self._idle < left
                    else UpstreamTimeout("total", self._total)
                ) from None
            self._take(chunk)
        ready = self._ready[0] if len(self._ready) == 1 else b"".join(self._ready)
        self._ready.clear()
        return ready

    def close(self, outcome: str) -> None:
        """Let go of the provider; called exactly once, whatever happened."""
        self._answer.close()
        self._ended(outcome, self.usage)

    def _take(self, chunk: bytes) -> None:
        events = self._splitter.feed(chunk) if chunk else self._last_events()
        for event in events:
            self._pass_on(event)
        if not chunk and not self._done:
            if not self._finished:
                raise BrokenAnswer("the stream ended in the middle of the answer")
            # Some servers close after the last chunk without saying so.
            self._ready.append(sse.DONE)
            self._done = self._over = True

    def _pass_on(self, event: bytes) -> None:
        data = sse.data_of(event)
        if self._done:
            return
        if data == b"[DONE]":
            self._done = self._begun = True
            self._ready.append(sse.DONE)
            return
        chunk = chat.read_chunk(data) if data else None
        if chunk is not None:
            if chunk.error is not None:
                raise StatusError(_status_of(chunk.error), data)
            if chunk.usage is not None:
                self.usage = chunk.usage
                if not chunk.choices and not self._wants_usage:
                    return
            self._finished = self._finished or chunk.finishes
            self._begun = self._begun or chunk.has_content
        self._ready.append(event)

    def _last_events(self) -> list[bytes]:
        rest = self._splitter.rest()
        return [rest.rstrip(b"\r\n") + b"\n\n"] if rest.strip() else []

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN):
                while await self._answer.chunk():
                    pass
        except (TimeoutError, UpstreamError):
            # The caller has its whole answer; only the connection is lost.
            pass
        self._over = True


def _status_of(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
