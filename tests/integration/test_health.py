"""Targets that keep failing are passed over, probed, and used again: real sockets, real time."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from support import gateway as g
from support import upstream as u
from support.calling import Caller, calling
from support.eventually import eventually

ONCE = {"attempts": 0}


async def passed_over(caller: Caller, provider: str = "ai/one") -> float:
    text = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
    found = re.search(
        rf'^tollhouse_targets_passed_over{{provider="{provider}"}} (\S+)', text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def said(caller: Caller, event: str) -> list[dict[str, Any]]:
    """The log lines of this event."""
    lines = (line for line in caller.gateway.text().splitlines() if f'"{event}"' in line)
    return [json.loads(line) for line in lines]


def provider(name: str, upstream: u.Upstream, cooldown: str = "1s", failures: int = 3) -> Any:
    health = {"consecutiveFailures": failures, "cooldown": cooldown}
    return g.openai_compatible(name, upstream.base_url, health=health)


def two_levels(one: u.Upstream, two: u.Upstream, cooldown: str = "1s", **spec: Any) -> list[Any]:
    targets = ({"provider": {"name": "one"}}, {"provider": {"name": "two"}, "priority": 1})
    return [
        provider("one", one, cooldown),
        provider("two", two, cooldown),
        g.route("m", ["m"], *targets, **{"retries": ONCE, **spec}),
    ]


async def hangs_up(received: u.Received, request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hangs(received: u.Received, request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "spec"),
    [
        (u.failing(503), {}),
        (u.failing(401), {}),
        (hangs_up, {}),
        (hangs, {"timeouts": {"firstByte": "150ms"}}),
        (hangs, {"timeouts": {"total": "150ms"}, "retries": {"attempts": 1}}),
    ],
    ids=["5xx", "credential-refused", "connection", "first-byte", "total"],
)
async def test_a_target_that_keeps_failing_is_passed_over(
    tmp_path: Path, answer: u.Answer, spec: dict[str, Any]
) -> None:
    async with u.serving(answer) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two, "30s", **spec)) as caller:
            while len(one.received) < 3:
                await caller.whole()
            for _ in range(5):
                status, headers, _ = await caller.whole()
                assert (status, headers["x-tollhouse-provider"]) == (200, "two")
                assert headers["x-tollhouse-attempts"] == "1"
            assert await passed_over(caller) == 1
            (line,) = said(caller, "target passed over")
    assert len(one.received) == 3
    assert (line["provider"], line["model"], line["failures"]) == ("ai/one", "m", 3)


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_what_is_about_the_request_or_its_rate_is_no_failure(
    tmp_path: Path, status: int
) -> None:
    async with u.serving(u.failing(status)) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two)) as caller:
            for _ in range(6):
                await caller.whole()
            assert await passed_over(caller) == 0
    assert len(one.received) == 6


async def test_a_success_between_failures_starts_the_count_anew(tmp_path: Path) -> None:
    async with u.serving(u.always()) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two)) as caller:
            for number in range(9):
                one.answer = u.always() if number % 3 == 2 else u.failing(500)
                await caller.whole()
            assert await passed_over(caller) == 0
    assert len(one.received) == 9


async def test_one_probe_at_a_time_decides(tmp_path: Path) -> None:
    async def slow(received: u.Received, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await (u.failing(500) if fails else u.always())(received, request)

    fails = True
    async with u.serving(u.failing(500)) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two)) as caller:
            for _ in range(3):
                await caller.whole()
            one.answer = slow
            for tries in (4, 5):
                await asyncio.sleep(1.1)
                answers = await asyncio.gather(*(caller.whole() for _ in range(20)))
                assert [status for status, _, _ in answers] == [200] * 20
                # Of twenty callers one met the target that was to be probed.
                assert len(one.received) == tries
                assert await passed_over(caller) == (1 if fails else 0)
                fails = False
            assert (await caller.whole())[1]["x-tollhouse-provider"] == "one"
            assert len(said(caller, "target passed over")) == 2
            assert len(said(caller, "target in use again")) == 1


async def test_a_probe_whose_caller_leaves_decides_nothing(tmp_path: Path) -> None:
    async with u.serving(u.failing(500)) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two)) as caller:
            for _ in range(3):
                await caller.whole()
            one.answer = hangs
            await asyncio.sleep(1.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(caller.whole(), 0.3)
            await asyncio.wait_for(one.received[3].gone.wait(), 2)
            assert await passed_over(caller) == 1
            one.answer = u.always()
            assert (await caller.whole())[1]["x-tollhouse-provider"] == "one"
            assert await passed_over(caller) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_with_every_target_passed_over_they_are_tried_all_the_same(
    tmp_path: Path, stream: bool
) -> None:
    good = u.streaming(u.chunk({"content": "x"}), u.chunk({}, "stop"), u.DONE)
    async with u.serving(u.failing(500)) as one, u.serving(u.failing(500)) as two:
        async with calling(tmp_path, *two_levels(one, two, "30s")) as caller:
            for _ in range(5):
                status, _, body = await caller.whole(stream=stream)
                assert (status, body["error"]["code"]) == (502, "provider_error")
            assert (len(one.received), len(two.received)) == (5, 5)
            one.answer = good if stream else u.always()
            # No cooldown is waited for: whoever answers is well.
            async with caller.post("m", {"stream": stream}) as answered:
                await answered.read()
            assert (answered.status, answered.headers["x-tollhouse-provider"]) == (200, "one")
            assert await passed_over(caller) == 0
            assert await passed_over(caller, "ai/two") == 1


async def test_the_only_target_keeps_its_retries(tmp_path: Path) -> None:
    async with u.serving(u.failing(500)) as one:
        route = g.route("m", ["m"], "one", retries={"attempts": 2, "backoff": "1ms"})
        async with calling(tmp_path, provider("one", one, "30s"), route) as caller:
            for tries in (3, 6, 9):
                assert (await caller.whole())[0] == 502
                assert len(one.received) == tries


async def test_streams_that_break_off_are_failures(tmp_path: Path) -> None:
    breaks = u.streaming(u.chunk({"content": "a"}), 0.02, cut=True)
    async with u.serving(breaks) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two, "30s")) as caller:
            for _ in range(3):
                _, body = await caller.stream()
                assert b'"error"' in body
            assert await passed_over(caller) == 1


async def test_each_model_of_a_provider_is_a_target_of_its_own(tmp_path: Path) -> None:
    async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
        sick = received.json["model"] == "sick"
        return await (u.failing(500) if sick else u.always())(received, request)

    async with u.serving(answer) as one, u.serving(u.always()) as two:
        targets = ({"provider": {"name": "one"}}, {"provider": {"name": "two"}, "priority": 1})
        route = g.route("any", ["up/*"], *targets, retries=ONCE)
        resources = [provider("one", one, "30s"), provider("two", two), route]
        async with calling(tmp_path, *resources) as caller:
            for _ in range(5):
                assert (await caller.whole("up/sick"))[0] == 200
                assert (await caller.whole("up/sound"))[1]["x-tollhouse-provider"] == "one"
            assert await passed_over(caller) == 1
    assert len(one.received) == 3 + 5


async def test_a_provider_that_was_changed_starts_afresh(tmp_path: Path) -> None:
    async with u.serving(u.failing(500)) as one, u.serving(u.always()) as two:
        async with calling(tmp_path, *two_levels(one, two, "1h")) as caller:
            for _ in range(3):
                await caller.whole()
            assert await passed_over(caller) == 1
            one.answer = u.always()
            digest = (await asyncio.to_thread(caller.gateway.config))["digest"]
            changed = two_levels(one, two, "2h")
            await asyncio.to_thread(g.write, tmp_path, g.caller(), *changed)
            await asyncio.to_thread(caller.gateway.wait_for_change, digest)
            for _ in range(100):
                if not await passed_over(caller):
                    break
                await asyncio.sleep(0.02)
            assert (await caller.whole())[1]["x-tollhouse-provider"] == "one"


async def test_probes_of_the_pod_do_not_look_at_providers(tmp_path: Path) -> None:
    async with u.serving(u.failing(500)) as one:
        route = g.route("m", ["m"], "one", retries=ONCE)
        async with calling(tmp_path, provider("one", one, "30s"), route) as caller:
            for _ in range(4):
                assert (await caller.whole())[0] == 502
            assert await passed_over(caller) == 1
            await eventually(lambda: caller.gateway.ops("/livez")[0] == 200)
            assert (await asyncio.to_thread(caller.gateway.ops, "/readyz"))[0] == 200
