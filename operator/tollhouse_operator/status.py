"""What ``kubectl get`` shows: conditions, fields beside them, and events when they change.

The first half is pure: from what compiling found and where the snapshot is live to the conditions
of one object, and from those to the smallest patch. The second half writes, and only what differs.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from tollhouse_operator import events
from tollhouse_operator.cluster import CallError, Cluster, path, wait_after
from tollhouse_operator.events import Note
from tollhouse_operator.fleet import Census
from tollhouse_operator.store import BY_KIND, Key, Store

_log = structlog.get_logger(__name__)

PROGRAMMED = "Programmed"
READY = "Ready"
SPEND = "spend"
"""The field of a status that tells what was spent."""
_WARNED = ("Accepted", "ResolvedRefs")
"""Conditions whose change is an event."""
_WRITERS = 16
_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Desired:
    """The status that an object of this uid should have at this generation.

    ``fields`` stand beside the conditions (``prefix``, ``lastRotated``, ``nextRotation``,
    ``spend``). Conditions of the types in ``gone`` it should no longer have. ``milestone`` is the
    event that a higher ``spend.warned`` deserves.
    """

    uid: str
    generation: int
    conditions: tuple[Condition, ...]
    fields: Mapping[str, str | Mapping[str, Any] | None]
    gone: frozenset[str] = frozenset()
    milestone: Note | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an object stands on its way to the gateways.

    ``number`` is the snapshot that first held it as it is now, None while none does; ``obstacle``
    is why none does. ``settled`` remembers that it was live everywhere already.
    """

    accepted: bool
    present: bool
    number: int | None
    settled: bool
    obstacle: str | None = None


def programmed(placement: Placement, census: Census) -> Condition:
    """The ``Programmed`` condition."""
    if not placement.accepted:
        return Condition(PROGRAMMED, "False", "NotAccepted", "Not accepted, so not in force")
    if not placement.present:
        return Condition(
            PROGRAMMED, "False", "NotResolved", "Left out until its references are resolved"
        )
    if placement.number is None:
        if placement.obstacle is not None:
            return Condition(PROGRAMMED, "False", "NotPublished", placement.obstacle)
        return Condition(PROGRAMMED, "False", "Pending", "Waiting to be published")
    if census.total == 0:
        return Condition(PROGRAMMED, "False", "NoGateways", "Published, but no gateway is ready")
    live = census.total if placement.settled else census.live(placement.number)
    message = f"live on {live}/{census.total} gateways"
    if live == census.total:
        return Condition(PROGRAMMED, "True", "Programmed", message)
    return Condition(PROGRAMMED, "False", "Pending", message)


def ready(conditions: Iterable[Condition], *, disabled: bool, expired: bool) -> Condition:
    """An ApiKey's ``Ready``: whether a request with this key would be let in."""
    if disabled:
        return Condition(READY, "False", "Disabled", "spec.disabled is true")
    if expired:
        return Condition(READY, "False", "Expired", "spec.expiresAt has passed")
    for condition in conditions:
        if condition.status != "True":
            return Condition(READY, "False", condition.reason, condition.message)
    return Condition(READY, "True", "Ready", "The key works on every gateway")


def patch(current: Mapping[str, Any], desired: Desired, now: datetime) -> dict[str, Any] | None:
    """The ``status`` of a merge patch that makes ``current`` what is desired, or None.

    Conditions of other owners stay. ``Programmed`` gets another message only together with
    another status, reason or generation: a count of gateways is not worth a write to each object.
    """
    existing = list(current.get("conditions") or [])
    by_type = {condition.get("type"): condition for condition in existing}
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [_merged(by_type.get(one.type), one, desired, stamp) for one in desired.conditions]
    types = {one.type for one in desired.conditions} | desired.gone
    others = [condition for condition in existing if condition.get("type") not in types]
    change: dict[str, Any] = {
        name: _replacing(current.get(name), value)
        for name, value in desired.fields.items()
        if current.get(name) != value
    }
    if sorted(existing, key=_type) != sorted([*conditions, *others], key=_type):
        change["conditions"] = [*conditions, *others]
    return change or None


def _merged(
    old: Mapping[str, Any] | None, new: Condition, desired: Desired, stamp: str
) -> dict[str, Any]:
    message = new.message
    since = stamp
    if old is not None and old.get("status") == new.status:
        since = old.get("lastTransitionTime") or stamp
        same = (old.get("reason"), old.get("observedGeneration")) == (
            new.reason,
            desired.generation,
        )
        if new.type == PROGRAMMED and same:
            message = old.get("message") or message
    return {
        "type": new.type,
        "status": new.status,
        "reason": new.reason,
        "message": message,
        "observedGeneration": desired.generation,
        "lastTransitionTime": since,
    }


def _replacing(old: object, new: str | Mapping[str, Any] | None) -> object:
    """The new value as a merge patch writes it: what an object no longer has is null."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**dict.fromkeys(old), **new}
    return new


def _type(condition: Mapping[str, Any]) -> str:
    return str(condition.get("type"))


def notes(current: Mapping[str, Any], desired: Desired) -> list[Note]:
    """The events that the change from ``current`` deserves: new warnings, and recoveries."""
    by_type = {one.get("type"): one for one in current.get("conditions") or []}
    found = []
    for new in desired.conditions:
        if new.type not in _WARNED:
            continue
        old = by_type.get(new.type) or {}
        failed = new.status == "False"
        if failed and (old.get("status"), old.get("reason")) != ("False", new.reason):
            found.append(Note("Warning", new.reason, new.message))
        elif not failed and old.get("status") == "False":
            found.append(Note("Normal", new.type, new.message or f"{new.type} again"))
    field = desired.fields.get(SPEND)
    if (
        desired.milestone is not None
        and isinstance(field, Mapping)
        and field.get("warned", 0) > warned(current, field)
    ):
        found.append(desired.milestone)
    return found


def warned(status: Mapping[str, Any], field: Mapping[str, Any]) -> int:
    """The percentage of a budget that an event told of already, in the period of ``field``.

    It is read from the status, so another leader goes on where the one before has stopped.
    """
    before = status.get(SPEND) or {}
    if any(before.get(name) != field.get(name) for name in ("since", "resets")):
        return 0
    return int(before.get("warned") or 0)


class Statuses:
    """Writes statuses, a few at a time; a newer wish for the same object replaces an older one."""

    def __init__(self, cluster: Cluster, store: Store, identity: str) -> None:
        self._cluster = cluster
        self._store = store
        self._identity = identity
        self._wanted: dict[Key, Desired] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._work = asyncio.Event()

    def want(self, wishes: Mapping[Key, Desired]) -> None:
        """Queue what differs from the status that the store shows."""
        now = datetime.now(UTC)
        for key, desired in wishes.items():
            seen = self._store.seen(key)
            if key in self._busy or (seen and patch(seen.status, desired, now) is not None):
                self._wanted[key] = desired
            else:
                self._wanted.pop(key, None)
        if self._wanted:
            self._work.set()

    async def run(self) -> None:
        """Never returns; ends by cancellation, or with NotLeading in an ExceptionGroup."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WRITERS):
                group.create_task(self._write_forever())

    async def _write_forever(self) -> None:
        while True:
            key = next((key for key in self._wanted if key not in self._busy), None)
            if key is None:
                self._work.clear()
                await self._work.wait()
                continue
            desired = self._wanted.pop(key)
            self._busy.add(key)
            try:
                pause = await self._write(key, desired)
            finally:
                self._busy.discard(key)
            if pause is None:
                self._failures.pop(key, None)
                continue
            # Last in the queue, behind what may succeed; a newer wish counts instead.
            self._wanted.setdefault(key, desired)
            await asyncio.sleep(pause)

    async def _write(self, key: Key, desired: Desired) -> float | None:
        """None when there is nothing left to do, else how long to wait, in seconds, before the
        same is tried again."""
        kind, namespace, name = key
        seen = self._store.seen(key)
        if seen is None or seen.uid != desired.uid:
            return None
        change = patch(seen.status, desired, datetime.now(UTC))
        if change is None:
            return None
        happened = notes(seen.status, desired)
        try:
            answer = await self._cluster.patch(
                path(kind, namespace, name, sub="status"),
                {"metadata": {"uid": desired.uid}, "status": change},
            )
            self._store.observe(kind, answer, BY_KIND)
            for note in happened:
                await events.post(self._cluster, self._identity, answer, note, "Compile")
            return None
        except CallError as error:
            if error.status == 404:
                return None
            # A conflict over the uid ends as soon as the watch shows the other object.
            if not (error.transient or error.status == _CONFLICT):
                _log.error("status refused", kind=kind, namespace=namespace, name=name,
                           error=str(error))  # fmt: skip
                return None
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            _log.warning("status put off", kind=kind, namespace=namespace, name=name,
                         error=str(error), failures=failures)  # fmt: skip
            return wait_after(error, failures - 1)
