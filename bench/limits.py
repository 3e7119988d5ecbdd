"""What limits cost a request, in processor time of the gateway's own process.

    .venv/bin/python bench/limits.py

Admission and settlement together, against counters in memory: for a key without limits, with three
limits and a budget, and with a policy on top. Then whole requests through a gateway, by a key
without limits and by one with them, in turn: of one process, of workers, and with a Redis. Needs
valkey-server or redis-server on the PATH for the last.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import overhead  # noqa: E402  # because the path above leads there

from support import gateway as g  # noqa: E402  # because the path above leads there
from support import redis  # noqa: E402  # because the path above leads there
from tollhouse.allowance import Allowance, Limit, Policy  # noqa: E402  # because of the paths above
from tollhouse.api.usage import Usage  # noqa: E402  # because of the paths above
from tollhouse.limits import Asking, Limits, concern  # noqa: E402  # because of the paths above
from tollhouse.routing import Resolution  # noqa: E402  # because of the paths above
from tollhouse.snapshot import (  # noqa: E402  # because of the paths above
    Key,
    Pricing,
    Route,
    Snapshot,
    Target,
)
from tollhouse.store.memory import MemoryStore  # noqa: E402  # because of the paths above
from tollhouse.telemetry import Metrics  # noqa: E402  # because of the paths above

ROUNDS = 3
LIMITS = (
    Limit("requests", "requests", 10**9, 60.0),
    Limit("tokens", "tokens", 10**9, 60.0),
    Limit("concurrent", "concurrent", 10**6),
)
BUDGET = Allowance(10**18, "Month", "Europe/Paris")
PLAIN = Key(namespace="ai", name="plain")
LIMITED = Key(namespace="ai", name="limited", limits=LIMITS, budget=BUDGET)
BOTH = msgspec.structs.replace(LIMITED, name="both", policies=("ai/p",))


async def micro(key: Key, times: int) -> float:
    """Microseconds of processor time for one request's admission and settlement."""
    snapshot = Snapshot.of(
        policies=[
            Policy("ai", "p", (Limit("users", "requests", 10**9, 60.0, "User", models=("up/*",)),))
        ]
    )
    pricing = Pricing(input="2.50", output="10")
    route = Route("ai", "up", ("up/m",), (Target("ai/up", "m", pricing=pricing),))
    resolution = Resolution("up/m", "up/m", route)
    message = [{"role": "user", "content": "hello " * 200}]
    fields = {
        "messages": msgspec.Raw(msgspec.json.encode(message)),
        "max_tokens": msgspec.Raw(b"256"),
        "user": msgspec.Raw(b'"ann"'),
    }
    limits = Limits(MemoryStore(), Metrics(CollectorRegistry()))
    usage, spent = Usage(prompt_tokens=200, completion_tokens=100), Decimal("0.0015")
    begun = time.process_time()
    for _ in range(times):
        if concern(snapshot, key, route):
            ticket = await limits.admit(Asking(snapshot, key, resolution, fields, writes=True))
            limits.settle(ticket, usage, spent, unknown=False)
    return (time.process_time() - begun) / times * 1e6


def processor_seconds(gateway: g.Gateway) -> float:
    """Of the process and its workers."""
    pid = gateway.process.pid
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(overhead.processor_seconds(int(it)) for it in (pid, *workers))


def requests(folder: str, what: str, *flags: str) -> None:
    """Print what whole requests cost by either key at a gateway with these flags."""
    upstream, port = overhead.start(str(HERE / "upstream.py"))
    limits: list[dict[str, Any]] = [
        {"requests": 10**6, "per": "Minute"},
        {"tokens": 10**9, "per": "Minute"},
        {"concurrent": 1000},
    ]
    try:
        g.write(
            Path(folder),
            g.caller(),
            g.caller("limited", g.OTHER_KEY, limits=limits, budget={"amount": "1000000"}),
            g.openai_compatible("up", f"http://127.0.0.1:{port}/v1"),
            g.route(
                "up",
                ["up/m"],
                {"provider": {"name": "up"}, "pricing": {"input": "2.50", "output": "10"}},
            ),
        )
        with g.running(folder, *flags, name="bench-limits", seconds=60) as gateway:
            costs: dict[str, list[float]] = {g.KEY: [], g.OTHER_KEY: []}
            for _ in range(ROUNDS):
                for key, found in costs.items():
                    before = processor_seconds(gateway)
                    asyncio.run(overhead.load(gateway.port, 2000, stream=False, key=key))
                    took = processor_seconds(gateway) - before
                    found.append(took / 2000 * 1e6)
            plain, limited = (statistics.median(found) for found in costs.values())
            print(
                f"whole answers, {what}: {plain:.0f} us without limits, {limited:.0f} us with "
                f"three limits and a budget, ratio {limited / plain:.2f}"
            )
    finally:
        upstream.kill()
        upstream.wait()


def main() -> None:
    for name, key, times in (
        ("no limits", PLAIN, 200_000),
        ("three limits and a budget", LIMITED, 20_000),
        ("the same and a policy by user", BOTH, 20_000),
    ):
        figures = [asyncio.run(micro(key, times)) for _ in range(ROUNDS)]
        print(f"admission and settlement, {name}: {statistics.median(figures):.2f} us")
    with tempfile.TemporaryDirectory() as folder:
        requests(folder, "one process")
        requests(folder, "two workers and their parent", "--workers", "2")
        with redis.running(Path(folder), "--appendonly", "no") as server:
            requests(folder, "with a Redis", "--store", server.url)


if __name__ == "__main__":
    main()
