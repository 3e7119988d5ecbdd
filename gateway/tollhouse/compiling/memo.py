"""What was made of an object before, for as long as all that it was made from is the same.

Resources are frozen, so one that is still the same object says what it said; an equal one may not:
1 is equal to 1.0 and to true, but a provider is to get what was written.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from tollhouse.resources import Ref, Resource

_T = TypeVar("_T")
_R = TypeVar("_R", bound=Resource)
_MANY = 16
"""Where more than one in so many objects changed, sorting anew is quicker than inserting."""


class Memo(Generic[_T]):
    """One result for each name. ``keep`` forgets the others, so it holds what is in use."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[tuple[object, ...], tuple[object, ...], _T]] = {}

    def get(
        self,
        name: Hashable,
        made_from: tuple[object, ...],
        make: Callable[[], _T],
        equal: tuple[object, ...] = (),
    ) -> _T:
        """What ``make`` returns, or returned for this name when ``made_from`` was the same
        objects and ``equal`` was equal."""
        done = self.known(name, made_from, equal)
        if done is None:
            done = make()
            self.add(name, made_from, done, equal)
        return done

    def known(
        self, name: Hashable, made_from: tuple[object, ...], equal: tuple[object, ...] = ()
    ) -> _T | None:
        """What ``get`` would return without making it."""
        known = self._known.get(name)
        if known is None or known[1] != equal or len(known[0]) != len(made_from):
            return None
        for left, right in zip(known[0], made_from, strict=True):
            if left is not right:
                return None
        return known[2]

    def add(
        self,
        name: Hashable,
        made_from: tuple[object, ...],
        made: _T,
        equal: tuple[object, ...] = (),
    ) -> None:
        """Remember what was made of these."""
        self._known[name] = (made_from, equal, made)

    def keep(self, names: Mapping[Ref, object]) -> None:
        """Forget what is made of anything but these."""
        if len(self._known) > len(names):
            for name in self._known.keys() - names.keys():
                del self._known[name]


class Ages(Generic[_R]):
    """The objects of one kind that are not being deleted, the oldest first, kept in that order
    from one table to the next."""

    def __init__(self) -> None:
        self._table: Mapping[Ref, _R] = {}
        self._ages: list[tuple[float, Ref]] = []

    def sorted(self, table: Mapping[Ref, _R]) -> list[tuple[Ref, _R]]:
        """``table`` in that order; what was never in a cluster has no age, and goes by its name."""
        before = self._table
        fresh = [ref for ref, resource in table.items() if before.get(ref) is not resource]
        gone = [ref for ref in before if ref not in table]
        if (len(fresh) + len(gone)) * _MANY > len(table):
            self._ages = sorted(age(it) for it in table.values() if _living(it))
        else:
            for ref in (*gone, *fresh):
                if ref in before and _living(before[ref]):
                    del self._ages[bisect_left(self._ages, age(before[ref]))]
            for ref in fresh:
                if _living(table[ref]):
                    insort(self._ages, age(table[ref]))
        self._table = table
        return [(ref, table[ref]) for _, ref in self._ages]


def age(resource: Resource) -> tuple[float, Ref]:
    """Sorts the oldest first."""
    created = resource.metadata.creation_timestamp
    return (created.timestamp() if created else float("inf"), resource.ref)


def _living(resource: Resource) -> bool:
    return resource.metadata.deletion_timestamp is None
