"""What a request holds from its admission to its settlement, whatever becomes of it."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from support.limit_cases import KEY, NOW, fields, policy, resolved, route
from tollhouse.allowance import Allowance, Budget, Limit
from tollhouse.api.usage import Usage
from tollhouse.errors import Limited, RequestError
from tollhouse.limits import Asking, Limits, Ticket, concern
from tollhouse.snapshot import (
    Key,
    Pricing,
    Provider,
    Snapshot,
    Target,
)
from tollhouse.store import Admission, Count, Kind, State
from tollhouse.store.memory import MemoryStore
from tollhouse.telemetry import Metrics


class Table:
    """A store of plain sums, for what is asked of it; every limit is enforced, nothing resets."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.open: list[Admission] = []
        self.asked = 0

    async def reserve(self, counts: Sequence[Count]) -> Admission:
        self.asked += 1
        refused = tuple(
            number
            for number, it in enumerate(counts)
            if it.refuses and self.used.get(it.counter, 0) + it.amount > it.limit
        )
        if not refused:
            for it in counts:
                self.used[it.counter] = self.used.get(it.counter, 0) + it.amount
        states = tuple(State(self.used.get(it.counter, 0), 1.0) for it in counts)
        admission = Admission(tuple(counts), states, refused)
        if not refused:
            self.open.append(admission)
        return admission

    def settle(self, admission: Admission, amounts: Sequence[int]) -> None:
        self.open.remove(admission)
        for count, amount in zip(admission.counts, amounts, strict=True):
            if count.settles:
                self.used[count.counter] += amount - count.amount
            elif count.kind is Kind.CONCURRENT:
                self.used[count.counter] -= count.amount

    async def read(self, counts: Sequence[Count]) -> tuple[State, ...] | None:
        return tuple(State(self.used.get(it.counter, 0), 1.0) for it in counts)

    async def run(self) -> None:
        """Nothing happens by itself."""

    async def close(self) -> None:
        """Nothing is held open."""


LIMITS = (
    Limit("r", "requests", 5, 60.0),
    Limit("t", "tokens", 1000, 60.0),
    Limit("c", "concurrent", 2),
)
LIMITED = Key(namespace="shop", name="checkout", limits=LIMITS, budget=Allowance(10**9, "Total"))
PRICED = route(targets=(Target("ai/up", "m", pricing=Pricing(input="2", output="8")),))


class TestLife:
    @pytest.fixture
    def table(self) -> Table:
        return Table()

    @pytest.fixture
    def limits(self, table: Table) -> Limits:
        return Limits(table, Metrics(CollectorRegistry()))

    def asking(
        self, caller: Key = LIMITED, snapshot: Snapshot | None = None, **more: Any
    ) -> Asking:
        body = fields(**{"messages": "x" * 30, "max_tokens": 100} | more)
        it = resolved(route=PRICED)
        return Asking(snapshot or Snapshot.of(), caller, it, body, writes=True)

    @pytest.mark.parametrize(
        ("usage", "unknown", "tokens", "money"),
        [
            (Usage(prompt_tokens=7, completion_tokens=3), False, 10, 38_000),
            # Nothing was charged for.
            (None, False, 0, 0),
            # What a provider says is no bound.
            (Usage(prompt_tokens=1, completion_tokens=5_000), False, 5_001, 40_002_000),
        ],
    )
    async def test_settling_leaves_what_was_used(
        self,
        limits: Limits,
        table: Table,
        usage: Usage | None,
        unknown: bool,
        tokens: int,
        money: int,
    ) -> None:
        ticket = await limits.admit(self.asking())
        assert table.used["k:shop/checkout:c"] == 1
        spent = None if usage is None else Decimal(money) / 10**9
        limits.settle(ticket, usage, spent, unknown=unknown)
        assert table.used["k:shop/checkout:t"] == tokens
        assert table.used["s:shop/checkout"] == money
        assert table.used["k:shop/checkout:r"] == 1
        assert table.used["k:shop/checkout:c"] == 0
        assert table.open == []

    async def test_what_nobody_counted_costs_what_was_held(
        self, limits: Limits, table: Table
    ) -> None:
        ticket = await limits.admit(self.asking())
        held = dict(table.used)
        limits.settle(ticket, None, None, unknown=True)
        assert table.used == {**held, "k:shop/checkout:c": 0}

    @given(
        st.lists(
            st.tuples(st.integers(0, 300), st.integers(1, 300), st.booleans(), st.booleans()),
            max_size=30,
        )
    )
    @settings(deadline=None, max_examples=30)
    async def test_nothing_is_left_held_and_nothing_counted_twice(
        self, requests: list[tuple[int, int, bool, bool]]
    ) -> None:
        store = MemoryStore()
        limits = Limits(store, Metrics(CollectorRegistry()))
        under_way: list[tuple[Ticket, int]] = []
        admitted = used = 0

        def finish() -> int:
            ticket, tokens = under_way.pop(0)
            usage = Usage(prompt_tokens=tokens) if tokens else None
            limits.settle(ticket, usage, Decimal(0), unknown=False)
            return tokens

        for tokens, cap, ends, fails in requests:
            try:
                ticket = await limits.admit(self.asking(max_tokens=cap))
            except RequestError:
                pass
            else:
                admitted += 1
                under_way.append((ticket, 0 if fails else tokens))
            if ends and under_way:
                used += finish()
        while under_way:
            used += finish()
        shown = await limits.look(Snapshot.of(), LIMITED, [])
        left = {it["name"]: it["limit"] - it["remaining"] for it in shown["limits"]}
        assert left == {"key/r": admitted, "key/t": min(1000, used), "key/c": 0}
        assert admitted <= 5

    async def test_a_refusal_takes_nothing_and_says_what_is_left(
        self, limits: Limits, table: Table
    ) -> None:
        tickets = [await limits.admit(self.asking()) for _ in range(2)]
        before = dict(table.used)
        with pytest.raises(RequestError) as caught:
            await limits.admit(self.asking())
        assert caught.value.code == "concurrency_limit"
        assert caught.value.headers["x-ratelimit-remaining-requests"] == "3"
        assert table.used == before
        assert tickets[1].headers["x-ratelimit-remaining-requests"] == "3"

    async def test_settling_twice_counts_once(self, limits: Limits, table: Table) -> None:
        ticket = await limits.admit(self.asking())
        for _ in range(2):
            limits.settle(ticket, Usage(prompt_tokens=1), Decimal(0), unknown=False)
        assert table.used["k:shop/checkout:t"] == 1

    async def test_an_attempt_that_failed_gives_its_tokens_back(
        self, limits: Limits, table: Table
    ) -> None:
        one = policy(Limit("t", "tokens", 1000, 60.0, "Shared"))
        two = policy(Limit("t", "tokens", 50, 60.0, "Shared"), name="q")
        snapshot = Snapshot.of(policies=[one, two])
        ticket = await limits.admit(self.asking(snapshot=snapshot))
        first = Provider("ai", "a", "Mock", policies=("ai/p",))
        narrow = Provider("ai", "b", "Mock", policies=("ai/q",))
        plain = Provider("ai", "c", "Mock")
        counter = "p:ai/p:t:tokens:60"
        await limits.enter(ticket, first)
        assert table.used[counter] > 100
        with pytest.raises(Limited) as caught:
            await limits.enter(ticket, narrow)
        assert caught.value.refusal.metadata["limit"] == "policy/ai/q/t"
        assert table.used[counter] == 0
        await limits.enter(ticket, first)
        await limits.enter(ticket, plain)
        assert table.used[counter] == 0
        await limits.enter(ticket, first)
        limits.settle(ticket, Usage(prompt_tokens=3, completion_tokens=4), None, unknown=False)
        assert table.used[counter] == 7
        assert table.open == []

    async def test_a_key_without_limits_never_meets_the_store(
        self, limits: Limits, table: Table
    ) -> None:
        assert not concern(Snapshot.of(), KEY, PRICED)
        limits.settle(await limits.admit(self.asking(KEY)), None, None, unknown=True)
        assert table.asked == 0

    async def test_a_look_takes_nothing(self, limits: Limits, table: Table) -> None:
        one = policy(Limit("person", "requests", 9, 60.0, "User", models=("m",)))
        shared = route(policies=("ai/p",))
        shown = await limits.look(Snapshot.of(policies=[one]), LIMITED, [shared, shared])
        assert [it["name"] for it in shown["limits"]] == [
            "key/r",
            "key/t",
            "key/c",
            "policy/ai/p/person",
        ]
        assert shown["limits"][1] == {
            "name": "key/t", "counts": "tokens", "limit": 1000, "per_seconds": 60.0,
            "remaining": 1000, "resets_in": 1.0,
        }  # fmt: skip
        assert shown["limits"][2]["per_seconds"] is None
        (budget,) = shown["budgets"]
        assert (budget["amount"], budget["spent"], budget["resets"]) == ("1", "0", None)
        assert table.used == {}

    async def test_spend_names_each_budget_once(self, limits: Limits) -> None:
        keys = {
            f"{number:064x}": msgspec.structs.replace(LIMITED, name=f"k{number}")
            for number in range(1200)
        }
        keys["f" * 64] = msgspec.structs.replace(LIMITED, name="k1", valid_until=NOW)
        snapshot = Snapshot.of(keys=keys, budgets=[Budget("shop", "team", Allowance(5, "Month"))])
        found = await limits.spend(snapshot)
        assert len(found) == 1201
        assert len({(it["kind"], it["name"]) for it in found}) == 1201
        assert found[0].keys() == {
            "kind",
            "namespace",
            "name",
            "amount",
            "spent",
            "since",
            "resets",
        }
        assert found[0]["resets"].endswith("Z")
