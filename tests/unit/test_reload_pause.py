"""A gateway that takes in ten thousand callers goes on answering meanwhile."""

import asyncio
import gc
import time
from collections.abc import Mapping

from tollhouse.routing import Table
from tollhouse.snapshot import (
    FORMAT,
    Assembler,
    Index,
    Key,
    ShardRef,
    Snapshot,
    digest_of,
    key_digest,
    shards,
    whole_digest,
)

KEYS = 10_000


def _snapshot(owner: str) -> Snapshot:
    keys = {
        key_digest(f"sk-th-PLANTED-{number}"): Key(
            f"team-{number % 100}",
            f"key-{number}",
            owner=owner if number == 7 else f"team-{number % 100}@example.com",
            allowed_models=(f"vendor/model-{number % 1000}", "vendor/model-1*"),
            model_aliases={"fast": "vendor/model-1"},
            tags={"team": f"t{number % 100}"},
        )
        for number in range(KEYS)
    }
    return Snapshot.of(keys=keys)


def _index(encoded: Mapping[str, bytes]) -> Index:
    refs = {
        name: ShardRef(slot, digest_of(data)) for slot, (name, data) in enumerate(encoded.items())
    }
    return Index(FORMAT, whole_digest({name: ref.digest for name, ref in refs.items()}), refs)


async def _longest_pause(assembler: Assembler, encoded: Mapping[str, bytes]) -> float:
    """Seconds for which nothing else ran on the event loop while a snapshot came into force."""
    longest, done = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not done:
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest = 0.0
    index = _index(encoded)
    fetched = {name: encoded[name] for name in assembler.missing(index)}
    snapshot = await asyncio.to_thread(assembler.assemble, index, fetched)
    table = Table(snapshot, index.digest)
    assert table.snapshot.key_count() == KEYS
    await asyncio.sleep(0)
    done = True
    await ticking
    return longest


async def test_ten_thousand_callers_are_taken_in_without_a_long_pause() -> None:
    before, after = shards(_snapshot("before")), shards(_snapshot("after"))
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) == 1
    gc.collect()
    assembler = Assembler()
    everything = await _longest_pause(assembler, before)
    one = [
        await _longest_pause(assembler, after if number % 2 == 0 else before)
        for number in range(20)
    ]
    print(
        f"longest pause of the event loop at {KEYS} keys: all taken in "
        f"{everything * 1000:.1f} ms; one changed, the median of {len(one)} "
        f"{sorted(one)[len(one) // 2] * 1000:.1f} ms"
    )
    # The promise is 20 ms; a machine that is busy with other things takes the loop away for longer.
    assert sorted(one)[len(one) // 2] < 0.1
