"""Which route a model name comes to, and in which order its targets are tried."""

import random
from collections import Counter

import msgspec
import pytest

from tollhouse import routing
from tollhouse.errors import RequestError
from tollhouse.snapshot import (
    Capabilities,
    Key,
    KnownModel,
    Parameters,
    Pricing,
    Provider,
    Route,
    Select,
    Snapshot,
    Target,
)


def route(name: str, *models: str, **fields: object) -> Route:
    namespace = str(fields.pop("namespace", "ai"))
    return Route(namespace, name, models, (Target(f"{namespace}/p"),), **fields)  # type: ignore[arg-type]  # because the fields vary by test


ROUTES = [
    route("gpt", "openai/gpt-4o", "gpt-4o-team"),
    route("o4", "openai/o4"),
    route("openai", "openai/*"),
    route("openai-mini", "openai/mini-*"),
    route("llama", "llama3:8b"),
    route("mixed", "mixed/*", "mixed-default"),
    route("left", "left/twin"),
    route("right", "right/twin"),
    route("claude", "anthropic/*", families=("claude*",)),
    route("hidden", "secret/model", namespace="other", shared_with=("other",)),
    route("lent", "lent/model", namespace="other", shared_with=("other", "ai")),
]
TABLE = routing.Table(Snapshot.of(routes=ROUTES), "digest")


def caller(**fields: object) -> Key:
    return Key("ai", "caller", **fields)  # type: ignore[arg-type]  # because the fields vary by test


@pytest.mark.parametrize(
    ("requested", "found", "model", "matched", "effort"),
    [
        ("openai/gpt-4o", "gpt", "openai/gpt-4o", None, None),
        ("gpt-4o-team", "gpt", "openai/gpt-4o", None, None),
        ("gpt-4o", "gpt", "openai/gpt-4o", None, None),
        ("openai/o4:high", "o4", "openai/o4", None, "high"),
        ("o4:max", "o4", "openai/o4", None, "max"),
        ("llama3:8b", "llama", "llama3:8b", None, None),
        ("openai/new", "openai", "openai/new", "new", None),
        ("openai/new:low", "openai", "openai/new", "new", "low"),
        ("openai/mini-7", "openai-mini", "openai/mini-7", "7", None),
        ("mixed-default", "mixed", "mixed-default", None, None),
        ("fast", "o4", "openai/o4", None, None),
        ("fast:low", "o4", "openai/o4", None, "low"),
        ("lent/model", "lent", "lent/model", None, None),
        (
            "claude-3-5-sonnet-20241022",
            "claude",
            "anthropic/claude-3-5-sonnet-20241022",
            "claude-3-5-sonnet-20241022",
            None,
        ),
    ],
)
def test_a_name_resolves_as_documented(
    requested: str, found: str, model: str, matched: str | None, effort: str | None
) -> None:
    resolution = TABLE.resolve(caller(model_aliases={"fast": "openai/o4"}), requested)
    assert (resolution.route.name, resolution.model) == (found, model)
    assert (resolution.matched, resolution.effort) == (matched, effort)
    assert resolution.requested == requested


@pytest.mark.parametrize(
    "requested", ["nope", "twin", "secret/model", "openai/", "llama3", ":high"]
)
def test_a_name_that_no_route_has_is_the_callers_mistake(requested: str) -> None:
    with pytest.raises(RequestError) as caught:
        TABLE.resolve(caller(), requested)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert "secret" not in caught.value.message.replace(repr(requested), "")


def test_a_near_name_is_offered() -> None:
    with pytest.raises(RequestError, match=r"Did you mean .*gpt-4o-team"):
        TABLE.resolve(caller(), "gpt-4o-teem")


@pytest.mark.parametrize(
    ("allowed", "requested"),
    [
        (("openai/*",), "gpt-4o"),
        (("gpt-4o-team",), "openai/gpt-4o"),
        (("openai/new",), "openai/new"),
    ],
)
def test_an_allow_list_knows_a_route_by_all_its_names(
    allowed: tuple[str, ...], requested: str
) -> None:
    resolution = TABLE.resolve(caller(allowed_models=allowed), requested)
    assert resolution.requested == requested


@pytest.mark.parametrize(
    ("allowed", "requested"),
    [((), "gpt-4o"), (("openai/new",), "openai/newer"), (("llama*",), "openai/o4")],
)
def test_a_model_outside_the_allow_list_is_forbidden(
    allowed: tuple[str, ...], requested: str
) -> None:
    with pytest.raises(RequestError) as caught:
        TABLE.resolve(caller(allowed_models=allowed), requested)
    assert (caught.value.status, caught.value.code) == (403, "model_not_allowed")


def test_an_alias_does_not_widen_the_allow_list() -> None:
    with pytest.raises(RequestError, match="may not use"):
        TABLE.resolve(caller(allowed_models=("fast",), model_aliases={"fast": "openai/o4"}), "fast")


@pytest.mark.parametrize(
    ("caps", "requested", "cap"),
    [
        ({}, "openai/o4", None),
        ({"openai/o4": 10, "*": 5}, "openai/o4", 10),
        ({"openai/*": 20, "*": 5}, "openai/o4", 20),
        ({"gpt-4o-team": 7}, "openai/gpt-4o", 7),
        ({"*": 5}, "llama3:8b", 5),
    ],
)
def test_the_most_specific_cap_applies(
    caps: dict[str, int], requested: str, cap: int | None
) -> None:
    assert TABLE.resolve(caller(max_tokens=caps), requested).max_tokens == cap


def test_the_lower_of_two_caps_applies() -> None:
    capped = route("capped", "x/capped", parameters=Parameters(max_tokens=100))
    table = routing.Table(Snapshot.of(routes=[capped]), "digest")
    assert table.resolve(caller(), "x/capped").max_tokens == 100
    assert table.resolve(caller(max_tokens={"*": 50}), "x/capped").max_tokens == 50


def test_a_caller_sees_only_what_it_may_call() -> None:
    names = [route.name for route in TABLE.visible(caller(allowed_models=("openai/*", "lent/*")))]
    assert names == ["lent", "openai", "gpt", "openai-mini", "o4"]
    assert [route.name for route in TABLE.visible(Key("elsewhere", "k"))] == [
        r.name for r in sorted(ROUTES, key=lambda r: r.models[0]) if r.shared_with is None
    ]


def test_targets_go_by_priority_and_then_by_weight() -> None:
    heavy, light = Target("ai/heavy", weight=90), Target("ai/light", weight=10)
    spare, last = Target("ai/spare", priority=1), Target("ai/last", weight=0)
    draw = random.Random(7).random
    firsts: Counter[str] = Counter()
    for _ in range(4000):
        levels = routing.order([spare, light, heavy, last], draw)
        assert [len(level) for level in levels] == [3, 1]
        assert levels[0][-1] is last
        assert levels[1] == [spare]
        firsts[levels[0][0].provider] += 1
    assert 0.87 < firsts["ai/heavy"] / 4000 < 0.93


@pytest.mark.parametrize(
    ("target", "requested", "expected"),
    [
        (Target("ai/p", model="theirs"), "openai/new", "theirs"),
        (Target("ai/p"), "openai/new", "new"),
        (Target("ai/p"), "llama3:8b", "llama3:8b"),
    ],
)
def test_the_provider_is_asked_for_its_own_name(
    target: Target, requested: str, expected: str
) -> None:
    assert routing.upstream_model(TABLE.resolve(caller(), requested), target) == expected


class TestKnownModels:
    provider = Provider(
        "ai",
        "p",
        "OpenAI",
        known={
            "gpt-5": KnownModel(Pricing(input="2", output="4"), 400_000),
            "gpt-5-mini*": KnownModel(Pricing(input="1", output="2"), 200_000, web_search=True),
            "gpt-*": KnownModel(Pricing(input="9", output="9")),
        },
    )
    routes = (
        route("openai", "openai/*"),
        route("cheap", "auto", select=Select(("openai/gpt-5", "openai/gpt-5-mini"))),
        route("even", "even", select=Select(("one/*", "two/*"), "Weight")),
        route("one", "one/a"),
        Route("ai", "two", ("two/b",), (Target("ai/p", weight=3),)),
    )
    table = routing.Table(Snapshot.of([provider], routes), "digest")

    @pytest.mark.parametrize(
        ("model", "price", "window"),
        [
            ("gpt-5", "2", 400_000),
            ("GPT-5", "2", 400_000),
            ("gpt-5-mini-2026", "1", 200_000),
            ("gpt-9", "9", None),
            ("other", None, None),
        ],
    )
    def test_a_wildcards_model_has_the_data_of_its_name(self, model, price, window):
        found = self.table.resolve(caller(), f"openai/{model}").route
        pricing = found.targets[0].pricing
        assert (pricing.input if pricing else None, found.capabilities.context_window) == (
            price,
            window,
        )

    def test_a_choice_may_name_models_of_a_wildcard(self):
        chosen = self.table.resolve(caller(), "auto:high")
        assert (chosen.model, chosen.requested) == ("openai/gpt-5-mini", "auto:high")
        assert chosen.effort == "high"
        assert [target.model for target in chosen.route.targets] == ["gpt-5-mini", "gpt-5"]

    def test_a_prompt_beyond_the_window_goes_to_the_larger_one(self):
        chosen = self.table.resolve(caller(), "auto", routing.Needs(prompt_tokens=300_000))
        assert chosen.model == "openai/gpt-5"

    def test_web_search_is_only_where_it_is_known_to_be(self):
        chosen = self.table.resolve(caller(), "auto", routing.Needs(web_search=True))
        assert [target.model for target in chosen.route.targets] == ["gpt-5-mini"]

    def test_targets_that_do_not_search_are_passed_over(self):
        two = (Target("ai/p", "gpt-5"), Target("ai/p", "gpt-5-mini", web_search=True, priority=1))
        plain = Route("ai", "plain", ("plain",), two[:1])
        table = routing.Table(
            Snapshot.of([self.provider], [Route("ai", "m", ("m",), two), plain]), "d"
        )
        found = routing.searching(table.resolve(caller(), "m"), "tools")
        assert [it.model for it in found.route.targets] == ["gpt-5-mini"]
        with pytest.raises(RequestError, match="no target that searches") as caught:
            routing.searching(table.resolve(caller(), "plain"), "tools")
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
        said = Route("ai", "r", ("r",), two, capabilities=Capabilities(web_search=True))
        whole = routing.Resolution("r", "r", said)
        assert routing.searching(whole, "tools") is whole
        empty = routing.Resolution("r", "r", msgspec.structs.replace(said, targets=()))
        assert routing.searching(empty, "tools") is empty

    def test_a_chosen_target_that_searches_does_not_vouch_for_the_others(self):
        chosen = self.table.resolve(caller(), "auto")
        able = routing.searching(chosen, "tools")
        assert [target.model for target in able.route.targets] == ["gpt-5-mini"]

    def test_a_price_for_each_request_is_not_free(self):
        priced = Pricing(input="0", output="0", request="0.01")
        target = Target("ai/p", "x", pricing=priced)
        table = routing.Table(Snapshot.of(routes=[Route("ai", "x", ("x",), (target,))]), "digest")
        with pytest.raises(RequestError, match="not free"):
            table.resolve(caller(), "x", routing.Needs(free_only=True))

    def test_a_choice_keeps_to_the_callers_list_and_its_smallest_cap(self):
        listed = caller(
            allowed_models=("auto", "openai/gpt-5"), max_tokens={"openai/gpt-5": 7, "*": 9}
        )
        chosen = self.table.resolve(listed, "auto")
        assert (chosen.model, chosen.max_tokens) == ("openai/gpt-5", 7)

    def test_nothing_to_choose_is_said(self):
        with pytest.raises(RequestError) as caught:
            self.table.resolve(caller(allowed_models=("auto",)), "auto")
        assert caught.value.code == "model_not_found"

    def test_weights_decide_the_share(self):
        draw = random.Random(7).random
        conditions = routing.Conditions(draw=draw)
        names = (
            self.table.resolve(caller(), "even", conditions=conditions).model for _ in range(4000)
        )
        assert Counter(names)["two/b"] == pytest.approx(3000, rel=0.05)
