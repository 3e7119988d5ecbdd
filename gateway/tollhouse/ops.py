"""The second port: probes, metrics, and which configuration is in force. Never the callers'."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tollhouse import __version__
from tollhouse.errors import ConfigError
from tollhouse.snapshot import FORMAT


@dataclass(frozen=True, slots=True)
class State:
    """What the process says of itself. ``digest`` is None before the first configuration."""

    ready: bool
    synced: bool
    digest: str | None
    routes: int
    keys: int
    problem: str | None


Spend = Callable[[], Awaitable[dict[str, Any]]]
"""``budgets``: every budget, with what was spent of it. ``store``: memory, where this process
counts by itself, or shared, where it counts together with others."""


@asynccontextmanager
async def serving(
    host: str,
    port: int,
    state: Callable[[], State],
    exposition: Callable[[], bytes],
    spend: Spend | None = None,
) -> AsyncIterator[int]:
    """The second port, open; gives its number. Raises ConfigError when it cannot be opened."""
    runner = web.AppRunner(application(state, exposition, spend), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --ops-port"
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def application(
    state: Callable[[], State], exposition: Callable[[], bytes], spend: Spend | None = None
) -> web.Application:
    """``/livez``, ``/readyz``, ``/metrics`` and ``/config``; with ``spend`` also ``/spend``."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        now = state()
        if now.ready:
            return web.Response(text="ok\n")
        why = "draining" if now.digest else now.problem or "no configuration yet"
        return web.Response(status=503, text=f"not ready: {why}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def config(_: web.Request) -> web.Response:
        now = state()
        return web.json_response(
            {
                "digest": now.digest,
                "synced": now.synced,
                "problem": now.problem,
                "format": FORMAT,
                "version": __version__,
                "routes": now.routes,
                "keys": now.keys,
            }
        )

    async def spending(_: web.Request) -> web.Response:
        """Every budget with what was spent of it: amounts in USD, as decimal strings."""
        body = msgspec.json.encode(await spend() if spend is not None else {})
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/config", config),
        ]
    )
    if spend is not None:
        app.add_routes([web.get("/spend", spending)])
    return app
