"""From rebuilds and from the gateways' answers to the status that each object should have.

It remembers, for each custom resource, what the last rebuild said about it and the number of the
snapshot that first held it in that state. Only objects about which something changed are judged
again, so ten thousand of them cost little while one changes.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from tollhouse.compile import Compiled
from tollhouse.findings import Finding, conditions
from tollhouse.resources import KINDS, ApiKey, Resource, Resources, SecretObject
from tollhouse_operator import rotation
from tollhouse_operator.fleet import Census
from tollhouse_operator.keys import KEY, Trouble, prefix, secret_of
from tollhouse_operator.pulse import Pulse
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

_State = tuple[str, int, bool, tuple[Finding, ...]]


@dataclass(slots=True)
class _Standing:
    """One object as the last rebuild left it.

    ``state`` (uid, generation, in the snapshot, findings) decides everything but Programmed;
    ``number`` is the snapshot that first held it so, ``since`` when that was published. An
    ApiKey's status tells of its ``secret``, too.
    ``settled``: it was live on every gateway already.
    """

    state: _State
    resource: Resource | None
    number: int | None
    since: float
    settled: bool
    secret: SecretObject | None = None


class Judgement:
    """``census`` asks the fleet, ``want`` takes the statuses, ``making_key`` and ``trouble`` tell
    of an ApiKey's Secret."""

    def __init__(
        self,
        store: Store,
        *,
        census: Callable[[], Census | None],
        want: Callable[[Mapping[Key, Desired]], None],
        making_key: Callable[[tuple[str, str]], bool],
        trouble: Callable[[tuple[str, str]], Trouble | None],
    ) -> None:
        self._store = store
        self._ask = census
        self._want = want
        self._making_key = making_key
        self._trouble = trouble
        self._pulse = Pulse(quiet=0.01, most=0.1)
        self._standings: dict[Key, _Standing] = {}
        self._due: set[Key] = set()
        self._unsettled: set[Key] = set()
        self._expiring: dict[Key, float] = {}
        self._resources = Resources()
        self._obstacle: str | None = None
        self._last_total = 0
        self._none_since: float | None = None

    def rebuilt(
        self, resources: Resources, compiled: Compiled, number: int | None, obstacle: str | None
    ) -> None:
        """A rebuild is done: it was published as snapshot ``number``, or met ``obstacle``."""
        self._resources = resources
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            self._due |= self._unsettled
        findings: dict[Key, tuple[Finding, ...]] = dict(compiled.by_object().items())
        generations: dict[Key, int] = {
            (one.kind, *one.ref): one.generation for one in resources.refused if one.kind in KINDS
        }
        known: dict[Key, Resource] = {(one.kind, *one.ref): one for one in _custom(resources)}
        in_snapshot = _in_snapshot(compiled)
        now = monotonic()
        for key in known.keys() | generations.keys():
            seen = self._store.seen(key)
            if seen is None:
                continue
            resource = known.get(key)
            generation = generations.get(key)
            if generation is None and resource is not None:
                generation = resource.metadata.generation
            state = (seen.uid, generation or 0, key in in_snapshot, findings.get(key, ()))
            old = self._standings.get(key)
            secret: SecretObject | None = None
            if isinstance(resource, ApiKey):
                secret = resources.secrets.get(secret_of(resource))
            if old is not None and old.state == state:
                old.resource = resource
                if old.secret is not secret:
                    old.secret = secret
                    self._due.add(key)
                if old.number is None and number is not None:
                    old.number, old.since = number, now
                    self._due.add(key)
                continue
            settled = old is None and _says_programmed(seen.status, generation or 0)
            self._standings[key] = _Standing(state, resource, number, now, settled, secret)
            self._due.add(key)
        for key in self._standings.keys() - known.keys() - generations.keys():
            del self._standings[key]
            self._unsettled.discard(key)
            self._expiring.pop(key, None)
        self._pulse.beat()

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
            due, self._due = self._due | self._unsettled, set()
            wishes: dict[Key, Desired] = {}
            early = False
            for number, key in enumerate(due):
                desired = self._desired(key, census)
                if desired is None:
                    early = True
                elif desired is not _NOTHING:
                    wishes[key] = desired
                if number % _BATCH == _BATCH - 1:
                    await asyncio.sleep(0)
            self._want(wishes)
            if early:
                self._pulse.beat_later(HOLD_SECONDS / 5)

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

    def _desired(self, key: Key, census: Census) -> Desired | None:
        """What the object's status should be; None when it is too early to say.

        ``_NOTHING`` means that there is nothing to write.
        """
        standing, seen = self._standings.get(key), self._store.seen(key)
        if standing is None or seen is None:
            self._unsettled.discard(key)
            return _NOTHING
        uid, generation, present, findings = standing.state
        if (seen.uid, seen.generation) != (uid, generation):
            return _NOTHING  # a rebuild that knows this version is on its way
        compiled = [
            Condition(one.type, one.status, str(one.reason), one.message)
            for one in conditions(key[0], findings)
        ]
        accepted = all(one.status == "True" for one in compiled if one.type == "Accepted")
        if isinstance(standing.resource, ApiKey):
            if self._making_key(standing.resource.ref):
                return _NOTHING  # and judged again as soon as it is made
            compiled = self._with_trouble(standing.resource, compiled)
        live = self._programmed(standing, accepted, present, census)
        well = all(one.status == "True" for one in compiled)
        if live.reason == "Pending":
            self._unsettled.add(key)
            if well and monotonic() - standing.since < HOLD_SECONDS:
                return None
        else:
            self._unsettled.discard(key)
            standing.settled = live.status == "True"
        found = [*compiled, live]
        fields: dict[str, str | None] = {}
        if isinstance(standing.resource, ApiKey):
            found.append(self._ready(key, standing.resource, found))
            fields |= self._of_key(standing.resource)
        return Desired(uid, generation, tuple(found), fields)

    def _programmed(
        self, standing: _Standing, accepted: bool, present: bool, census: Census
    ) -> Condition:
        return programmed(
            Placement(accepted, present, standing.number, standing.settled, self._obstacle), census
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

    def _of_key(self, api_key: ApiKey) -> dict[str, str | None]:
        """What the status tells of the key in the ApiKey's Secret."""
        secret = self._resources.secrets.get(secret_of(api_key))
        value = secret.data.get(KEY) if secret is not None else None
        state = rotation.state_of(secret) if secret is not None else None
        last, following = rotation.times(api_key, state) if state is not None else (None, None)
        return {
            "prefix": prefix(value.value) if value is not None and value.value else None,
            "lastRotated": last,
            "nextRotation": following,
        }


def _custom(resources: Resources) -> Iterator[Resource]:
    yield from resources.providers.values()
    yield from resources.routes.values()
    yield from resources.api_keys.values()
    yield from resources.policies.values()
    yield from resources.budgets.values()


def _in_snapshot(compiled: Compiled) -> set[Key]:
    snapshot = compiled.snapshot
    found: set[Key] = {("Provider", one.namespace, one.name) for one in snapshot.providers.values()}
    found |= {("ModelRoute", one.namespace, one.name) for one in snapshot.routes.values()}
    found |= {("RateLimitPolicy", one.namespace, one.name) for one in snapshot.policies.values()}
    found |= {("Budget", one.namespace, one.name) for one in snapshot.budgets.values()}
    found |= {
        ("ApiKey", one.namespace, one.name)
        for bucket in snapshot.key_shards
        for one in bucket.values()
    }
    return found


def _says_programmed(status: Mapping[str, Any], generation: int) -> bool:
    """Whether a status from before our time says that this generation is live."""
    return any(
        condition.get("type") == PROGRAMMED
        and condition.get("status") == "True"
        and condition.get("observedGeneration") == generation
        for condition in status.get("conditions") or []
    )
