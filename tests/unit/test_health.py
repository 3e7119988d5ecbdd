"""What is kept of failing targets, and which failures count."""

import pytest
from prometheus_client import CollectorRegistry

from tollhouse import health
from tollhouse.errors import (
    BrokenAnswer,
    ConnectError,
    Saturated,
    StatusError,
    UpstreamError,
    UpstreamTimeout,
)
from tollhouse.health import Health, blames_target
from tollhouse.snapshot import Health as Thresholds
from tollhouse.snapshot import Provider
from tollhouse.telemetry import Metrics

ONE = Provider("ai", "one", "OpenAI", health=Thresholds(consecutive_failures=2, cooldown=60))


def passed_over(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("tollhouse_targets_passed_over", {"provider": "ai/one"}) or 0


class TestState:
    def test_it_is_bounded_whatever_models_callers_make_up(self) -> None:
        registry = CollectorRegistry()
        it = Health(Metrics(registry))
        for number in range(health._MOST + 500):
            for _ in range(2):
                it.failed(("ai/one", f"made-up-{number}"), ONE, "status")
        assert len(it._troubled) == health._MOST
        assert passed_over(registry) == health._MOST

    def test_a_provider_that_is_gone_leaves_nothing(self) -> None:
        registry = CollectorRegistry()
        it = Health(Metrics(registry))
        for _ in range(2):
            it.failed(("ai/one", "m"), ONE, "connect")
        assert not it.takes(("ai/one", "m"))
        it.keep({"ai/one": ONE})
        assert passed_over(registry) == 1
        it.keep({})
        assert not it
        assert it.takes(("ai/one", "m"))
        assert passed_over(registry) == 0

    def test_failures_of_requests_under_way_do_not_prolong_the_cooldown(self) -> None:
        it = Health(Metrics(CollectorRegistry()))
        target = ("ai/one", "m")
        quick = Provider("ai", "one", "OpenAI", health=Thresholds(1, 0.0))
        it.failed(target, quick, "status")
        assert it.begin(target)
        assert not it.begin(target)
        assert not it.takes(target)
        it.release(target)
        it.failed(target, quick, "status")
        assert it.takes(target)


@pytest.mark.parametrize(
    ("error", "begun", "attempts", "blamed"),
    [
        (ConnectError(), False, 1, True),
        (BrokenAnswer(), True, 1, True),
        (UpstreamTimeout("first_byte", 1), False, 3, True),
        (UpstreamTimeout("idle", 1), True, 1, True),
        (UpstreamTimeout("total", 1), False, 1, True),
        (UpstreamTimeout("total", 1), False, 2, False),
        (UpstreamTimeout("total", 1), True, 1, False),
        (StatusError(500, b""), True, 1, True),
        (StatusError(529, b""), True, 1, True),
        (StatusError(408, b""), True, 1, True),
        (StatusError(401, b""), True, 1, True),
        (StatusError(403, b""), True, 1, False),
        (StatusError(404, b""), True, 1, False),
        (StatusError(422, b""), True, 1, False),
        (StatusError(429, b""), True, 1, False),
        (Saturated(), False, 1, False),
    ],
)
def test_what_says_that_a_target_is_unwell(
    error: UpstreamError, begun: bool, attempts: int, blamed: bool
) -> None:
    assert blames_target(error, begun=begun, attempts=attempts) is blamed
