"""What only the leader does: keys, the snapshot, statuses.

A rebuild takes the store as it is, compiles it, and publishes what changed. Statuses follow from
the same compilation and from what the gateways say they serve. The first rebuild waits until every
reference is read and every ApiKey was looked at: what is published must never lack an object that
exists.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from time import monotonic

import structlog

from tollhouse.compile import Compiled, Compiler
from tollhouse.errors import ClusterError
from tollhouse.resources import Ref, Resources
from tollhouse_operator.announce import Announcements
from tollhouse_operator.cluster import Cluster, wait_after
from tollhouse_operator.encode import Encoder
from tollhouse_operator.fleet import Census, Fleet
from tollhouse_operator.judgement import Judgement
from tollhouse_operator.keys import Keys
from tollhouse_operator.ledger import Ledger, Verdict
from tollhouse_operator.ops import Metrics
from tollhouse_operator.publish import Publisher, SecretSlots, TooLarge
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.rotating import Rotations
from tollhouse_operator.settings import Settings
from tollhouse_operator.spending import Spending
from tollhouse_operator.status import Statuses
from tollhouse_operator.store import Key, Store

_log = structlog.get_logger(__name__)

_QUIET_SECONDS = 0.05
_MOST_SECONDS = 0.25
_TICK_SECONDS = 5.0
_VERIFY_SECONDS = 60.0
_REST_SECONDS = 1.0
_REFERENCE_SECONDS = 2.0
"""How long a rebuild waits for a reference that is new, so that a changed one is not taken for a
missing one; it does not wait for ever, because a revoked key may be in the same rebuild."""


class Leader:
    """One term of leadership. ``resolved`` gives the resources once their references are read,
    or after so many seconds without."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        resolved: Callable[[float | None], Awaitable[Resources]],
    ) -> None:
        self._metrics = metrics
        self._resolved = resolved
        self._pulse = Pulse(quiet=_QUIET_SECONDS, most=_MOST_SECONDS)
        self._publisher = Publisher(SecretSlots(cluster, *settings.snapshot))
        self._compiler = Compiler()
        self._encoder = Encoder()
        self._ledger = Ledger()
        self._unjudged: dict[Key, Verdict | None] = {}
        self._said = False
        self._fleet = Fleet(cluster, settings.service, self._fleet_changed)
        self._announcements = Announcements(self._pulse.beat, self._census)
        self._keys = Keys(cluster, store, settings.base_url, self._key_settled)
        self._rotations = Rotations(
            cluster, store, self._announcements, identity=settings.lease.identity
        )
        self._statuses = Statuses(cluster, store, settings.lease.identity)
        self._spending = Spending(
            store,
            metrics,
            gateways=self._fleet.gateways,
            changed=self.touched,
            seconds=settings.spend_seconds,
        )
        self._judgement = Judgement(
            store,
            census=self._census,
            want=self._statuses.want,
            making_key=self._keys.working,
            trouble=self._keys.trouble,
            spent=self._spending.of,
        )

    def changed(self, key: Key) -> None:
        """An object's content became another."""
        self._pulse.beat()
        if key[0] in ("ApiKey", "Secret"):
            self._keys.changed(key)
            self._rotations.changed(key)

    def touched(self, key: Key) -> None:
        """There is a new version of a custom resource."""
        self._judgement.touched(key)

    async def run(self) -> None:
        """Ends by cancellation, or with NotLeading in an ExceptionGroup."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keys.run())
            group.create_task(self._fleet.run())
            group.create_task(self._statuses.run())
            group.create_task(self._judgement.run())
            group.create_task(self._spending.run())
            group.create_task(self._rotate())
            group.create_task(self._rebuild_forever())

    async def _rotate(self) -> None:
        """Once every ApiKey has its Secret: a new key is published before it is written."""
        await self._keys.until_passed()
        await self._rotations.run()

    async def _rebuild_forever(self) -> None:
        await self._keys.until_passed()
        limit: float | None = None
        verified = monotonic()
        rest_until = 0.0
        failures = 0
        due = True
        while True:
            try:
                if due:
                    began = monotonic()
                    await self._rebuild(limit)
                    limit = _REFERENCE_SECONDS
                    rest_until = monotonic() + min(monotonic() - began, _REST_SECONDS)
                else:
                    await self._publisher.sweep()
                if monotonic() - verified > _VERIFY_SECONDS:
                    verified = monotonic()
                    if not await self._publisher.verify():
                        self._pulse.beat()
                failures = 0
                due = await self._pulse.next(_TICK_SECONDS)
                # Under a flood of changes, half of the time belongs to everything else.
                await asyncio.sleep(max(0.0, rest_until - monotonic()))
                self._keys.look()
                self._rotations.tick()
                self._judgement.tick()
            except ClusterError as error:
                failures += 1
                due = True
                self._metrics.failures.inc()
                _log.warning("publishing put off", error=str(error), failures=failures)
                await asyncio.sleep(wait_after(error, failures - 1))

    async def _rebuild(self, limit: float | None) -> None:
        began = monotonic()
        resources, coming = self._announcements.joined(await self._resolved(limit))
        compiled, pieces = await asyncio.to_thread(self._compile, resources)
        try:
            published = await self._publisher.publish(pieces)
        except TooLarge as error:
            _log.error("snapshot refused", error=str(error))
            self._metrics.failures.inc()
            self._judge(None, str(error))
            return
        number = self._fleet.published(published.digest)
        self._announcements.published(number, coming)
        self._judge(number, None)
        seconds = monotonic() - began
        self._metrics.rebuilds.inc()
        self._metrics.rebuild_seconds.observe(seconds)
        self._metrics.writes.inc(published.written)
        if published.written or not self._said:
            self._said = True
            _log.info(
                "snapshot in force",
                digest=published.digest[:12],
                secrets=published.written,
                routes=len(compiled.snapshot.routes),
                keys=compiled.snapshot.key_count(),
                milliseconds=round(seconds * 1000),
            )

    def _compile(self, resources: Resources) -> tuple[Compiled, dict[str, bytes]]:
        """Runs in a thread, one call at a time."""
        compiled = self._compiler.compile(resources, datetime.now(UTC).date())
        # Kept until they are judged: a rebuild that cannot be published is none.
        self._unjudged |= self._ledger.changes(resources, compiled)
        return compiled, self._encoder.encode(compiled.snapshot)

    def _judge(self, number: int | None, obstacle: str | None) -> None:
        changes, self._unjudged = self._unjudged, {}
        self._judgement.rebuilt(changes, number, obstacle)

    def _census(self) -> Census | None:
        return self._fleet.census() if self._fleet.listed else None

    def _fleet_changed(self) -> None:
        self._announcements.fleet_changed()
        self._judgement.fleet_changed()

    def _key_settled(self, api_key: Ref) -> None:
        self._judgement.touched(("ApiKey", *api_key))
