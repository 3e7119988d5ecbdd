"""Limits and budgets of whole installations: five gateways with a Redis, one process, workers.

Real gateway processes, 200 callers at once, and the same promises wherever the counters live.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from support import gateway as g
from support import installation as i
from support import redis
from support import upstream as u
from support.eventually import eventually
from support.installation import Installation

CALLERS = 200
PRICE = {"input": "0", "output": "1000"}
"""USD per million tokens: each token of an answer is a tenth of a cent."""
USAGE = {"promptTokens": 0, "completionTokens": 10}
"""A cent; what a request of ten tokens at most is taken for."""
HUNDREDS = (10, 100, 1000)


def key_of(name: str) -> str:
    """The key of the ApiKey of this name."""
    return f"sk-th-PLANTED-{name}-of-the-fleet"


def caller(name: str, **spec: Any) -> list[g.Manifest]:
    return g.caller(name, key_of(name), **spec)


def labelled(name: str, team: str, **spec: Any) -> list[g.Manifest]:
    found = caller(name, **spec)
    found[0]["metadata"]["labels"] = {"team": team}
    return found


def policy(name: str, limits: list[dict[str, Any]], key: str, **spec: Any) -> g.Manifest:
    refs = [{"kind": "ApiKey", "name": key}]
    return g.manifest("RateLimitPolicy", name, {"limits": limits, "targetRefs": refs, **spec})


def priced(provider: str) -> dict[str, Any]:
    return {"provider": {"name": provider}, "pricing": PRICE}


def resources(port: int) -> list[Any]:
    """Everything that the tests of one installation need; the upstream is at this port."""
    several = [
        policy("shared", [{"name": "s", "requests": 60, "per": "Day", "scope": "Shared"}], "many"),
        policy("tokens", [{"name": "t", "outputTokens": 700, "per": "Hour"}], "many"),
    ]
    team = {"selector": {"matchLabels": {"team": "many"}}, "amount": "0.45", "period": "Day"}
    return [
        *(caller(f"requests-{n}", limits=[{"requests": n, "per": "Hour"}]) for n in HUNDREDS),
        *(
            caller(f"tokens-{n}", limits=[{"outputTokens": 10 * n, "per": "Hour"}])
            for n in HUNDREDS
        ),
        caller("at-once", limits=[{"concurrent": 7}]),
        caller("honest", budget={"amount": "1"}),
        caller("alone", budget={"amount": "0.1"}),
        caller("uncapped", budget={"amount": "5"}),
        caller("crowd", budget={"amount": "0.5"}, limits=[{"concurrent": 5}]),
        labelled("many", "many", limits=[{"requests": 100, "per": "Hour"}], budget={"amount": "9"}),
        *several,
        g.manifest("Budget", "team", team),
        caller("streams", limits=[{"concurrent": 4}], budget={"amount": "100"}),
        g.mock("mock", usage=USAGE, firstByteDelay="20ms"),
        g.mock("dishonest", usage={"promptTokens": 0, "completionTokens": 17}),
        g.route("m", ["m"], priced("mock")),
        g.route("dishonest", ["dishonest"], priced("dishonest")),
        g.openai_compatible("up", f"http://127.0.0.1:{port}/v1"),
        g.route("up", ["up"], priced("up")),
    ]


@pytest.fixture(scope="module")
def port() -> int:
    return redis.free_port()


@pytest.fixture(scope="module", params=i.KINDS)
def installation(
    request: pytest.FixtureRequest, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp(request.param)
    g.write(folder, *resources(port))
    # A busy machine is slow; what happens then to requests is another test's subject.
    flags = ("--lease", "3", "--store-timeout", "1") if request.param == "fleet" else ()
    with i.running(request.param, folder, *flags) as found:
        yield found


async def burst(
    installation: Installation, name: str, requests: int, **fields: Any
) -> Counter[int]:
    """How often each status came back to 200 callers who together send so many requests."""
    turns = iter(range(requests))
    statuses: Counter[int] = Counter()

    async def one(session: aiohttp.ClientSession) -> None:
        for turn in turns:
            answer = await i.post(session, installation.url(turn), key_of(name), **fields)
            statuses[answer[0]] += 1

    async with i.calling() as session:
        await asyncio.gather(*(one(session) for _ in range(CALLERS)))
    return statuses


@pytest.mark.parametrize("limit", HUNDREDS)
@pytest.mark.parametrize("what", ["requests", "tokens"])
async def test_exactly_the_limit_passes(installation: Installation, what: str, limit: int) -> None:
    statuses = await burst(installation, f"{what}-{limit}", max(2 * CALLERS, limit + CALLERS))
    print(f"{what}, limit {limit}: {dict(statuses)}")
    assert statuses[200] == limit and set(statuses) == {200, 429}
    name = "key/requests-per-hour" if what == "requests" else "key/output-tokens-per-hour"
    async with i.calling() as session:
        await i.until_left(session, installation, key_of(f"{what}-{limit}"), {name: 0})


async def test_requests_at_once_never_exceed_their_limit(
    installation: Installation, port: int
) -> None:
    most = 0

    async def slow(received: u.Received, request: web.Request) -> web.StreamResponse:
        nonlocal most
        most = max(most, upstream.active)
        await asyncio.sleep(0.03)
        return web.json_response(u.completion())

    async with u.serving(slow, port) as upstream, i.calling() as session:

        async def one(number: int) -> None:
            while True:
                url = installation.url(number)
                status, _, body = await i.post(session, url, key_of("at-once"), model="up")
                if status == 200:
                    return
                assert body["error"]["code"] == "concurrency_limit"
                await asyncio.sleep(0.2)

        await asyncio.gather(*(one(number) for number in range(CALLERS)))
        print(f"{len(upstream.received)} requests, {most} at once at the upstream")
        assert 3 < most <= 7
        assert len(upstream.received) == CALLERS
        await i.until_left(session, installation, key_of("at-once"), {"key/concurrent": 7})


class TestBudgets:
    async def test_honest_estimates_never_overshoot(self, installation: Installation) -> None:
        statuses = await burst(installation, "honest", 2 * CALLERS)
        assert statuses == {200: 100, 429: 2 * CALLERS - 100}
        async with i.calling() as session:
            await i.until_left(session, installation, key_of("honest"), {"key/budget": 1.0})

    async def test_one_request_at_a_time_overshoots_by_one_estimate_at_most(
        self, installation: Installation
    ) -> None:
        """Each is taken for 1.0 cents and costs 1.7."""
        key = key_of("alone")
        async with i.calling() as session:
            passed = 0
            for turn in range(20):
                url = installation.url(turn)
                status, *_ = await i.post(session, url, key, model="dishonest")
                passed += status == 200
                spent = round(0.017 * passed, 3)
                await i.until_left(session, installation, key, {"key/budget": spent})
            print(f"one at a time: {passed} passed, {spent} USD of 0.1 spent")
            assert passed == 6 and spent - 0.1 <= 0.007

    async def test_callers_at_once_overshoot_by_the_estimates_of_those_under_way(
        self, installation: Installation
    ) -> None:
        statuses = await burst(installation, "crowd", 3 * CALLERS, model="dishonest")
        spent = round(0.017 * statuses[200], 3)
        print(f"five at once: {statuses[200]} passed, {spent} USD of 0.5 spent")
        assert 0.49 < spent <= 0.5 + 5 * 0.007
        async with i.calling() as session:
            await i.until_left(session, installation, key_of("crowd"), {"key/budget": spent})

    async def test_what_nobody_capped_is_held_whole_and_given_back(
        self, installation: Installation
    ) -> None:
        """4,096 tokens are assumed, 4.096 USD: one at a time fits, and ten tokens are charged."""
        key = key_of("uncapped")
        async with i.calling() as session:
            fields = {"max_tokens": None}
            answers = await asyncio.gather(
                *(i.post(session, installation.url(n), key, **fields) for n in range(CALLERS))
            )
            passed = sum(answer[0] == 200 for answer in answers)
            assert 1 <= passed < CALLERS
            spent = round(0.01 * passed, 2)
            await i.until_left(session, installation, key, {"key/budget": spent})


async def test_several_policies_and_budgets_at_once(installation: Installation) -> None:
    """The strictest holds, and whoever it refuses takes nothing of the others."""
    statuses = await burst(installation, "many", 2 * CALLERS)
    assert statuses == {200: 45, 429: 2 * CALLERS - 45}
    async with i.calling() as session:
        wanted = {
            "key/requests-per-hour": 55,
            "policy/ai/shared/s": 15,
            "policy/ai/tokens/t": 250,
            "key/budget": 0.45,
            "budget/ai/team": 0.45,
        }
        await i.until_left(session, installation, key_of("many"), wanted)


async def stream(session: aiohttp.ClientSession, url: str, key: str) -> aiohttp.ClientResponse:
    """A streamed answer, of which the first bytes have come; whoever calls closes it."""
    body = {"model": "up", "messages": i.HI, "max_tokens": 10, "stream": True}
    answer = await session.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status == 200
    await answer.content.readany()
    return answer


async def under_way(answer: aiohttp.ClientResponse) -> bool:
    """Whether a stream that says nothing is still open."""
    try:
        async with asyncio.timeout(0.5):
            return bool(await answer.content.readany())
    except TimeoutError:
        return True
    except aiohttp.ClientError:
        return False


CONTENT = u.chunk({"content": "hello"}, model="m")
ENDLESS = u.streaming(CONTENT, 3600.0)
FINISHED = u.streaming(CONTENT, u.chunk({}, "stop"), u.USAGE_EVENT, u.DONE)
SPENT = 0.002
"""USD for the two tokens of ``USAGE_EVENT``."""


class TestKilledInMidStream:
    """What was held is back within the lease time, and what was spent before is kept."""

    async def held(
        self, session: aiohttp.ClientSession, found: Installation, url: str
    ) -> list[aiohttp.ClientResponse]:
        """Three streams under way at this URL, after five that ended there."""
        key = key_of("streams")
        streams = [await stream(session, url, key) for _ in range(3)]
        wanted = {"key/concurrent": 1, "key/budget": round(5 * SPENT + 3 * 0.01, 3)}
        await i.until_left(session, found, key, wanted)
        return streams

    async def finished(self, session: aiohttp.ClientSession, found: Installation, url: str) -> None:
        key = key_of("streams")
        for _ in range(5):
            answer = await i.post(session, url, key, model="up", stream=True)
            assert answer[0] == 200
        wanted = {"key/concurrent": 4, "key/budget": 5 * SPENT}
        await i.until_left(session, found, key, wanted)

    async def test_a_gateway_of_a_fleet(self, tmp_path: Path, port: int) -> None:
        lease = 3.0
        folder = tmp_path / "config"
        g.write(folder, *resources(port))
        flags = ("--lease", str(lease), "--store-timeout", "1")
        with i.running("fleet", folder, *flags, gateways=2) as found:
            async with u.serving(FINISHED, port) as upstream, i.calling() as session:
                victim = found.gateways[1]
                await self.finished(session, found, found.url(1))
                upstream.answer = ENDLESS
                await self.held(session, found, found.url(1))
                # Renewed for as long as it lives.
                await asyncio.sleep(lease + 0.5)
                assert (await i.left(session, found, key_of("streams")))["key/concurrent"] == 1
                victim.process.kill()
                begun = time.monotonic()
                wanted = {"key/concurrent": 4, "key/budget": 5 * SPENT}
                await i.until_left(session, found, key_of("streams"), wanted, lease + 2)
                print(f"back {time.monotonic() - begun:.1f} s after the kill, lease {lease} s")

    async def test_workers(self, tmp_path: Path, port: int) -> None:
        """All but one are killed: the one that is left sees at once what they held."""
        folder = tmp_path / "config"
        g.write(folder, *resources(port))
        async with u.serving(FINISHED, port) as upstream:
            with i.running("workers", folder) as found:
                gateway = found.gateways[0]
                async with i.calling() as session:
                    await self.finished(session, found, found.url(0))
                    upstream.answer = ENDLESS
                    streams = await self.held(session, found, found.url(0))
                    pid = gateway.process.pid
                    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                    for worker in listed[1:]:
                        os.kill(int(worker), signal.SIGKILL)
                    begun = time.monotonic()
                    await eventually(lambda: gateway.ops("/readyz")[0] == 503)
                    alive = sum([await under_way(it) for it in streams])
                    # New connections go to whoever listens; those of this client may be cut off.
                    async with i.calling() as fresh:
                        spent = round(5 * SPENT + alive * 0.01, 3)
                        wanted = {"key/concurrent": 4 - alive, "key/budget": spent}
                        await i.until_left(fresh, found, key_of("streams"), wanted)
                    print(f"{3 - alive} of 3 back {time.monotonic() - begun:.1f} s after the kill")

    @pytest.mark.parametrize("kind", ["memory", "workers"])
    async def test_the_whole_of_it(self, tmp_path: Path, port: int, kind: str) -> None:
        """Its journal keeps what was spent; what was held went with it."""
        folder, journal = tmp_path / "config", tmp_path / "journal.sqlite"
        g.write(folder, *resources(port))
        flags = ("--journal", str(journal), "--drain-timeout", "0")
        async with u.serving(FINISHED, port) as upstream, i.calling() as session:
            with i.running(kind, folder, *flags) as found:
                await self.finished(session, found, found.url(0))
                upstream.answer = ENDLESS
                await self.held(session, found, found.url(0))
                await asyncio.sleep(1.1)
                found.gateways[0].process.kill()
                found.gateways[0].process.wait(10)
            with i.running(kind, folder, *flags) as found:
                wanted = {"key/concurrent": 4, "key/budget": 5 * SPENT}
                assert await i.left(session, found, key_of("streams")) == wanted
