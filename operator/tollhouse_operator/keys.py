"""ApiKeys to Secrets: make a key where there is none, adopt one that is there, replace an old one.

Each ApiKey has a Secret in its own namespace with ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``. One
that we make belongs to its ApiKey and goes with it. One that a user brought keeps its key and its
owner: it only gets our label, by which it is then followed. Values never reach a log or a message.

A key that is replaced works on for its overlap, whoever brought it: ``rotation`` says when and how,
and ``announce`` that gateways know the new one before its Secret does.
"""

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

import structlog

from tollhouse.auth import checksum_holds, new_key
from tollhouse.compile import age
from tollhouse.resources import (
    GROUP,
    VERSION,
    ApiKey,
    Ref,
    ResourceError,
    Resources,
    SecretObject,
    parse,
)
from tollhouse.snapshot import key_digest
from tollhouse_operator import events, rotation
from tollhouse_operator.announce import Announcements
from tollhouse_operator.cluster import CallError, Cluster, backoff, path
from tollhouse_operator.events import Note
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.store import BY_LABEL, Store

_log = structlog.get_logger(__name__)

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
LABEL = "tollhouse.dev/apikey"
SELECTOR = f"{LABEL}=true"
_LABELS: Mapping[str, str] = {LABEL: "true", "app.kubernetes.io/managed-by": "tollhouse"}

_PARALLEL = 16
ARRIVAL_SECONDS = 0.3
"""How long a Secret may arrive after its ApiKey. ``kubectl apply`` of a file that holds both would
otherwise find a Secret of ours where it is about to create the user's."""
SHORTEST_KEY = 16
_REFUSALS = (401, 403)
_REFUSED_TRIES = 8
"""An API server that is starting refuses what it will soon allow: about 30 s of tries."""
RETRY_SECONDS = 30.0
"""After an answer that seemed final, the same ApiKey is tried again this much later."""
_CONFLICT = 409
_TURN_TRIES = 5


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an ApiKey has no key: for its ``ResolvedRefs`` condition."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """A trouble, the ApiKey's generation that met it, and when to try again by ourselves."""

    trouble: Trouble
    generation: int
    until: float


@dataclass(frozen=True, slots=True)
class _Appointment:
    """When to look at a key again, in seconds since the epoch, while these two are the same."""

    api_key: ApiKey
    secret: SecretObject
    at: float


def secret_of(api_key: ApiKey) -> Ref:
    """Namespace and name of the ApiKey's Secret."""
    return api_key.metadata.namespace, api_key.spec.secret_name or api_key.metadata.name


def prefix(key: str) -> str | None:
    """As much of a key as a status may show: ten characters of one of ours, else four.

    None for what is too short to be a key.
    """
    if checksum_holds(key):
        return key[:10]
    return key[:4] if len(key) >= SHORTEST_KEY else None


def new_secret(api_key: ApiKey, base_url: str, now: float) -> dict[str, Any]:
    """A Secret with a fresh key, which goes when its ApiKey goes; ``now`` since the epoch."""
    namespace, name = secret_of(api_key)
    key = new_key()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": dict(_LABELS),
            "annotations": rotation.beginning(api_key, key, now),
            "ownerReferences": [
                {
                    "apiVersion": f"{GROUP}/{VERSION}",
                    "kind": "ApiKey",
                    "name": api_key.metadata.name,
                    "uid": api_key.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "data": {KEY: _encoded(key), BASE_URL: _encoded(base_url)},
    }


def change_to(
    found: Mapping[str, Any], api_key: ApiKey, base_url: str, now: float
) -> dict[str, Any] | None:
    """The merge patch that makes an existing Secret an ApiKey's, or None where it is one.

    It adds our labels and notes since when the key is known, which is ``now``, in seconds since
    the epoch; only where there is no key, it adds a key and the base URL.
    """
    metadata = found["metadata"]
    data = found.get("data") or {}
    labelled = (metadata.get("labels") or {}).get(LABEL) == "true"
    state = rotation.state_of_manifest(found)
    if data.get(KEY) and labelled:
        return None
    change: dict[str, Any] = {"metadata": {"resourceVersion": metadata["resourceVersion"]}}
    if not labelled:
        change["metadata"]["labels"] = dict(_LABELS)
    if not data.get(KEY):
        key = new_key()
        change["data"] = {KEY: _encoded(key)}
        if BASE_URL not in data:
            change["data"][BASE_URL] = _encoded(base_url)
        change["metadata"]["annotations"] = rotation.beginning(api_key, key, now)
    elif state is not None and not state.known:
        noted = rotation.change(api_key, found, state, None, now)
        change["metadata"]["annotations"] = noted["metadata"]["annotations"]
    return change


class Keys:
    """Gives every ApiKey its Secret, and a new key when that is due. The store learns of each
    Secret from the write's own answer, so a new key is published without waiting for a watch.
    ``settled`` is called with each ApiKey that is no longer worked on, ``clock`` gives seconds
    since the epoch, and ``identity`` signs events."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        base_url: str,
        settled: Callable[[Ref], None],
        *,
        announcements: Announcements,
        identity: str,
        clock: Callable[[], float] = time,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._base_url = base_url
        self._settled = settled
        self._announcements = announcements
        self._identity = identity
        self._clock = clock
        self._agenda: dict[Ref, _Appointment] = {}
        self._working: dict[Ref, asyncio.Task[None]] = {}
        self._given_up: dict[Ref, _GivenUp] = {}
        self._calls = asyncio.Semaphore(_PARALLEL)
        self._due = Pulse(quiet=0.005, most=0.1)
        self._passed = asyncio.Event()

    def look(self) -> None:
        """ApiKeys or their Secrets may have changed: see whether one lacks its key."""
        self._due.beat()

    def working(self, api_key: Ref) -> bool:
        """Whether this ApiKey's Secret is being made at this moment."""
        return api_key in self._working

    def trouble(self, api_key: Ref) -> Trouble | None:
        """What keeps this ApiKey from having a key."""
        given_up = self._given_up.get(api_key)
        return given_up.trouble if given_up else None

    async def until_passed(self) -> None:
        """Until every ApiKey there was at the start has its Secret or an answer why not."""
        await self._passed.wait()

    async def run(self) -> None:
        """Never returns; ends by cancellation, or with NotLeading in an ExceptionGroup."""
        async with asyncio.TaskGroup() as group:
            self._start(group)
            if self._working:
                await asyncio.wait(list(self._working.values()))
            self._passed.set()
            while True:
                # A new key is published before it is written, so not before the first snapshot.
                self._start_turns(group)
                await self._due.next(None)
                self._start(group)

    def _start(self, group: asyncio.TaskGroup) -> None:
        resources = self._store.resources()
        for ref in self._given_up.keys() - resources.api_keys.keys():
            del self._given_up[ref]
        for ref in self._agenda.keys() - resources.api_keys.keys():
            del self._agenda[ref]
        for ref, api_key in resources.api_keys.items():
            if not self._lacks(api_key):
                self._given_up.pop(ref, None)
            elif ref not in self._working and not self._still_given_up(ref):
                self._working[ref] = group.create_task(self._ensure(api_key))

    def _start_turns(self, group: asyncio.TaskGroup) -> None:
        """A task for each key about which something is due."""
        resources, now = self._store.resources(), self._clock()
        holders: dict[Ref, ApiKey] | None = None
        for ref, api_key in resources.api_keys.items():
            secret = resources.secrets.get(secret_of(api_key))
            if secret is None or ref in self._working or ref in self._given_up:
                continue
            if self._appointment(ref, api_key, secret).at > now or self._lacks(api_key):
                continue
            holders = _holders(resources) if holders is None else holders
            if holders[secret_of(api_key)] is api_key:
                self._working[ref] = group.create_task(self._turn(api_key, secret))
            else:
                self._agenda[ref] = _Appointment(api_key, secret, now + RETRY_SECONDS)

    def _appointment(self, ref: Ref, api_key: ApiKey, secret: SecretObject) -> "_Appointment":
        """When to look at this key again, worked out anew only when something about it changed."""
        known = self._agenda.get(ref)
        if known is None or known.api_key is not api_key or known.secret is not secret:
            state = rotation.state_of(secret)
            at = rotation.due(api_key, state) if state is not None else rotation.NEVER
            known = self._agenda[ref] = _Appointment(api_key, secret, at)
        return known

    async def _turn(self, api_key: ApiKey, secret: SecretObject) -> None:
        """One key's rotation, or notes about it: done, or put off."""
        ref = _ref(api_key)
        put_off = _Appointment(api_key, secret, self._clock() + RETRY_SECONDS)
        try:
            for attempt in range(_TURN_TRIES):
                try:
                    if not await self._rotate(api_key):
                        self._agenda[ref] = put_off
                    return
                except CallError as error:
                    failure = error
                    if not (error.transient or error.status == _CONFLICT):
                        break
                    await asyncio.sleep(error.retry_after or backoff(attempt))
            _log.error("key not rotated", apikey="/".join(ref), error=str(failure))
            self._agenda[ref] = put_off
            text = f"Secret {secret.namespace}/{secret.name} cannot be changed: {failure.reason}"
            await self._post(api_key, Note("Warning", "RotationFailed", text))
        finally:
            del self._working[ref]
            self._settled(ref)

    async def _rotate(self, api_key: ApiKey) -> bool:
        """Does what is due by what the API server has at this moment; False where nothing is.

        The Secret is read first and written at that version: what another replica did in between,
        or a watch has not shown yet, is a conflict and never a second rotation.
        """
        namespace, name = secret_of(api_key)
        where = path("Secret", namespace, name)
        async with self._calls:
            found = await self._cluster.get(where)
            asking = await self._cluster.get(path("ApiKey", *_ref(api_key)))
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
        _log.info("key rotated", apikey="/".join(_ref(api_key)), secret=name)
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
        namespace, name = _ref(api_key)
        about = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": api_key.kind,
            "metadata": {"namespace": namespace, "name": name, "uid": api_key.metadata.uid},
        }
        await events.post(self._cluster, self._identity, about, note, "Rotate")

    def _lacks(self, api_key: ApiKey) -> bool:
        """Whether no Secret with a key is followed on behalf of this ApiKey."""
        seen = self._store.seen(("Secret", *secret_of(api_key)))
        return seen is None or BY_LABEL not in seen.sources or KEY not in seen.data

    def _still_given_up(self, ref: Ref) -> bool:
        given_up = self._given_up.get(ref)
        if given_up is None:
            return False
        seen = self._store.seen(("ApiKey", *ref))
        unchanged = seen is not None and seen.generation == given_up.generation
        return unchanged and monotonic() < given_up.until

    async def _ensure(self, api_key: ApiKey) -> None:
        """Until there is a Secret, or an answer that trying again at once will not change."""
        ref = _ref(api_key)
        failures = 0
        try:
            while self._lacks(api_key) and not self._gone(api_key):
                try:
                    await self._provide(api_key)
                    self._given_up.pop(ref, None)
                    return
                except CallError as error:
                    refused = error.status in _REFUSALS and failures < _REFUSED_TRIES
                    if not (error.transient or error.status == _CONFLICT or refused):
                        self._give_up(api_key, error)
                        return
                    _log.warning("key put off", apikey="/".join(ref), error=str(error))
                    await asyncio.sleep(error.retry_after or backoff(failures))
                    failures += 1
        finally:
            del self._working[ref]
            self._settled(ref)

    def _give_up(self, api_key: ApiKey, error: CallError) -> None:
        namespace, name = secret_of(api_key)
        _log.error("no key for ApiKey", apikey="/".join(_ref(api_key)), error=str(error))
        self._given_up[_ref(api_key)] = _GivenUp(
            Trouble(
                "SecretNotWritable",
                f"Secret {namespace}/{name} cannot be given a key: {error.reason}",
            ),
            api_key.metadata.generation,
            monotonic() + RETRY_SECONDS,
        )

    def _gone(self, api_key: ApiKey) -> bool:
        seen = self._store.seen(("ApiKey", *_ref(api_key)))
        return seen is None or seen.uid != api_key.metadata.uid

    async def _provide(self, api_key: ApiKey) -> None:
        namespace, name = secret_of(api_key)
        where = path("Secret", namespace, name)
        async with self._calls:
            found = await self._cluster.get(where)
        if found is None:
            await asyncio.sleep(ARRIVAL_SECONDS)
        async with self._calls:
            found = found or await self._cluster.get(where)
            if found is None and self._gone(api_key):
                return
            if found is None:
                fresh = new_secret(api_key, self._base_url, self._clock())
                found = await self._cluster.create(path("Secret", namespace), fresh)
                _log.info("key made", apikey="/".join(_ref(api_key)), secret=name)
            elif change := change_to(found, api_key, self._base_url, self._clock()):
                found = await self._cluster.patch(where, change)
                _log.info("key adopted", apikey="/".join(_ref(api_key)), secret=name)
        self._store.observe("Secret", found, BY_LABEL)


def _holders(resources: Resources) -> dict[Ref, ApiKey]:
    """By Secret, the ApiKey whose key it holds: of several the oldest, as in ``compile``. Were each
    of them to rotate it, they would answer each other's for ever."""
    found: dict[Ref, ApiKey] = {}
    for api_key in sorted(resources.api_keys.values(), key=age):
        found.setdefault(secret_of(api_key), api_key)
    return found


def _ref(api_key: ApiKey) -> Ref:
    return api_key.metadata.namespace, api_key.metadata.name


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
