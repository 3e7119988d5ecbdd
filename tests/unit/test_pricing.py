"""A route's own prices and capabilities beside the published ones."""

import pytest

from tollhouse import pricing
from tollhouse.snapshot import Capabilities, KnownModel, Pricing, Target, Tier

SAID = Pricing(
    input="1",
    cached_input="0.1",
    output="10",
    reasoning="20",
    web_search="0.01",
    tiers=(Tier(100, input="2", output="20"),),
)
SEARCHES = KnownModel(SAID, 1000, web_search=True)
PLAIN = KnownModel(Pricing(input="3"), 500)


@pytest.mark.parametrize(
    ("own", "merged"),
    [
        (None, SAID),
        (Pricing(), SAID),
        (
            Pricing(input="5"),
            Pricing(input="5", output="10", reasoning="20", web_search="0.01"),
        ),
        (
            Pricing(output="5"),
            Pricing(input="1", cached_input="0.1", output="5", web_search="0.01"),
        ),
        (
            Pricing(web_search="0"),
            Pricing("1", "0.1", "10", reasoning="20", web_search="0", tiers=SAID.tiers),
        ),
    ],
    ids=["nothing", "nothing given", "input", "output", "searches"],
)
def test_a_price_of_ones_own_goes_before_the_published_ones_that_hang_on_it(own, merged):
    assert pricing.merged(own, SAID) == merged


@pytest.mark.parametrize(
    ("said", "models", "targets", "route"),
    [
        (None, [SEARCHES, SEARCHES], [True, True], True),
        (None, [SEARCHES, PLAIN], [True, None], None),
        (None, [SEARCHES, None], [True, None], None),
        (None, [PLAIN, None], [None, None], None),
        (False, [SEARCHES, PLAIN], [None, None], False),
        (True, [PLAIN, None], [None, None], True),
    ],
)
def test_who_searches_is_said_by_the_route_and_else_known_of_each_target(
    said, models, targets, route
):
    given = (Target("ai/a"), Target("ai/b"))
    found, able = pricing.completed(given, Capabilities(web_search=said), models)
    assert ([it.web_search for it in found], able.web_search) == (targets, route)


def test_what_a_target_says_goes_before_what_the_route_says():
    able = Capabilities(web_search=True)
    assert not pricing.searches(Target("ai/a", web_search=False), able)
    assert pricing.searches(Target("ai/a"), able)
    assert not pricing.searches(Target("ai/a"), Capabilities())
    for own in (True, False):
        model = PLAIN if own else SEARCHES
        (found,), _ = pricing.completed((Target("a/b", web_search=own),), Capabilities(), [model])
        assert found.web_search is own


def test_the_smallest_window_counts_where_all_are_known():
    two = (Target("ai/a"), Target("ai/b"))
    assert pricing.completed(two, Capabilities(), [SEARCHES, PLAIN])[1].context_window == 500
    assert pricing.completed(two, Capabilities(), [SEARCHES, None])[1].context_window is None


def test_what_nobody_prices_has_no_pricing():
    (target,), _ = pricing.completed((Target("ai/a"),), Capabilities(), [KnownModel()])
    assert target.pricing is None
