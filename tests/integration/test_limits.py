"""Limits and budgets as callers meet them: one gateway, counters in its memory."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from support import gateway as g
from support import upstream as u
from support.limited import (
    HI,
    authorization,
    calling,
    error_of,
    on,
    policy,
    priced,
    to_mock,
)


class TestRequests:
    async def test_of_a_hundred_at_once_exactly_ten_pass(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"requests": 10, "per": "Minute"}])
        async with calling(tmp_path, key, *to_mock({"firstByteDelay": "50ms"})) as caller:
            answers = await asyncio.gather(*(caller.post() for _ in range(100)))
            assert Counter(status for status, *_ in answers) == {200: 10, 429: 90}
            refused = next(it for it in answers if it[0] == 429)
            error = error_of(refused)
            assert (error["type"], error["code"]) == ("rate_limit_exceeded", "requests_limit")
            assert error["metadata"]["limit"] == "key/requests-per-minute"
            assert "of the ApiKey ai/caller allows 10 requests per minute" in error["message"]
            assert 1 <= int(refused[1]["retry-after"]) <= 62
            assert refused[1]["x-ratelimit-remaining-requests"] == "0"
            text = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
            assert (
                'tollhouse_limited_total{code="requests_limit",limit="key/requests-per-minute"} 90'
                in text
            )

    async def test_a_window_gives_its_room_back(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"requests": 2, "per": "Second"}])
        async with calling(tmp_path, key, *to_mock()) as caller:
            assert [(await caller.post())[0] for _ in range(3)] == [200, 200, 429]
            await asyncio.sleep(1.2)
            assert [(await caller.post())[0] for _ in range(3)] == [200, 200, 429]

    async def test_every_limit_must_allow_and_the_strictest_is_shown(self, tmp_path: Path) -> None:
        limits = [{"requests": 5, "per": "Hour"}, {"requests": 3, "per": "Day"}]
        async with calling(tmp_path, g.caller(limits=limits), *to_mock()) as caller:
            status, headers, _ = await caller.post()
            assert status == 200
            assert headers["x-ratelimit-limit-requests"] == "3"
            assert headers["x-ratelimit-remaining-requests"] == "2"
            assert headers["x-ratelimit-reset-requests"].startswith("24h")
            assert "x-ratelimit-limit-tokens" not in headers

    async def test_a_key_without_limits_gets_no_headers(self, tmp_path: Path) -> None:
        async with calling(tmp_path, g.caller(), *to_mock()) as caller:
            status, headers, _ = await caller.post()
            assert status == 200
            assert not [name for name in headers if name.lower().startswith("x-ratelimit")]


class TestConcurrent:
    async def test_no_more_than_so_many_are_at_the_provider_at_once(self, tmp_path: Path) -> None:
        most = 0

        async def slow(received: u.Received, request: web.Request) -> web.StreamResponse:
            nonlocal most
            most = max(most, upstream.active)
            await asyncio.sleep(0.02)
            return web.json_response(u.completion())

        async with u.serving(slow) as upstream:
            up = [g.openai_compatible("up", upstream.base_url), g.route("m", ["m"], "up")]
            async with calling(tmp_path, g.caller(limits=[{"concurrent": 4}]), *up) as caller:

                async def one() -> tuple[int, str]:
                    while True:
                        status, headers, body = await caller.post()
                        if status == 200:
                            return 1, ""
                        assert body["error"]["code"] == "concurrency_limit"
                        assert headers["retry-after"] == "1"
                        await asyncio.sleep(0.01)

                await asyncio.gather(*(one() for _ in range(40)))
                assert most == 4
                assert len(upstream.received) == 40

    async def test_a_stream_holds_its_place_until_it_ends_or_its_caller_leaves(
        self, tmp_path: Path
    ) -> None:
        key = g.caller(limits=[{"concurrent": 1}])
        async with calling(
            tmp_path, key, *to_mock({"text": "a b c", "chunks": 3, "chunkDelay": "10s"})
        ) as caller:
            url = f"{caller.gateway.base_url}/chat/completions"
            body = {"model": "m", "messages": HI, "stream": True}
            async with caller.session.post(url, json=body, headers=authorization(g.KEY)) as answer:
                await answer.content.readany()
                assert (await caller.post())[0] == 429
                answer.close()
            await caller.until_left("key/concurrent", 1, 1)


class TestTokens:
    async def test_an_estimate_is_held_and_what_was_used_is_counted(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"tokens": 1000, "per": "Hour"}])
        async with u.serving(u.always()) as upstream:
            up = [g.openai_compatible("up", upstream.base_url), g.route("m", ["m"], "up")]
            async with calling(tmp_path, key, *up) as caller:
                status, headers, _ = await caller.post(max_tokens=500)
                assert status == 200
                assert headers["x-ratelimit-limit-tokens"] == "1000"
                # Its own reservation is still held when the head goes out.
                assert int(headers["x-ratelimit-remaining-tokens"]) < 500
                # The upstream says 3 and 2.
                assert await caller.left("key/tokens-per-hour") == 995

    async def test_callers_at_once_cannot_overshoot(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"outputTokens": 100, "per": "Hour"}])
        usage = {"promptTokens": 5, "completionTokens": 10}
        script = {"usage": usage, "firstByteDelay": "30ms"}
        async with calling(tmp_path, key, *to_mock(script)) as caller:
            answers = await asyncio.gather(*(caller.post(max_tokens=10) for _ in range(50)))
            assert Counter(it[0] for it in answers) == {200: 10, 429: 40}
            assert await caller.left("key/output-tokens-per-hour") == 0
            error = error_of(next(it for it in answers if it[0] == 429))
            assert error["code"] == "tokens_limit"
            assert "lower `max_tokens`" in error["message"]

    async def test_a_request_that_no_window_could_hold_says_what_to_do(
        self, tmp_path: Path
    ) -> None:
        key = g.caller(limits=[{"tokens": 100, "per": "Minute"}])
        async with calling(tmp_path, key, *to_mock()) as caller:
            answer = await caller.post(max_tokens=2000)
            assert answer[0] == 429
            assert answer[1]["x-should-retry"] == "false"
            assert "retry-after" not in answer[1]
            assert "Set a lower `max_tokens`" in error_of(answer)["message"]
            # What nobody capped is not refused for what the gateway assumes.
            assert (await caller.post(max_tokens=None))[0] == 200

    async def test_more_answers_are_more_tokens(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"outputTokens": 100, "per": "Minute"}])
        async with calling(tmp_path, key, *to_mock()) as caller:
            assert (await caller.post(max_tokens=60, n=2))[0] == 429
            assert (await caller.post(max_tokens=60))[0] == 200

    async def test_streams_and_responses_and_passthrough_count_too(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"tokens": 10000, "per": "Hour"}, {"requests": 50, "per": "Hour"}])
        usage = {"promptTokens": 7, "completionTokens": 3}
        async with calling(tmp_path, key, *to_mock({"usage": usage})) as caller:
            for number, (path, fields) in enumerate[tuple[str, dict[str, Any]]](
                (
                    ("/chat/completions", {"stream": True}),
                    ("/responses", {"input": "hi"}),
                    ("/responses", {"input": "hi", "stream": True}),
                    ("/completions", {"prompt": "hi"}),
                    ("/completions", {"prompt": "hi", "stream": True}),
                )
            ):
                status, headers, _ = await caller.post(path, **fields)
                assert status == 200, path
                assert headers["x-ratelimit-remaining-requests"] == str(49 - number)
                assert await caller.left("key/tokens-per-hour") == 10000 - 10 * (number + 1), path
            before = await caller.left("key/tokens-per-hour")
            status, *_ = await caller.post("/embeddings", input="some words to embed")
            assert status == 200
            assert before - 30 < await caller.left("key/tokens-per-hour") < before

    async def test_a_caller_who_leaves_pays_for_what_was_written(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"outputTokens": 1000, "per": "Hour"}])
        words = "word " * 40
        async with calling(
            tmp_path, key, *to_mock({"text": words, "chunks": 40, "chunkDelay": "20ms"})
        ) as caller:
            url = f"{caller.gateway.base_url}/chat/completions"
            body = {"model": "m", "messages": HI, "stream": True, "max_tokens": 800}
            async with caller.session.post(url, json=body, headers=authorization(g.KEY)) as answer:
                await answer.content.readany()
                answer.close()
            await caller.until_left("key/output-tokens-per-hour", 900, 999)

    async def test_a_caller_who_gives_up_waiting_pays_what_was_held(self, tmp_path: Path) -> None:
        key = g.caller(limits=[{"outputTokens": 1000, "per": "Hour"}, {"concurrent": 1}])
        async with calling(tmp_path, key, *to_mock({"firstByteDelay": "20s"})) as caller:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.5):
                    await caller.post(max_tokens=300)
            await caller.until_left("key/concurrent", 1, 1)
            # Nobody can tell what the provider had done by then.
            assert await caller.left("key/output-tokens-per-hour") == 700

    async def test_only_what_a_provider_charged_is_counted_after_a_fallback(
        self, tmp_path: Path
    ) -> None:
        key = g.caller(limits=[{"tokens": 1000, "per": "Hour"}, {"requests": 9, "per": "Hour"}])
        async with u.serving(u.failing(500)) as one, u.serving(u.always()) as two:
            route = g.route(
                "m",
                ["m"],
                {"provider": {"name": "one"}},
                {"provider": {"name": "two"}, "priority": 1},
                retries={"attempts": 2, "backoff": "1ms"},
            )
            both = [
                g.openai_compatible("one", one.base_url),
                g.openai_compatible("two", two.base_url),
            ]
            async with calling(tmp_path, key, *both, route) as caller:
                assert (await caller.post())[0] == 200
                assert len(one.received) == 3
                assert await caller.left("key/tokens-per-hour") == 995
                assert await caller.left("key/requests-per-hour") == 8
                two.answer = u.failing(500)
                assert (await caller.post())[0] == 502
                assert await caller.left("key/tokens-per-hour") == 995


class TestBudgets:
    async def test_honest_estimates_never_overshoot(self, tmp_path: Path) -> None:
        # 20 tokens of answer at 0.001 USD each.
        key = g.caller(budget={"amount": "0.10"})
        usage = {"promptTokens": 5, "completionTokens": 20}
        mock = g.mock("mock", usage=usage, firstByteDelay="30ms")
        async with calling(tmp_path, key, mock, g.route("m", ["m"], priced("mock"))) as caller:
            answers = await asyncio.gather(*(caller.post(max_tokens=20) for _ in range(40)))
            assert Counter(it[0] for it in answers) == {200: 5, 429: 35}
            assert await caller.spent("caller") == 0.1
            refused = next(it for it in answers if it[0] == 429)
            error = error_of(refused)
            assert error["code"] == "budget_exceeded"
            assert refused[1]["x-should-retry"] == "false"
            assert "The budget of the ApiKey ai/caller is used up" in error["message"]
            assert error["metadata"]["resets_at"].endswith("Z")
            shown = await caller.get("/key")
            (budget,) = shown["budgets"]
            assert (budget["amount"], budget["spent"]) == ("0.1", "0.1")
            assert budget["resets"] == error["metadata"]["resets_at"]

    async def test_keys_share_a_budget_by_label(self, tmp_path: Path) -> None:
        first, second = g.caller(), g.caller("other", g.OTHER_KEY)
        for manifest in (first[0], second[0]):
            manifest["metadata"]["labels"] = {"team": "payments"}
        budget = g.manifest(
            "Budget",
            "team",
            {"selector": {"matchLabels": {"team": "payments"}}, "amount": "0.05", "period": "Day"},
        )
        mock = g.mock("mock", usage={"promptTokens": 0, "completionTokens": 20})
        async with calling(
            tmp_path, first, second, budget, mock, g.route("m", ["m"], priced("mock"))
        ) as caller:
            assert (await caller.post(max_tokens=20))[0] == 200
            assert (await caller.post(max_tokens=20, key=g.OTHER_KEY))[0] == 200
            answer = await caller.post(max_tokens=20)
            assert answer[0] == 429
            assert "The Budget ai/team is used up" in error_of(answer)["message"]
            assert await caller.spent("team") == 0.04

    async def test_one_that_only_warns_lets_through_and_counts(self, tmp_path: Path) -> None:
        budget = g.manifest(
            "Budget",
            "soft",
            {"selector": {}, "amount": "0.03", "warnAt": [50], "onExceeded": "Warn"},
        )
        mock = g.mock("mock", usage={"promptTokens": 0, "completionTokens": 20})
        async with calling(
            tmp_path, g.caller(), budget, mock, g.route("m", ["m"], priced("mock"))
        ) as caller:
            assert [(await caller.post(max_tokens=20))[0] for _ in range(3)] == [200] * 3
            assert await caller.spent("soft") == 0.06
            text = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
            name = 'tollhouse_budget_warnings_total{budget="budget/ai/soft",percent='
            assert f'{name}"50"}} 1' in text and f'{name}"100"}} 2' in text

    async def test_free_routes_spend_nothing(self, tmp_path: Path) -> None:
        key = g.caller(budget={"amount": "0.000000001"})
        async with calling(tmp_path, key, *to_mock(free=True)) as caller:
            assert [(await caller.post())[0] for _ in range(2)] == [200, 200]
            assert await caller.spent("caller") == 0

    async def test_without_a_price_the_cost_is_null_and_a_metric_says_so(
        self, tmp_path: Path
    ) -> None:
        key = g.caller(budget={"amount": "0.000000001"})
        async with calling(tmp_path, key, *to_mock()) as caller:
            status, _, body = await caller.post()
            assert status == 200 and body["usage"]["cost"] is None
            assert await caller.spent("caller") == 0
            text = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
            assert 'tollhouse_unpriced_requests_total{route="ai/m"} 1' in text

    async def test_the_sdk_does_not_retry_a_spent_budget_but_does_retry_a_rate(
        self, tmp_path: Path
    ) -> None:
        poor = g.caller(budget={"amount": "0.001", "period": "Total"})
        quick = g.caller("quick", g.OTHER_KEY, limits=[{"requests": 1, "per": "Second"}])
        mock = g.mock("mock", usage={"promptTokens": 0, "completionTokens": 1})
        async with calling(
            tmp_path, poor, quick, mock, g.route("m", ["m"], priced("mock"))
        ) as caller:
            said: Any = HI
            url = caller.gateway.base_url
            async with openai.AsyncOpenAI(base_url=url, api_key=g.KEY, max_retries=3) as client:
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.chat.completions.create(model="m", messages=said, max_tokens=9)
                assert caught.value.code == "budget_exceeded"
                assert "never starts again" in str(caught.value) or "more than all of" in str(
                    caught.value
                )
            async with openai.AsyncOpenAI(
                base_url=url, api_key=g.OTHER_KEY, max_retries=3
            ) as client:
                for _ in range(2):
                    answer = await client.chat.completions.create(model="m", messages=said)
                    assert answer.choices[0].message.content
            text = (await asyncio.to_thread(caller.gateway.ops, "/metrics"))[1]
            assert 'limited_total{code="budget_exceeded",limit="key/budget"} 1.0' in text
            assert 'limited_total{code="requests_limit",limit="key/requests-per-second"}' in text


class TestPolicies:
    async def test_scopes(self, tmp_path: Path) -> None:
        keys = [g.caller(), g.caller("other", g.OTHER_KEY)]
        limits = [
            {"name": "all", "requests": 7, "per": "Hour", "scope": "Shared"},
            {"name": "each", "requests": 5, "per": "Hour", "scope": "Each"},
            {"name": "person", "requests": 2, "per": "Hour", "scope": "User"},
        ]
        one = policy("p", limits, targetRefs=on("ModelRoute", "m"))
        async with calling(tmp_path, *keys, one, *to_mock()) as caller:

            async def refused(key: str = g.KEY, **fields: Any) -> str | None:
                status, _, body = await caller.post(key=key, **fields)
                return None if status == 200 else body["error"]["metadata"]["limit"]

            assert [await refused(user="ann") for _ in range(3)] == [
                None,
                None,
                "policy/ai/p/person",
            ]
            # Nobody named is the key itself.
            assert [await refused() for _ in range(3)] == [None, None, "policy/ai/p/person"]
            assert [await refused(user="bob") for _ in range(2)] == [None, "policy/ai/p/each"]
            # A user of another key is another user.
            assert [await refused(g.OTHER_KEY, user="ann") for _ in range(2)] == [None, None]
            assert await refused(g.OTHER_KEY, user="bob") == "policy/ai/p/all"

    async def test_models(self, tmp_path: Path) -> None:
        one = policy(
            "p",
            [{"name": "dear", "requests": 1, "per": "Hour", "models": ["big/*"]}],
            targetRefs=on("ApiKey", "caller"),
        )
        routes = [g.mock("mock"), g.route("any", ["big/*", "small/*"], "mock")]
        async with calling(tmp_path, g.caller(), one, *routes) as caller:
            models = ["small/a", "big/a", "small/b", "big/b"]
            assert [(await caller.post(model=it))[0] for it in models] == [200, 200, 200, 429]

    async def test_one_on_a_provider_is_passed_over_until_none_is_left(
        self, tmp_path: Path
    ) -> None:
        one = policy(
            "p",
            [{"name": "few", "requests": 1, "per": "Hour", "scope": "Shared"}],
            targetRefs=on("Provider", "first"),
        )
        two = policy(
            "q",
            [{"name": "some", "requests": 2, "per": "Hour", "scope": "Shared"}],
            targetRefs=on("Provider", "second"),
        )
        both = g.route(
            "m",
            ["m"],
            {"provider": {"name": "first"}},
            {"provider": {"name": "second"}, "priority": 1},
        )
        mocks = [g.mock("first", reply="Text", text="1"), g.mock("second", reply="Text", text="2")]
        async with calling(tmp_path, g.caller(), one, two, *mocks, both) as caller:
            said = []
            for _ in range(3):
                status, _, body = await caller.post()
                assert status == 200
                said.append(body["choices"][0]["message"]["content"])
            assert said == ["1", "2", "2"]
            answer = await caller.post()
            assert answer[0] == 429
            assert error_of(answer)["metadata"]["limit"] == "policy/ai/q/some"
            assert int(answer[1]["retry-after"]) > 1000

    async def test_one_on_a_choice_limits_what_it_comes_to(self, tmp_path: Path) -> None:
        one = policy(
            "p",
            [{"name": "few", "requests": 1, "per": "Hour"}],
            targetRefs=on("ModelRoute", "auto"),
        )
        auto = g.manifest("ModelRoute", "auto", {"models": ["auto"], "select": {"from": ["m"]}})
        async with calling(tmp_path, g.caller(), one, auto, *to_mock()) as caller:
            assert [(await caller.post(model="auto"))[0] for _ in range(2)] == [200, 429]
            assert (await caller.post())[0] == 200

    async def test_what_is_counted_outlives_a_reload(self, tmp_path: Path) -> None:
        limits = [{"requests": 3, "per": "Hour"}]
        async with calling(tmp_path, g.caller(limits=limits), *to_mock()) as caller:
            assert [(await caller.post())[0] for _ in range(4)] == [200, 200, 200, 429]
            digest = caller.gateway.config()["digest"]
            raised = [{"requests": 4, "per": "Hour"}]
            g.write(tmp_path, g.caller(limits=raised), *to_mock())
            await asyncio.to_thread(caller.gateway.wait_for_change, digest)
            assert [(await caller.post())[0] for _ in range(2)] == [200, 429]


class TestWithoutTheStore:
    @pytest.mark.parametrize("word", ["Deny", "Allow"])
    async def test_the_policy_decides(self, tmp_path: Path, word: str) -> None:
        one = policy(
            "p",
            [{"name": "few", "requests": 1, "per": "Hour", "scope": "Shared"}],
            targetRefs=on("ModelRoute", "m"),
            onStoreFailure=word,
        )
        # Nothing listens there.
        nowhere = ("--store", "redis://127.0.0.1:1")
        async with calling(tmp_path, g.caller(), one, *to_mock(), arguments=nowhere) as caller:
            answers = [await caller.post() for _ in range(3)]
            if word == "Allow":
                assert [it[0] for it in answers] == [200, 200, 200]
                assert await caller.left("policy/ai/p/few") is None
                return
            assert [it[0] for it in answers] == [503, 503, 503]
            error = error_of(answers[0])
            assert (error["type"], error["code"]) == ("internal_error", "limits_unavailable")
            assert answers[0][1]["retry-after"] == "1"
            assert "RateLimitPolicy ai/p cannot be counted now" in error["message"]
