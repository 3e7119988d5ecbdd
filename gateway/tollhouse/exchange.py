"""One request and its answer on the callers' side: the body read, the answer's head written."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from decimal import Decimal
from typing import TypeVar
from urllib.parse import quote

from aiohttp import HttpVersion11, StreamReader, web

from tollhouse import failures
from tollhouse.api import cost, envelope, sse
from tollhouse.binary import Binary
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.limits import Ticket
from tollhouse.routing import Resolution
from tollhouse.settings import Settings
from tollhouse.snapshot import Key
from tollhouse.stream import Stream
from tollhouse.upstream import Trail
from tollhouse.waiting import Watchdog

T = TypeVar("T")

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
_JSON = "application/json"
_WRITE_TIMEOUT = 60.0
"""Seconds that a caller may leave a stream unread before it is cut."""

_PARTING = 0.5
"""Seconds that the last event of a stream may take which the gateway itself ends."""


class Held:
    """How many bytes of callers' bodies this process holds, and how many it may at most."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0


Broken = Callable[[RequestError], bytes]
"""How a stream that has begun says, in its own protocol, that it failed."""


class Exchange:
    """One request and its answer: what is known of it, and the answer's headers.

    ``held`` counts for the whole process; ``close`` gives back what this request had of it.
    """

    def __init__(self, request: web.BaseRequest, held: Held) -> None:
        self.request = request
        self.started = time.monotonic()
        self.id = _request_id(request.headers)
        self.trail = Trail()
        self.caller: Key | None = None
        self.resolution: Resolution | None = None
        self.searches = 0
        self.ticket: Ticket | None = None
        self.route = "none"
        self.status = 0
        self.code = "ok"
        self.keep_alive = True
        self._answered: float | None = None
        self._response: web.StreamResponse | None = None
        self._broken: Broken | None = None
        self._held = held
        self._holds = 0
        self._watchdog: Watchdog | None = None

    def close(self) -> None:
        """Give back what it took: called once, when the request is over."""
        self._held.bytes -= self._holds
        if self._watchdog is not None:
            self._watchdog.close()

    async def read_json(self, settings: Settings) -> bytes:
        """The whole JSON body, within the size and the time that the settings allow.

        Raises RequestError for a wrong content type, a body that is too large, cut short or slow.
        """
        if self.request.content_type != _JSON:
            raise RequestError(
                "unsupported_media_type",
                "Send the body as JSON, with `Content-Type: application/json`.",
            )
        pieces: list[bytes] = []
        await self.receive(settings, pieces.append)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive(self, settings: Settings, take: Callable[[bytes], None]) -> None:
        """Give ``take`` the body piece by piece, within the size and time that settings allow.

        Raises RequestError for a body that is too large, cut short or slow, and when all bodies
        together are more than the process may hold.
        """
        request = self.request
        limit, seconds = settings.max_body_bytes, settings.body_timeout
        length = request.content_length
        if length is not None and length > limit:
            raise _too_large(limit)
        if length is not None and self._held.bytes + length > self._held.limit:
            raise _overloaded()
        content = request.content
        try:
            if request.headers.get("Expect", "").lower() == "100-continue":
                async with asyncio.timeout(seconds):
                    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if content.is_eof():
                # It came together with the head: nothing to wait for.
                await self._read(content, limit, take)
                return
            async with asyncio.timeout(seconds):
                await self._read(content, limit, take)
        except TimeoutError:
            raise RequestError(
                "request_timeout", f"The body did not arrive within {seconds:g} s. Send it again."
            ) from None
        except (web.RequestPayloadError, ValueError):
            raise RequestError(
                "invalid_http", "The body ended early or is not encoded as its headers say."
            ) from None

    async def _read(self, content: StreamReader, limit: int, take: Callable[[bytes], None]) -> None:
        held = self._held
        while piece := await content.readany():
            # What has arrived counts, not what was announced: that would let a caller who sends
            # nothing keep others out.
            self._holds += len(piece)
            held.bytes += len(piece)
            if self._holds > limit:
                raise _too_large(limit)
            if held.bytes > held.limit:
                raise _overloaded()
            take(piece)

    def whole(self, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
        """A whole JSON answer, with these headers beside those of every answer."""
        return self._respond(200, body, headers or {})

    def refuse(self, error: RequestError) -> web.StreamResponse:
        """An error in the documented envelope; a stream that has begun is cut instead."""
        if self._response is not None:
            return self._cut(error.code)
        self.code = error.code
        return self._respond(error.status, envelope.encode(error), envelope.headers(error))

    async def give_up(self, error: RequestError) -> web.StreamResponse:
        """Answer for a request whose work was cancelled by the gateway itself.

        A stream that has begun gets the error as its last event; other bytes are cut.
        """
        if self._response is None and self.status == 0:
            return self.refuse(error)
        if self._response is None or self._broken is None:
            return self._cut(error.code)
        try:
            async with asyncio.timeout(_PARTING):
                return await self._end(self._broken(self._refused(error)))
        except TimeoutError:
            return self._cut(error.code)

    async def stream(
        self,
        opening: Coroutine[None, None, Stream],
        *,
        keepalive: float = 0.0,
        explain: Callable[[UpstreamError], RequestError],
        broken: Broken = sse.error_event,
    ) -> web.StreamResponse:
        """Send the stream that ``opening`` comes to, from its first piece to its end.

        After ``keepalive`` seconds of silence the caller gets a comment, the answer's head before
        it: from then on the status is 200, and a failure is told by an event, in the words of
        ``explain`` and in the form of ``broken``. Attempts go on unseen meanwhile. 0 sends none.
        Raises UpstreamError as long as nothing was sent.
        """
        self._broken = broken
        if not keepalive:
            return await self.forward(await opening, broken=broken)
        task = asyncio.ensure_future(opening)
        try:
            stream = await self._while_quiet(task, keepalive)
        except UpstreamError as error:
            if self._response is None:
                raise
            return await self._end(broken(self._refused(explain(error))))
        except TimeoutError:
            await _abandon(task)
            return self._cut()
        except BaseException:
            await _abandon(task)
            raise
        return await self.forward(stream, keepalive=keepalive, broken=broken)

    async def forward(
        self, stream: Stream, *, keepalive: float = 0.0, broken: Broken = sse.error_event
    ) -> web.StreamResponse:
        """Send a stream that has begun, and close it. From here on a failure can only end it."""
        outcome, failure = "cancelled", None
        self._answered = time.monotonic()
        self._broken = broken
        try:
            while chunk := await self._next(stream, keepalive):
                await self._write(chunk)
            outcome = "ok"
            return self._head()
        except UpstreamError as error:
            outcome, failure = error.outcome, error
            refusal = self._refused(failures.broken_stream(error, self.trail.provider))
            return await self._end(broken(refusal))
        except TimeoutError:
            return self._cut()
        finally:
            self.trail.usage = stream.usage
            stream.close(outcome, failure)

    async def forward_bytes(self, answer: Binary) -> web.StreamResponse:
        """Send an answer of another content type as it comes, and close it.

        A failure breaks the connection: nothing else tells a caller that these bytes are not all.
        """
        outcome, failure = "cancelled", None
        try:
            self._answered = time.monotonic()
            self.status = 200
            response = self._response = web.StreamResponse(
                headers={"Content-Type": answer.content_type, **self._headers()}
            )
            if not self.keep_alive or self.request.version < HttpVersion11:
                response.force_close()
            await response.prepare(self.request)
            try:
                while chunk := await answer.next():
                    await self._within(_WRITE_TIMEOUT, response.write(chunk))
                outcome = "ok"
            except (UpstreamError, TimeoutError) as error:
                if isinstance(error, UpstreamError):
                    outcome, failure = error.outcome, error
                    self.code = failures.broken_stream(error, self.trail.provider).code
                else:
                    self.code = "caller_stalled"
                if self.request.transport is not None:
                    self.request.transport.abort()
            return response
        finally:
            answer.close(outcome, failure)

    async def _next(self, stream: Stream, keepalive: float) -> bytes:
        if not keepalive:
            return await stream.next()
        task = asyncio.ensure_future(stream.next())
        try:
            return await self._while_quiet(task, keepalive)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                # Where the caller left at the same moment nobody else asks how it failed.
                task.exception()

    async def _while_quiet(self, task: "asyncio.Future[T]", seconds: float) -> T:
        """What the task comes to, with a comment to the caller for each so many seconds."""
        while not (await asyncio.wait({task}, timeout=seconds))[0]:
            await self._write(sse.KEEP_ALIVE)
        return task.result()

    async def _write(self, data: bytes) -> None:
        """Send a part of a stream, the head before the first. Raises TimeoutError if unread."""
        response = self._head()
        if not response.prepared:
            await response.prepare(self.request)
        await self._within(_WRITE_TIMEOUT, response.write(data))

    async def _within(self, seconds: float, writing: Awaitable[None]) -> None:
        if self._watchdog is None:
            self._watchdog = Watchdog()
        await self._watchdog.within(seconds, writing)

    def _refused(self, refusal: RequestError) -> RequestError:
        """Remember how a stream ended, for telemetry."""
        self.code = refusal.code
        return refusal

    async def _end(self, event: bytes) -> web.StreamResponse:
        """Tell a caller who has the answer's head that the rest will not come."""
        try:
            await self._write(event)
        except TimeoutError:
            return self._cut()
        return self._head()

    def _head(self) -> web.StreamResponse:
        """The one event stream of this exchange."""
        if self._response is None:
            self.status = 200
            self._response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-cache",
                    "X-Accel-Buffering": "no",
                    **self._headers(),
                }
            )
            # Without chunks, only the connection's end tells an HTTP/1.0 caller the stream's end.
            if not self.keep_alive or self.request.version < HttpVersion11:
                self._response.force_close()
        return self._response

    def _cut(self, code: str = "caller_stalled") -> web.StreamResponse:
        """End the connection where nothing more can be said on it."""
        self.code = code
        if self.request.transport is not None:
            self.request.transport.abort()
        return self._head()

    def cost(self) -> Decimal | None:
        """USD that the answer cost; None where nobody knows, or where none was charged for."""
        resolution, target = self.resolution, self.trail.target
        if resolution is None or target is None:
            return None
        return cost.of(self.trail.usage, cost.pricing_of(resolution.route, target), self.searches)

    def overhead(self) -> float:
        """Seconds up to the answer's first byte that were not spent waiting for a provider."""
        until = self._answered if self._answered is not None else time.monotonic()
        return max(0.0, until - self.started - self.trail.waited)

    def _respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> web.Response:
        self._answered = time.monotonic()
        self.status = status
        response = web.Response(
            status=status,
            body=body,
            headers={"Content-Type": _JSON, **self._headers(), **headers},
        )
        if not self.keep_alive:
            response.force_close()
        return response

    def _headers(self) -> dict[str, str]:
        headers = {"Server": "tollhouse", "x-request-id": self.id}
        trail = self.trail
        if self.ticket is not None:
            headers |= self.ticket.headers
        # A head that goes out before any provider has answered cannot say which one will.
        if trail.provider is not None and self._answered is not None:
            headers["x-tollhouse-provider"] = trail.provider.name
            headers["x-tollhouse-model"] = _header_value(trail.model)
            headers["x-tollhouse-attempts"] = str(trail.attempts)
            headers["x-tollhouse-overhead-ms"] = f"{self.overhead() * 1000:.2f}"
        return headers


async def _abandon(opening: "asyncio.Future[Stream]") -> None:
    """Stop asking for a stream that nobody waits for any more, and close one that came."""
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close("cancelled")


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large",
        f"The body is larger than {limit} bytes. Send less, or a URL instead of inline data.",
    )


def _overloaded() -> RequestError:
    return RequestError(
        "overloaded",
        "The gateway holds as many bytes of requests as it may. Try again shortly.",
        headers={"retry-after": "1"},
    )


def _header_value(text: str) -> str:
    """A caller's own text as a header: a name that a wildcard took may hold anything."""
    return text if text.isascii() and text.isprintable() else quote(text, safe="/:@ ")


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()
