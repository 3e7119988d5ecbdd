"""An answer that is neither JSON nor events, on its way to a caller: speech, subtitles, images."""

import asyncio
import time
from collections.abc import Callable

from tollhouse.api.usage import Usage
from tollhouse.errors import UpstreamTimeout
from tollhouse.transport import Answer


class Binary:
    """The bytes of one answer as they come, of which ``first`` has been read.

    ``idle`` and ``total`` are in seconds, ``deadline`` on the clock of ``time.monotonic``;
    ``ended`` is told the outcome once, when the answer is closed. Such an answer says no usage.
    """

    def __init__(
        self,
        answer: Answer,
        first: bytes,
        *,
        idle: float,
        total: float,
        deadline: float,
        ended: Callable[[str, Usage | None], None],
    ) -> None:
        self.content_type = answer.headers.get("Content-Type") or "application/octet-stream"
        self._answer = answer
        self._first = first
        self._over = not first
        self._idle = idle
        self._total = total
        self._deadline = deadline
        self._ended = ended

    async def next(self) -> bytes:
        """The next bytes for the caller, b"" once the answer is over.

        Raises UpstreamError when it breaks off or stalls.
        """
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._over:
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
        self._over = not chunk
        return chunk

    def close(self, outcome: str) -> None:
        """Let go of the provider; called exactly once, whatever happened."""
        self._answer.close()
        self._ended(outcome, None)
