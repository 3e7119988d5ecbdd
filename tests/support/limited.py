"""A gateway whose callers are limited, and a plain HTTP client of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from support import gateway as g
from support import upstream as u
from support.gateway import Gateway

PRICE = {"input": "0", "output": "1000"}
"""USD per million tokens: a token of an answer costs a tenth of a cent, a prompt nothing."""
HI = [{"role": "user", "content": "hi"}]
STREAM = [u.chunk({"content": "hello"}, model="m"), u.chunk({}, "stop")]


class Caller:
    """A plain HTTP client of one gateway."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session

    async def post(
        self, path: str = "/chat/completions", key: str = g.KEY, **fields: Any
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and body; a stream's body is bytes."""
        body = {"model": "m", "messages": HI, "max_tokens": 10, **fields}
        async with self.session.post(
            f"{self.gateway.base_url}{path}", json=body, headers=authorization(key)
        ) as answer:
            read = await answer.read()
            whole = answer.content_type == "application/json"
            return answer.status, answer.headers, json.loads(read) if whole else read

    async def get(self, path: str, key: str = g.KEY) -> Any:
        url = f"{self.gateway.base_url}{path}"
        async with self.session.get(url, headers=authorization(key)) as answer:
            return await answer.json()

    async def spent(self, name: str) -> float | None:
        """What the operator's view says was spent of the budget in this object."""
        status, text = await asyncio.to_thread(self.gateway.ops, "/spend")
        assert status == 200
        (found,) = [it for it in json.loads(text)["budgets"] if it["name"] == name]
        return None if found["spent"] is None else float(found["spent"])

    async def left(self, limit: str) -> Any:
        """What ``/v1/key`` says is left of this limit."""
        (found,) = [it for it in (await self.get("/key"))["limits"] if it["name"] == limit]
        return found["remaining"]

    async def until_left(self, limit: str, least: int, most: int, seconds: float = 5) -> None:
        """Wait until so much is left of this limit."""
        async with asyncio.timeout(seconds):
            # It is another process that gets there, in its own time.
            while not least <= await self.left(limit) <= most:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def authorization(key: str) -> dict[str, str]:
    """The head that presents this key."""
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def calling(
    folder: Path, *resources: Any, arguments: tuple[str, ...] = ()
) -> AsyncIterator[Caller]:
    g.write(folder, *resources)
    gateway = g.launch(folder, *arguments, name="limits")
    try:
        await asyncio.to_thread(g.wait_until_ready, gateway)
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            yield Caller(gateway, session)
    finally:
        await asyncio.to_thread(gateway.stop)


def policy(name: str, limits: list[dict[str, Any]], **spec: Any) -> g.Manifest:
    return g.manifest("RateLimitPolicy", name, {"limits": limits, **spec})


def on(kind: str, name: str) -> list[dict[str, str]]:
    return [{"kind": kind, "name": name}]


def to_mock(script: Mapping[str, Any] | None = None, **spec: Any) -> list[Any]:
    """A Mock and the route ``m`` to it."""
    return [g.mock("mock", **(script or {})), g.route("m", ["m"], "mock", **spec)]


def priced(provider: str, **more: Any) -> dict[str, Any]:
    return {"provider": {"name": provider}, "pricing": PRICE, **more}


def error_of(answer: tuple[int, Mapping[str, str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer[2]["error"]
    return found
