"""Retries and fallback: another target takes over until the caller has seen a piece."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support import gateway as g
from support import upstream as u
from support.calling import calling

QUICK = {"attempts": 2, "backoff": "10ms"}


def pieces(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream's body."""
    events = body.removesuffix(u.DONE).split(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in events if event]


def first_and_second(one: u.Upstream, two: u.Upstream, **spec: Any) -> list[Any]:
    """Two providers and a route that prefers the first."""
    targets: list[dict[str, Any]] = [
        {"provider": {"name": "one"}},
        {"provider": {"name": "two"}, "priority": 1},
    ]
    return [
        g.openai_compatible("one", one.base_url),
        g.openai_compatible("two", two.base_url),
        g.route("m", ["m"], *targets, **{"retries": QUICK, **spec}),
    ]


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_the_next_priority_answers_when_the_first_keeps_failing(
    tmp_path: Path, status: int
) -> None:
    async with u.serving(u.failing(status)) as one, u.serving(u.always(text="from two")) as two:
        async with calling(tmp_path, *first_and_second(one, two)) as caller:
            answered, headers, body = await caller.whole()
    assert answered == 200
    assert body["choices"][0]["message"]["content"] == "from two"
    assert (len(one.received), len(two.received)) == (3, 1)
    assert (headers["x-tollhouse-provider"], headers["x-tollhouse-attempts"]) == ("two", "4")


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_misconfigured_target_is_tried_once(tmp_path: Path, status: int) -> None:
    async with u.serving(u.failing(status)) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *first_and_second(one, two)) as caller:
            answered, _, _ = await caller.whole()
    assert answered == 200
    assert (len(one.received), len(two.received)) == (1, 1)


@pytest.mark.parametrize("status", [400, 422])
async def test_what_the_provider_blames_on_the_request_is_not_repeated(
    tmp_path: Path, status: int
) -> None:
    async with u.serving(u.failing(status, "bad seed")) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *first_and_second(one, two)) as caller:
            answered, _, body = await caller.whole()
    assert answered == status
    assert body["error"]["message"] == "bad seed"
    assert (len(one.received), len(two.received)) == (1, 0)


async def test_only_what_the_route_names_is_retried(tmp_path: Path) -> None:
    async with u.serving(u.failing(500)) as one, u.serving(u.always()) as two:
        spec = {"retries": {**QUICK, "retryOn": ["429"]}}
        async with calling(tmp_path, *first_and_second(one, two, **spec)) as caller:
            answered, _, body = await caller.whole()
    assert (answered, body["error"]["code"]) == (502, "provider_error")
    assert body["error"]["metadata"]["status"] == 500
    assert (len(one.received), len(two.received)) == (1, 0)


async def test_nobody_listening_counts_as_a_failed_attempt(tmp_path: Path) -> None:
    async with u.serving(u.always()) as gone:
        pass
    async with u.serving(u.always()) as two:
        async with calling(tmp_path, *first_and_second(gone, two)) as caller:
            answered, headers, _ = await caller.whole()
    assert (answered, headers["x-tollhouse-provider"]) == (200, "two")


async def test_weights_share_the_load_and_failures_move_it(tmp_path: Path) -> None:
    async with u.serving(u.always()) as one, u.serving(u.always()) as two:
        route = g.route(
            "m",
            ["m"],
            {"provider": {"name": "one"}, "weight": 3},
            {"provider": {"name": "two"}, "weight": 1},
            retries=QUICK,
        )
        resources = [
            g.openai_compatible("one", one.base_url),
            g.openai_compatible("two", two.base_url),
            route,
        ]
        async with calling(tmp_path, *resources) as caller:
            for _ in range(200):
                assert (await caller.whole())[0] == 200
            share = len(one.received) / 200
            one.answer = u.failing(503)
            moved = Counter([(await caller.whole())[1]["x-tollhouse-provider"] for _ in range(40)])
    assert 0.6 < share < 0.9
    assert moved == {"two": 40}


async def test_the_provider_is_told_to_wait_for(tmp_path: Path) -> None:
    async with u.serving(u.failing(429, **{"Retry-After": "1"})) as one:
        resources = [
            g.openai_compatible("one", one.base_url),
            g.route("m", ["m"], "one", retries={"attempts": 1, "backoff": "1ms"}),
        ]
        async with calling(tmp_path, *resources) as caller:
            begun = time.monotonic()
            answered, headers, body = await caller.whole()
            took = time.monotonic() - begun
    assert (answered, body["error"]["code"]) == (429, "provider_rate_limit")
    assert headers["retry-after"] == "1"
    assert len(one.received) == 2 and took >= 1.0


async def test_a_slow_first_byte_times_out_and_says_so(tmp_path: Path) -> None:
    resources = [
        g.mock("slow", firstByteDelay="30s"),
        g.route("m", ["m"], "slow", timeouts={"firstByte": "200ms"}, retries={"attempts": 0}),
    ]
    async with calling(tmp_path, *resources) as caller:
        answered, _, body = await caller.whole()
    assert (answered, body["error"]["code"]) == (504, "timeout")
    assert "firstByte timeout of 0.2 s" in body["error"]["message"]


async def test_the_total_timeout_bounds_all_attempts_together(tmp_path: Path) -> None:
    resources = [
        g.mock("slow", firstByteDelay="300ms", failWith={"status": 500}),
        g.route(
            "m", ["m"], "slow", timeouts={"total": "1s"}, retries={"attempts": 10, "backoff": "1ms"}
        ),
    ]
    async with calling(tmp_path, *resources) as caller:
        begun = time.monotonic()
        answered, _, body = await caller.whole()
        took = time.monotonic() - begun
    assert (answered, body["error"]["code"]) == (504, "timeout")
    assert "total timeout of 1 s" in body["error"]["message"]
    assert took < 2.5


async def test_a_provider_takes_no_more_than_it_may_have(tmp_path: Path) -> None:
    resources = [
        g.manifest(
            "Provider",
            "small",
            {"type": "Mock", "maxConcurrent": 3, "mock": {"firstByteDelay": "500ms"}},
        ),
        g.route("m", ["m"], "small", retries={"attempts": 0}),
    ]
    async with calling(tmp_path, *resources) as caller:
        answers = await asyncio.gather(*(caller.whole() for _ in range(10)))
    statuses = Counter(status for status, _, _ in answers)
    assert statuses == {200: 3, 503: 7}
    refused = next(body for status, _, body in answers if status == 503)
    assert refused["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    "beginning",
    [
        (),
        (u.chunk({"role": "assistant", "content": ""}),),
        (b": still thinking\n\n",),
        (b'data: {"error": {"message": "overloaded", "code": 503}}\n\n',),
    ],
    ids=["nothing", "role-only", "comment", "error-event"],
)
async def test_a_stream_that_fails_before_its_first_content_falls_back_unseen(
    tmp_path: Path, beginning: tuple[bytes, ...]
) -> None:
    good = u.streaming(u.chunk({"content": "from two"}), u.chunk({}, "stop"), u.DONE)
    async with u.serving(u.streaming(*beginning, cut=True)) as one, u.serving(good) as two:
        async with calling(tmp_path, *first_and_second(one, two)) as caller:
            status, body = await caller.stream()
    assert status == 200
    assert body.startswith(u.chunk({"content": "from two"}, model="m"))
    assert [piece["choices"][0]["finish_reason"] for piece in pieces(body)] == [None, "stop"]
    assert body.endswith(u.DONE)


@pytest.mark.parametrize(
    ("ending", "cut"),
    [
        ((), True),
        ((), False),
        ((b'data: {"error": {"message": "out of memory"}}\n\n',), False),
        ((b'data: {"choices": [{"del',), True),
    ],
    ids=["cut", "ended-early", "error-event", "cut-in-an-event"],
)
async def test_a_stream_that_fails_after_its_first_content_ends_in_an_error(
    tmp_path: Path, ending: tuple[bytes, ...], cut: bool
) -> None:
    first = u.chunk({"content": "partial"}, model="m")
    async with u.serving(u.streaming(first, 0.05, *ending, cut=cut)) as one:
        async with u.serving(u.always()) as two:
            async with calling(tmp_path, *first_and_second(one, two)) as caller:
                status, body = await caller.stream()
    assert status == 200
    assert body.startswith(first)
    error = json.loads(body.removeprefix(first).removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("provider_error", "provider_error")
    assert b"[DONE]" not in body
    assert two.received == []


async def test_an_idle_stream_is_cut(tmp_path: Path) -> None:
    async with u.serving(u.streaming(u.chunk({"content": "a"}), 30.0)) as one:
        resources = [
            g.openai_compatible("one", one.base_url, timeouts={"idle": "300ms"}),
            g.route("m", ["m"], "one"),
        ]
        async with calling(tmp_path, *resources) as caller:
            begun = time.monotonic()
            _, body = await caller.stream()
            took = time.monotonic() - begun
            await asyncio.wait_for(one.received[0].gone.wait(), 2)
    assert b'"code":"timeout"' in body and b"idle timeout of 0.3 s" in body
    assert took < 5


async def test_events_are_forwarded_as_they_arrive(tmp_path: Path) -> None:
    sent = [u.chunk({"content": str(n)}, model="m") for n in range(4)]
    slow = u.streaming(
        sent[0], 0.3, sent[1], 0.3, sent[2], 0.3, sent[3], u.chunk({}, "stop"), u.DONE
    )
    async with u.serving(slow) as one:
        resources = [g.openai_compatible("one", one.base_url), g.route("m", ["m"], "one")]
        async with calling(tmp_path, *resources) as caller:
            arrived = []
            async with caller.post("m", {"stream": True}) as answer:
                async for piece in answer.content.iter_any():
                    arrived.append((time.monotonic(), piece))
    assert b"".join(piece for _, piece in arrived).startswith(b"".join(sent))
    assert arrived[1][0] - arrived[0][0] > 0.2


@pytest.mark.parametrize(
    ("asked", "shown"), [({}, False), ({"stream_options": {"include_usage": True}}, True)]
)
async def test_usage_reaches_only_who_asked_and_is_counted_always(
    tmp_path: Path, asked: dict[str, Any], shown: bool
) -> None:
    stream = u.streaming(u.chunk({"content": "x"}), u.chunk({}, "stop"), u.USAGE_EVENT, u.DONE)
    async with u.serving(stream) as one:
        resources = [g.openai_compatible("one", one.base_url), g.route("m", ["m"], "one")]
        async with calling(tmp_path, *resources) as caller:
            _, body = await caller.stream(**asked)
            metrics = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
        assert one.received[0].json["stream_options"]["include_usage"] is True
    counted = [piece["usage"]["total_tokens"] for piece in pieces(body) if "usage" in piece]
    assert counted == ([5] if shown else [])
    assert 'tollhouse_tokens_total{direction="output",route="ai/m"} 2.0' in metrics


async def test_a_stream_without_done_gets_one(tmp_path: Path) -> None:
    stream = u.streaming(u.chunk({"content": "x"}), u.chunk({}, "stop").rstrip())
    async with u.serving(stream) as one:
        resources = [g.openai_compatible("one", one.base_url), g.route("m", ["m"], "one")]
        async with calling(tmp_path, *resources) as caller:
            _, body = await caller.stream()
    assert pieces(body)[-1]["choices"][0]["finish_reason"] == "stop"
    assert body.endswith(u.DONE)


async def test_what_the_gateway_does_not_know_passes_through_whole_answers(tmp_path: Path) -> None:
    odd = u.always(text="é\u2028", vendor={"kept": [1.0, None]}, x_new=12345678901234567890)
    async with u.serving(odd) as one:
        resources = [g.openai_compatible("one", one.base_url), g.route("m", ["m"], "one")]
        async with calling(tmp_path, *resources) as caller:
            _, _, body = await caller.whole(vendor_field={"a": 1})
        assert one.received[0].json["vendor_field"] == {"a": 1}
        assert one.received[0].headers["Authorization"] == f"Bearer {g.PROVIDER_KEY}"
    expected = u.completion(
        text="é\u2028", vendor={"kept": [1.0, None]}, x_new=12345678901234567890
    )
    ours = ("model", "usage")
    assert {name: body[name] for name in expected if name not in ours} == {
        name: value for name, value in expected.items() if name not in ours
    }
    assert body["usage"] == {**expected["usage"], "cost": None}


async def test_an_answer_that_is_no_json_is_not_passed_on(tmp_path: Path) -> None:
    from aiohttp import web

    async def html(received: u.Received, request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Sign in</html>", content_type="text/html")

    async with u.serving(html) as one:
        resources = [
            g.openai_compatible("one", one.base_url),
            g.route("m", ["m"], "one", retries={"attempts": 0}),
        ]
        async with calling(tmp_path, *resources) as caller:
            status, _, body = await caller.whole()
    assert (status, body["error"]["code"]) == (502, "invalid_provider_response")


async def test_a_providers_words_never_show_our_credential(tmp_path: Path) -> None:
    for status, code in ((401, "provider_auth_error"), (500, "provider_error")):
        async with u.serving(u.failing(status, f"bad key {g.PROVIDER_KEY}")) as one:
            resources = [
                g.openai_compatible("one", one.base_url),
                g.route("m", ["m"], "one", retries={"attempts": 0}),
            ]
            async with calling(tmp_path, *resources) as caller:
                answered, _, body = await caller.whole()
                assert "PLANTED" not in caller.gateway.text()
        assert (answered, body["error"]["code"]) == (502, code)
        assert "PLANTED" not in json.dumps(body)
