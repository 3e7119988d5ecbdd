"""Installations that count in the three ways there are: a fleet, one process, several workers."""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from support import gateway as g
from support import redis
from support.gateway import Gateway

GATEWAYS = 5
WORKERS = 4
KINDS = ("fleet", "memory", "workers")
"""Five gateways that share a Redis; one process; one gateway of four processes."""
HI = [{"role": "user", "content": "hi"}]

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and the decoded body; of a stream its bytes."""


class Installation:
    """Running gateways of one folder that count together, and where their counters live."""

    def __init__(self, gateways: Sequence[Gateway], server: redis.Server | None = None) -> None:
        self.gateways = list(gateways)
        self.server = server

    def url(self, number: int, path: str = "/chat/completions") -> str:
        """A path of the gateway whose turn it is."""
        return f"{self.gateways[number % len(self.gateways)].base_url}{path}"


@contextlib.contextmanager
def running(
    kind: str, folder: Path, *flags: str, gateways: int = GATEWAYS
) -> Iterator[Installation]:
    """An installation of this kind that serves this folder, ready; a fleet has ``gateways``."""
    with contextlib.ExitStack() as stack:
        if kind == "fleet":
            state = folder.with_name(f"{folder.name}-redis")
            state.mkdir()
            server = stack.enter_context(redis.running(state, "--appendfsync", "no"))
            stored = ("--store", server.url, *flags)
            yield Installation(started(stack, gateways, folder, *stored), server)
        elif kind == "workers":
            yield Installation(started(stack, 1, folder, "--workers", str(WORKERS), *flags))
        else:
            yield Installation(started(stack, 1, folder, *flags))


def started(stack: contextlib.ExitStack, number: int, *arguments: str | Path) -> list[Gateway]:
    """So many gateways, started side by side; stopped by the stack."""
    gateways = []
    for place in range(number):
        gateway = g.launch(*arguments, name=f"installation-{place}")
        stack.callback(ended, gateway)
        gateways.append(gateway)
    for gateway in gateways:
        g.wait_until_ready(gateway, 90)
    return gateways


def ended(gateway: Gateway) -> None:
    """Stop it, where a test has not killed it."""
    if gateway.process.poll() is None:
        gateway.stop(60)


@contextlib.asynccontextmanager
async def calling() -> "Any":
    """A client that opens as many connections as it has requests."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        yield session


async def post(session: aiohttp.ClientSession, url: str, key: str, **fields: Any) -> Answer:
    """A chat completion of at most ten tokens."""
    body = {"model": "m", "messages": HI, "max_tokens": 10, **fields}
    async with session.post(url, json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        read = await answer.read()
        whole = answer.content_type == "application/json"
        return answer.status, answer.headers, json.loads(read) if whole else read


async def shown(session: aiohttp.ClientSession, installation: Installation, key: str) -> Any:
    """What ``/v1/key`` of the first gateway says."""
    headers = {"Authorization": f"Bearer {key}"}
    async with session.get(installation.url(0, "/key"), headers=headers) as answer:
        return await answer.json()


async def left(
    session: aiohttp.ClientSession, installation: Installation, key: str
) -> dict[str, Any]:
    """What is left of each limit, and what was spent of each budget in USD."""
    told = await shown(session, installation, key)
    found: dict[str, Any] = {limit["name"]: limit["remaining"] for limit in told["limits"]}
    for budget in told["budgets"]:
        found[budget["name"]] = None if budget["spent"] is None else float(budget["spent"])
    return found


async def until_left(
    session: aiohttp.ClientSession,
    installation: Installation,
    key: str,
    wanted: Mapping[str, Any],
    seconds: float = 10,
) -> None:
    """Wait until exactly so much is left of these limits."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(seconds):
            while {name: found.get(name) for name in wanted} != dict(wanted):
                found = await left(session, installation, key)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not {dict(wanted)} within {seconds} s, but {found}") from None
