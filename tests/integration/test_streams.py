"""Streams that are slow, cut short or uncounted, and the headers that callers see."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from support import gateway as g
from support import raw
from support import upstream as u
from support.eventually import eventually
from support.gateway import Gateway

HELLO = u.chunk({"content": "hello"}, model="m")
STOP = u.chunk({}, "stop")
KEEP_ALIVE = b": keep-alive\n\n"


@asynccontextmanager
async def serving(
    folder: Path, *answers: u.Answer, keepalive: float = 0.0, **spec: Any
) -> AsyncIterator[tuple[Gateway, list[u.Upstream]]]:
    """A gateway whose route ``m`` tries an upstream for each answer, in this order."""
    stack: list[u.Upstream] = []

    @asynccontextmanager
    async def level(left: tuple[u.Answer, ...]) -> AsyncIterator[None]:
        if not left:
            yield
            return
        async with u.serving(left[0]) as upstream:
            stack.append(upstream)
            async with level(left[1:]):
                yield

    async with level(answers):
        targets = [
            {"provider": {"name": f"p{number}"}, "priority": number}
            for number in range(len(answers))
        ]
        g.write(
            folder,
            g.caller(),
            *(g.openai_compatible(f"p{number}", one.base_url) for number, one in enumerate(stack)),
            g.route("m", ["m"], *targets, **{"retries": {"attempts": 0}, **spec}),
        )
        gateway = g.launch(folder, "--stream-keepalive", str(keepalive), name="streams")
        try:
            await asyncio.to_thread(g.wait_until_ready, gateway)
            yield gateway, stack
        finally:
            await asyncio.to_thread(gateway.stop)


async def ask(gateway: Gateway, **more: Any) -> tuple[int, Mapping[str, str], bytes]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.post(
            f"{gateway.base_url}/chat/completions",
            data=raw.chat("m", stream=True, **more),
            headers={"Authorization": f"Bearer {g.KEY}", "Content-Type": "application/json"},
        ) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


def counted(gateway: Gateway, name: str) -> dict[str, float]:
    """A token series by direction, once the request is on the books."""
    text = gateway.ops("/metrics")[1]
    found = re.findall(
        rf'^{name}_total{{direction="(\w+)",route="ai/m"}} (\S+)', text, re.MULTILINE
    )
    return {direction: float(value) for direction, value in found}


class TestKeepAlive:
    async def test_a_slow_first_byte_and_a_slow_middle_are_bridged(self, tmp_path: Path) -> None:
        slow = u.streaming(0.7, HELLO, 0.7, STOP + u.DONE)
        async with serving(tmp_path, slow, keepalive=0.2) as (gateway, _):
            status, headers, body = await ask(gateway)
            with openai.OpenAI(base_url=gateway.base_url, api_key=g.KEY) as client:
                chunks = await asyncio.to_thread(
                    lambda: list(
                        client.chat.completions.create(
                            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
                        )
                    )
                )
        assert status == 200
        before, _, after = body.partition(HELLO)
        assert before == KEEP_ALIVE * before.count(KEEP_ALIVE) and before.count(KEEP_ALIVE) >= 2
        assert after.count(KEEP_ALIVE) >= 2 and after.endswith(u.DONE)
        # Which provider will answer is not known when such a head goes out.
        assert "x-tollhouse-provider" not in headers
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["hello", None]

    async def test_a_fallback_stays_unseen(self, tmp_path: Path) -> None:
        async def fails(received: u.Received, request: Any) -> Any:
            await asyncio.sleep(0.5)
            return await u.failing(503)(received, request)

        good = u.streaming(HELLO, STOP + u.DONE)
        async with serving(tmp_path, fails, good, keepalive=0.2) as (gateway, stack):
            status, _, body = await ask(gateway)
        assert status == 200
        shown = body.replace(KEEP_ALIVE, b"")
        assert shown.startswith(HELLO) and shown.endswith(u.DONE)
        assert b"error" not in shown
        assert [len(one.received) for one in stack] == [1, 1]

    async def test_a_failure_after_a_comment_is_an_event(self, tmp_path: Path) -> None:
        async def fails(received: u.Received, request: Any) -> Any:
            await asyncio.sleep(0.5)
            return await u.failing(400, "bad seed")(received, request)

        async with serving(tmp_path, fails, keepalive=0.2) as (gateway, _):
            status, _, body = await ask(gateway)
        assert status == 200
        assert body.startswith(KEEP_ALIVE) and u.DONE not in body
        error = json.loads(body.replace(KEEP_ALIVE, b"").removeprefix(b"data: "))["error"]
        assert (error["code"], error["message"]) == ("provider_rejected", "bad seed")

    async def test_a_failure_before_the_first_comment_keeps_its_status(
        self, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, u.failing(400, "no"), keepalive=5) as (gateway, _):
            assert (await ask(gateway))[0] == 400

    @pytest.mark.parametrize("begun", [False, True], ids=["before-the-first", "in-the-middle"])
    async def test_a_caller_who_leaves_cancels_the_upstream_within_a_second(
        self, tmp_path: Path, begun: bool
    ) -> None:
        answer = u.streaming(*([HELLO] if begun else []), 30.0)
        async with serving(tmp_path, answer, keepalive=0.2) as (gateway, stack):
            async with raw.connection(gateway.port) as (reader, writer):
                writer.write(raw.post(raw.chat("m", stream=True)))
                async with asyncio.timeout(5):
                    await reader.readuntil(KEEP_ALIVE)
                writer.close()
                async with asyncio.timeout(1):
                    await stack[0].received[0].gone.wait()
            await eventually(
                lambda: "tollhouse_in_flight_requests 0.0" in gateway.ops("/metrics")[1]
            )
        assert "Traceback" not in gateway.text()


class TestTokens:
    async def test_what_a_provider_left_uncounted_is_estimated(self, tmp_path: Path) -> None:
        answer = u.streaming(HELLO, STOP + u.DONE)
        async with serving(tmp_path, answer) as (gateway, _):
            await ask(gateway, text="12345678")
            assert counted(gateway, "tollhouse_tokens") == {"input": 2, "output": 2}
            assert counted(gateway, "tollhouse_estimated_tokens") == {
                "input": 2,
                "output": 2,
            }

    async def test_what_a_provider_counted_is_not(self, tmp_path: Path) -> None:
        answer = u.streaming(HELLO, STOP + u.USAGE_EVENT + u.DONE)
        async with serving(tmp_path, answer) as (gateway, _):
            await ask(gateway)
            assert counted(gateway, "tollhouse_tokens") == {"input": 3, "output": 2}
            assert counted(gateway, "tollhouse_estimated_tokens") == {}

    async def test_what_was_written_before_the_caller_left_is_counted(self, tmp_path: Path) -> None:
        answer = u.streaming(u.chunk({"content": "x" * 40}), 30.0)
        async with serving(tmp_path, answer) as (gateway, _):
            async with raw.connection(gateway.port) as (reader, writer):
                writer.write(raw.post(raw.chat("m", stream=True)))
                async with asyncio.timeout(5):
                    await reader.readuntil(b"xxxx")
                writer.close()
            await eventually(lambda: bool(counted(gateway, "tollhouse_estimated_tokens")))
            found = counted(gateway, "tollhouse_estimated_tokens")
        assert found["output"] == 10


class TestHeaders:
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    async def test_a_providers_own_headers_stay_behind(self, tmp_path: Path, stream: bool) -> None:
        theirs = {
            "Set-Cookie": "session=PLANTED-cookie-of-the-provider",
            "openai-organization": "org-PLANTED-of-the-account",
            "x-request-id": "theirs",
            "Server": "cloud",
            "Via": "1.1 inside.example",
            "x-internal": "yes",
        }

        async def answer(received: u.Received, request: Any) -> Any:
            if not stream:
                return web.json_response(u.completion(), headers=theirs)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **theirs})
            await response.prepare(request)
            await response.write(HELLO + STOP + u.DONE)
            return response

        async with serving(tmp_path, answer) as (gateway, _):
            async with raw.connection(gateway.port) as (reader, writer):
                writer.write(raw.post(raw.chat("m", stream=stream), "x-request-id: mine"))
                answered = await raw.read_answer(reader)
        assert answered.headers["x-request-id"] == "mine"
        assert answered.headers["server"] == "tollhouse"
        assert "PLANTED" not in str(answered.headers)
        assert not {"set-cookie", "openai-organization", "via", "x-internal"} & set(
            answered.headers
        )

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            raw.post(b"{"),
            raw.post(raw.chat("m"), "x-request-id: a b"),
            b"no HTTP at all\r\n\r\n",
        ],
        ids=["no-path", "no-key", "no-json", "hostile-id", "no-http"],
    )
    async def test_every_answer_has_an_id_and_our_name(
        self, gateway: Gateway, request_bytes: bytes
    ) -> None:
        async with raw.connection(gateway.port) as (reader, writer):
            writer.write(request_bytes)
            answered = await raw.read_answer(reader)
        assert re.fullmatch("[0-9a-f]{32}", answered.headers["x-request-id"])
        assert answered.headers["server"] == "tollhouse"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with g.echoing(tmp_path_factory.mktemp("config"), "m", name="headers") as running:
        yield running
