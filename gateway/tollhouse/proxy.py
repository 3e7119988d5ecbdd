"""One request, from its head to the last byte of its answer.

auth → parse → resolve the model → limits → upstream → body or stream back → settlement → telemetry.
The routing table is read once, at the start: a reload in mid-request changes nothing for it.
"""

import asyncio
import time

import structlog
from aiohttp import web

from tollhouse import auth
from tollhouse.api.estimate import Estimate
from tollhouse.api.usage import Usage
from tollhouse.endpoints import Context, Endpoint, chat, models, openapi, passthrough, responses
from tollhouse.errors import RequestError
from tollhouse.exchange import Exchange, Held
from tollhouse.limits import Limits, ledger
from tollhouse.routing import Table
from tollhouse.settings import Settings
from tollhouse.snapshot import Key
from tollhouse.telemetry import Metrics, Tracer
from tollhouse.upstream import Upstream

log = structlog.get_logger()

ENDPOINTS: dict[str, tuple[str, Endpoint]] = {
    "/v1/chat/completions": ("POST", chat.answer),
    "/v1/responses": ("POST", responses.answer),
    "/v1/models": ("GET", models.answer),
    "/v1/key": ("GET", models.key),
    "/api/models": ("GET", models.public),
    "/openapi.json": ("GET", openapi.answer),
    **passthrough.ENDPOINTS,
}
"""The callers' port, path by path: the method, and what answers."""

PREFIXES: dict[str, tuple[str, Endpoint]] = {models.PREFIX: ("GET", models.one)}
"""Paths with a name behind them, which may have slashes itself."""

PUBLIC = frozenset({"/openapi.json", "/api/models"})
"""Paths that ask for no key: their endpoints are given ``ANONYMOUS`` as the caller."""

ANONYMOUS = Key(namespace="", name="anonymous", allowed_models=())

_MOST_TOKENS = 10**9
"""More than any one request uses."""


class Proxy:
    """Answers callers from the ``table`` in force; whoever reloads replaces that one reference.

    ``draining`` closes each connection after its answer; ``cut_short`` ends what is under way.
    """

    def __init__(
        self,
        settings: Settings,
        upstream: Upstream,
        limits: Limits,
        metrics: Metrics,
        tracer: Tracer,
        write: ledger.Write | None = None,
    ) -> None:
        self.table: Table | None = None
        self.draining = False
        self._held = Held(settings.max_inflight_bytes)
        self._under_way: set[asyncio.Task[object]] = set()
        self._settings = settings
        self._upstream = upstream
        self._limits = limits
        self._metrics = metrics
        self._tracer = tracer
        self._ledger = write

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer any request; nothing is raised but cancellation when the caller has gone."""
        exchange = Exchange(request, self._held)
        exchange.keep_alive = not self.draining
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is handled in a task of its own")
        self._under_way.add(task)
        self._metrics.in_flight.inc()
        try:
            return await self._answer(exchange)
        except RequestError as error:
            return exchange.refuse(error)
        except asyncio.CancelledError:
            # What is not under way any more was cut short; its caller may have gone as well.
            if task in self._under_way or task.uncancel() > 0:
                exchange.code = "cancelled"
                raise
            return await exchange.give_up(
                RequestError(
                    "draining",
                    "The gateway is going away and cannot finish this request. Send it again.",
                    headers={"retry-after": "1"},
                )
            )
        except ConnectionError:
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
            self._under_way.discard(task)
            self._metrics.in_flight.dec()
            self._settle(exchange)
            exchange.close()
            self._record(exchange)

    def cut_short(self) -> None:
        """End every request under way, each with an error that says so where it still can be."""
        while self._under_way:
            self._under_way.pop().cancel()

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        path = exchange.request.path
        found = ENDPOINTS.get(path) or _below(path)
        if found is None:
            raise RequestError("not_found", f"There is nothing at this path. {_served(path)}")
        method, endpoint = found
        if exchange.request.method != method:
            raise RequestError(
                "method_not_allowed", f"Use {method} for this path.", headers={"Allow": method}
            )
        return await endpoint(self._admit(exchange), exchange)

    def _admit(self, exchange: Exchange) -> Context:
        """Who asks, and the table to serve this request by."""
        table = self.table
        if table is None:
            raise RequestError(
                "draining",
                "The gateway has no configuration yet. Try again shortly.",
                headers={"retry-after": "1"},
            )
        if exchange.request.path in PUBLIC:
            caller = ANONYMOUS
        else:
            caller = auth.identify(exchange.request.headers, table.snapshot, time.time())
        exchange.caller = caller
        return Context(self._settings, self._upstream, self._tracer, self._limits, table, caller)

    def _settle(self, exchange: Exchange) -> None:
        """Count what the request used of its limits, however it ended."""
        ticket, trail = exchange.ticket, exchange.trail
        if ticket is None and self._ledger is None:
            return
        unknown = trail.usage is None and trail.charged
        try:
            spent = exchange.cost()
        except ArithmeticError:
            # A price that is no number, which no compiler lets through: what the request holds
            # has to go all the same.
            spent = None
        if ticket is not None:
            self._limits.settle(ticket, trail.usage, spent, unknown=unknown)
        if self._ledger is not None and exchange.caller is not None and trail.attempts:
            self._ledger(
                ledger.event(
                    request_id=exchange.id,
                    caller=exchange.caller,
                    route=exchange.route,
                    provider=trail.provider,
                    model=trail.model,
                    status=exchange.status,
                    code=exchange.code,
                    seconds=time.monotonic() - exchange.started,
                    usage=trail.usage,
                    spent=spent,
                    estimated=unknown,
                )
            )

    def _record(self, exchange: Exchange) -> None:
        metrics, trail = self._metrics, exchange.trail
        metrics.requests(exchange.route, exchange.status, exchange.code).inc()
        metrics.duration(exchange.route).observe(time.monotonic() - exchange.started)
        if trail.attempts:
            metrics.overhead.observe(exchange.overhead())
        if trail.usage is not None:
            self._count(exchange.route, trail.usage)

    def _count(self, route: str, usage: Usage) -> None:
        metrics = self._metrics
        estimated = isinstance(usage, Estimate)
        for direction, said in (
            ("input", usage.prompt_tokens),
            ("output", usage.completion_tokens),
        ):
            # A provider may say anything; a counter takes neither a debt nor what no float holds.
            tokens = min(max(said, 0), _MOST_TOKENS)
            metrics.tokens(route, direction).inc(tokens)
            if estimated:
                metrics.estimated_tokens(route, direction).inc(tokens)


def _below(path: str) -> tuple[str, Endpoint] | None:
    found = (it for prefix, it in PREFIXES.items() if path.startswith(prefix) and path != prefix)
    return next(found, None)


def _served(path: str) -> str:
    """What there is: near this path where it is in a family, such as ``/v1/images/``."""
    family = "/".join(path.split("/")[:3]) + "/"
    near = [name for name in ENDPOINTS if name.startswith(family)]
    if near:
        return f"Below {family} the gateway serves {', '.join(near)}."
    return "GET /openapi.json lists what the gateway serves; set your SDK's base URL to end in /v1."
