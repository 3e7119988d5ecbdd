"""What it costs to reserve and settle: processor time in memory, that of a worker and of the parent
that counts for it, and round trips to Valkey or Redis.

    .venv/bin/python bench/store.py

Needs valkey-server or redis-server on the PATH for the last part.
"""

import asyncio
import gc
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from prometheus_client import CollectorRegistry  # noqa: E402  # because the path above leads there

from support import redis, store_process  # noqa: E402  # because the path above leads there
from tollhouse.store import Count, Kind, Store  # noqa: E402  # because the path above leads there
from tollhouse.store.journal import Journal  # noqa: E402  # because the path above leads there
from tollhouse.store.memory import MemoryStore  # noqa: E402  # because the path above leads there
from tollhouse.store.served import TIMEOUT, Parent, Served  # noqa: E402  # because the path above leads there
from tollhouse.store.shared import SharedStore  # noqa: E402  # because the path above leads there
from tollhouse.store.valkey import connect  # noqa: E402  # because the path above leads there
from tollhouse.telemetry import Metrics  # noqa: E402  # because the path above leads there

COUNTS = (
    Count("ns/key/requests", Kind.WINDOW, 10**9, 1, span=60.0),
    Count("ns/key/tokens", Kind.WINDOW, 10**12, 1000, span=60.0, settles=True),
    Count("ns/key/spend", Kind.PERIOD, 10**15, 1000, since=1, until=2 * 10**9, settles=True),
)
REQUESTS = 20_000


async def cycle(store: Store, requests: int) -> None:
    for _ in range(requests):
        store.settle(await store.reserve(COUNTS), (0, 500, 700))


async def memory() -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = MemoryStore(Journal(Path(directory, "journal.sqlite")))
        await cycle(store, REQUESTS)
        spent = []
        for _ in range(7):
            gc.collect()
            begun = time.process_time()
            await cycle(store, REQUESTS)
            spent.append((time.process_time() - begun) / REQUESTS * 1e6)
        await store.close()
    print(
        f"memory, 3 counts: {min(spent):.1f} µs CPU per reserve + settle (worst {max(spent):.1f})"
    )


async def workers() -> None:
    parent = Served(MemoryStore())
    for callers in (1, 10, 100):
        transport, theirs = await parent.connect()
        metrics = Metrics(CollectorRegistry())
        store = SharedStore(Parent(theirs), metrics, timeout=TIMEOUT, lease=30.0)
        running = asyncio.create_task(store.run())
        await cycle(store, 10)
        begun, wall = time.process_time(), time.monotonic()
        await asyncio.gather(*(cycle(store, 2000 // callers) for _ in range(callers)))
        await store.flush()
        spent = (time.process_time() - begun) / 2000 * 1e6
        seconds = time.monotonic() - wall
        print(
            f"workers, {callers:3} callers: {spent:.0f} µs CPU of worker and parent together per "
            f"reserve + settle, {2000 / seconds:.0f}/s"
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
        transport.abort()


async def shared(url: str) -> None:
    client = connect(url, {})
    for callers in (1, 10, 100):
        store = store_process.store(url, f"bench-{callers}", timeout=0.9)
        running = asyncio.create_task(store.run())
        await cycle(store, 10)
        await asyncio.sleep(0.2)
        await client.execute_command("CONFIG", "RESETSTAT")
        requests = 2000 // callers
        begun, wall = time.process_time(), time.monotonic()
        await asyncio.gather(*(cycle(store, requests) for _ in range(callers)))
        await store.flush()
        spent = (time.process_time() - begun) / 2000 * 1e6
        seconds = time.monotonic() - wall
        stats = await client.execute_command("INFO", "commandstats")
        trips = sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")
        )
        print(
            f"shared, {callers:3} callers: {trips / 2000:.3f} round trips and {spent:.0f} µs CPU "
            f"per reserve + settle, {2000 / seconds:.0f}/s"
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()
    await client.aclose()


def main() -> None:
    asyncio.run(memory())
    asyncio.run(workers())
    with (
        tempfile.TemporaryDirectory() as directory,
        redis.running(Path(directory), "--appendonly", "no") as server,
    ):
        asyncio.run(shared(server.url))


if __name__ == "__main__":
    main()
