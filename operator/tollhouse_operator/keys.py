"""ApiKeys to Secrets: make a key where there is none, adopt the one that is there.

Each ApiKey has a Secret in its own namespace with ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``. One
that we make belongs to its ApiKey and goes with it. One that a user brought keeps its key and its
owner: it only gets our label, by which it is then followed, and loses it when no ApiKey names it.
Values never reach a log or a message.

Keys are replaced elsewhere, in ``rotating``; here it is noted since when there is one.
"""

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

import structlog

from tollhouse.auth import checksum_holds, new_key
from tollhouse.resources import GROUP, VERSION, ApiKey, Ref
from tollhouse_operator import rotation
from tollhouse_operator.cluster import CallError, Cluster, backoff, path
from tollhouse_operator.pulse import Pulse
from tollhouse_operator.store import BY_LABEL, Key, Store

_log = structlog.get_logger(__name__)

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
LABEL = "tollhouse.dev/apikey"
SELECTOR = f"{LABEL}=true"
_LABELS: Mapping[str, str] = {LABEL: "true", "app.kubernetes.io/managed-by": "tollhouse"}

_PARALLEL = 32
ARRIVAL_SECONDS = 0.3
"""How long a Secret may arrive after its ApiKey. ``kubectl apply`` of a file that holds both would
otherwise find a Secret of ours where it is about to create the user's."""
RELEASE_SECONDS = 1.0
"""How long an adopted Secret may be without an ApiKey before it loses our label: ``kubectl
replace`` deletes and creates."""
SHORTEST_KEY = 16
_REFUSALS = (401, 403)
_REFUSED_TRIES = 8
"""An API server that is starting refuses what it will soon allow: about 30 s of tries."""
RETRY_SECONDS = 30.0
"""After an answer that seemed final, the same ApiKey is tried again this much later."""
_CONFLICT = 409


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

    It adds our label and notes since when the key is known, which is ``now``, in seconds since
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
        change["metadata"]["labels"] = {LABEL: "true"}
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


def release_of(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The merge patch that takes our labels off a Secret, or None where it has none."""
    metadata = found["metadata"]
    labels = metadata.get("labels") or {}
    taken: dict[str, None] = {
        name: None for name, value in _LABELS.items() if labels.get(name) == value
    }
    if LABEL not in taken:
        return None
    return {"metadata": {"labels": taken, "resourceVersion": metadata["resourceVersion"]}}


class Keys:
    """Gives every ApiKey its Secret. The store learns of each Secret from the write's own answer,
    so a new key is published without waiting for a watch. ``settled`` is called with each ApiKey
    that is no longer worked on, and ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        base_url: str,
        settled: Callable[[Ref], None],
        *,
        clock: Callable[[], float] = time,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._base_url = base_url
        self._settled = settled
        self._clock = clock
        self._working: dict[Ref, asyncio.Task[None]] = {}
        self._given_up: dict[Ref, _GivenUp] = {}
        self._looked_for: set[Ref] = set()
        self._held: dict[Ref, Ref] = {}
        self._holders: dict[Ref, set[Ref]] = {}
        self._left: set[Ref] = set()
        self._releasing: set[Ref] = set()
        self._calls = asyncio.Semaphore(_PARALLEL)
        self._due = Pulse(quiet=0.005, most=0.1)
        self._passed = asyncio.Event()

    def changed(self, key: Key) -> None:
        """An ApiKey or a Secret became another: see whether an ApiKey lacks its key."""
        ref = (key[1] or "", key[2])
        self._looked_for |= {ref} if key[0] == "ApiKey" else self._holders.get(ref, set())
        if key[0] == "Secret" and not self._holders.get(ref):
            self._left.add(ref)
        self._due.beat()

    def look(self) -> None:
        """See after every ApiKey that was given up."""
        self._looked_for |= self._given_up.keys()
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
            self._looked_for |= self._store.resources().api_keys.keys()
            self._left |= {
                (namespace or "", name)
                for _, namespace, name in self._store.keys("Secret", None, BY_LABEL)
            }
            self._start(group)
            if self._working:
                await asyncio.wait(list(self._working.values()))
            self._passed.set()
            while True:
                await self._due.next(None)
                self._start(group)

    def _start(self, group: asyncio.TaskGroup) -> None:
        api_keys = self._store.resources().api_keys
        looked_for, self._looked_for = self._looked_for, set()
        for ref in looked_for:
            api_key = api_keys.get(ref)
            self._hold(ref, secret_of(api_key) if api_key is not None else None)
            if api_key is None or not self._lacks(api_key):
                self._given_up.pop(ref, None)
            elif ref not in self._working and not self._still_given_up(ref):
                self._working[ref] = group.create_task(self._ensure(api_key))
        left, self._left = self._left, set()
        for secret in left:
            if self._left_behind(secret) and secret not in self._releasing:
                self._releasing.add(secret)
                group.create_task(self._release(secret))

    def _hold(self, ref: Ref, secret: Ref | None) -> None:
        """Remember which Secret the ApiKey names; one that it named before may be nobody's now."""
        before = self._held.get(ref)
        if before == secret:
            return
        if before is not None:
            holders = self._holders[before]
            holders.discard(ref)
            if not holders:
                del self._holders[before]
                self._left.add(before)
        if secret is None:
            del self._held[ref]
        else:
            self._held[ref] = secret
            self._holders.setdefault(secret, set()).add(ref)

    def _left_behind(self, secret: Ref) -> bool:
        """Whether a Secret has our label, no ApiKey names it, and it will not go by itself."""
        seen = self._store.seen(("Secret", *secret))
        if seen is None or seen.owned or BY_LABEL not in seen.sources or secret in self._holders:
            return False
        # What an ApiKey names that never could be read, nobody knows.
        return not any(
            it.kind == "ApiKey" and not it.kept and it.ref[0] == secret[0]
            for it in self._store.resources().refused
        )

    async def _release(self, secret: Ref) -> None:
        """Take our label off an adopted Secret whose ApiKey is gone, unless that comes back."""
        where = path("Secret", *secret)
        failures = 0
        await asyncio.sleep(RELEASE_SECONDS)
        try:
            while self._left_behind(secret):
                try:
                    async with self._calls:
                        found = await self._cluster.get(where)
                        if found is None or (change := release_of(found)) is None:
                            return
                        await self._cluster.patch(where, change)
                    _log.info("key released", namespace=secret[0], secret=secret[1])
                    return
                except CallError as error:
                    if not (error.transient or error.status == _CONFLICT):
                        _log.error("label stays on a Secret", error=str(error))
                        return
                    await asyncio.sleep(error.retry_after or backoff(failures))
                    failures += 1
        finally:
            self._releasing.discard(secret)

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
            # What was settled may have been another Secret than the one that is named by now.
            self.changed(("ApiKey", *ref))

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
            if found is None and self._gone(api_key):
                return
            if found is None:
                # One that arrived meanwhile is a conflict, and found at the next try.
                fresh = new_secret(api_key, self._base_url, self._clock())
                found = await self._cluster.create(path("Secret", namespace), fresh)
                _log.info("key made", apikey="/".join(_ref(api_key)), secret=name)
            elif change := change_to(found, api_key, self._base_url, self._clock()):
                found = await self._cluster.patch(where, change)
                _log.info("key adopted", apikey="/".join(_ref(api_key)), secret=name)
        self._store.observe("Secret", found, BY_LABEL)


def _ref(api_key: ApiKey) -> Ref:
    return api_key.metadata.namespace, api_key.metadata.name


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
