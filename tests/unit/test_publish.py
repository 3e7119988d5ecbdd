"""Publishing a snapshot into slots: only what changed, never half a change."""

from collections.abc import Mapping

import pytest

from tollhouse.errors import ClusterError
from tollhouse.snapshot import (
    INDEX_KEY,
    MAX_SHARD_BYTES,
    SHARD_KEY,
    SLOTS,
    Assembler,
    Index,
    Key,
    Provider,
    Route,
    Snapshot,
    Target,
    decode_index,
    key_digest,
    shards,
)
from tollhouse_operator.publish import COOL_SECONDS, GRACE_SECONDS, Publisher, Stored, TooLarge


class MemorySlots:
    """Slots in memory, with the API server's rule about versions. ``fail_at`` is the number of
    the write that does not happen, or happens without the writer learning of it (``late``)."""

    def __init__(self) -> None:
        self.slots: dict[int, Stored] = {}
        self.writes: list[int] = []
        self.deleted: list[int] = []
        self.fail_at: int | None = None
        self.late = False
        self._versions = 0

    async def read(self, slot: int) -> Stored | None:
        return self.slots.get(slot)

    async def write(self, slot: int, data: Mapping[str, bytes], version: str | None) -> str:
        failing = self.fail_at == len(self.writes)
        if failing and not self.late:
            raise ClusterError("the connection broke before the write")
        current = self.slots.get(slot)
        if (current.version if current else None) != version:
            raise ClusterError("somebody else wrote", 409)
        self._versions += 1
        self.slots[slot] = Stored(dict(data), str(self._versions))
        self.writes.append(slot)
        if failing:
            raise ClusterError("the connection broke after the write")
        return str(self._versions)

    async def delete(self, slot: int, version: str) -> None:
        if slot not in self.slots or self.slots[slot].version != version:
            raise ClusterError("somebody else wrote", 409)
        del self.slots[slot]
        self.deleted.append(slot)

    async def versions(self) -> Mapping[int, str]:
        return {slot: stored.version for slot, stored in self.slots.items()}

    def index(self) -> Index:
        return decode_index(self.slots[0].data[INDEX_KEY])

    def served(self) -> Snapshot:
        """What a gateway that starts at this moment would serve."""
        index = self.index()
        fetched = {name: self.slots[ref.slot].data[SHARD_KEY] for name, ref in index.shards.items()}
        return Assembler().assemble(index, fetched)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def _snapshot(keys: int = 40, model: str = "m", extra: str | None = None) -> Snapshot:
    callers = {key_digest(f"sk-th-PLANTED-{i}"): Key("ai", f"key-{i}") for i in range(keys)}
    if extra is not None:
        callers[key_digest(f"sk-th-PLANTED-{extra}")] = Key("ai", extra)
    return Snapshot.of(
        [Provider("ai", "mock", "Mock")],
        [Route("ai", "r", ("m",), (Target("ai/mock", model=model),))],
        callers,
    )


async def test_what_is_published_is_what_a_gateway_reads() -> None:
    slots = MemorySlots()
    published = await Publisher(slots).publish(shards(_snapshot()))
    assert slots.served() == _snapshot()
    assert slots.index().digest == published.digest
    assert published.written == len(slots.index().shards) + 1


async def test_the_index_is_written_last() -> None:
    slots = MemorySlots()
    publisher = Publisher(slots)
    await publisher.publish(shards(_snapshot()))
    assert slots.writes.index(0) == len(slots.writes) - 1
    await publisher.publish(shards(_snapshot(model="other")))
    assert slots.writes[-1] == 0


async def test_one_changed_key_rewrites_one_shard_and_the_index() -> None:
    slots = MemorySlots()
    publisher = Publisher(slots)
    await publisher.publish(shards(_snapshot()))
    before = {slot: stored.version for slot, stored in slots.slots.items()}
    published = await publisher.publish(shards(_snapshot(extra="one-more")))
    assert published.written == 2
    unchanged = {slot: version for slot, version in before.items() if slot != 0}
    assert {slot: slots.slots[slot].version for slot in unchanged} == unchanged


async def test_the_same_snapshot_writes_nothing() -> None:
    slots = MemorySlots()
    await Publisher(slots).publish(shards(_snapshot()))
    slots.writes.clear()
    restarted = Publisher(slots)
    assert (await restarted.publish(shards(_snapshot()))).written == 0
    assert slots.writes == []


async def test_a_changed_shard_never_goes_where_the_index_in_force_points() -> None:
    slots = MemorySlots()
    publisher = Publisher(slots)
    for number in range(50):
        in_force = {ref.slot for ref in slots.index().shards.values()} if slots.slots else set()
        slots.writes.clear()
        await publisher.publish(shards(_snapshot(model=str(number), keys=40 + number)))
        assert not in_force.intersection(slots.writes)
        assert slots.served() == _snapshot(model=str(number), keys=40 + number)


async def test_a_change_of_everything_fits_beside_what_it_replaces() -> None:
    slots, clock = MemorySlots(), Clock()
    publisher = Publisher(slots, clock, clock.sleep)
    full = {f"keys-{i}": b"a%d" % i for i in range(24)}
    full |= {f"config-{i}": b"b%d" % i for i in range(6)}
    await publisher.publish(full)
    for round_ in range(5):
        await publisher.publish({name: data + b"!" * (round_ + 1) for name, data in full.items()})
    assert max(slots.slots) < SLOTS


async def test_a_flood_of_changes_leaves_gateways_time_to_read() -> None:
    slots, clock = MemorySlots(), Clock()
    publisher = Publisher(slots, clock, clock.sleep)
    full = {f"keys-{i}": b"%d" % i for i in range(24)}
    freed: dict[int, float] = {}
    for round_ in range(6):
        in_force = {ref.slot for ref in slots.index().shards.values()} if slots.slots else set()
        slots.writes.clear()
        await publisher.publish({name: data + b"!" * round_ for name, data in full.items()})
        for slot in set(slots.writes) & freed.keys():
            assert clock.now - freed[slot] >= COOL_SECONDS
        freed |= dict.fromkeys(in_force, clock.now)


@pytest.mark.parametrize("late", [False, True])
async def test_an_operator_that_dies_between_any_two_writes_leaves_the_old_snapshot(
    late: bool,
) -> None:
    slots = MemorySlots()
    await Publisher(slots).publish(shards(_snapshot(keys=10)))
    writes = (await Publisher(slots).publish(shards(_snapshot(model="new")))).written
    assert writes > 10
    for fail_at in range(writes - late):
        slots = MemorySlots()
        await Publisher(slots).publish(shards(_snapshot(keys=10)))
        slots.writes.clear()
        slots.fail_at, slots.late = fail_at, late
        with pytest.raises(ClusterError):
            await Publisher(slots).publish(shards(_snapshot(model="new")))
        assert slots.served() == _snapshot(keys=10)
        slots.fail_at = None
        await Publisher(slots).publish(shards(_snapshot(model="new")))
        assert slots.served() == _snapshot(model="new")


async def test_what_was_written_before_a_failure_is_not_written_again() -> None:
    slots = MemorySlots()
    await Publisher(slots).publish(shards(_snapshot()))
    slots.writes.clear()
    slots.fail_at = 1  # the shard is written, the index is not
    publisher = Publisher(slots)
    with pytest.raises(ClusterError):
        await publisher.publish(shards(_snapshot(extra="one-more")))
    slots.fail_at = None
    await publisher.publish(shards(_snapshot(extra="one-more")))
    assert len(slots.writes) == 2
    assert slots.served() == _snapshot(extra="one-more")


async def test_two_operators_never_mix_their_snapshots() -> None:
    slots = MemorySlots()
    first, second = Publisher(slots), Publisher(slots)
    await first.load()
    await second.load()
    await first.publish(shards(_snapshot(model="first")))
    with pytest.raises(ClusterError):
        await second.publish(shards(_snapshot(model="second")))
    assert slots.served() == _snapshot(model="first")
    await second.publish(shards(_snapshot(model="second")))
    assert slots.served() == _snapshot(model="second")


async def test_a_slot_is_deleted_only_when_gateways_have_had_time_to_move_on() -> None:
    slots, clock = MemorySlots(), Clock()
    publisher = Publisher(slots, clock)
    await publisher.publish(shards(_snapshot()))
    await publisher.publish(shards(_snapshot(extra="one-more")))
    clock.now += GRACE_SECONDS - 1
    await publisher.sweep()
    assert slots.deleted == []
    clock.now += 2
    await publisher.sweep()
    assert len(slots.deleted) == 1
    assert slots.served() == _snapshot(extra="one-more")
    assert len(slots.slots) == len(slots.index().shards) + 1


async def test_a_shard_that_does_not_fit_is_refused_and_the_last_snapshot_stays() -> None:
    slots = MemorySlots()
    publisher = Publisher(slots)
    await publisher.publish(shards(_snapshot()))
    slots.writes.clear()
    with pytest.raises(TooLarge, match="keys-3"):
        await publisher.publish({"keys-3": b"x" * (MAX_SHARD_BYTES + 1)})
    assert slots.writes == []
    assert slots.served() == _snapshot()


class TestDamage:
    async def test_a_lost_shard_is_written_again(self) -> None:
        slots = MemorySlots()
        publisher = Publisher(slots)
        await publisher.publish(shards(_snapshot()))
        lost = next(ref.slot for ref in slots.index().shards.values())
        del slots.slots[lost]
        assert not await publisher.verify()
        await publisher.publish(shards(_snapshot()))
        assert slots.served() == _snapshot()

    async def test_a_spoilt_shard_is_written_elsewhere(self) -> None:
        slots = MemorySlots()
        await Publisher(slots).publish(shards(_snapshot()))
        spoilt = next(ref.slot for ref in slots.index().shards.values())
        slots.slots[spoilt] = Stored({SHARD_KEY: b"nonsense"}, "spoilt")
        await Publisher(slots).publish(shards(_snapshot()))
        assert slots.served() == _snapshot()

    async def test_an_index_that_does_not_read_is_replaced(self) -> None:
        slots = MemorySlots()
        slots.slots[0] = Stored({INDEX_KEY: b"nonsense"}, "spoilt")
        await Publisher(slots).publish(shards(_snapshot()))
        assert slots.served() == _snapshot()

    async def test_untouched_secrets_verify(self) -> None:
        slots = MemorySlots()
        publisher = Publisher(slots)
        await publisher.publish(shards(_snapshot()))
        assert await publisher.verify()
