"""What an answer costs: exact, and unknown rather than wrong."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.api import cost, usage
from tollhouse.api.usage import Usage
from tollhouse.snapshot import Pricing, Route, Target, Tier

FULL = Pricing(input="2.50", cached_input="1.25", output="10.00")
EVERY = Pricing(
    input="1",
    cached_input="0.1",
    output="10",
    cache_write="1.25",
    cache_write_hour="2",
    reasoning="20",
    input_audio="30",
    cached_audio="3",
    output_audio="40",
    input_image="50",
    cached_image="5",
    output_image="60",
    web_search="0.01",
    request="0.005",
)
TIERED = Pricing(
    input="1",
    output="10",
    web_search="0.01",
    tiers=(Tier(100, input="2", output="20"), Tier(200, "4")),
)


@pytest.mark.parametrize(
    ("tokens", "pricing", "dollars"),
    [
        (Usage(24, 52), FULL, "0.00058"),
        (Usage(1_000_000, 0), FULL, "2.5"),
        (Usage(100, 0, cached_tokens=40), FULL, "0.0002"),
        (Usage(100, 0, cached_tokens=40), Pricing(input="2.50", output="1"), "0.00025"),
        (Usage(100, 0, cached_tokens=900), FULL, "0.000125"),
        (Usage(0, 10, reasoning_tokens=8), FULL, "0.0001"),
        (Usage(1, 0), Pricing(input="0.0001"), "0.0000000001"),
        (Usage(0, 0), FULL, "0"),
        (Usage(5, 5), Pricing(input="0", output="0"), "0"),
        (Usage(5, 5), Pricing(input="1"), None),
        (Usage(5, 0), Pricing(input="1"), "0.000005"),
        (Usage(5, 5), None, None),
        (None, FULL, None),
        (Usage(0, 0), Pricing(web_search="0.01"), None),
        (Usage(100, 0, cache_write_tokens=40), FULL, "0.00025"),
        (Usage(100, 0, prompt_audio_tokens=40, prompt_image_tokens=9), FULL, "0.00025"),
        (Usage(0, 0), EVERY, "0.005"),
        (Usage(100, 0, cache_write_tokens=40), EVERY, "0.00511"),
        (Usage(100, 0, 10, None, 40, 20), EVERY, "0.005116"),
        (Usage(0, 10, reasoning_tokens=4), EVERY, "0.00514"),
        (Usage(100, 0, prompt_audio_tokens=40), EVERY, "0.00626"),
        (Usage(100, 0, 50, prompt_audio_tokens=40, cached_audio_tokens=10), EVERY, "0.005954"),
        (Usage(100, 0, 50, cached_image_tokens=10, prompt_image_tokens=10), EVERY, "0.005104"),
        (Usage(0, 10, completion_audio_tokens=4, completion_image_tokens=1), EVERY, "0.00527"),
        (Usage(0, 0, web_searches=3), EVERY, "0.035"),
        (Usage(0, 0, web_searches=3), FULL, None),
        (Usage(0, 0, web_searches=3), Pricing(input="1", request="0.01"), "0.01"),
        (Usage(0, 0, web_searches=0), FULL, "0"),
        (Usage(100, 1), TIERED, "0.00011"),
        (Usage(101, 1), TIERED, "0.000222"),
        (Usage(201, 1), TIERED, "0.000814"),
    ],
)
def test_the_cost_of_an_answer(
    tokens: Usage | None, pricing: Pricing | None, dollars: str | None
) -> None:
    price = cost.of(tokens, pricing)
    assert (None if price is None else cost.text(price)) == dollars


@pytest.mark.parametrize(
    ("tokens", "searches", "dollars"),
    [
        (Usage(), 1, "0.015"),
        (Usage(web_searches=0), 1, "0.005"),
        (Usage(web_searches=2), 1, "0.025"),
    ],
)
def test_searches_are_charged_as_counted_or_else_as_asked_for(tokens, searches, dollars):
    price = cost.of(tokens, EVERY, searches)
    assert price is not None and cost.text(price) == dollars


COUNTS = st.none() | st.integers(-5, 400)


@given(
    st.builds(Usage, st.integers(0, 300), st.integers(0, 300), *[COUNTS] * 10),
    st.sampled_from([FULL, EVERY, TIERED]),
    st.integers(0, 3),
)
def test_no_answer_costs_more_than_was_reserved_for_as_many_tokens(tokens, pricing, searches):
    price = cost.of(tokens, pricing, searches)
    others = [None, Pricing(input="0", output="0")]
    prompt, completion = tokens.prompt_tokens, tokens.completion_tokens
    bound = cost.most(prompt, completion, [*others, pricing], searches)
    assert bound is not None
    if price is None:
        assert searches and pricing is FULL
    else:
        assert 0 <= price <= bound


def test_the_dearest_target_bounds_the_cost_and_unpriced_ones_are_passed_over():
    assert cost.most(1_000_000, 100_000, [Pricing("1", output="10"), FULL, None]) == Decimal("3.5")
    assert cost.most(10, 10, [None, Pricing(output="1"), Pricing("1")]) is None
    assert cost.most(1_000_000, 0, [Pricing("1")]) == 1
    assert cost.most(0, 0, []) is None


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [
        ("0", 0),
        ("0.000000001", 1),
        ("0.0000000001", 1),
        ("1.5", 1_500_000_000),
        ("2.0000000019", 2_000_000_002),
    ],
)
def test_budgets_count_whole_nanodollars_rounded_up(dollars: str, nano: int) -> None:
    assert cost.nano(Decimal(dollars)) == nano


def test_a_free_route_costs_nothing_whatever_its_target_says() -> None:
    target = Target("ai/p", pricing=FULL)
    free = Route("ai", "r", ("m",), (target,), free=True)
    price = cost.of(Usage(5, 5), cost.pricing_of(free, target))
    assert price is not None and price == 0
    assert cost.pricing_of(Route("ai", "r", ("m",), (target,)), target) == FULL


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b'{"prompt_tokens":3,"completion_tokens":2}', Usage(3, 2)),
        (b'{"prompt_tokens":3,"completion_tokens":null}', Usage(3, 0)),
        (b'{"prompt_tokens":-3,"completion_tokens":2}', Usage(0, 2)),
        (b'{"prompt_tokens":0,"prompt_tokens_details":{"cached_tokens":1}}', Usage(0, 0, 1)),
        (b'{"prompt_tokens":0,"prompt_cache_hit_tokens":1}', Usage(0, 0, 1)),
        (
            b'{"prompt_tokens":0,"completion_tokens_details":{"reasoning_tokens":1}}',
            Usage(0, 0, None, 1),
        ),
        (
            b'{"prompt_tokens":0,"reasoning_tokens":1,"completion_tokens_details":null}',
            Usage(0, 0, None, 1),
        ),
        (
            b'{"input_tokens":3,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}',
            Usage(3, 2, 1),
        ),
        (
            b'{"prompt_tokens":0,"prompt_tokens_details":{"cache_write_tokens":1}}',
            Usage(cache_write_tokens=1),
        ),
        (
            b'{"prompt_tokens":0,"prompt_tokens_details":{"cache_creation_tokens":1}}',
            Usage(cache_write_tokens=1),
        ),
        (
            b'{"prompt_tokens":0,"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":2}}',
            Usage(cache_write_tokens=5, cache_write_hour_tokens=2),
        ),
        (
            b'{"prompt_tokens":0,"prompt_tokens_details":{"audio_tokens":1,"image_tokens":2}}',
            Usage(prompt_audio_tokens=1, prompt_image_tokens=2),
        ),
        (
            b'{"prompt_tokens":0,"prompt_tokens_details":{"cached_tokens_details":{"audio_tokens":3}}}',
            Usage(cached_audio_tokens=3),
        ),
        (
            b'{"prompt_tokens":0,"prompt_tokens_details":{"cached_tokens_details":{"image_tokens":4}}}',
            Usage(cached_image_tokens=4),
        ),
        (
            b'{"prompt_tokens":0,"completion_tokens_details":{"audio_tokens":1,"image_tokens":2}}',
            Usage(completion_audio_tokens=1, completion_image_tokens=2),
        ),
        (b'{"server_tool_use":{"web_search_requests":2}}', Usage(web_searches=2)),
        (b'{"num_search_queries":3}', Usage(web_searches=3)),
        # xAI counts reasoning beside the completion; its total tells.
        (
            b'{"prompt_tokens":9,"completion_tokens":2,"total_tokens":16,"reasoning_tokens":5}',
            Usage(9, 7, reasoning_tokens=5),
        ),
        (
            b'{"prompt_tokens":9,"completion_tokens":7,"total_tokens":16,"reasoning_tokens":5}',
            Usage(9, 7, reasoning_tokens=5),
        ),
        (b"null", None),
        (b'"many"', None),
        (b'{"prompt_tokens":"3"}', None),
        # Speech that is charged by the second.
        (b'{"type":"duration","seconds":3}', None),
        (b'{"total_tokens":5}', Usage(5, 0)),
    ],
)
def test_usage_is_read_in_every_form(sent: bytes, read: Usage | None) -> None:
    assert usage.read(sent) == read
