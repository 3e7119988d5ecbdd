"""Chat completions by a plain HTTP client, of a gateway of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from support import gateway as g
from support.gateway import Gateway


class Caller:
    """A plain HTTP client of one gateway."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session

    async def whole(self, model: str = "m", **fields: Any) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and decoded body of a whole chat completion."""
        async with self.post(model, fields) as answer:
            return answer.status, answer.headers, json.loads(await answer.read())

    async def stream(self, model: str = "m", **fields: Any) -> tuple[int, bytes]:
        """Status and body of a streamed one."""
        async with self.post(model, {"stream": True, **fields}) as answer:
            return answer.status, await answer.read()

    def post(self, model: str, fields: dict[str, Any]) -> Any:
        """A chat completion, to be entered: ``async with``."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.session.post(
            f"{self.gateway.base_url}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {g.KEY}"},
        )


@asynccontextmanager
async def calling(folder: Path, *resources: Any, name: str = "calling") -> AsyncIterator[Caller]:
    """A client of a gateway that serves these resources, and the key ``KEY``, from this folder."""
    g.write(folder, g.caller(), *resources)
    gateway = g.launch(folder, name=name)
    try:
        await asyncio.to_thread(g.wait_until_ready, gateway)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            yield Caller(gateway, session)
    finally:
        await asyncio.to_thread(gateway.stop)
