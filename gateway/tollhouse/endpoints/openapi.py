"""``GET /openapi.json``: what this port serves, for tools and people. It asks for no key."""

from functools import cache

from aiohttp import web

from tollhouse.api import openapi
from tollhouse.endpoints import Context
from tollhouse.exchange import Exchange

_encoded = cache(openapi.encode)


async def answer(_: Context, exchange: Exchange) -> web.StreamResponse:
    exchange.route = "openapi"
    return exchange.whole(_encoded())
