"""From rebuilds and from the gateways' answers to the status that each object should have.

It remembers, for each custom resource, what the last rebuild said about it and the number of the
snapshot that first held it in that state. Only objects about which something changed are judged
again, so ten thousand of them cost little while one changes.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from tollhouse.findings import conditions
from tollhouse.resources import ApiKey, SecretObject
from tollhouse_operator import rotation, spend
from tollhouse_operator.fleet import Census
from tollhouse_operator.keys import KEY, Trouble, prefix
from tollhouse_operator.ledger import Verdict
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.spend import Spent
from tollhouse_operator.status import (
    PROGRAMMED,
    Condition,
    Desired,
    Placement,
    programmed,
    ready,
)
from tollhouse_operator.store import Key, Store

HOLD_SECONDS = 0.5
"""A status that is about to say Pending waits this long: most often the gateways are faster, and
one write is enough."""
NO_GATEWAYS_SECONDS = 10.0
"""How long there must be no gateway before objects that were live say so."""
_BATCH = 200
_NOTHING = Desired("", 0, (), {})


@dataclass(slots=True)
class _Standing:
    """One object as the last rebuild left it.

    ``verdict`` decides everything but Programmed; ``number`` is the snapshot that first held it
    so, ``since`` when that was published. ``settled``: it was live on every gateway already.
    """

    verdict: Verdict
    number: int | None
    since: float
    settled: bool
    secret: SecretObject | None = None


class Judgement:
    """``census`` asks the fleet, ``want`` takes the statuses, ``making_key`` and ``trouble`` tell
    of an ApiKey's Secret, ``spent`` of an object's budget."""

    def __init__(
        self,
        store: Store,
        *,
        census: Callable[[], Census | None],
        want: Callable[[Mapping[Key, Desired]], None],
        making_key: Callable[[tuple[str, str]], bool],
        trouble: Callable[[tuple[str, str]], Trouble | None],
        spent: Callable[[Key], Spent | None],
    ) -> None:
        self._store = store
        self._ask = census
        self._want = want
        self._making_key = making_key
        self._trouble = trouble
        self._spent = spent
        self._pulse = Pulse(quiet=0.01, most=0.1)
        self._standings: dict[Key, _Standing] = {}
        self._due: set[Key] = set()
        self._unsettled: set[Key] = set()
        self._expiring: dict[Key, float] = {}
        self._unpublished: set[Key] = set()
        self._judged_by: Census | None = None
        self._held_until = float("inf")
        self._obstacle: str | None = None
        self._last_total = 0
        self._none_since: float | None = None

    def rebuilt(
        self, changes: Mapping[Key, Verdict | None], number: int | None, obstacle: str | None
    ) -> None:
        """A rebuild is done: it was published as snapshot ``number``, or met ``obstacle``.

        ``changes`` are the verdicts that differ from those before; None for what is gone.
        """
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            self._due |= self._unsettled | self._unpublished
        now = monotonic()
        for key, verdict in changes.items():
            seen = self._store.seen(key)
            if verdict is None or seen is None:
                self._forget(key)
                continue
            old = self._standings.get(key)
            self._due.add(key)
            if old is not None and _says_the_same(old.verdict, verdict):
                old.verdict = verdict
                continue
            settled = old is None and _says_programmed(seen.status, verdict.generation)
            self._standings[key] = _Standing(verdict, number, now, settled)
            if number is None:
                self._unpublished.add(key)
        if number is not None:
            for key in self._unpublished:
                standing = self._standings[key]
                standing.number, standing.since = number, now
            self._due |= self._unpublished
            self._unpublished.clear()
        self._pulse.beat()

    def _forget(self, key: Key) -> None:
        self._standings.pop(key, None)
        self._unsettled.discard(key)
        self._unpublished.discard(key)
        self._expiring.pop(key, None)

    def touched(self, key: Key) -> None:
        """A new version of the object was seen: its status may have become another."""
        self._due.add(key)
        self._pulse.beat()

    def fleet_changed(self) -> None:
        """Gateways came, went, or moved to another snapshot."""
        self._pulse.beat()

    def tick(self) -> None:
        """Time has passed, by which keys expire and an absence of gateways becomes certain."""
        now = datetime.now(UTC).timestamp()
        for key in [key for key, at in self._expiring.items() if at <= now]:
            del self._expiring[key]
            self._due.add(key)
        self._pulse.beat()

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        while True:
            await self._pulse.next(None)
            census = self._census()
            if census is None:
                self._pulse.beat_later(HOLD_SECONDS / 5)
                continue
            if census != self._judged_by or monotonic() >= self._held_until:
                self._due |= self._unsettled
                self._held_until = float("inf")
            self._judged_by = census
            due, self._due = self._due, set()
            wishes: dict[Key, Desired] = {}
            for number, key in enumerate(due):
                desired = self._desired(key, census)
                if desired is not _NOTHING:
                    wishes[key] = desired
                if number % _BATCH == _BATCH - 1:
                    self._want(wishes)
                    wishes = {}
                    await asyncio.sleep(0)
            self._want(wishes)
            if self._held_until < float("inf"):
                self._pulse.beat_later(max(0.0, self._held_until - monotonic()))

    def _census(self) -> Census | None:
        """The fleet's, except that gateways which are all gone count for a while as they did."""
        census = self._ask()
        if census is None:
            return None
        if (census.total == 0) != (self._last_total == 0):
            if census.total == 0:
                self._none_since = self._none_since or monotonic()
                if monotonic() - self._none_since < NO_GATEWAYS_SECONDS:
                    return Census((0,) * self._last_total)
            self._due.update(self._standings)
        self._none_since = None
        self._last_total = census.total
        return census

    def _desired(self, key: Key, census: Census) -> Desired:
        """What the object's status should be; ``_NOTHING`` when there is nothing to write, or it
        is too early to say."""
        standing, seen = self._standings.get(key), self._store.seen(key)
        if standing is None or seen is None:
            self._unsettled.discard(key)
            return _NOTHING
        verdict = standing.verdict
        if seen.generation != verdict.generation or verdict.uid not in (None, seen.uid):
            return _NOTHING  # a rebuild that knows this version is on its way
        resource = verdict.resource
        compiled = [
            Condition(one.type, one.status, str(one.reason), one.message)
            for one in conditions(key[0], verdict.findings)
        ]
        accepted = all(one.status == "True" for one in compiled if one.type == "Accepted")
        if isinstance(resource, ApiKey):
            if self._making_key(resource.ref):
                return _NOTHING  # and judged again as soon as it is made
            compiled = self._with_trouble(resource, compiled)
        live = self._programmed(standing, accepted, census)
        well = all(one.status == "True" for one in compiled)
        if live.reason == "Pending":
            self._unsettled.add(key)
            held_until = standing.since + HOLD_SECONDS
            if well and monotonic() < held_until:
                self._held_until = min(self._held_until, held_until)
                return _NOTHING
        else:
            self._unsettled.discard(key)
            standing.settled = live.status == "True"
        found = [*compiled, live]
        fields: dict[str, str | Mapping[str, Any] | None] = {}
        if isinstance(resource, ApiKey):
            found.append(self._ready(key, resource, found))
            fields |= _of_key(resource, verdict.secret)
        desired = Desired(seen.uid, verdict.generation, tuple(found), fields)
        return spend.joined(desired, resource, self._spent(key), seen.status)

    def _programmed(self, standing: _Standing, accepted: bool, census: Census) -> Condition:
        return programmed(
            Placement(
                accepted,
                standing.verdict.present,
                standing.number,
                standing.settled,
                self._obstacle,
            ),
            census,
        )

    def _with_trouble(self, api_key: ApiKey, compiled: list[Condition]) -> list[Condition]:
        trouble = self._trouble(api_key.ref)
        if trouble is None:
            return compiled
        return [
            Condition(one.type, "False", trouble.reason, trouble.message)
            if one.type == "ResolvedRefs" and one.status == "False"
            else one
            for one in compiled
        ]

    def _ready(self, key: Key, api_key: ApiKey, found: Iterable[Condition]) -> Condition:
        expires = api_key.spec.expires_at
        expired = False
        if expires is not None:
            expired = expires <= datetime.now(UTC)
            if not expired:
                self._expiring[key] = expires.timestamp()
        return ready(found, disabled=api_key.spec.disabled, expired=expired)


def _says_the_same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts differ in nothing but what a snapshot does not show: its conditions
    stay as they are, and where it is live too."""
    return (one.uid, one.generation, one.present, one.findings) == (
        other.uid,
        other.generation,
        other.present,
        other.findings,
    )


def _of_key(api_key: ApiKey, secret: SecretObject | None) -> dict[str, str | None]:
    """What the status tells of the key in the ApiKey's Secret."""
    value = secret.data.get(KEY) if secret is not None else None
    state = rotation.state_of(secret) if secret is not None else None
    last, following = rotation.times(api_key, state) if state is not None else (None, None)
    return {
        "prefix": prefix(value.value) if value is not None and value.value else None,
        "lastRotated": last,
        "nextRotation": following,
    }


def _says_programmed(status: Mapping[str, Any], generation: int) -> bool:
    """Whether a status from before our time says that this generation is live."""
    return any(
        condition.get("type") == PROGRAMMED
        and condition.get("status") == "True"
        and condition.get("observedGeneration") == generation
        for condition in status.get("conditions") or []
    )
