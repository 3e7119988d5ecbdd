"""What each path of the callers' port does: a module each, a function ``answer`` in it.

An endpoint reads its own kind of request, says what to send to whichever provider is tried, and
sends the answer back. Who calls, and by which table, has been settled before it is asked.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import msgspec
from aiohttp import web

from tollhouse import failures, limits
from tollhouse.api import cost
from tollhouse.api.additions import Origin
from tollhouse.errors import RequestError, UpstreamError
from tollhouse.exchange import Exchange
from tollhouse.limits import Limits
from tollhouse.routing import NOTHING, Conditions, Needs, Resolution, Table
from tollhouse.settings import Settings
from tollhouse.snapshot import Key, Route
from tollhouse.telemetry import Tracer
from tollhouse.upstream import Call, Compose, Upstream

_WRITES = frozenset({"chat", "responses", "text_completion"})
"""The operations whose answers are written in tokens."""


@dataclass(frozen=True, slots=True)
class Context:
    """What one request is served by: fixed at its start, whatever is reloaded meanwhile."""

    settings: Settings
    upstream: Upstream
    tracer: Tracer
    limits: Limits
    table: Table
    caller: Key

    def resolve(self, model: str, needs: Needs = NOTHING) -> Resolution:
        """Which route a model's name comes to for this caller. Raises RequestError."""
        try:
            conditions = Conditions(self.upstream.latencies)
            return self.table.resolve(self.caller, model, needs, conditions)
        except RequestError as error:
            raise self._denied(error) from None

    def describe(self, model: str) -> Route:
        """The route that a model's name comes to for this caller, with that model's prices and
        capabilities. Raises RequestError."""
        try:
            return self.table.describe(self.caller, model)
        except RequestError as error:
            raise self._denied(error) from None

    def _denied(self, error: RequestError) -> RequestError:
        if error.code == "model_not_allowed":
            error.status = self.settings.denied_model_status
        return error

    async def call(
        self,
        exchange: Exchange,
        resolution: Resolution,
        operation: str,
        compose: Compose,
        fields: Mapping[str, msgspec.Raw],
        *,
        searches: int = 0,
    ) -> Call:
        """A call to whichever target of the route answers; ``compose`` says what to send to it.

        Whatever limits the request has been asked then: raises RequestError when it may not pass.
        ``fields`` are those of its body, {} for a form; ``searches`` the web searches to charge
        where a provider does not count them.
        """
        route, snapshot = resolution.route, self.table.snapshot
        exchange.route = route.id
        exchange.resolution, exchange.searches = resolution, searches
        headers = exchange.request.headers
        enter = None
        if limits.concern(snapshot, self.caller, route):
            ticket = exchange.ticket = await self.limits.admit(
                limits.Asking(
                    snapshot=snapshot,
                    caller=self.caller,
                    resolution=resolution,
                    fields=fields,
                    searches=searches,
                    writes=operation in _WRITES,
                )
            )
            if limits.on_providers(snapshot, route):
                enter = partial(self.limits.enter, ticket)
        return Call(
            operation=operation,
            resolution=resolution,
            compose=compose,
            headers=headers,
            trace=self.tracer.context(headers),
            started=exchange.started,
            enter=enter,
        )


Endpoint = Callable[[Context, Exchange], Awaitable[web.StreamResponse]]


def refusal(error: UpstreamError, exchange: Exchange, resolution: Resolution) -> RequestError:
    """The answer for a call that failed, whatever was tried."""
    trail = exchange.trail
    return failures.answer_for(error, resolution.route, trail.provider, trail.attempts)


def is_strict(exchange: Exchange, route: Route) -> bool:
    """Whether the answer is to have OpenAI's shape and nothing beside it."""
    return route.strict or exchange.request.headers.get("x-tollhouse-strict", "").lower() == "true"


def origin_of(
    exchange: Exchange,
    resolution: Resolution,
    *,
    strict: bool,
    excluded: bool = False,
    searches: int = 0,
) -> Origin:
    """Who answers, once an attempt is under way; ``excluded`` keeps reasoning from the caller.

    ``searches`` is how many web searches are charged where the provider does not count them.
    """
    requested = resolution.requested
    named = requested if "/" in requested else resolution.model
    prefix, slash, _ = named.partition("/")
    trail = exchange.trail
    provider, target = trail.provider, trail.target
    return Origin(
        requested_model=requested,
        requested_provider=prefix if slash else None,
        used_model=resolution.model,
        used_provider=provider.name if provider is not None else "",
        upstream_model=trail.model,
        pricing=cost.pricing_of(resolution.route, target) if target is not None else None,
        strict=strict,
        exclude_reasoning=excluded,
        searches=searches,
    )


def priced(
    exchange: Exchange, origin: Origin, make: Callable[[Origin, Decimal | None], bytes]
) -> web.Response:
    """A whole answer with what it cost (USD) as a header; ``make`` is told it too."""
    price = origin.price(exchange.trail.usage)
    headers = {} if price is None else {"x-tollhouse-cost": cost.text(price)}
    return exchange.whole(make(origin, price), headers)
