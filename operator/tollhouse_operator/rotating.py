"""Rotation at work: a new key for each ApiKey for which ``rotation`` says that one is due.

The new key is published first and written second, in one write with the digest of the key before.
Values never reach a log, an event or a message.
"""

import asyncio
from collections.abc import Callable, Mapping
from time import time
from typing import Any

import structlog

from tollhouse.auth import new_key
from tollhouse.compiling.memo import age
from tollhouse.resources import GROUP, VERSION, ApiKey, Ref, ResourceError, parse
from tollhouse.snapshot import key_digest
from tollhouse_operator import events, rotation
from tollhouse_operator.announce import Announcements
from tollhouse_operator.cluster import CallError, Cluster, backoff, path
from tollhouse_operator.events import Note
from tollhouse_operator.keys import secret_of
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.store import BY_LABEL, Key, Store

_log = structlog.get_logger(__name__)

RETRY_SECONDS = 300.0
"""After a failure that seemed final, the same key is tried again this much later."""
_PARALLEL = 16
_TRIES = 5
_CONFLICT = 409


class Rotations:
    """``clock`` gives seconds since the epoch, ``identity`` signs events."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        announcements: Announcements,
        *,
        identity: str,
        clock: Callable[[], float] = time,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._announcements = announcements
        self._identity = identity
        self._clock = clock
        self._agenda: dict[Ref, float] = {}
        self._held: dict[Ref, Ref] = {}
        self._holders: dict[Ref, set[Ref]] = {}
        self._looked_for: set[Ref] = set()
        self._working: set[Ref] = set()
        self._calls = asyncio.Semaphore(_PARALLEL)
        self._due = Pulse(quiet=0.005, most=0.1)

    def changed(self, key: Key) -> None:
        """An ApiKey or a Secret became another: see whether something is due."""
        ref = (key[1] or "", key[2])
        self._looked_for |= {ref} if key[0] == "ApiKey" else self._holders.get(ref, set())
        if self._looked_for:
            self._due.beat()

    def tick(self) -> None:
        """Time has passed."""
        self._due.beat()

    async def run(self) -> None:
        """Never returns; ends by cancellation, or with NotLeading in an ExceptionGroup."""
        async with asyncio.TaskGroup() as group:
            self._looked_for |= self._store.resources().api_keys.keys()
            while True:
                self._look()
                self._start(group)
                await self._due.next(None)

    def _look(self) -> None:
        """Put into the agenda when something about these keys is due."""
        resources = self._store.resources()
        looked_for, self._looked_for = self._looked_for, set()
        for ref in looked_for:
            api_key = resources.api_keys.get(ref)
            self._hold(ref, secret_of(api_key) if api_key is not None else None)
            self._agenda.pop(ref, None)
            secret = resources.secrets.get(self._held.get(ref, ("", "")))
            state = rotation.state_of(secret) if secret is not None else None
            if api_key is None or state is None:
                continue
            due = rotation.due(api_key, state)
            if due != rotation.NEVER:
                self._agenda[ref] = due

    def _hold(self, ref: Ref, secret: Ref | None) -> None:
        before = self._held.pop(ref, None)
        if before is not None:
            self._holders[before].discard(ref)
            if not self._holders[before]:
                del self._holders[before]
        if secret is not None:
            self._held[ref] = secret
            self._holders.setdefault(secret, set()).add(ref)

    def _start(self, group: asyncio.TaskGroup) -> None:
        """A task for each key about which something is due by now."""
        api_keys, now = self._store.resources().api_keys, self._clock()
        for ref in [ref for ref, at in self._agenda.items() if at <= now]:
            api_key = api_keys.get(ref)
            if api_key is None or ref in self._working:
                continue
            # Of several ApiKeys with one Secret the oldest has the key, as in ``compile``. Were
            # each of them to rotate it, they would answer each other's for ever.
            others = [api_keys[it] for it in self._holders[self._held[ref]] if it in api_keys]
            seen = self._store.seen(("Secret", *self._held[ref]))
            if min(others, key=age) is not api_key or seen is None or BY_LABEL not in seen.sources:
                self._agenda[ref] = now + RETRY_SECONDS
                continue
            self._working.add(ref)
            group.create_task(self._turn(api_key))

    async def _turn(self, api_key: ApiKey) -> None:
        """One key's rotation, or notes about it: done, or put off."""
        ref = api_key.ref
        put_off = self._clock() + RETRY_SECONDS
        try:
            for attempt in range(_TRIES):
                try:
                    if await self._rotate(api_key):
                        self.changed(("ApiKey", *ref))
                    else:
                        self._agenda[ref] = put_off
                    return
                except CallError as error:
                    failure = error
                    if not (error.transient or error.status == _CONFLICT):
                        break
                    await asyncio.sleep(error.retry_after or backoff(attempt))
            _log.error("key not rotated", apikey="/".join(ref), error=str(failure))
            self._agenda[ref] = put_off
            text = f"Secret {'/'.join(secret_of(api_key))} cannot be changed: {failure.reason}"
            await self._post(api_key, Note("Warning", "RotationFailed", text))
        finally:
            self._working.discard(ref)

    async def _rotate(self, api_key: ApiKey) -> bool:
        """Does what is due by what the API server has at this moment; False where nothing is.

        The Secret is read first and written at that version: what another replica did in between,
        or a watch has not shown yet, is a conflict and never a second rotation.
        """
        namespace, name = secret_of(api_key)
        where = path("Secret", namespace, name)
        async with self._calls:
            found = await self._cluster.get(where)
            asking = await self._cluster.get(path("ApiKey", *api_key.ref))
        if found is None or asking is None or asking["metadata"]["uid"] != api_key.metadata.uid:
            return False
        try:
            current = parse(asking)
        except ResourceError:
            return False
        state, now = rotation.state_of_manifest(found), self._clock()
        if not isinstance(current, ApiKey) or secret_of(current) != (namespace, name):
            return False
        if state is None or rotation.due(current, state) > now:
            return False
        if not rotation.rotates(current, state, now):
            await self._write(where, rotation.change(current, found, state, None, now))
            return True
        key = new_key()
        try:
            await self._announcements.until_live((namespace, name), key_digest(key))
            now = self._clock()
            await self._write(where, rotation.change(current, found, state, key, now))
        finally:
            self._announcements.done((namespace, name))
        _log.info("key rotated", apikey="/".join(api_key.ref), secret=name)
        overlap = rotation.overlap_of(current)
        until = f"works until {rotation.instant(now + overlap)}" if overlap else "has ended"
        text = f"Secret {namespace}/{name} has a new key; the one before {until}"
        await self._post(api_key, Note("Normal", "Rotated", text))
        return True

    async def _write(self, where: str, change: Mapping[str, Any]) -> None:
        async with self._calls:
            answer = await self._cluster.patch(where, change)
        self._store.observe("Secret", answer, BY_LABEL)

    async def _post(self, api_key: ApiKey, note: Note) -> None:
        namespace, name = api_key.ref
        about = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": api_key.kind,
            "metadata": {"namespace": namespace, "name": name, "uid": api_key.metadata.uid},
        }
        await events.post(self._cluster, self._identity, about, note, "Rotate")
