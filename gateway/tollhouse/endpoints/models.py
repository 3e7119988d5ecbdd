"""``GET /v1/models``: what this key may call."""

from aiohttp import web

from tollhouse.api import answers
from tollhouse.endpoints import Context
from tollhouse.exchange import Exchange


async def answer(context: Context, exchange: Exchange) -> web.StreamResponse:
    exchange.route = "models"
    visible = context.table.visible(context.caller)
    return exchange.whole(
        answers.model_list([(route.models[0], route.namespace) for route in visible])
    )
