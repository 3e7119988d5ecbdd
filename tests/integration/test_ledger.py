"""The usage ledger: one event for each request that was sent to a provider."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from support import gateway as g
from support import redis
from support.eventually import eventually
from support.limited import calling, priced


class TestLedger:
    async def test_each_request_is_one_event(self, tmp_path: Path) -> None:
        key = g.caller(tags={"team": "payments"})
        usage = {"promptTokens": 7, "completionTokens": 3}
        mock = g.mock("mock", usage=usage)
        async with calling(
            tmp_path, key, mock, g.route("m", ["m"], priced("mock")), arguments=("--ledger", "log")
        ) as caller:
            _, headers, _ = await caller.post()
            await caller.post(stream=True)
            await caller.post(model="nobody")

            def events() -> list[dict[str, Any]]:
                lines = caller.gateway.text().splitlines()
                found = [json.loads(line) for line in lines if line.startswith("{")]
                return [it for it in found if it["event"] == "usage"]

            await eventually(lambda: len(events()) == 2)
            first, second = events()
            assert first["request_id"] == headers["x-request-id"]
            assert first["key"] == "ai/caller" and first["tags"] == {"team": "payments"}
            assert (first["route"], first["provider"]) == ("ai/m", "ai/mock")
            assert (first["input_tokens"], first["output_tokens"]) == (7, 3)
            assert first["cost_usd"] == second["cost_usd"] == "0.003"
            assert first["status"] == second["status"] == 200
            assert first["estimated"] is False and first["latency_ms"] > 0

    async def test_events_reach_a_stream_also_after_its_server_was_away(
        self, tmp_path: Path
    ) -> None:
        key = g.caller(tags={"team": "payments"})
        mock = g.mock("mock", usage={"promptTokens": 7, "completionTokens": 3})
        with redis.running(tmp_path) as server:
            arguments = ("--ledger", "stream", "--store", server.url, "--store-scope", "billing")
            async with calling(
                tmp_path / "served",
                key,
                mock,
                g.route("m", ["m"], priced("mock")),
                arguments=arguments,
            ) as caller:
                first = (await caller.post())[1]["x-request-id"]
                server.kill()
                second = (await caller.post())[1]["x-request-id"]
                server.start()
                async with Redis.from_url(server.url) as client:
                    events: list[Any] = []
                    deadline = time.monotonic() + 20
                    while len(events) < 2 and time.monotonic() < deadline:
                        entries: Any = await client.xrange("{tollhouse:billing}:usage")
                        events = [json.loads(fields[b"event"]) for _, fields in entries]
                        await asyncio.sleep(0.05)
        assert [it["request_id"] for it in events] == [first, second]
        assert {(it["key"], it["cost_usd"], it["input_tokens"]) for it in events} == {
            ("ai/caller", "0.003", 7)
        }
        assert len({it["event_id"] for it in events}) == 2
