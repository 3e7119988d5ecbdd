"""An answer that is neither JSON nor events, on its way to a caller: speech, subtitles, images."""

from collections.abc import Callable

from tollhouse.api.usage import Usage
from tollhouse.errors import UpstreamError
from tollhouse.transport import Answer, Patience


class Binary:
    """The bytes of one answer as they come, of which ``first`` has been read.

    ``patience`` bounds each wait for more; ``ended`` is told the outcome and the error once, when
    the answer is closed. Such an answer says no usage.
    """

    def __init__(
        self,
        answer: Answer,
        first: bytes,
        *,
        patience: Patience,
        ended: Callable[[str, Usage | None, UpstreamError | None], None],
    ) -> None:
        self.content_type = answer.headers.get("Content-Type") or "application/octet-stream"
        self._answer = answer
        self._first = first
        self._over = not first
        self._patience = patience
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
        chunk = await self._patience.chunk(self._answer)
        self._over = not chunk
        return chunk

    def close(self, outcome: str, error: UpstreamError | None = None) -> None:
        """Let go of the provider; called exactly once, whatever happened.

        ``outcome`` is ``ok``, ``cancelled``, or the word of the ``error`` that ended it.
        """
        self._answer.close()
        self._ended(outcome, None, error)
