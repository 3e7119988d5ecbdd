"""The operator's second port: probes and metrics."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as exposition


class Metrics:
    """The operator's series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leading = Gauge(
            "tollhouse_operator_leading",
            "1 while this replica is the leader.",
            registry=self.registry,
        )
        self.rebuilds = Counter(
            "tollhouse_operator_rebuilds",
            "Compilations whose snapshot is in force.",
            registry=self.registry,
        )
        self.rebuild_seconds = Histogram(
            "tollhouse_operator_rebuild_seconds",
            "From the start of a rebuild until its snapshot is in force.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.writes = Counter(
            "tollhouse_operator_snapshot_writes",
            "Snapshot Secrets that were written.",
            registry=self.registry,
        )
        self.failures = Counter(
            "tollhouse_operator_publish_failures",
            "Rebuilds that could not be published.",
            registry=self.registry,
        )
        self.spend_failures = Counter(
            "tollhouse_operator_spend_failures",
            "Rounds in which the gateways did not tell what was spent.",
            registry=self.registry,
        )
        self.spend_waiting = Gauge(
            "tollhouse_operator_spend_waiting",
            "Objects whose status waits for its turn to show what was spent.",
            registry=self.registry,
        )


def application(metrics: Metrics, is_ready: Callable[[], bool]) -> web.Application:
    """``/livez``, ``/readyz`` (the store is whole) and ``/metrics``."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if is_ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="not ready: the first listings are not complete\n")

    async def series(_: web.Request) -> web.Response:
        return web.Response(
            body=exposition(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", series)]
    )
    return app
