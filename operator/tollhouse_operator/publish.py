"""A snapshot into Secrets: only what changed, and never half a change.

The index in slot 0 says which slots hold the shards. A changed shard is written into a slot that
the index in force does not name, and the index is written last, so whoever reads at any moment
finds a whole snapshot, and an operator that dies between two writes leaves the old one. A slot is
free again once an index that does not name it is written; it is deleted a while later, when every
gateway has moved on.

Each write names the version that it replaces. Where another operator has written in between, the
write fails, everything is read anew, and the caller tries again.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import structlog

from tollhouse.errors import SnapshotError, TollhouseError
from tollhouse.snapshot import (
    FORMAT,
    INDEX_KEY,
    MAX_SHARD_BYTES,
    SHARD_KEY,
    SLOTS,
    Index,
    ShardRef,
    decode_index,
    digest_of,
    encode_index,
    slot_name,
    whole_digest,
)
from tollhouse_operator.cluster import Cluster, path

_log = structlog.get_logger(__name__)

GRACE_SECONDS = 10.0
"""How long a freed slot stays for gateways that still read by the index before."""
COOL_SECONDS = 1.0
"""How long a freed slot is not written to. Under a flood of changes publishing waits for it:
gateways could otherwise never finish reading before what they read is gone."""
_PARALLEL = 8
SNAPSHOT_LABEL = "tollhouse.dev/snapshot"


class TooLarge(TollhouseError):
    """A shard does not fit into a Secret; ``shards`` maps its name to its size in bytes."""

    def __init__(self, shards: Mapping[str, int]) -> None:
        sizes = ", ".join(f"{name} has {size} bytes" for name, size in sorted(shards.items()))
        super().__init__(
            f"the snapshot does not fit: {sizes}, at most {MAX_SHARD_BYTES} are possible. "
            "The last one that fitted stays in force"
        )
        self.shards = shards


@dataclass(frozen=True, slots=True)
class Stored:
    """One slot's bytes under their data key, and the version at which they were read."""

    data: Mapping[str, bytes]
    version: str


class Slots(Protocol):
    """Where a snapshot is kept. Every method raises TollhouseError."""

    async def read(self, slot: int) -> Stored | None: ...

    async def write(self, slot: int, data: Mapping[str, bytes], version: str | None) -> str:
        """Replace what stands at ``version``, or create; returns the new version."""
        ...

    async def delete(self, slot: int, version: str) -> None: ...

    async def versions(self) -> Mapping[int, str]:
        """Which slots exist, and at which version."""
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """The digest that is in force now, and how many Secrets were written for it."""

    digest: str
    written: int


class Publisher:
    """Keeps the snapshot's Secrets; one caller at a time."""

    def __init__(
        self,
        slots: Slots,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._slots = slots
        self._clock = clock
        self._sleep = sleep
        self._known = False
        self._index: Index | None = None
        self._versions: dict[int, str] = {}
        self._digests: dict[int, str] = {}
        self._freed: dict[int, float] = {}

    async def load(self) -> str | None:
        """Read what is in force; returns its digest. Raises TollhouseError."""
        gate = asyncio.Semaphore(_PARALLEL)

        async def read(slot: int) -> Stored | None:
            async with gate:
                return await self._slots.read(slot)

        stored = await asyncio.gather(*(read(slot) for slot in range(SLOTS)))
        found = {slot: one for slot, one in enumerate(stored) if one is not None}
        self._versions = {slot: one.version for slot, one in found.items()}
        self._digests = {
            slot: digest_of(one.data[SHARD_KEY])
            for slot, one in found.items()
            if slot > 0 and SHARD_KEY in one.data
        }
        self._index = _index_in(found.get(0))
        self._freed = {slot: self._clock() for slot in found.keys() - self._in_force() if slot > 0}
        self._known = True
        return self._index.digest if self._index else None

    async def publish(self, shards: Mapping[str, bytes]) -> Published:
        """Put these shards (encoded, by name) in force.

        Raises TooLarge, with nothing written, and TollhouseError when a write failed; the snapshot
        before is then still in force and the next call goes on from what was written.
        """
        large = {name: len(shard) for name, shard in shards.items() if len(shard) > MAX_SHARD_BYTES}
        if large:
            raise TooLarge(large)
        if not self._known:
            await self.load()
        try:
            return await self._publish(shards)
        except TollhouseError:
            self._known = False
            raise

    async def _publish(self, shards: Mapping[str, bytes]) -> Published:
        digests = {name: digest_of(shard) for name, shard in shards.items()}
        placed = {name: self._holder(name, digest) for name, digest in digests.items()}
        taken = {slot for slot in placed.values() if slot is not None}
        free = self._free(taken)
        needed = sum(slot is None for slot in placed.values())
        await self._cooled(free[:needed])
        refs: dict[str, ShardRef] = {}
        fresh: dict[int, str] = {}
        for name in sorted(shards):
            slot = placed[name]
            if slot is None:
                slot = free.pop(0)
                fresh[slot] = name
            refs[name] = ShardRef(slot, digests[name])
        await self._write_shards({slot: shards[name] for slot, name in fresh.items()})

        index = Index(format=FORMAT, digest=whole_digest(digests), shards=refs)
        if index == self._index:
            return Published(index.digest, len(fresh))
        before = self._in_force()
        self._versions[0] = await self._slots.write(
            0, {INDEX_KEY: encode_index(index)}, self._versions.get(0)
        )
        self._index = index
        now = self._clock()
        for slot in before - self._in_force():
            self._freed[slot] = now
        for slot in self._in_force():
            self._freed.pop(slot, None)
        return Published(index.digest, len(fresh) + 1)

    async def sweep(self) -> None:
        """Delete slots that were freed long enough ago. Raises TollhouseError.

        For quiet times: while much changes they are written to again instead.
        """
        if not self._known:
            return
        due = [slot for slot, at in self._freed.items() if self._clock() - at >= GRACE_SECONDS]
        gate = asyncio.Semaphore(_PARALLEL)

        async def delete(slot: int) -> None:
            async with gate:
                await self._slots.delete(slot, self._versions[slot])
            del self._freed[slot], self._versions[slot]
            self._digests.pop(slot, None)

        await self._all(delete(slot) for slot in due)

    async def _all(self, calls: Iterable[Awaitable[None]]) -> None:
        """Every one to its end; then the first error."""
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                self._known = False
                raise outcome

    async def verify(self) -> bool:
        """Whether the Secrets are as we left them; when not, the next publish reads them anew.

        Raises TollhouseError.
        """
        if self._known and await self._slots.versions() != self._versions:
            _log.warning("snapshot Secrets were changed by somebody else")
            self._known = False
        return self._known

    def _in_force(self) -> set[int]:
        return {ref.slot for ref in self._index.shards.values()} if self._index else set()

    def _holder(self, name: str, digest: str) -> int | None:
        """The slot that holds these bytes already: the shard's own, or one left from before."""
        current = self._index.shards.get(name) if self._index else None
        if current is not None and self._digests.get(current.slot) == digest:
            return current.slot
        return next((slot for slot, held in self._digests.items() if held == digest), None)

    def _free(self, taken: set[int]) -> list[int]:
        """Slots to write to: those that no gateway can be reading any more, which saves deleting
        them and making new ones; then those that do not exist; then the longest free."""
        usable = set(range(1, SLOTS)) - self._in_force() - taken
        long_ago = self._clock() - GRACE_SECONDS

        def rank(slot: int) -> tuple[bool, float, int]:
            freed = self._freed.get(slot, 0.0)
            return not 0.0 < freed <= long_ago, freed, slot

        return sorted(usable, key=rank)

    async def _cooled(self, slots: Sequence[int]) -> None:
        latest = max((self._freed.get(slot, 0.0) for slot in slots), default=0.0)
        wait = latest + COOL_SECONDS - self._clock()
        if latest and wait > 0:
            await self._sleep(wait)

    async def _write_shards(self, shards: Mapping[int, bytes]) -> None:
        gate = asyncio.Semaphore(_PARALLEL)

        async def write(slot: int, shard: bytes) -> None:
            async with gate:
                version = await self._slots.write(
                    slot, {SHARD_KEY: shard}, self._versions.get(slot)
                )
            self._versions[slot] = version
            self._digests[slot] = digest_of(shard)
            self._freed[slot] = self._clock()

        await self._all(write(slot, shard) for slot, shard in shards.items())


def _index_in(stored: Stored | None) -> Index | None:
    if stored is None or INDEX_KEY not in stored.data:
        return None
    try:
        return decode_index(stored.data[INDEX_KEY])
    except SnapshotError as error:
        _log.warning("the index in force does not read and is replaced", error=str(error))
        return None


class SecretSlots:
    """Slots as Secrets ``NAME-0`` … ``NAME-63`` of one namespace."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name

    async def read(self, slot: int) -> Stored | None:
        found = await self._cluster.get(self._path(slot))
        if found is None:
            return None
        data = {key: _bytes(value) for key, value in (found.get("data") or {}).items()}
        return Stored(data, found["metadata"]["resourceVersion"])

    async def write(self, slot: int, data: Mapping[str, bytes], version: str | None) -> str:
        manifest: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "tollhouse.dev/snapshot",
            "metadata": {
                "namespace": self._namespace,
                "name": slot_name(self._name, slot),
                "labels": {
                    "app.kubernetes.io/managed-by": "tollhouse",
                    SNAPSHOT_LABEL: self._name,
                },
            },
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }
        if version is None:
            written = await self._cluster.create(path("Secret", self._namespace), manifest)
        else:
            manifest["metadata"]["resourceVersion"] = version
            written = await self._cluster.replace(self._path(slot), manifest)
        return str(written["metadata"]["resourceVersion"])

    async def delete(self, slot: int, version: str) -> None:
        await self._cluster.delete(self._path(slot), version=version)

    async def versions(self) -> Mapping[int, str]:
        listed, _ = await self._cluster.identities(
            path("Secret", self._namespace), labels=f"{SNAPSHOT_LABEL}={self._name}"
        )
        slots = {slot_name(self._name, slot): slot for slot in range(SLOTS)}
        return {slots[one.name]: one.resource_version for one in listed if one.name in slots}

    def _path(self, slot: int) -> str:
        return path("Secret", self._namespace, slot_name(self._name, slot))


def _bytes(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return b""
