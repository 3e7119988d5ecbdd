"""A plain model of what counters promise, and random requests to hold a store against it.

The model keeps every event for ever and adds them up afresh each time; nothing in it is fast.
"""

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tollhouse.store import Admission, Count, Kind, Store

SPANS = (1.0, 7.0, 60.0, 86_400.0)


class Clock:
    """Milliseconds that only a test moves; called, it gives seconds."""

    def __init__(self, now: int = 1_800_000_000_123) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now / 1000


@dataclass
class Model:
    """``lease`` is after how many ms what was reserved is free by itself, where that happens."""

    clock: Clock
    lease: int | None
    events: list[tuple[Count, int, int]] = field(default_factory=list)
    held: dict[int, tuple[tuple[Count, ...], int]] = field(default_factory=dict)

    def used(self, wanted: Count) -> int:
        total = 0
        for count, amount, at in self.events:
            if same(count, wanted) and self._counts(count, at):
                total += amount
        for counts, until in self.held.values():
            if self.lease is None or self.clock.now < until:
                total += sum(c.amount for c in counts if same(c, wanted) and holding(c))
        return total

    def _counts(self, count: Count, at: int) -> bool:
        if count.kind is not Kind.WINDOW:
            return count.kind is Kind.PERIOD
        span = round(count.span * 1000)
        width = -(-span // 50)
        return (at // width + 1) * width > (self.clock.now - span) // width * width

    def refused(self, counts: tuple[Count, ...]) -> tuple[int, ...]:
        asked = []
        for index, count in enumerate(counts):
            before = sum(c.amount for c in counts[:index] if same(c, count))
            if count.refuses and self.used(count) + before + count.amount > count.limit:
                asked.append(index)
        return tuple(asked)

    def take(self, number: int, counts: tuple[Count, ...]) -> None:
        for count in counts:
            if not holding(count):
                self.events.append((count, count.amount, self.clock.now))
        self.held[number] = (counts, self.clock.now + (self.lease or 0))

    def settle(self, number: int, amounts: list[int]) -> None:
        counts, _ = self.held.pop(number)
        for count, amount in zip(counts, amounts, strict=True):
            if count.settles and count.kind is not Kind.CONCURRENT:
                self.events.append((count, amount, self.clock.now))


def same(one: Count, other: Count) -> bool:
    return (one.counter, one.kind, one.span, one.since) == (
        other.counter,
        other.kind,
        other.span,
        other.since,
    )


def holding(count: Count) -> bool:
    return count.settles or count.kind is Kind.CONCURRENT


def _count(name: str, kind: Kind, span: float, amount: int, settles: bool, refuses: bool) -> Count:
    return Count(
        counter=f"{name}/ünï",
        kind=kind,
        limit=20,
        amount=1 if kind is Kind.CONCURRENT else amount,
        span=span if kind is Kind.WINDOW else 0.0,
        since=1_799_000_000 if kind is Kind.PERIOD else 0,
        until=1_900_000_000 if kind is Kind.PERIOD else 0,
        settles=settles and kind is not Kind.CONCURRENT,
        refuses=refuses,
    )


counts = st.builds(
    _count,
    st.sampled_from("abc"),
    st.sampled_from(Kind),
    st.sampled_from(SPANS),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
)
requests = st.lists(counts, min_size=1, max_size=4).map(tuple)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), requests),
        st.tuples(st.just("settle"), st.lists(st.integers(0, 30), min_size=4, max_size=4)),
        st.tuples(st.just("wait"), st.sampled_from([1, 19, 20, 140, 999, 1020, 9_000, 61_200])),
    ),
    min_size=10,
    max_size=60,
)


async def play(
    store: Store,
    model: Model,
    moves: list[tuple[str, object]],
    settled: Callable[[], Awaitable[None]],
) -> int:
    """Do the same to both and compare after each move; gives how many requests were granted.

    ``settled`` waits until the store knows what was settled.
    """
    under_way: dict[int, Admission] = {}
    numbers = itertools.count()
    granted = 0
    for move, argument in moves:
        if move == "wait":
            assert isinstance(argument, int)
            model.clock.now += argument
        elif move == "settle" and under_way:
            number = next(iter(under_way))
            admission = under_way.pop(number)
            assert isinstance(argument, list)
            amounts = argument[: len(admission.counts)]
            store.settle(admission, amounts)
            await settled()
            model.settle(number, amounts)
        elif move == "reserve":
            assert isinstance(argument, tuple)
            expected = model.refused(argument)
            admission = await store.reserve(argument)
            assert admission.refused == expected
            assert admission.unavailable == ()
            if admission.granted:
                number = next(numbers)
                model.take(number, argument)
                granted += 1
                assert bool(admission.lease) == any(map(holding, argument))
                under_way[number] = admission
            states = await store.read(argument)
            assert states is not None
            for count, state in zip(argument, states, strict=True):
                assert state.used == model.used(count)
                assert state.resets >= 0
                if count.kind is Kind.WINDOW:
                    assert state.resets <= count.span * 1.06 + 1
            for index in admission.refused:
                assert admission.states[index].resets > 0
    return granted
