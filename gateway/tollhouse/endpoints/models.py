"""Catalogues: ``GET /v1/models``, ``/v1/models/{id}``, ``/api/models`` and ``/v1/key``."""

from aiohttp import web

from tollhouse.api import models
from tollhouse.endpoints import Context
from tollhouse.errors import RequestError
from tollhouse.exchange import Exchange

PREFIX = "/v1/models/"


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    """What this key may call."""
    exchange.route = "models"
    return exchange.whole(models.model_list(context.table.visible(context.caller)))


async def one(context: Context, exchange: Exchange) -> web.StreamResponse:
    """One model by any name that this key may use for it; the id is the name that was asked for."""
    exchange.route = "models"
    name = exchange.request.path.removeprefix(PREFIX)
    return exchange.whole(models.model(name, context.describe(name)))


async def public(context: Context, exchange: Exchange) -> web.StreamResponse:
    """The models that keys of every namespace may call, for anybody to see."""
    exchange.route = "models"
    if not context.settings.public_catalogue:
        raise RequestError(
            "not_found",
            "The public catalogue is switched off. GET /v1/models lists what your key may call.",
        )
    return exchange.whole(models.catalogue(context.table.shared()))


async def key(context: Context, exchange: Exchange) -> web.StreamResponse:
    """What this key is and may do, and what is left of its limits and budgets."""
    exchange.route = "key"
    table, caller = context.table, context.caller
    routes = table.visible(caller)
    bounds = await context.limits.look(table.snapshot, caller, routes)
    return exchange.whole(models.key(caller, bounds))
