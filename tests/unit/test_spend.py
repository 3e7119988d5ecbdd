"""From what gateways tell of spend to what a status says, and when it says so."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import gateway as g
from tollhouse.resources import ApiKey, Budget, parse
from tollhouse_operator import spend
from tollhouse_operator.spend import Answer, Spent
from tollhouse_operator.status import Desired, notes, patch

SINCE, RESETS = "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"
NEXT = "2027-01-01T00:00:00Z"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
NANO = 10**9


def budget(amount: str = "10", **spec: Any) -> Budget:
    given_spec = {"selector": {}, "amount": amount, "period": "Month", **spec}
    found = parse(g.manifest("Budget", "team", given_spec))
    assert isinstance(found, Budget)
    return found


def api_key(**spec: Any) -> ApiKey:
    found = parse(g.manifest("ApiKey", "checkout", spec))
    assert isinstance(found, ApiKey)
    return found


def spent(
    usd: str, amount: str = "10", since: str | None = SINCE, resets: str | None = RESETS
) -> Spent:
    return Spent(int(Decimal(amount) * NANO), int(Decimal(usd) * NANO), since, resets)


class Status:
    """The status of one object through rounds, and the events that it was worth."""

    def __init__(self, resource: ApiKey | Budget) -> None:
        self.resource = resource
        self.generation = 1
        self.status: dict[str, Any] = {}
        self.writes = 0
        self.events: list[str] = []

    def round(self, told: Spent) -> None:
        said = spend.saying(self.resource, told, self.status, self.generation)
        assert said is not None
        differs = spend.difference(said, self.status, self.generation)
        desired = spend.joined(self.plain(), self.resource, told, self.status)
        change = patch(self.status, desired, NOW)
        # What is handed out is exactly what is worth a write.
        assert (differs is not None) == (change is not None)
        if change is None:
            return
        self.writes += 1
        self.events += [f"{it.reason}: {it.text}" for it in notes(self.status, desired)]
        for name, value in change.items():
            if isinstance(value, dict):
                merged = {**self.status.get(name, {}), **value}
                self.status[name] = {k: v for k, v in merged.items() if v is not None}
            else:
                self.status[name] = value

    def plain(self) -> Desired:
        return Desired("uid", self.generation, (), {})

    @property
    def exhausted(self) -> tuple[str, str]:
        (condition,) = self.status["conditions"]
        return condition["status"], condition["reason"]


class TestSaying:
    def test_spend_is_shown_in_cents_and_for_small_budgets_finer(self) -> None:
        shown = {}
        for amount in ("1000", "50.00", "1", "0.01", "0.000000001"):
            state = Status(budget(amount))
            state.round(
                Spent(int(Decimal(amount) * NANO), int(Decimal(amount) * NANO) // 3, *[None] * 2)
            )
            shown[amount] = state.status["spend"]["amount"]
        assert shown == {
            "1000": "333.33",
            "50.00": "16.66",
            "1": "0.333",
            "0.01": "0.00333",
            "0.000000001": "0.000000000",
        }

    def test_a_status_tells_amount_and_period(self) -> None:
        state = Status(api_key(budget={"amount": "50.00"}))
        state.round(spent("3.1", "50"))
        assert state.status["spend"] == {"amount": "3.10", "since": SINCE, "resets": RESETS}
        assert state.exhausted == ("False", "WithinBudget")

    def test_what_no_reader_sees_is_not_written(self) -> None:
        state = Status(budget())
        for cents in ("3.101", "3.102", "3.109"):
            state.round(spent(cents))
        assert state.writes == 1
        state.round(spent("3.11"))
        assert state.writes == 2

    def test_exhausted_when_less_is_left_than_is_shown(self) -> None:
        state = Status(budget())
        state.round(spent("9.98"))
        assert state.exhausted == ("False", "WithinBudget")
        state.round(spent("9.995"))
        assert state.exhausted == ("True", "BudgetSpent")
        assert RESETS in state.status["conditions"][0]["message"]

    def test_one_that_only_warns_says_that_requests_go_on(self) -> None:
        state = Status(budget(onExceeded="Warn"))
        state.round(spent("11"))
        assert state.exhausted == ("True", "BudgetExceeded")
        assert "requests go on" in state.status["conditions"][0]["message"]

    def test_a_total_names_no_end(self) -> None:
        state = Status(budget(period="Total", warnAt=[50]))
        state.round(spent("5", since=None, resets=None))
        assert state.status["spend"] == {"amount": "5.00", "warned": 50}
        assert state.events == ["BudgetThreshold: 50 % of 10 USD is spent"]
        state.round(spent("10", since=None, resets=None))
        assert "None" not in state.status["conditions"][0]["message"]

    def test_an_answer_about_another_amount_says_nothing(self) -> None:
        assert spend.saying(budget("20"), spent("9", "10"), {}, 1) is None

    def test_a_key_without_a_budget_says_nothing(self) -> None:
        assert spend.saying(api_key(), spent("9"), {}, 1) is None


class TestEvents:
    def test_each_threshold_is_told_once_and_the_end_too(self) -> None:
        state = Status(budget(warnAt=[50, 80]))
        for usd in ("4.99", "5", "5.01", "7.9", "8", "8.2", "10", "10.5", "11"):
            state.round(spent(usd))
        assert [it.split(":")[0] for it in state.events] == [
            "BudgetThreshold",
            "BudgetThreshold",
            "BudgetSpent",
        ]
        assert state.events[0].startswith("BudgetThreshold: 50 % of 10 USD")

    def test_a_leap_tells_only_of_the_highest(self) -> None:
        state = Status(budget(warnAt=[50, 80]))
        state.round(spent("9"))
        assert [it.split("%")[0] for it in state.events] == ["BudgetThreshold: 80 "]

    def test_reservations_that_come_and_go_repeat_nothing(self) -> None:
        state = Status(budget(warnAt=[50]))
        for usd in ("5.1", "4.8", "5.2", "4.9", "10", "9", "10"):
            state.round(spent(usd))
        assert len(state.events) == 2
        assert state.exhausted == ("True", "BudgetSpent")

    def test_another_period_begins_anew(self) -> None:
        state = Status(budget(warnAt=[50]))
        state.round(spent("10"))
        state.round(spent("0", since=RESETS, resets=NEXT))
        assert state.exhausted == ("False", "WithinBudget")
        assert state.status["spend"] == {"amount": "0.00", "since": RESETS, "resets": NEXT}
        state.round(spent("6", since=RESETS, resets=NEXT))
        assert [it.split(":")[0] for it in state.events] == ["BudgetSpent", "BudgetThreshold"]

    def test_a_larger_budget_is_told_of_again(self) -> None:
        state = Status(budget(warnAt=[50]))
        state.round(spent("5"))
        state.resource, state.generation = budget("20", warnAt=[50]), 2
        state.round(spent("6", "20"))
        assert len(state.events) == 1
        assert "warned" not in state.status["spend"]
        state.round(spent("10", "20"))
        assert len(state.events) == 2

    def test_an_edit_of_something_else_repeats_nothing(self) -> None:
        state = Status(budget(warnAt=[50]))
        state.round(spent("5"))
        state.generation = 2
        state.round(spent("6"))
        assert len(state.events) == 1

    def test_a_key_tells_of_its_end(self) -> None:
        state = Status(api_key(budget={"amount": "10"}))
        for usd in ("9", "10", "10"):
            state.round(spent(usd))
        assert [it.split(":")[0] for it in state.events] == ["BudgetSpent"]

    @given(
        st.lists(st.integers(0, 12_000), min_size=1, max_size=30),
        st.lists(st.integers(1, 100), max_size=4, unique=True),
    )
    def test_no_threshold_is_ever_told_twice_in_a_period(
        self, walk: list[int], marks: list[int]
    ) -> None:
        state = Status(budget(warnAt=marks))
        for thousandths in walk:
            state.round(Spent(10 * NANO, thousandths * NANO // 1000, SINCE, RESETS))
        assert len(set(state.events)) == len(state.events)
        highest = max(walk)
        reached = {it for it in marks if it < 100 and highest >= it * 100}
        if reached or highest > 9_990:
            told = 100 if highest > 9_990 else max(reached)
            assert state.status["spend"]["warned"] == told


class TestUrgency:
    def urgent(self, state: Status, told: Spent) -> bool | None:
        said = spend.saying(state.resource, told, state.status, state.generation)
        assert said is not None
        differs = spend.difference(said, state.status, state.generation)
        return None if differs is None else differs.urgent

    def test_thresholds_and_the_end_go_first(self) -> None:
        state = Status(budget(warnAt=[50]))
        assert self.urgent(state, spent("1")) is False
        state.round(spent("1"))
        assert self.urgent(state, spent("1")) is None
        assert self.urgent(state, spent("2")) is False
        assert self.urgent(state, spent("6")) is True
        assert self.urgent(state, spent("10")) is True
        state.round(spent("10"))
        assert self.urgent(state, spent("0", since=RESETS, resets=NEXT)) is True


def row(name: str, used: str | None, amount: str = "10", **more: Any) -> dict[str, Any]:
    bounds = {"since": SINCE, "resets": RESETS, **more}
    return {
        "kind": "Budget", "namespace": "ai", "name": name, "amount": amount, "spent": used, **bounds
    }  # fmt: skip


def answer(*rows: dict[str, Any], store: str = "memory") -> Answer:
    return spend.read(json.dumps({"store": store, "budgets": rows}).encode())


class TestAnswers:
    def test_gateways_that_count_by_themselves_are_added_up(self) -> None:
        found = spend.together([answer(row("a", "1.5")), answer(row("a", "2"), row("b", "1"))])
        assert found == {("Budget", "ai", "a"): spent("3.5"), ("Budget", "ai", "b"): spent("1")}

    def test_a_counter_that_cannot_be_reached_leaves_the_budget_out(self) -> None:
        assert spend.together([answer(row("a", None))]) == {}
        assert spend.together([answer(row("a", "1")), answer(row("a", None))]) == {}

    def test_a_gateway_behind_leaves_the_budget_out(self) -> None:
        assert spend.together([answer(row("a", "1")), answer(row("a", "1", "20"))]) == {}

    def test_only_the_newest_period_counts(self) -> None:
        later = row("a", "1", since=RESETS, resets=NEXT)
        found = spend.together([answer(row("a", "9")), answer(later)])
        assert found == {("Budget", "ai", "a"): spent("1", since=RESETS, resets=NEXT)}

    def test_an_answer_says_whether_it_speaks_for_all(self) -> None:
        assert answer(store="shared").shared
        assert not answer(store="memory").shared

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b'{"budgets": []}',
            b'{"store": "memory", "budgets": [{}]}',
            json.dumps({"store": "memory", "budgets": [row("a", "much")]}).encode(),
            json.dumps({"store": "memory", "budgets": [row("a", "Infinity")]}).encode(),
            json.dumps({"store": "memory", "budgets": [row("a", "NaN")]}).encode(),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, body: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            spend.read(body)


def test_a_period_that_ends_no_more_leaves_no_bounds_behind() -> None:
    current = {"spend": {"amount": "1.00", "since": SINCE, "resets": RESETS}}
    desired = Desired("uid", 1, (), {"spend": {"amount": "1.00"}})
    assert patch(current, desired, NOW) == {
        "spend": {"amount": "1.00", "since": None, "resets": None}
    }


def test_a_key_whose_budget_is_gone_shows_neither_spend_nor_exhausted() -> None:
    state = Status(api_key(budget={"amount": "10"}))
    state.round(spent("10"))
    desired = spend.joined(state.plain(), api_key(), None, state.status)
    assert patch(state.status, desired, NOW) == {"spend": None, "conditions": []}


def test_what_is_not_known_leaves_the_status_as_it_is() -> None:
    state = Status(api_key(budget={"amount": "10"}))
    state.round(spent("10"))
    desired = spend.joined(state.plain(), state.resource, None, state.status)
    assert patch(state.status, desired, NOW) is None
