"""What each path of the callers' port does: a module each, a function ``answer`` in it.

An endpoint reads its own kind of request, says what to send to whichever provider is tried, and
sends the answer back. Who calls, and by which table, has been settled before it is asked.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
from aiohttp import web

from tollhouse import failures, limits
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
    ) -> Call:
        """A call to whichever target of the route answers; ``compose`` says what to send to it.

        Whatever limits the request has been asked then: raises RequestError when it may not pass.
        ``fields`` are those of its body, {} for a form.
        """
        route, snapshot = resolution.route, self.table.snapshot
        exchange.route = route.id
        exchange.resolution = resolution
        headers = exchange.request.headers
        enter = None
        if limits.concern(snapshot, self.caller, route):
            ticket = exchange.ticket = await self.limits.admit(
                limits.Asking(
                    snapshot=snapshot,
                    caller=self.caller,
                    resolution=resolution,
                    fields=fields,
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
