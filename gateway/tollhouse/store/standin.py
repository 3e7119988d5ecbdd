"""What stands in for a store that is away: each count's ``on_failure``.

``Local`` lets each process have its share of what was left when the counter was last seen. So all
of them together stay within the limit, as long as no more of them run than were known.
"""

from collections.abc import Callable, Sequence

import msgspec

from tollhouse.store import Count, Kind, OnFailure, State, wire
from tollhouse.store.counting import Counters

MOST_KNOWN = 10_000
"""Counters whose last state is remembered; one that is not counts as unused."""


class StandIn:
    """Decides for one process. ``lease`` is in seconds; ``clock`` gives seconds, steadily."""

    def __init__(self, lease: float, clock: Callable[[], float]) -> None:
        self._lease = lease
        self._clock = clock
        self._known: dict[str, tuple[int, float]] = {}
        self._counters = Counters(clock)
        self._leases: dict[str, tuple[list[Count], list[int]]] = {}

    def learn(self, name: str, used: int, at: float) -> None:
        """A counter was seen in this state."""
        known = self._known
        known.pop(name, None)  # so that the one that goes is the one not seen for longest
        known[name] = (used, at)
        if len(known) > MOST_KNOWN:
            del known[next(iter(known))]

    def begin(self) -> None:
        """The store has just gone: what was decided in earlier times is in its counters."""
        self._counters = Counters(self._clock)
        self._leases.clear()

    def decide(
        self, counts: Sequence[Count], lease: str, processes: int
    ) -> tuple[tuple[State, ...], tuple[int, ...], tuple[int, ...]]:
        """States, who has no room, and who denies; ``processes`` share what is left."""
        states = [State(self._used(count), 0.0) for count in counts]
        unavailable = tuple(
            index
            for index, count in enumerate(counts)
            if count.on_failure is OnFailure.DENY and count.refuses
        )
        local = [i for i, count in enumerate(counts) if count.on_failure is OnFailure.LOCAL]
        if not local or unavailable:
            return tuple(states), (), unavailable
        shares = [
            msgspec.structs.replace(counts[index], limit=self._share(counts[index], processes))
            for index in local
        ]
        found, refused = self._counters.take(shares)
        for index, state in zip(local, found, strict=True):
            states[index] = State(states[index].used + state.used, state.resets)
        if lease and not refused:
            self._leases[lease] = (shares, local)
        return tuple(states), tuple(local[index] for index in refused), ()

    def settle(self, lease: str, amounts: Sequence[int]) -> None:
        """A request has ended; where it was not let in from here, nothing happens."""
        found = self._leases.pop(lease, None)
        if found is not None:
            counts, indexes = found
            self._counters.give(counts, [amounts[index] for index in indexes])

    def _used(self, count: Count) -> int:
        """What is known to be used and cannot have come free since."""
        known = self._known.get(wire.name(count))
        if known is None:
            return 0
        used, at = known
        age = self._clock() - at
        if count.kind is Kind.WINDOW and age > count.span:
            return 0
        if count.kind is Kind.CONCURRENT and age > self._lease:
            return 0
        return used

    def _share(self, count: Count, processes: int) -> int:
        return max(0, count.limit - self._used(count)) // max(1, processes)
