"""The operator as a whole: its parts, who wakes whom, and in which order they start and stop.

Every replica watches and keeps its store and references warm. The one that leads also runs a
``Leader``.
"""

import asyncio
from collections.abc import Iterator

import structlog

from tollhouse.resources import Resources
from tollhouse_operator import handlers
from tollhouse_operator.audit import Audit
from tollhouse_operator.cluster import Cluster, NotLeading
from tollhouse_operator.leader import Leader
from tollhouse_operator.lease import Leadership
from tollhouse_operator.ops import Metrics
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.references import Reference, References
from tollhouse_operator.settings import Settings
from tollhouse_operator.store import Key, Store

_log = structlog.get_logger(__name__)

_REFERRING = ("Provider",)


class Control:
    """One replica. It stands for election only once its store is whole, so whoever leads never
    publishes from half a store."""

    def __init__(self, cluster: Cluster, settings: Settings, metrics: Metrics) -> None:
        self._cluster = cluster
        self._settings = settings
        self._metrics = metrics
        # Whoever may write where the snapshot lies decides what gateways serve anyway.
        self.store = Store(self._changed, self._touched, platform=settings.snapshot[:1])
        self.audit = Audit(cluster, self.store, handlers.scopes(settings.namespaces))
        self._read = asyncio.Event()
        self._references = References(cluster, self.store, self._read.set)
        self._references_due = Pulse(quiet=0.005, most=0.05)
        self._leadership = Leadership(cluster, settings.lease)
        self._leader: Leader | None = None

    async def run(self) -> None:
        """Never returns by itself. Cancelled, it releases the Lease and stops every watch."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.audit.run())
                group.create_task(self._follow_references())
                await self.audit.until_whole()
                group.create_task(self._leadership.run(self._lead))
        finally:
            await self._references.close()

    async def _lead(self) -> None:
        """One term. Returns when a write met the end of leadership."""
        leader = Leader(
            self._cluster.fenced(self._leadership.held, self._settings.lease.call_seconds),
            self.store,
            self._settings,
            self._metrics,
            self._resolved,
        )
        self._leader = leader
        self._metrics.leading.set(1)
        try:
            await leader.run()
        except* NotLeading:
            _log.warning("a write was held back: leadership is no longer certain")
        finally:
            self._leader = None
            self._metrics.leading.set(0)

    async def _follow_references(self) -> None:
        while True:
            await self._references_due.next(None)
            self._references.want(self._wanted(self.store.resources()))

    async def _resolved(self, seconds: float | None) -> Resources:
        """The resources once the API server has answered for all that they refer to."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while True:
            self._read.clear()
            resources = self.store.resources()
            self._references.want(self._wanted(resources))
            unread = self._references.unread()
            if not unread:
                return self.store.resources()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._read.wait()
            except TimeoutError:
                _log.warning("references are not read yet", count=len(unread))
                return self.store.resources()

    def _wanted(self, resources: Resources) -> Iterator[Reference]:
        for namespace in self._settings.namespaces:
            yield "Namespace", None, namespace
        yield from references_of(resources)

    def _changed(self, key: Key) -> None:
        if key[0] in _REFERRING:
            self._references_due.beat()
        if self._leader is not None:
            self._leader.changed(key)

    def _touched(self, key: Key) -> None:
        if self._leader is not None:
            self._leader.touched(key)


def references_of(resources: Resources) -> Iterator[Reference]:
    """Everything outside of our own kinds that resources name."""
    for (namespace, _), provider in resources.providers.items():
        spec = provider.spec
        if spec.credentials is not None and spec.credentials.secret_ref is not None:
            yield "Secret", namespace, spec.credentials.secret_ref.name
        if spec.tls is not None:
            yield spec.tls.ca_ref.kind, namespace, spec.tls.ca_ref.name
        if spec.service_ref is not None:
            yield "Service", namespace, spec.service_ref.name
