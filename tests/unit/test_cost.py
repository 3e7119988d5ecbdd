"""What an answer costs: exact, and unknown rather than wrong."""

import pytest

from tollhouse.api import cost, usage
from tollhouse.api.usage import Usage
from tollhouse.snapshot import Pricing, Route, Target

FULL = Pricing(input="2.50", cached_input="1.25", output="10.00")


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
    ],
)
def test_the_cost_of_an_answer(
    tokens: Usage | None, pricing: Pricing | None, dollars: str | None
) -> None:
    price = cost.of(tokens, pricing)
    assert (None if price is None else cost.text(price)) == dollars


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
        (b'{"prompt_tokens_details":{"cached_tokens":1}}', Usage(0, 0, 1)),
        (b'{"prompt_cache_hit_tokens":1}', Usage(0, 0, 1)),
        (b'{"completion_tokens_details":{"reasoning_tokens":1}}', Usage(0, 0, None, 1)),
        (b'{"reasoning_tokens":1,"completion_tokens_details":null}', Usage(0, 0, None, 1)),
        (b"null", None),
        (b'"many"', None),
        (b'{"prompt_tokens":"3"}', None),
    ],
)
def test_usage_is_read_in_every_form(sent: bytes, read: Usage | None) -> None:
    assert usage.of_chat(sent) == read
