"""The store of a single process: nothing is asked of anybody, so nothing can be away.

What is held ends with the process by itself; what was counted for a day or longer, or against a
budget, is written to the journal at least once a second.
"""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Sequence

import structlog

from tollhouse.store import Admission, Count, Kind, State
from tollhouse.store.counting import Counter, Counters
from tollhouse.store.journal import Journal, durable, row

log = structlog.get_logger()

FLUSH_SECONDS = 0.5
"""Half of what a crash may lose, so that a slow disk has the other half."""
_SWEPT_PER_FLUSH = 500

_CONCURRENT = Kind.CONCURRENT


class MemoryStore:
    """A ``Store`` in memory. ``clock`` gives seconds since the Unix epoch.

    Raises ConfigError when the journal holds what cannot be read.
    """

    def __init__(
        self, journal: Journal | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._journal = journal
        self._touched: set[Counter] | None = None if journal is None else set()
        self.counters = Counters(clock, self._touched)
        self._numbers = itertools.count(1)
        self._failing = False
        if journal is not None:
            for counter in journal.load():
                self.counters.put(counter)

    async def reserve(self, counts: Sequence[Count]) -> Admission:
        states, refused = self.counters.take(counts)
        lease = ""
        if not refused:
            for count in counts:
                if count.settles or count.kind is _CONCURRENT:
                    lease = str(next(self._numbers))
                    break
        return Admission(tuple(counts), states, refused, (), lease)

    def settle(self, admission: Admission, amounts: Sequence[int]) -> None:
        self.counters.give(admission.counts, amounts)

    async def read(self, counts: Sequence[Count]) -> tuple[State, ...] | None:
        return self.counters.read(counts)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.counters.sweep(_SWEPT_PER_FLUSH)
            await self.flush()

    async def flush(self) -> None:
        """Write what has changed since the last time."""
        if self._journal is None or not self._touched:
            return
        touched = [counter for counter in self._touched if durable(counter.key)]
        self._touched.clear()
        rows, gone = [], []
        for counter in touched:
            if self.counters.get(counter.key) is counter:
                rows.append(row(counter))
            else:
                gone.append(counter.key)
        try:
            await self._journal.write(rows, gone)
        except sqlite3.Error as error:
            self._touched.update(touched)
            failed: str | None = str(error)
        except asyncio.CancelledError:
            self._touched.update(touched)
            raise
        else:
            failed = None
        if failed is not None and not self._failing:
            log.error("the journal cannot be written; spend is kept in memory", why=failed)
        elif failed is None and self._failing:
            log.info("the journal is written again")
        self._failing = failed is not None

    async def close(self) -> None:
        await self.flush()
        if self._journal is not None:
            await asyncio.to_thread(self._journal.close)
