"""Counters in this process's memory: exact, synchronous, and the only user of their clock.

Windows slide in small steps: a window of ``span`` is cut into buckets of a fiftieth, and a bucket
counts until all of it has left the window. So whatever stretch of ``span`` seconds one looks at,
no more than the limit was granted in it, and a counter holds at most 52 numbers. The price is that
room returns up to a fiftieth of ``span`` late. Times are whole milliseconds: the scripts of the
shared store count in the same way.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from tollhouse.store import Count, Kind, State

BUCKETS = 50
LATE_MS = 3_600_000
"""How long a period is kept after its end, for requests that it admitted and that end later."""
RETRY_CONCURRENT_MS = 1000
"""When requests end is not known: what a caller is told who met a limit on requests at once."""
_SWEPT_PER_NEW = 3
"""More are looked at than are made, so the idle ones stay a fraction of all."""

_WINDOW = Kind.WINDOW
_PERIOD = Kind.PERIOD
_CONCURRENT = Kind.CONCURRENT

Key = tuple[str, float, int]
"""Whose it is, ``span`` (-1 where it counts requests at once) and ``since``."""


def key_of(count: Count) -> Key:
    """What tells one counter from another."""
    return (count.counter, -1.0 if count.kind is _CONCURRENT else count.span, count.since)


def holds(count: Count) -> bool:
    """Whether its amount is held until it is settled."""
    return count.settles or count.kind is _CONCURRENT


def width_ms(span_ms: int) -> int:
    """How wide the buckets of such a window are."""
    return max(1, -(-span_ms // BUCKETS))


class Window:
    """At most so much in any stretch of ``span`` milliseconds."""

    __slots__ = ("buckets", "counted", "held", "key", "span", "width")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.span = math.ceil(key[1] * 1000)
        self.width = width_ms(self.span)
        self.held = 0
        self.counted = 0
        # [number, amount], the oldest first; bucket n is a width long and begins at n widths.
        self.buckets: deque[list[int]] = deque()

    def used(self, now: int) -> int:
        buckets = self.buckets
        if buckets:
            gone = (now - self.span) // self.width
            while buckets and buckets[0][0] < gone:
                self.counted -= buckets.popleft()[1]
        return self.counted + self.held

    def add(self, amount: int, now: int, age: int = 0) -> None:
        """Count what was used ``age`` ms ago; a negative amount takes back."""
        number = (now - age) // self.width
        buckets = self.buckets
        if buckets and buckets[-1][0] == number:
            amount = max(amount, -buckets[-1][1])
            buckets[-1][1] += amount
            self.counted += amount
        elif number >= (now - self.span) // self.width:
            self._insert(number, amount)

    def _insert(self, number: int, amount: int) -> None:
        place = len(self.buckets)
        while place and self.buckets[place - 1][0] > number:
            place -= 1
        if place and self.buckets[place - 1][0] == number:
            bucket = self.buckets[place - 1]
            amount = max(amount, -bucket[1])
            bucket[1] += amount
        else:
            amount = max(amount, 0)
            if amount:
                self.buckets.insert(place, [number, amount])
        self.counted += amount

    def resets(self, now: int, missing: int) -> int:
        """In how many ms ``missing`` is free again; with 0, in how many all is."""
        if missing <= 0:
            last = (self.buckets[-1][0] + 1) * self.width + self.span - now if self.buckets else 0
            return max(last, self.span + self.width) if self.held else last
        for number, amount in self.buckets:
            missing -= amount
            if missing <= 0:
                return (number + 1) * self.width + self.span - now
        # What is held counts for a whole window from when it is settled.
        return self.span + self.width

    def idle(self, now: int) -> bool:
        return self.used(now) == 0


class Period:
    """At most so much until ``until``, in seconds since the Unix epoch."""

    __slots__ = ("counted", "held", "key", "until")

    def __init__(self, key: Key, until: int) -> None:
        self.key = key
        self.until = until * 1000
        self.counted = 0
        self.held = 0

    def used(self, _now: int) -> int:
        return self.counted + self.held

    def add(self, amount: int, _now: int, _age: int = 0) -> None:
        self.counted = max(0, self.counted + amount)

    def resets(self, now: int, _missing: int) -> int:
        return max(0, self.until - now)

    def idle(self, now: int) -> bool:
        return not self.held and now >= self.until + LATE_MS


class Concurrent:
    """At most so many at once: all of it is held, nothing is counted."""

    __slots__ = ("counted", "held", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.counted = 0
        self.held = 0

    def used(self, _now: int) -> int:
        return self.held

    def add(self, amount: int, now: int, age: int = 0) -> None:
        """Nothing is left of a request that has ended."""

    def resets(self, _now: int, missing: int) -> int:
        return RETRY_CONCURRENT_MS if missing > 0 else 0

    def idle(self, _now: int) -> bool:
        return not self.held


Counter = Window | Period | Concurrent


def _new(key: Key, count: Count) -> Counter:
    if count.kind is _WINDOW:
        return Window(key)
    if count.kind is _PERIOD:
        return Period(key, count.until)
    return Concurrent(key)


class SteadyClock:
    """Seconds since the Unix epoch, which no correction of the machine's clock makes jump."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset


class Counters:
    """All counters of one process. ``clock`` gives seconds since the Unix epoch.

    ``touched``, where a set is given, collects the counters whose counted amount changed or
    that are no more.
    """

    def __init__(
        self, clock: Callable[[], float] | None = None, touched: set[Counter] | None = None
    ) -> None:
        self._clock = clock or SteadyClock()
        self._counters: dict[Key, Counter] = {}
        self._touched = touched
        self._sweeping: Iterator[Key] = iter(())
        self._made = 0

    def __len__(self) -> int:
        return len(self._counters)

    def now(self) -> int:
        """Milliseconds since the Unix epoch."""
        return int(self._clock() * 1000)

    def find(self, count: Count) -> Counter:
        """The counter of this count, made where there is none."""
        key = (count.counter, -1.0 if count.kind is _CONCURRENT else count.span, count.since)
        counter = self._counters.get(key)
        return self._make(key, count) if counter is None else counter

    def put(self, counter: Counter) -> None:
        """Have this counter from now on."""
        self._counters[counter.key] = counter

    def get(self, key: Key) -> Counter | None:
        """The counter of this key, where there is one."""
        return self._counters.get(key)

    def _make(self, key: Key, count: Count) -> Counter:
        counter = self._counters[key] = _new(key, count)
        self._made += 1
        return counter

    def take(self, counts: Sequence[Count]) -> tuple[tuple[State, ...], tuple[int, ...]]:
        """Take every amount or none: the states that this leaves, and who had no room."""
        now = int(self._clock() * 1000)
        counters = self._counters
        asked: list[tuple[Count, Counter, int]] = []
        refused: list[int] = []
        for count in counts:
            concurrent = count.kind is _CONCURRENT
            key = (count.counter, -1.0 if concurrent else count.span, count.since)
            counter = counters.get(key)
            if counter is None:
                counter = self._make(key, count)
            used = counter.used(now) + count.amount
            if used > count.limit and count.refuses:
                refused.append(len(asked))
            # Held at first, so that a counter that occurs twice is asked for both amounts.
            counter.held += count.amount
            asked.append((count, counter, used))
        if refused:
            for count, counter, _ in asked:
                counter.held -= count.amount
            states = self._states(asked, now)
        else:
            touched = self._touched
            granted = []
            for count, counter, used in asked:
                if not count.settles and count.kind is not _CONCURRENT:
                    counter.held -= count.amount
                    counter.add(count.amount, now)
                    if touched is not None:
                        touched.add(counter)
                granted.append(State(used, counter.resets(now, 0) / 1000))
            states = tuple(granted)
        if self._made:
            self.sweep(self._made * _SWEPT_PER_NEW)
            self._made = 0
        return states, tuple(refused)

    def give(self, counts: Sequence[Count], amounts: Sequence[int]) -> None:
        """End what ``take`` held, and count what was really used."""
        now = int(self._clock() * 1000)
        touched = self._touched
        for count, amount in zip(counts, amounts, strict=True):
            if count.settles:
                counter = self.find(count)
                counter.held -= count.amount
                counter.add(amount, now)
                if touched is not None:
                    touched.add(counter)
            elif count.kind is _CONCURRENT:
                self.find(count).held -= count.amount

    def charge(self, count: Count, amount: int, age: int) -> None:
        """Count what was used ``age`` ms ago, or take it back where it is negative."""
        counter = self.find(count)
        counter.add(amount, self.now(), age)
        if self._touched is not None:
            self._touched.add(counter)

    def read(self, counts: Sequence[Count]) -> tuple[State, ...]:
        """The counters as they are."""
        now = self.now()
        asked = []
        for count in counts:
            key = key_of(count)
            counter = self._counters.get(key) or _new(key, count)
            asked.append((count, counter, 0))
        return self._states(asked, now)

    @staticmethod
    def _states(asked: Sequence[tuple[Count, Counter, int]], now: int) -> tuple[State, ...]:
        """How counters are of which nothing was taken."""
        states = []
        for count, counter, _ in asked:
            used = counter.used(now)
            missing = used + count.amount - count.limit if count.refuses else 0
            states.append(State(used, counter.resets(now, missing) / 1000))
        return tuple(states)

    def sweep(self, looks: int) -> None:
        """Look at so many counters, and forget those that mean nothing any more."""
        now = self.now()
        for _ in range(looks):
            key = next(self._sweeping, None)
            if key is None:
                self._sweeping = iter(tuple(self._counters))
                return
            counter = self._counters.get(key)
            if counter is not None and counter.idle(now):
                del self._counters[key]
                if self._touched is not None:
                    self._touched.add(counter)
