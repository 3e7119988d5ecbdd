"""The callers' port: aiohttp's low-level server, without a router and with our error envelope.

aiohttp answers what is not HTTP by itself, in plain text and with a log line that quotes the
request; both are replaced here, because every failure has one shape and no log holds a key. What a
caller does to its connection (ends a body early, sends a head drop by drop, never reads) is
answered where it still can be, and bounded in time where it cannot.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

from aiohttp import StreamReader, http_exceptions, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from tollhouse.api import envelope
from tollhouse.errors import RequestError

_KEEP_ALIVE = 620.0
"""Seconds. Longer than load balancers keep an idle connection (600 s is common), so that it is
never we who close one that a request is already on."""
_HEAD_SECONDS = 30.0
"""From the first byte of a request's head to its last."""
_STALL_SECONDS = 90.0
"""How long a caller may take nothing of what waits for it. Longer than the proxy gives a stream,
which knows better what was lost; this one is for whole answers."""
_LINGER_SECONDS = 5.0
"""A caller that is refused before it sent its whole body still gets to read why."""
_LONGEST_LINE = 8190
_LONGEST_FIELD = 16380

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Connection(RequestHandler):
    """One connection of a caller.

    ``_arriving`` is the body of the newest request. A caller that closes its sending side in the
    middle of a body is told so; one that does it after a whole request counts as gone, because
    nothing tells the two apart, and its request is cancelled.
    """

    __slots__ = ("_arriving", "_head_due", "_last", "_socket", "_stall_due")

    def __init__(self, manager: web.Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        self._arriving: StreamReader = EMPTY_PAYLOAD
        self._last = False
        self._head_due: asyncio.TimerHandle | None = None
        self._stall_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # aiohttp forgets the transport as it closes, when it may still hold an unread answer.
        self._socket = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._head_due, self._stall_due):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        count = self._request_count
        super().data_received(data)
        if self._request_count == count:
            if data and self._head_due is None and self._is_idle():
                self._head_due = self._loop.call_later(_HEAD_SECONDS, self._head_overdue)
        else:
            if self._head_due is not None:
                self._head_due.cancel()
                self._head_due = None
            message, body = self._messages[-1]
            if isinstance(message, _ErrInfo) and not self._arriving.is_eof():
                # The parser reports a broken body as if it were the next request.
                self._break_body()
            else:
                self._arriving = body
        if self._last and self._arriving.is_eof():
            self.close()

    def finish(self) -> None:
        """Close once the request under way, if there is one, is answered."""
        if self._is_idle() or self._request_count == 0:
            self.force_close()
        elif self._arriving.is_eof():
            self.close()
        else:
            # A closing connection reads no more, not even the rest of a body.
            self._last = True

    # asyncio reads the result, which aiohttp's own method does not have: True keeps it open.
    def eof_received(self) -> bool | None:  # type: ignore[override]  # because asyncio reads what aiohttp says is None
        if not self._arriving.is_eof() and self._socket.get_extra_info("ssl_object") is None:
            self._break_body()
            return True
        if self._current_request is not None:
            # A mere close would first wait until the caller has read what was sent so far.
            self._socket.abort()
        return None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_due is not None:
            self._stall_due.cancel()
            self._stall_due = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun; the connection can only be closed")
        error = _explained(status, exc)
        response = web.Response(
            status=status,
            body=envelope.encode(error),
            headers={
                "Content-Type": "application/json",
                "Server": "tollhouse",
                "x-request-id": os.urandom(16).hex(),
                **envelope.headers(error),
            },
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        self.logger.error("a connection failed: %s", type(kw.get("exc_info")).__name__)

    def _is_idle(self) -> bool:
        """Whether no request is under way and none waits."""
        return self._waiter is not None and not self._waiter.done() and not self._close

    def _break_body(self) -> None:
        """Whoever reads the body learns that there is no more; the answer is the last one here."""
        body = self._arriving
        body.set_exception(web.RequestPayloadError("the body ended early"))
        body.feed_eof()
        self.close()

    def _head_overdue(self) -> None:
        self._head_due = None
        waiter = self._waiter
        if waiter is None or not self._is_idle():
            return
        late = TimeoutError("the head did not arrive in time")
        self._messages.append((_ErrInfo(status=408, exc=late, message=""), EMPTY_PAYLOAD))
        waiter.set_result(None)

    def _watch_writing(self, before: int | None = None) -> None:
        """Cut the connection when its caller has taken nothing since ``before`` bytes waited."""
        waiting = self._socket.get_write_buffer_size()
        if before is not None and waiting >= before:
            self._socket.abort()
            return
        self._stall_due = self._loop.call_later(_STALL_SECONDS, self._watch_writing, waiting)


class Server(web.Server):
    """Hands every request to one handler, and cancels it when the caller goes away."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(handler, handler_cancellation=True)

    def pre_shutdown(self) -> None:
        """Begin to drain: idle connections close now, the others after their answer."""
        for connection in self.connections:
            cast(_Connection, connection).finish()

    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEP_ALIVE,
            access_log=None,
            lingering_time=_LINGER_SECONDS,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_FIELD,
        )


def _explained(status: int, exc: BaseException | None) -> RequestError:
    """What is wrong with the request, without quoting it."""
    if status == 408:
        return RequestError(
            "request_timeout",
            f"The head of the request did not arrive within {_HEAD_SECONDS:g} s. Send it again.",
        )
    if isinstance(exc, http_exceptions.LineTooLong):
        return RequestError(
            "invalid_http",
            "The request's first line or a header is too long: the gateway takes "
            f"{_LONGEST_LINE} bytes for the line and {_LONGEST_FIELD} for a header.",
        )
    return RequestError(
        "invalid_http",
        f"This is not a request that the gateway can read ({HTTPStatus(status).phrase}).",
        status=status,
    )
