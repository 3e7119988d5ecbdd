"""Leadership: one replica writes, the others keep their store warm and wait.

A Lease of coordination.k8s.io holds the leader's name. Clocks of different machines are never
compared: a candidate takes over when it has seen the Lease unchanged for ``lease_seconds`` on its
own monotonic clock, and the leader stops writing ``renew_seconds`` after the start of its last
successful renewal on its own. The first is longer than the second plus the bound on one call, so
the last write of an old leader ends before the first of a new one.

The leader election of ``kubernetes.aio`` was looked at and not used: it compares wall clocks, puts
no bound on its calls, cannot tell whether leadership holds at this moment, and does not release.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import structlog

from tollhouse_operator.cluster import CALL_SECONDS, CallError, Cluster, backoff, path

_log = structlog.get_logger(__name__)

_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Where the Lease is and how long it holds, in seconds."""

    namespace: str
    name: str
    identity: str
    lease_seconds: float = 15.0

    @property
    def call_seconds(self) -> float:
        """Bounds one call of the leader: below 12 s of Lease a write must end sooner, too."""
        return min(CALL_SECONDS, self.lease_seconds / 3)

    @property
    def renew_seconds(self) -> float:
        """How long after a renewal the leader may go on writing."""
        return self.lease_seconds - self.call_seconds

    @property
    def retry_seconds(self) -> float:
        return min(1.0, self.lease_seconds / 6)


class Leadership:
    """Takes part in the election for as long as ``run`` runs."""

    def __init__(self, cluster: Cluster, settings: LeaseSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._where = path("Lease", settings.namespace, settings.name)
        self._leading_until = float("-inf")
        self._seen: tuple[str, float] | None = None

    def held(self) -> bool:
        """Whether this replica is the leader for certain, at this moment."""
        return monotonic() < self._leading_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Call ``lead`` each time that leadership is won and cancel it when it is lost.

        Never returns by itself; an exception of ``lead`` comes through. On the way out the Lease
        is released, so that another replica need not wait for it to lapse.
        """
        try:
            while True:
                await self._acquire()
                _log.info("leading", identity=self._settings.identity)
                leading = asyncio.ensure_future(lead())
                renewing = asyncio.create_task(self._keep())
                try:
                    await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _cancelled(leading)
                    await _cancelled(renewing)
                if not leading.cancelled() and (error := leading.exception()) is not None:
                    raise error
                _log.warning("leadership lost", identity=self._settings.identity)
        finally:
            await asyncio.shield(self._release())

    async def _acquire(self) -> None:
        failures = 0
        while True:
            try:
                if await self._try():
                    return
                failures = 0
            except CallError as error:
                failures += 1
                _log.warning("lease not read or written", error=str(error))
            await asyncio.sleep(self._settings.retry_seconds)
            if failures:
                await asyncio.sleep(backoff(failures))

    async def _keep(self) -> None:
        """Renew until that has failed for too long or somebody else holds the Lease."""
        while self.held():
            await asyncio.sleep(self._settings.retry_seconds)
            try:
                if not await self._try():
                    return
            except CallError as error:
                _log.warning("lease not renewed", error=str(error))

    async def _try(self) -> bool:
        """Take or renew the Lease if it is ours or nobody's. Raises CallError."""
        began = monotonic()
        found = await self._cluster.get(self._where)
        try:
            if found is None:
                await self._cluster.create(
                    path("Lease", self._settings.namespace), self._manifest(None)
                )
            elif self._may_take(found):
                await self._cluster.replace(self._where, self._manifest(found))
            else:
                self._leading_until = float("-inf")
                return False
        except CallError as error:
            if error.status == _CONFLICT:
                # Somebody else wrote first. If we lead, the next try tells who.
                return self.held()
            raise
        self._leading_until = began + self._settings.renew_seconds
        return True

    def _may_take(self, found: dict[str, Any]) -> bool:
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._settings.identity:
            return True
        version = found["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, monotonic())
            return False
        lasts = spec.get("leaseDurationSeconds") or self._settings.lease_seconds
        return bool(monotonic() - self._seen[1] > lasts)

    def _manifest(self, found: dict[str, Any] | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (found or {}).get("spec") or {}
        ours = old.get("holderIdentity") == self._settings.identity
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "namespace": self._settings.namespace,
                "name": self._settings.name,
                **({"resourceVersion": found["metadata"]["resourceVersion"]} if found else {}),
            },
            "spec": {
                "holderIdentity": self._settings.identity,
                "leaseDurationSeconds": max(1, round(self._settings.lease_seconds)),
                "acquireTime": old.get("acquireTime") if ours else now,
                "renewTime": now,
                "leaseTransitions": (old.get("leaseTransitions") or 0) + (not ours),
            },
        }

    async def _release(self) -> None:
        if not self.held():
            return
        self._leading_until = float("-inf")
        try:
            found = await self._cluster.get(self._where)
            if found is None or found["spec"].get("holderIdentity") != self._settings.identity:
                return
            released = {**found["spec"], "holderIdentity": ""}
            await self._cluster.replace(self._where, {**found, "spec": released})
            _log.info("lease released", identity=self._settings.identity)
        except CallError as error:
            _log.warning("lease not released", error=str(error))


async def _cancelled(task: "asyncio.Future[None]") -> None:
    """Cancel a task and wait for its end; its exception stays with it."""
    task.cancel()
    await asyncio.wait({task})
