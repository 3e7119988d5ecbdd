"""Writes a snapshot's Secrets as the operator does, and half of them where a test wants that.

Changed shards go beside the old ones, the index comes last.
"""

import base64

import aiohttp
from yarl import URL

from tollhouse.snapshot import (
    FORMAT,
    INDEX_KEY,
    SHARD_KEY,
    SLOTS,
    Index,
    ShardRef,
    Snapshot,
    digest_of,
    encode_index,
    shards,
    slot_name,
    whole_digest,
)


class Publisher:
    """``url`` is that of the namespace's Secrets; ``name`` is the snapshot's."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, name: str) -> None:
        self._session = session
        self._url = url
        self._name = name
        self._exists: set[str] = set()
        self._placed: dict[str, ShardRef] = {}

    async def write(self, slot: int, data: dict[str, bytes]) -> None:
        name = slot_name(self._name, slot)
        body = {
            "metadata": {"name": name},
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }
        if name in self._exists:
            answer = await self._session.put(self._url / name, json=body)
        else:
            answer = await self._session.post(self._url, json=body)
        assert answer.ok, answer.status
        answer.release()
        self._exists.add(name)

    async def delete(self, slot: int) -> None:
        name = slot_name(self._name, slot)
        (await self._session.delete(self._url / name)).release()
        self._exists.discard(name)

    async def shards(self, snapshot: Snapshot) -> Index:
        """Writes the changed shards and returns the index, which is not written yet."""
        encoded = shards(snapshot)
        digests = {name: digest_of(data) for name, data in encoded.items()}
        taken = {ref.slot for ref in self._placed.values()}
        placed: dict[str, ShardRef] = {}
        for name, digest in digests.items():
            known = self._placed.get(name)
            if known is not None and known.digest == digest:
                placed[name] = known
                continue
            slot = next(number for number in range(1, SLOTS) if number not in taken)
            taken.add(slot)
            placed[name] = ShardRef(slot, digest)
            await self.write(slot, {SHARD_KEY: encoded[name]})
        self._placed = placed
        return Index(FORMAT, whole_digest(digests), placed)

    async def index(self, index: Index) -> None:
        await self.write(0, {INDEX_KEY: encode_index(index)})

    async def publish(self, snapshot: Snapshot) -> None:
        await self.index(await self.shards(snapshot))
