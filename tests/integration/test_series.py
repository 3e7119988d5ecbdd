"""Metrics are as many as routes and providers: what is deleted takes its series along."""

import time
from pathlib import Path

import aiohttp

from support import gateway as g


async def ask(session: aiohttp.ClientSession, model: str) -> int:
    """The status of an answer by this model."""
    request = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    async with session.post("chat/completions", json=request) as answer:
        await answer.read()
        return answer.status


def requests(exposition: str, route: str) -> float:
    """How many answers the gateway has counted for this route."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in exposition.splitlines()
        if line.startswith("tollhouse_requests_total{") and f'route="{route}"' in line
    )


async def test_the_series_of_what_is_gone_are_forgotten(tmp_path: Path) -> None:
    def routes(*names: str) -> None:
        g.write(tmp_path, *(g.mock(it) for it in names), name="providers.yaml")
        g.write(tmp_path, *(g.route(it, [it], it) for it in names), name="routes.yaml")

    g.write(tmp_path, g.caller())
    routes("stays", "goes")
    with g.running(tmp_path, name="series") as running:
        headers = {"Authorization": f"Bearer {g.KEY}"}
        async with aiohttp.ClientSession(running.base_url + "/", headers=headers) as session:
            for model in ("stays", "goes"):
                await ask(session, model)
            await (await session.get("models")).read()
            before = running.ops("/metrics")[1]
            assert before.count('"ai/goes"') == before.count('"ai/stays"') > 6
            routes("stays")
            deadline = time.monotonic() + 20
            while '"ai/goes"' in running.ops("/metrics")[1]:
                assert time.monotonic() < deadline, "series of a deleted route are still there"
            after = running.ops("/metrics")[1]
            assert 'route="ai/stays"' in after and 'route="models"' in after
            await ask(session, "stays")
            assert requests(running.ops("/metrics")[1], "ai/stays") == 2
            routes("stays", "goes")
            while await ask(session, "goes") != 200:
                assert time.monotonic() < deadline + 20, "the route did not come back"
            assert requests(running.ops("/metrics")[1], "ai/goes") == 1
