"""Counters that are away under load, seen by callers of whole gateways: each mode as declared."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from support import gateway as g
from support import installation as i
from support.installation import Installation

MODES = ("Allow", "Deny", "Local")
PLENTY = 10**6
USED = 3
"""Tokens of each answer."""


def key_of(name: str) -> str:
    return f"sk-th-PLANTED-{name.lower()}-while-away"


def limited(mode: str, name: str, limits: list[dict[str, Any]]) -> list[Any]:
    """An ApiKey, and a policy with this ``onStoreFailure`` that limits it."""
    refs = [{"kind": "ApiKey", "name": name}]
    spec = {"limits": limits, "targetRefs": refs, "onStoreFailure": mode}
    return [g.caller(name, key_of(name)), g.manifest("RateLimitPolicy", name, spec)]


def resources() -> list[Any]:
    plenty = [
        {"name": "requests", "requests": PLENTY, "per": "Day"},
        {"name": "tokens", "outputTokens": PLENTY, "per": "Day"},
        {"name": "at-once", "concurrent": PLENTY},
    ]
    few = [{"name": "requests", "requests": 40, "per": "Day", "scope": "Shared"}]
    return [
        *(it for mode in MODES for it in limited(mode, mode.lower(), plenty)),
        *limited("Local", "few", few),
        g.caller("free", key_of("free")),
        g.mock("mock", usage={"promptTokens": 0, "completionTokens": USED}),
        g.route("m", ["m"], "mock"),
    ]


@dataclass
class Load:
    """Callers who never stop asking: for each key when they began, when they ended, the status."""

    installation: Installation
    session: aiohttp.ClientSession
    found: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    stopped: bool = False

    async def caller(self, name: str, turn: int) -> None:
        answers = self.found.setdefault(name, [])
        while not self.stopped:
            begun = time.monotonic()
            status, *_ = await i.post(self.session, self.installation.url(turn), key_of(name))
            answers.append((begun, time.monotonic(), status))
            await asyncio.sleep(0.02)

    def passed(self, name: str) -> int:
        return sum(status == 200 for *_, status in self.found[name])

    def longest(self, name: str) -> float:
        return max(end - begin for begin, end, _ in self.found[name])


@contextlib.asynccontextmanager
async def under_load(installation: Installation) -> AsyncIterator[Load]:
    async with i.calling() as session:
        load = Load(installation, session)
        names = [*(mode.lower() for mode in MODES), "free"]
        tasks = [asyncio.create_task(load.caller(it, turn)) for it in names for turn in range(4)]
        try:
            yield load
        finally:
            load.stopped = True
            await asyncio.gather(*tasks)


async def outage(load: Load, leave: Callable[[], None], come: Callable[[], None]) -> None:
    """Under load the counters leave, are away for two seconds, and come; all modes are held to."""
    await asyncio.sleep(1.0)
    await asyncio.to_thread(leave)
    left = time.monotonic()
    await asyncio.sleep(2.0)
    came = time.monotonic()
    await asyncio.to_thread(come)
    async with asyncio.timeout(20):
        # The gateways find out in their own time.
        while load.found["deny"][-1][2] != 200:  # noqa: ASYNC110  # because it is another process that gets there
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    load.stopped = True
    meanwhile = {
        name: {status for begin, end, status in answers if left < begin and end < came}
        for name, answers in load.found.items()
    }
    assert meanwhile == {"allow": {200}, "local": {200}, "deny": {503}, "free": {200}}
    assert {status for *_, status in load.found["allow"] + load.found["local"]} == {200}


async def counted(load: Load) -> None:
    """What was let through is counted, once."""
    for mode in MODES:
        name = mode.lower()
        passed = load.passed(name)
        wanted = {
            f"policy/ai/{name}/requests": PLENTY - passed,
            f"policy/ai/{name}/tokens": PLENTY - USED * passed,
            f"policy/ai/{name}/at-once": PLENTY,
        }
        await i.until_left(load.session, load.installation, key_of(name), wanted)


def slow(load: Load, bound: float) -> None:
    """None is slower than the bound, beyond what callers without limits met at that time."""
    free = load.longest("free")
    for mode in MODES:
        name = mode.lower()
        longest = load.longest(name)
        print(
            f"{mode}: {load.passed(name)} of {len(load.found[name])} passed, the slowest took "
            f"{longest * 1000:.0f} ms (without limits {free * 1000:.0f} ms)"
        )
        assert longest < bound + 0.05 + 2 * free


async def test_a_redis_that_is_killed_and_restarted(tmp_path: Path) -> None:
    folder = tmp_path / "config"
    g.write(folder, *resources())
    with i.running("fleet", folder, "--lease", "3", gateways=2) as installation:
        server = installation.server
        assert server is not None
        async with under_load(installation) as load:
            await outage(load, server.kill, server.start)
        async with i.calling() as load.session:
            await counted(load)
            slow(load, 0.1)
            # Each gateway has seen the other by now, so it takes half of what is left.
            turns, key = iter(range(1000)), key_of("few")

            async def passed(requests: int) -> int:
                urls = [installation.url(next(turns)) for _ in range(requests)]
                answers = [await i.post(load.session, url, key) for url in urls]
                return sum(answer[0] == 200 for answer in answers)

            assert await passed(10) == 10
            await asyncio.to_thread(server.kill)
            away = await passed(60)
            print(f"Local: 30 left for two gateways, {away} passed")
            assert 20 <= away <= 30
            await asyncio.to_thread(server.start)
            wanted = {"policy/ai/few/requests": 30 - away}
            await i.until_left(load.session, installation, key, wanted)
            assert await passed(40) == 30 - away
        for gateway in installation.gateways:
            text = gateway.text()
            assert text.count("the store is away") == text.count("the store is back") >= 2


async def test_a_parent_that_is_frozen(tmp_path: Path) -> None:
    """Workers wait for it no longer than a second, and nothing is lost or counted twice."""
    folder = tmp_path / "config"
    g.write(folder, *resources())
    with i.running("workers", folder) as installation:
        process = installation.gateways[0].process
        try:
            async with under_load(installation) as load:
                signalled = partial(partial, process.send_signal)
                await outage(load, signalled(signal.SIGSTOP), signalled(signal.SIGCONT))
        finally:
            process.send_signal(signal.SIGCONT)
        async with i.calling() as load.session:
            await counted(load)
            slow(load, 1.0)
