"""The memory store of several workers: exact, freed when one goes, and one journal for all."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry

from support import counting_model as cm
from tollhouse.errors import StoreError
from tollhouse.store import Count, Kind
from tollhouse.store.journal import Journal
from tollhouse.store.memory import MemoryStore
from tollhouse.store.served import Parent, Served
from tollhouse.store.shared import SharedStore
from tollhouse.telemetry import Metrics

AT_ONCE = Count("at-once", Kind.CONCURRENT, 5, 1)
DAY = Count("day", Kind.WINDOW, 100, 1, span=86_400.0)
SPEND = Count(
    "spend", Kind.PERIOD, 1000, 10, since=1_700_000_000, until=1_900_000_000, settles=True
)
ALL = (AT_ONCE, DAY, SPEND)


@asynccontextmanager
async def worker(parent: Served) -> AsyncIterator[SharedStore]:
    """A worker's store, in this process; hung up at the end, as by a worker that dies."""
    transport, theirs = await parent.connect()
    backend = Parent(theirs)
    store = SharedStore(backend, Metrics(CollectorRegistry()), timeout=5.0, lease=30.0)
    try:
        yield store
    finally:
        await backend.close()
        await asyncio.sleep(0)
        transport.abort()


async def used(store: SharedStore, *counts: Count) -> list[int]:
    found = await store.read(counts)
    assert found is not None
    return [state.used for state in found]


@given(moves=cm.steps)
@settings(max_examples=60, deadline=None)
def test_it_counts_as_the_plain_model_does(moves: list[tuple[str, object]]) -> None:
    async def main() -> None:
        clock = cm.Clock()
        async with worker(Served(MemoryStore(clock=clock))) as store:
            await cm.play(store, cm.Model(clock, None), moves, store.flush)

    asyncio.run(main())


async def test_workers_count_together() -> None:
    memory = MemoryStore()
    parent = Served(memory)
    async with worker(parent) as one, worker(parent) as two:
        asked = [(one, two)[n % 2].reserve(ALL) for n in range(20)]
        admissions = await asyncio.gather(*asked)
        assert sum(admission.granted for admission in admissions) == 5
        assert await used(two, *ALL) == [5, 5, 50]


async def test_what_a_worker_held_is_free_when_it_is_gone() -> None:
    parent = Served(MemoryStore())
    async with worker(parent) as stays:
        async with worker(parent) as goes:
            goes.settle(await goes.reserve(ALL), [0, 0, 7])
            for _ in range(4):
                assert (await goes.reserve(ALL)).granted
            await goes.flush()
            assert (await stays.reserve(ALL)).granted
            assert await used(stays, *ALL) == [5, 6, 57]
        await asyncio.sleep(0.05)
        assert await used(stays, *ALL) == [1, 6, 17]


async def test_a_change_that_comes_twice_counts_once() -> None:
    """As when its answer came too late for the worker."""
    parent = Served(MemoryStore())
    async with worker(parent) as store:
        admission = await store.reserve(ALL)
        store.settle(admission, [0, 0, 7])
        await store.flush()
        store._applied = iter([1])  # type: ignore[assignment]  # the number of the last one again
        store.settle(admission, [0, 0, 7])
        await store.flush()
        assert await used(store, *ALL) == [0, 1, 7]


async def test_one_journal_for_any_number_of_workers(tmp_path: Path) -> None:
    memory = MemoryStore(Journal(tmp_path / "j.sqlite"))
    async with worker(Served(memory)) as store:
        store.settle(await store.reserve(ALL), [0, 0, 7])
        await store.flush()
    await memory.close()
    alone = MemoryStore(Journal(tmp_path / "j.sqlite"))
    found = await alone.read(ALL)
    assert found is not None
    assert [state.used for state in found] == [0, 1, 7]
    await alone.close()


async def test_a_parent_that_answers_nothing_is_asked_only_so_much() -> None:
    silent, theirs = socket.socketpair()
    backend = Parent(theirs)
    asked = [asyncio.create_task(backend.call("p", [], b"")) for _ in range(256)]
    await asyncio.sleep(0.05)
    with pytest.raises(StoreError, match="answers nothing"):
        await backend.call("p", [], b"")
    silent.close()
    for result in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(result, StoreError)
        assert str(result) == "the parent process is gone"
    with pytest.raises(StoreError, match="gone"):
        await backend.call("p", [], b"")
    await backend.close()
