"""Proof that the store is whole: lists beside kopf's watches.

kopf tells its handlers neither when a first listing is over nor what vanished while a watch was
away. So each followed collection is also listed here, names and versions only:

- At the start the store counts as whole once every object of such a list has come in through a
  watch. Nothing may be published before that: a snapshot from half a store would take away what
  callers use. Since only the watches feed the store, it cannot hold an object whose deletion
  nobody will report.
- Later, at intervals and whenever kopf lists anew, what the list no longer has is dropped from
  the store, and what a watch did not bring is fetched.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from tollhouse_operator.cluster import CallError, Cluster, Identity, backoff, path
from tollhouse_operator.store import Key, Store

_log = structlog.get_logger(__name__)

AUDIT_SECONDS = 60.0
_GRACE_SECONDS = 3.0
"""How long a watch may be behind a list before the object is fetched without it."""
_RELIST_SECONDS = 1.0
_LONGEST_RELIST_SECONDS = 8.0
_LOOK_SECONDS = 0.02
_FETCHES = 8


@dataclass(frozen=True, slots=True)
class Scope:
    """One followed collection. ``namespace`` None means the whole cluster."""

    kind: str
    namespace: str | None
    source: str
    labels: str = ""


class Audit:
    """Compares the store with what the API server lists."""

    def __init__(self, cluster: Cluster, store: Store, scopes: Sequence[Scope]) -> None:
        self._cluster = cluster
        self._store = store
        self._scopes = scopes
        self._whole = asyncio.Event()
        self._due = asyncio.Event()

    @property
    def whole(self) -> bool:
        """Whether every first listing is complete."""
        return self._whole.is_set()

    async def until_whole(self) -> None:
        await self._whole.wait()

    def relisted(self) -> None:
        """A watch began anew, so deletions may have been missed: audit soon."""
        if self.whole:
            self._due.set()

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        await asyncio.gather(*(self._first(scope) for scope in self._scopes))
        _log.info("store is whole")
        self._whole.set()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), AUDIT_SECONDS)
            self._due.clear()
            for scope in self._scopes:
                try:
                    await self._again(scope)
                except CallError as error:
                    _log.warning("audit put off", kind=scope.kind, error=str(error))

    async def _first(self, scope: Scope) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        pause = _RELIST_SECONDS
        while True:
            try:
                missing, _ = await self._missing(scope)
                failures = 0
            except CallError as error:
                failures += 1
                _log.warning("first listing failed", kind=scope.kind, error=str(error))
                await asyncio.sleep(backoff(failures))
                continue
            # An object can be deleted before kopf lists, and then never comes: so list again.
            list_again = loop.time() + pause
            while missing and loop.time() < list_again:
                await asyncio.sleep(_LOOK_SECONDS)
                # From the end alone: ten thousand need not be looked at fifty times a second.
                while missing and self._came_in(scope, missing[-1]):
                    missing.pop()
            if not missing:
                return
            pause = min(pause * 2, _LONGEST_RELIST_SECONDS)

    async def _again(self, scope: Scope) -> None:
        missing, version = await self._missing(scope, drop=True)
        if not missing:
            return
        await asyncio.sleep(_GRACE_SECONDS)
        missing = self._still_missing(scope, missing)
        if not missing:
            return
        _log.warning("watch is behind", kind=scope.kind, objects=len(missing), version=version)
        gate = asyncio.Semaphore(_FETCHES)

        async def fetch(one: Identity) -> None:
            async with gate:
                found = await self._cluster.get(path(scope.kind, one.namespace or None, one.name))
            if found is not None:
                self._store.observe(scope.kind, found, scope.source)

        await asyncio.gather(*(fetch(one) for one in missing))

    async def _missing(self, scope: Scope, *, drop: bool = False) -> tuple[list[Identity], str]:
        listed, version = await self._cluster.identities(
            path(scope.kind, scope.namespace), labels=scope.labels
        )
        if drop:
            there = {_key(scope, one) for one in listed}
            for key in self._store.keys(scope.kind, scope.namespace, scope.source):
                if key not in there:
                    self._store.drop(key, scope.source, int(version))
        return self._still_missing(scope, listed), version

    def _still_missing(self, scope: Scope, listed: Sequence[Identity]) -> list[Identity]:
        return [one for one in listed if not self._came_in(scope, one)]

    def _came_in(self, scope: Scope, one: Identity) -> bool:
        return self._store.knows(_key(scope, one), int(one.resource_version), scope.source)


def _key(scope: Scope, one: Identity) -> Key:
    return scope.kind, one.namespace or None, one.name
