"""One request, from its head to the last byte of its answer.

auth → parse → resolve the model → upstream → body or stream back → telemetry. The routing table is
read once, at the start: a reload in mid-request changes nothing for it.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping

import structlog
from aiohttp import HttpVersion11, StreamReader, web

from tollhouse import auth, failures, upstream
from tollhouse.api import chat, envelope, sse
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.routing import Table
from tollhouse.settings import Settings
from tollhouse.snapshot import Key
from tollhouse.stream import Stream
from tollhouse.telemetry import Metrics, Tracer

log = structlog.get_logger()

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
_JSON = "application/json"
_WRITE_TIMEOUT = 60.0
"""Seconds that a caller may leave a stream unread before it is cut."""


class Proxy:
    """Answers callers from the ``table`` in force; whoever reloads replaces that one reference.

    ``draining`` closes each connection after its answer; ``active`` counts requests under way.
    """

    def __init__(
        self, settings: Settings, calls: upstream.Upstream, metrics: Metrics, tracer: Tracer
    ) -> None:
        self.table: Table | None = None
        self.draining = False
        self.active = 0
        self._settings = settings
        self._upstream = calls
        self._metrics = metrics
        self._tracer = tracer

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request; nothing is raised but cancellation when the caller has gone."""
        exchange = Exchange(request)
        exchange.keep_alive = not self.draining
        self.active += 1
        self._metrics.in_flight.inc()
        try:
            return await self._answer(exchange)
        except RequestError as error:
            return exchange.refuse(error)
        except (asyncio.CancelledError, ConnectionError):
            exchange.code = "cancelled"
            raise
        except Exception:
            log.exception("internal error", request_id=exchange.id, path=request.path)
            return exchange.refuse(
                RequestError(
                    "internal_error",
                    f"The gateway failed. Report the request id {exchange.id} to its operators.",
                )
            )
        finally:
            self.active -= 1
            self._metrics.in_flight.dec()
            self._record(exchange)

    async def _answer(self, exchange: "Exchange") -> web.StreamResponse:
        method, path = exchange.request.method, exchange.request.path
        if path == "/v1/chat/completions":
            _allow(method, "POST")
            return await self._chat(exchange)
        if path == "/v1/models":
            _allow(method, "GET")
            return self._models(exchange)
        raise RequestError(
            "not_found",
            "There is nothing at this path. The gateway serves POST /v1/chat/completions and "
            "GET /v1/models; set your SDK's base URL to end in /v1.",
        )

    async def _chat(self, exchange: "Exchange") -> web.StreamResponse:
        table, caller = self._admit(exchange)
        body = await read_body(
            exchange.request, self._settings.max_body_bytes, self._settings.body_timeout
        )
        request = chat.parse(body)
        try:
            resolution = table.resolve(caller, request.model)
        except RequestError as error:
            if error.code == "model_not_allowed":
                error.status = self._settings.denied_model_status
            raise
        exchange.route = resolution.route.id
        headers = exchange.request.headers
        call = upstream.Call(
            request=request,
            resolution=resolution,
            headers=headers,
            trace=self._tracer.context(headers),
            started=exchange.started,
        )
        try:
            if request.stream:
                stream = await self._upstream.stream(table.snapshot, call, exchange.trail)
                return await self._forward(exchange, stream)
            answer = await self._upstream.whole(table.snapshot, call, exchange.trail)
        except UpstreamError as error:
            raise failures.answer_for(
                error, resolution.route, exchange.trail.provider, exchange.trail.attempts
            ) from None
        return exchange.whole(answer)

    async def _forward(self, exchange: "Exchange", stream: Stream) -> web.StreamResponse:
        """Send a stream that has begun. From here on a failure can only end it."""
        outcome = "cancelled"
        try:
            response = await exchange.open_stream()
            try:
                while chunk := await stream.next():
                    async with asyncio.timeout(_WRITE_TIMEOUT):
                        await response.write(chunk)
                outcome = "ok"
            except UpstreamError as error:
                outcome = error.outcome
                await response.write(sse.error_event(exchange.broken(error)))
            except TimeoutError:
                exchange.code = "caller_stalled"
                exchange.cut()
            return response
        finally:
            exchange.trail.usage = stream.usage
            stream.close(outcome)

    def _models(self, exchange: "Exchange") -> web.StreamResponse:
        table, caller = self._admit(exchange)
        exchange.route = "models"
        models = [(route.models[0], route.namespace) for route in table.visible(caller)]
        return exchange.whole(chat.model_list(models))

    def _admit(self, exchange: "Exchange") -> tuple[Table, Key]:
        """The table to serve this request by, and who asks."""
        table = self.table
        if table is None:
            raise RequestError(
                "draining",
                "The gateway has no configuration yet. Try again shortly.",
                headers={"retry-after": "1"},
            )
        return table, auth.identify(exchange.request.headers, table.snapshot, time.time())

    def _record(self, exchange: "Exchange") -> None:
        metrics, trail = self._metrics, exchange.trail
        metrics.requests(exchange.route, exchange.status, exchange.code).inc()
        metrics.duration(exchange.route).observe(time.monotonic() - exchange.started)
        if trail.attempts:
            metrics.overhead.observe(exchange.overhead())
        if trail.usage is not None:
            metrics.tokens(exchange.route, "input").inc(trail.usage.prompt_tokens)
            metrics.tokens(exchange.route, "output").inc(trail.usage.completion_tokens)


class Exchange:
    """One request and its answer: what is known of it, and the answer's headers."""

    def __init__(self, request: web.BaseRequest) -> None:
        self.request = request
        self.started = time.monotonic()
        self.id = _request_id(request.headers)
        self.trail = upstream.Trail()
        self.route = "none"
        self.status = 0
        self.code = "ok"
        self.keep_alive = True
        self._answered: float | None = None

    def whole(self, body: bytes) -> web.Response:
        """A whole JSON answer."""
        return self._respond(200, body, {})

    def refuse(self, error: RequestError) -> web.Response:
        """An error in the documented envelope."""
        self.code = error.code
        return self._respond(error.status, envelope.encode(error), envelope.headers(error))

    async def open_stream(self) -> web.StreamResponse:
        """Send the head of an event stream."""
        self._answered = time.monotonic()
        self.status = 200
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                **self._headers(),
            }
        )
        # Without chunks, only the end of the connection tells an HTTP/1.0 caller the stream's end.
        if not self.keep_alive or self.request.version < HttpVersion11:
            response.force_close()
        await response.prepare(self.request)
        return response

    def broken(self, error: UpstreamError) -> RequestError:
        """What ends a stream that has begun; remembers it for telemetry."""
        refusal = failures.broken_stream(error, self.trail.provider)
        self.code = refusal.code
        return refusal

    def cut(self) -> None:
        """Drop the connection: the caller does not read, so nothing can be said to it."""
        if self.request.transport is not None:
            self.request.transport.abort()

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
        if trail.provider is not None:
            headers["x-tollhouse-provider"] = trail.provider.name
            headers["x-tollhouse-model"] = trail.model
            headers["x-tollhouse-attempts"] = str(trail.attempts)
            headers["x-tollhouse-overhead-ms"] = f"{self.overhead() * 1000:.2f}"
        return headers


async def read_body(request: web.BaseRequest, limit: int, seconds: float) -> bytes:
    """The whole request body of at most ``limit`` bytes, within ``seconds``.

    Raises RequestError for a wrong content type, a body that is too large, cut short or too slow.
    """
    headers = request.headers
    if request.content_type != _JSON:
        raise RequestError(
            "unsupported_media_type",
            "Send the body as JSON, with `Content-Type: application/json`.",
        )
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    if headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    content = request.content
    try:
        if content.is_eof():
            # It came together with the head: nothing to wait for.
            return await _read(content, limit)
        async with asyncio.timeout(seconds):
            return await _read(content, limit)
    except TimeoutError:
        raise RequestError(
            "request_timeout", f"The body did not arrive within {seconds:g} s. Send it again."
        ) from None
    except (web.RequestPayloadError, ValueError):
        raise RequestError(
            "invalid_http", "The body ended early or is not encoded as its headers say."
        ) from None


async def _read(content: StreamReader, limit: int) -> bytes:
    pieces = []
    size = 0
    while piece := await content.readany():
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        "request_too_large",
        f"The body is larger than {limit} bytes. Send less, or a URL instead of inline data.",
    )


def _allow(method: str, allowed: str) -> None:
    if method != allowed:
        raise RequestError(
            "method_not_allowed", f"Use {allowed} for this path.", headers={"Allow": allowed}
        )


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()
