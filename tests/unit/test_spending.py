"""Asking gateways for spend, over real sockets, and handing it out at a measured pace."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web

from support import gateway as g
from tollhouse_operator import spending
from tollhouse_operator.fleet import Gateway
from tollhouse_operator.ops import Metrics
from tollhouse_operator.spending import Spending
from tollhouse_operator.store import BY_KIND, Key, Store

BOUNDS = {"since": "2026-11-01T00:00:00Z", "resets": "2026-12-01T00:00:00Z"}


def key(name: str) -> Key:
    return "ApiKey", "ai", name


class Ops:
    """A gateway's second port: ``spent`` by the ApiKey's name, or ``raw`` bytes in place of it."""

    def __init__(self, store: str, **spent: str | None) -> None:
        self.store = store
        self.spent = spent
        self.raw: bytes | None = None
        self.status = 200
        self.asked = 0
        self.gateway = Gateway("", "", 0)

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.raw is not None:
            return web.Response(body=self.raw)
        about = {"kind": "ApiKey", "namespace": "ai", "amount": "10", **BOUNDS}
        rows = [{**about, "name": name, "spent": it} for name, it in self.spent.items()]
        return web.json_response({"store": self.store, "budgets": rows}, status=self.status)


class Bench:
    """A Spending over a store that has these ApiKeys, asking every 50 ms."""

    def __init__(self, names: list[str], gateways: list[Ops]) -> None:
        self.handed: list[str] = []
        self.metrics = Metrics()
        self.store = Store(lambda _: None)
        for number, name in enumerate(names):
            manifest = g.manifest("ApiKey", name, {"budget": {"amount": "10"}})
            manifest["metadata"] |= {"uid": name, "resourceVersion": f"{number + 1}"}
            self.store.observe("ApiKey", {**manifest, "status": {}}, BY_KIND)
        self.spending = Spending(
            self.store,
            self.metrics,
            gateways=lambda: [it.gateway for it in gateways],
            changed=lambda it: self.handed.append(it[2]),
            seconds=0.05,
        )

    @property
    def failures(self) -> float:
        value = self.metrics.registry.get_sample_value("tollhouse_operator_spend_failures_total")
        return value or 0.0

    def spent(self, name: str) -> float | None:
        found = self.spending.of(key(name))
        return None if found is None else found.spent / 10**9

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not so():  # noqa: ASYNC110  # other tasks get there, in their own time
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(names: list[str], *gateways: Ops) -> AsyncIterator[Bench]:
    runners = []
    for ops in gateways:
        app = web.Application()
        app.router.add_get("/spend", ops.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        ops.gateway = Gateway(str(port), "127.0.0.1", port)
        runners.append(runner)
    bench = Bench(names, list(gateways))
    task = asyncio.create_task(bench.spending.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.wait({task})
        for runner in runners:
            await runner.cleanup()


class Gone(Ops):
    """One that is ready no more, on a port where nobody listens."""

    async def answer(self, _: web.Request) -> web.Response:
        raise web.HTTPServiceUnavailable


async def test_one_gateway_is_asked_where_all_count_together() -> None:
    first, second = Ops("shared", a="1"), Ops("shared", a="1")
    async with running(["a"], first, second) as bench:
        await bench.until(lambda: bench.spent("a") == 1.0)
        assert bench.handed == ["a"]
        assert second.asked == 0


async def test_another_gateway_is_asked_where_the_first_does_not_answer() -> None:
    async with running(["a"], Gone("shared"), Ops("shared", a="1")) as bench:
        await bench.until(lambda: bench.spent("a") == 1.0)
        assert bench.failures == 0


async def test_gateways_that_count_by_themselves_are_all_asked() -> None:
    async with running(["a"], Ops("memory", a="1"), Ops("memory", a="2.5")) as bench:
        await bench.until(lambda: bench.spent("a") == 3.5)


async def test_half_a_sum_is_none() -> None:
    for gateways in (
        [Gone("memory"), Ops("memory", a="1")],
        [Ops("memory", a="1"), Gone("memory")],
    ):
        async with running(["a"], *gateways) as bench:
            await bench.until(lambda: bench.failures > 1)  # called at once
            assert bench.spent("a") is None
            assert bench.handed == []


async def test_what_cannot_be_known_is_said_once_and_its_return_too() -> None:
    ops = Ops("shared", a=None)
    with structlog.testing.capture_logs() as logs:
        async with running(["a"], ops) as bench:
            await bench.until(lambda: bench.failures > 2)
            ops.spent = {"a": "2"}
            await bench.until(lambda: bench.spent("a") == 2.0)
            ops.raw = b"{"
            await bench.until(lambda: len(logs) == 3)
            ops.raw = b" " * (spending._MAX_ANSWER_BYTES + 1)
            failures = bench.failures
            await bench.until(lambda: bench.failures > failures + 1)
            # What was known stays, for the statuses that are still to be written.
            assert bench.spent("a") == 2.0
    assert [it["event"] for it in logs] == [
        "spend is not known: statuses stay as they are",
        "spend is known again",
        "spend is not known: statuses stay as they are",
    ]
    assert "store" in logs[0]["error"]


async def test_no_gateways_are_nobodys_failure() -> None:
    async with running(["a"]) as bench:
        await asyncio.sleep(0.2)
        assert bench.failures == 0


async def test_many_changes_are_handed_out_at_a_measured_pace_and_urgent_ones_first() -> None:
    names = [f"k{number:03d}" for number in range(60)]
    spent: dict[str, Any] = dict.fromkeys(names, "1")
    ops = Ops("shared", **(spent | {"k059": "10"}))
    async with running(names, ops) as bench:
        await bench.until(lambda: bool(bench.handed))
        begun = time.monotonic()
        await bench.until(lambda: len(bench.handed) >= 60)
        took = time.monotonic() - begun
    assert bench.handed[0] == "k059"
    # The store never shows what was written, so later rounds hand the same out again.
    assert bench.handed[1:60] == names[:59]
    print(f"60 statuses handed out in {took * 1000:.0f} ms, at most {spending.PER_SECOND} a second")
    assert took >= (60 - spending.PER_SECOND * 0.1) / spending.PER_SECOND * 0.9


async def test_a_key_of_which_nobody_tells_any_more_is_forgotten() -> None:
    ops = Ops("shared", a="1", b="1")
    async with running(["a", "b"], ops) as bench:
        await bench.until(lambda: bench.spent("a") == bench.spent("b") == 1.0)
        del ops.spent["a"]
        await bench.until(lambda: bench.spent("a") is None)
        assert bench.spent("b") == 1.0
