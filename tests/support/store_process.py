"""One process of many that share a store: ``python store_process.py URL SCOPE JSON``.

The JSON names what to do; the answer is one line of JSON. A test starts several.
"""

import asyncio
import json
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry

from tollhouse.store import Count, Kind
from tollhouse.store.shared import SharedStore
from tollhouse.store.valkey import Valkey, connect
from tollhouse.telemetry import Metrics

BUDGET = Count("budget", Kind.PERIOD, 10**12, 100, since=1, until=2_000_000_000, settles=True)


def store(url: str, scope: str, *, timeout: float = 0.1, lease: float = 30.0) -> SharedStore:
    """A store of its own, with metrics of its own."""
    backend = Valkey(connect(url, {}), scope)
    return SharedStore(backend, Metrics(CollectorRegistry()), timeout=timeout, lease=lease)


async def burst(shared: SharedStore, order: dict[str, Any]) -> dict[str, Any]:
    """``callers`` callers try ``tries`` times each; those let in take ``seconds``."""
    counts = [
        Count("requests", Kind.WINDOW, order["limit"], 1, span=3600.0),
        Count("at-once", Kind.CONCURRENT, order.get("at_once", 10**6), 1),
        BUDGET,
    ]
    stays: list[tuple[float, float]] = []

    async def caller() -> None:
        for _ in range(order["tries"]):
            admission = await shared.reserve(counts)
            if admission.granted:
                begun = time.monotonic()
                await asyncio.sleep(order.get("seconds", 0.0))
                stays.append((begun, time.monotonic()))
                shared.settle(admission, [0, 0, 7])
            else:
                await asyncio.sleep(order.get("pause", 0.0))

    await asyncio.gather(*(caller() for _ in range(order["callers"])))
    return {"stays": stays}


async def hold(shared: SharedStore, order: dict[str, Any]) -> dict[str, Any]:
    """Finish one request, and never finish ``requests`` others."""
    counts = [Count("at-once", Kind.CONCURRENT, 10**6, 1), BUDGET]
    shared.settle(await shared.reserve(counts), [0, 7])
    for _ in range(order["requests"]):
        assert (await shared.reserve(counts)).granted
    await asyncio.sleep(0.2)
    print("holding", flush=True)
    await asyncio.sleep(3600)
    return {}


async def main() -> None:
    url, scope, text = sys.argv[1:]
    order = json.loads(text)
    # The callers of a burst wait for each other on a busy machine, not for the server.
    shared = store(url, scope, timeout=20.0, lease=order.get("lease", 30.0))
    running = asyncio.create_task(shared.run())
    await shared.read([BUDGET])
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    answer = await {"burst": burst, "hold": hold}[order["do"]](shared, order)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await shared.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    asyncio.run(main())
