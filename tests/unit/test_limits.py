"""Which limits concern a request, how much of them it takes, and what callers are told."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.limit_cases import DEMAND, KEY, NOW, fields, keyed, lines, policy, resolved, route
from tollhouse.allowance import Allowance, Budget, Limit
from tollhouse.limits import Asking, answers, plan
from tollhouse.limits.plan import Demand
from tollhouse.snapshot import (
    Key,
    Parameters,
    Pricing,
    Provider,
    Snapshot,
    Target,
)
from tollhouse.store import Admission, Count, Kind, OnFailure, State


class TestWhatIsCounted:
    @pytest.mark.parametrize(
        ("counts", "amount", "settles"),
        [
            ("requests", 1, False),
            ("concurrent", 1, False),
            ("tokens", 130, True),
            ("input_tokens", 30, True),
            ("output_tokens", 100, True),
        ],
    )
    def test_each_kind_takes_its_own(self, counts: str, amount: int, settles: bool) -> None:
        window = 0.0 if counts == "concurrent" else 60.0
        (line,) = lines(keyed(limits=(Limit("l", counts, 500, window),)))
        kind = Kind.CONCURRENT if counts == "concurrent" else Kind.WINDOW
        assert line.count == Count("k:shop/checkout:l", kind, 500, amount, window, settles=settles)

    def test_money_is_counted_by_period(self) -> None:
        budget = Allowance(10**9, "Day", "UTC")
        (line,) = lines(keyed(budget=budget))
        assert line.count.kind is Kind.PERIOD
        assert (line.count.amount, line.count.limit) == (5_000, 10**9)
        assert line.count.since <= NOW < line.count.until
        assert line.count.until - line.count.since == 86_400

    def test_a_free_route_spends_nothing(self) -> None:
        caller = keyed(budget=Allowance(1), budgets=("shop/b",))
        assert lines(caller, route=route(free=True)) == []
        assert not plan.concerned(caller, route(free=True))
        assert plan.concerned(caller, route())

    def test_without_a_price_a_budget_only_looks_on(self) -> None:
        caller = keyed(budget=Allowance(10))
        (line,) = lines(caller, demand=Demand(30, 100, None))
        assert (line.count.amount, line.count.refuses) == (0, False)

    def test_what_costs_next_to_nothing_still_meets_a_spent_budget(self) -> None:
        (line,) = lines(keyed(budget=Allowance(10)), demand=Demand(30, 100, 0))
        assert (line.count.amount, line.count.refuses) == (1, True)

    def test_a_budget_that_only_warns_refuses_nothing(self) -> None:
        soft = Budget("shop", "b", Allowance(10), warn_at=(50,), rejects=False)
        (line,) = lines(keyed(budgets=("shop/b",)), budgets=[soft])
        assert not line.count.refuses
        assert answers.beyond(line, State(4, 0)) is None
        assert answers.beyond(line, State(5, 0)) == 50
        assert answers.beyond(line, State(12, 0)) == 100

    def test_a_policy_on_key_and_route_counts_once(self) -> None:
        one = policy(Limit("l", "requests", 5, 60.0, "Shared"))
        found = lines(keyed(policies=("ai/p",)), one, route=route(policies=("ai/p",)))
        assert [line.count.counter for line in found] == ["p:ai/p:l:requests:60"]

    def test_ids_that_nothing_has_limit_nothing(self) -> None:
        assert lines(keyed(policies=("ai/gone",), budgets=("ai/gone",))) == []

    @pytest.mark.parametrize(
        ("scope", "user", "counter"),
        [
            ("Shared", "ann", "p:ai/p:l:requests:60"),
            ("Each", "ann", "p:ai/p:l:requests:60:shop/checkout"),
            ("User", None, "p:ai/p:l:requests:60:shop/checkout"),
            ("User", "", "p:ai/p:l:requests:60:shop/checkout"),
        ],
    )
    def test_scopes(self, scope: str, user: str | None, counter: str) -> None:
        one = policy(Limit("l", "requests", 5, 60.0, scope))
        (line,) = lines(keyed(policies=("ai/p",)), one, user=user)
        assert line.count.counter == counter

    def test_a_user_of_any_length_is_one_counter_that_does_not_show_the_name(self) -> None:
        one = policy(Limit("l", "requests", 5, 60.0, "User"))
        caller = keyed(policies=("ai/p",))
        counters = {
            lines(caller, one, user=user)[0].count.counter
            for user in ("ann@example.com", "x" * 10_000, "\ud800")
        }
        assert len(counters) == 3
        assert all(len(it) < 256 and "ann" not in it and "xx" not in it for it in counters)

    @pytest.mark.parametrize(
        ("models", "model", "counted"),
        [
            (("m",), "m", True),
            (("team/*",), "team/a", True),
            # Another wildcard of the same route is another model.
            (("team/*",), "m", False),
            (("other/*", "m"), "team/a", True),
            (("*",), "anything", True),
            (("openai/o*",), "m", False),
        ],
    )
    def test_models(self, models: tuple[str, ...], model: str, counted: bool) -> None:
        one = policy(Limit("l", "requests", 5, 60.0, models=models))
        assert bool(lines(keyed(policies=("ai/p",)), one, model=model)) is counted

    @pytest.mark.parametrize("word", ["Allow", "Deny", "Local"])
    def test_a_policy_says_what_happens_without_the_store(self, word: str) -> None:
        one = policy(Limit("l", "requests", 5, 60.0), on_store_failure=word)
        (line,) = lines(keyed(policies=("ai/p",)), one)
        assert line.count.on_failure is OnFailure(word)

    def test_names_of_any_length_are_counters_that_a_store_takes(self) -> None:
        long = policy(Limit("l" * 63, "requests", 5, 60.0), namespace="n" * 63, name="p" * 253)
        caller = Key(namespace="n" * 63, name="k" * 253, policies=(long.id,))
        other = Key(namespace="n" * 63, name="k" * 252 + "x", policies=(long.id,))
        found = {lines(it, long)[0].count.counter for it in (caller, other)}
        assert len(found) == 2 and all(len(it) <= 256 for it in found)

    def test_a_provider_is_not_asked_what_the_request_was_asked_already(self) -> None:
        both, own = (
            policy(Limit("l", "requests", 5, 60.0)),
            policy(Limit("l", "tokens", 5, 60.0), name="q"),
        )
        caller = keyed(policies=("ai/p",))
        snapshot = Snapshot.of(policies=[both, own])
        provider = Provider("ai", "up", "Mock", policies=("ai/p", "ai/q"))
        found = plan.of_provider(snapshot, caller, resolved(), provider).lines(None, DEMAND, NOW)
        assert [line.rule.name for line in found] == ["policy/ai/q/l"]


class TestEstimates:
    @pytest.mark.parametrize(
        ("given", "cap", "parameters", "output", "assumed"),
        [
            ({}, None, {}, plan.ASSUMED_OUTPUT, True),
            ({"max_tokens": 50}, None, {}, 50, False),
            # Which of the two a provider keeps to, nobody knows.
            ({"max_completion_tokens": 60, "max_tokens": 5}, None, {}, 60, False),
            ({"max_output_tokens": 70}, None, {}, 70, False),
            ({"max_tokens": 50, "n": 3}, None, {}, 150, False),
            ({"max_tokens": 50, "best_of": 4, "n": 2}, None, {}, 200, False),
            ({"max_tokens": 500}, 100, {}, 100, False),
            ({}, 100, {}, 100, False),
            ({}, None, {"defaults": {"max_tokens": 9}}, 9, False),
            ({"max_tokens": 5}, None, {"defaults": {"max_tokens": 9}}, 5, False),
            ({"max_tokens": 5}, None, {"overrides": {"max_tokens": 9}}, 9, False),
            ({"max_tokens": None, "n": None}, None, {}, plan.ASSUMED_OUTPUT, True),
            ({"max_tokens": "many", "n": [2]}, None, {}, plan.ASSUMED_OUTPUT, True),
            ({"max_tokens": 10**12}, None, {}, plan.MOST_TOKENS, False),
            ({"max_tokens": 10**30}, None, {}, plan.MOST_TOKENS, False),
        ],
    )
    def test_output(
        self,
        given: dict[str, Any],
        cap: int | None,
        parameters: dict[str, Any],
        output: int,
        assumed: bool,
    ) -> None:
        it = resolved(route=route(parameters=Parameters(**parameters)), max_tokens=cap)
        assert plan.output_of(fields(**given), it) == (output, assumed)

    @given(st.binary(max_size=20))
    def test_no_field_makes_it_fail(self, value: bytes) -> None:
        broken = {name: msgspec.Raw(value) for name in ("max_tokens", "n", "user")}
        plan.output_of(broken, resolved())
        plan.user_of(broken)

    def test_a_guess_never_asks_for_more_than_the_whole_limit(self) -> None:
        guess = Demand(30, plan.ASSUMED_OUTPUT, 5_000, assumed=True)
        caller = keyed(
            limits=(Limit("t", "tokens", 100, 60.0), Limit("o", "output_tokens", 10, 60.0)),
            budget=Allowance(1_000),
        )
        found = lines(caller, demand=guess)
        assert [line.count.amount for line in found] == [100, 10, 1_000]
        assert answers.too_large(found) is None

    def test_a_prompt_beyond_the_limit_is_no_guess(self) -> None:
        guess = Demand(300, plan.ASSUMED_OUTPUT, None, assumed=True)
        found = lines(keyed(limits=(Limit("t", "tokens", 100, 60.0),)), demand=guess)
        error = answers.too_large(found)
        assert error is not None and error.code == "tokens_limit"
        assert "shorter prompt" in error.message

    def test_only_what_is_written_in_tokens_has_output(self) -> None:
        priced = route(targets=(Target("ai/up", "m", pricing=Pricing(input="2", output="8")),))
        it = Asking(Snapshot.of(), KEY, resolved(route=priced), fields(input="x" * 300), False)
        demand = it.demand()
        assert demand.output_tokens == 0 and demand.prompt_tokens > 50
        assert demand.cost == demand.prompt_tokens * 2_000
        writes = msgspec.structs.replace(it, writes=True).demand()
        assert writes.cost == demand.cost + plan.ASSUMED_OUTPUT * 8_000


class TestAnswers:
    def test_headers_are_the_strictest_ones(self) -> None:
        caller = keyed(
            limits=(
                Limit("a", "requests", 100, 60.0),
                Limit("b", "requests", 50, 3600.0),
                Limit("c", "tokens", 1000, 60.0),
                Limit("d", "output_tokens", 900, 86400.0),
                Limit("e", "concurrent", 1),
            ),
            budget=Allowance(1),
        )
        states = [
            State(10, 30),
            State(40, 360),
            State(100, 0.02),
            State(5, 1),
            State(1, 0),
            State(9, 9),
        ]
        assert answers.headers(lines(caller), states) == {
            "x-ratelimit-limit-requests": "50",
            "x-ratelimit-remaining-requests": "10",
            "x-ratelimit-reset-requests": "6m0s",
            "x-ratelimit-limit-tokens": "900",
            "x-ratelimit-remaining-tokens": "895",
            "x-ratelimit-reset-tokens": "1s",
        }

    def test_more_used_than_allowed_leaves_nothing(self) -> None:
        (line,) = lines(keyed(limits=(Limit("a", "requests", 3, 60.0),)))
        assert answers.remaining(line, State(5, 1)) == 0

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0ms"), (0.0004, "1ms"), (0.5, "500ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"),
         (3_600, "1h0m0s"), (86_399.5, "24h0m0s")],
    )  # fmt: skip
    def test_durations(self, seconds: float, text: str) -> None:
        assert answers.duration(seconds) == text

    @pytest.mark.parametrize(
        ("nano", "text"), [(0, "0"), (1, "0.000000001"), (50 * 10**9, "50"), (495 * 10**8, "49.5")]
    )  # fmt: skip
    def test_money(self, nano: int, text: str) -> None:
        assert answers.usd(nano) == text

    def test_of_several_refusals_the_budget_is_told_then_the_longest_wait(self) -> None:
        caller = keyed(
            limits=(Limit("a", "requests", 1, 60.0), Limit("b", "tokens", 1, 3600.0)),
            budget=Allowance(10**9, "Day"),
        )
        found = lines(caller)
        counts = tuple(line.count for line in found)
        states = (State(1, 59.2), State(1, 3000.4), State(10**9, 120.0))
        error = answers.refusal(found, Admission(counts, states, refused=(0, 1, 2)))
        assert (error.code, error.status) == ("budget_exceeded", 429)
        assert error.headers == {"retry-after": "120"}
        assert error.metadata["used"] == "1"
        error = answers.refusal(found, Admission(counts, states, refused=(0, 1)))
        assert (error.code, error.headers) == ("tokens_limit", {"retry-after": "3001"})

    def test_at_least_a_second_is_to_be_waited(self) -> None:
        found = lines(keyed(limits=(Limit("a", "requests", 1, 1.0),)))
        error = answers.refusal(
            found, Admission((found[0].count,), (State(1, 0.001),), refused=(0,))
        )
        assert error.headers == {"retry-after": "1"}

    def test_a_total_names_no_time_to_come_again(self) -> None:
        found = lines(keyed(budget=Allowance(10, "Total")))
        error = answers.refusal(
            found, Admission((found[0].count,), (State(10, 1e11),), refused=(0,))
        )
        assert error.headers == {} and "never starts again" in error.message

    def test_without_the_store_one_that_denies_is_a_503(self) -> None:
        one = policy(Limit("l", "requests", 5, 60.0), on_store_failure="Deny")
        found = lines(keyed(policies=("ai/p",)), one)
        error = answers.refusal(
            found, Admission((found[0].count,), (State(0, 0),), unavailable=(0,))
        )
        assert (error.status, error.code) == (503, "limits_unavailable")
        assert error.headers == {"retry-after": "1"}
