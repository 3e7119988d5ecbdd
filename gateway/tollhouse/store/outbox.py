"""What the store is still to be told: changes in order, and no more of them than fit.

Beyond the bound the oldest are added up per counter, so that nothing that was spent is forgotten;
what they would have released ends with its lease.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from tollhouse.store import Count, wire
from tollhouse.store.counting import holds

MOST_CHANGES = 20_000
MOST_MERGED = 100_000
"""Counters. Only windows are forgotten beyond this many, and the oldest first: money never is."""
BATCH = 256


class Change(NamedTuple):
    """One counter's change: a ``member`` of its leases that ends (or, with ``renews``, goes on)
    and holds ``held``, and what is charged for the moment ``at`` (monotonic seconds), or taken
    back from the moment ``when`` (the server's ms)."""

    name: str
    kind: wire.Counter
    member: str
    held: int
    charge: int
    at: float
    renews: bool = False
    when: int = 0


def member(lease: str, index: int, amount: int) -> str:
    """What the count ``index`` of a request is called among the leases of its counter."""
    return f"{lease}.{index}:{amount}"


def settled(counts: Sequence[Count], lease: str, amounts: Sequence[int], at: float) -> list[Change]:
    """What it means that a request has ended and used these amounts."""
    return [
        Change(
            wire.name(count),
            wire.counter(count),
            member(lease, index, count.amount),
            count.amount,
            amounts[index] if count.settles else 0,
            at,
        )
        for index, count in enumerate(counts)
        if holds(count)
    ]


def renewed(counts: Sequence[Count], lease: str, at: float) -> list[Change]:
    """What it means that a request is still under way."""
    return [
        Change(
            wire.name(count),
            wire.counter(count),
            member(lease, index, count.amount),
            count.amount,
            0,
            at,
            renews=True,
        )
        for index, count in enumerate(counts)
        if holds(count)
    ]


def released(counts: Sequence[Count], lease: str, at: float) -> list[Change]:
    """What it means that nothing of a request is to be held any more."""
    return [change._replace(renews=False) for change in renewed(counts, lease, at)]


def charged(counts: Sequence[Count], at: float) -> list[Change]:
    """What it means that a request was let in, beside what it holds."""
    return [
        Change(wire.name(count), wire.counter(count), "", 0, count.amount, at)
        for count in counts
        if not holds(count)
    ]


def taken_back(counts: Sequence[Count], when: int) -> list[Change]:
    """What it means that a request that the server let in is none, beside what it holds."""
    return [
        Change(wire.name(count), wire.counter(count), "", 0, -count.amount, 0.0, when=when)
        for count in counts
        if not holds(count)
    ]


class Outbox:
    """A bounded queue of changes. False when there is nothing to tell."""

    def __init__(self, bound: int = MOST_CHANGES) -> None:
        self._bound = bound
        self._changes: deque[Change] = deque()
        self._merged: dict[str, Change] = {}

    def __len__(self) -> int:
        return len(self._changes) + len(self._merged)

    def add(self, changes: Sequence[Change]) -> None:
        """Queue these."""
        self._changes.extend(changes)
        while len(self._changes) > self._bound:
            self._merge(self._changes.popleft())

    def _merge(self, change: Change) -> None:
        # An amount can only be taken back from its own moment, so it would not be right merged.
        if not change.charge or (change.charge < 0 and change.kind[0] == wire.WINDOW):
            return
        before = self._merged.pop(change.name, None)
        charge = change.charge + (before.charge if before is not None else 0)
        self._merged[change.name] = change._replace(member="", held=0, charge=charge)
        if len(self._merged) > MOST_MERGED:
            window = next(
                (n for n, found in self._merged.items() if found.kind[0] == wire.WINDOW), None
            )
            if window is not None:
                del self._merged[window]

    def take(self) -> list[Change]:
        """The next batch, which is then the taker's to deliver."""
        batch: list[Change] = []
        while self._merged and len(batch) < BATCH:
            batch.append(self._merged.pop(next(iter(self._merged))))
        while self._changes and len(batch) < BATCH:
            batch.append(self._changes.popleft())
        return batch
