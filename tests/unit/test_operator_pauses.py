"""How long the operator waits before it tries the API server again."""

from collections.abc import Iterable
from itertools import islice

from tollhouse_operator import handlers
from tollhouse_operator.cluster import CallError, wait_after

TRIES = 50


def test_a_server_that_does_not_answer_is_tried_every_second() -> None:
    away = [wait_after(CallError("GET /", None, "refused"), attempt) for attempt in range(TRIES)]
    backoffs = handlers.settings().networking.error_backoffs
    assert isinstance(backoffs, Iterable)
    watches = list(islice(backoffs, TRIES))
    for pauses in (away, watches):
        assert pauses[0] <= 0.2
        assert 0.5 <= max(pauses) <= 1.0


def test_a_server_that_refuses_is_spared_and_obeyed() -> None:
    assert max(wait_after(CallError("PUT /", 503, "busy"), 20) for _ in range(TRIES)) > 5
    assert wait_after(CallError("PUT /", 429, "busy", retry_after=7.0), 0) == 7.0
