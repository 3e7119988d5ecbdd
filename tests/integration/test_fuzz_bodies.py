"""20,000 random and mutated bodies to a real gateway: no 5xx, no hang, nothing left behind."""

import asyncio
import copy
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support import gateway as g
from support.gateway import Gateway

BODIES = 20_000
CONNECTIONS = 8
WARM = 2_000
"""Bodies before memory is first measured: by then every code path and buffer has been used."""
MOST_GROWTH = 24 * 1024 * 1024
"""Bytes that 18,000 further bodies may add: a leak of 2 KiB each would add more."""
SEED = 20261121

GOOD: list[dict[str, Any]] = [
    {"model": "mock/echo", "messages": [{"role": "user", "content": "hi"}]},
    {"model": "mock/echo", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    {
        "model": "wild/any",
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "t"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "\u00e9\U0001f600"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        "temperature": 0.5,
        "stop": ["a"],
        "n": 2,
        "seed": 1,
        "reasoning": {"effort": "low"},
        "thinking": {"type": "enabled", "budget_tokens": 10},
        "max_tokens": 5,
    },
]
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "x", "\x00", "\r\n", "\ud800", "\u2028", "a" * 9000,
    [], {}, [[]], [None], {"": None}, {"type": "text"}, {"type": None}, ["a", 1],
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("config")
    with g.echoing(folder, "mock/echo", "*", name="fuzz-bodies") as running:
        yield running


@pytest.mark.timeout(300)
async def test_no_body_brings_the_gateway_down(gateway: Gateway) -> None:
    chance = random.Random(SEED)
    begun = time.monotonic()
    seen = await send(gateway, chance, WARM)
    before = resident(gateway)
    seen += await send(gateway, chance, BODIES - WARM)
    growth = resident(gateway) - before
    print(
        f"{BODIES} bodies in {time.monotonic() - begun:.0f} s, memory grew by {growth >> 10} KiB, "
        f"answers {dict(seen)}"
    )
    assert seen.total() == BODIES
    assert set(seen) <= {200, 400, 404}
    assert seen[200] > BODIES // 50, "most mutations should be small enough for some to pass"
    assert growth < MOST_GROWTH
    in_flight = re.search(r"^\w*in_flight\w* (\S+)$", gateway.ops("/metrics")[1], re.MULTILINE)
    assert in_flight is not None and float(in_flight[1]) == 0
    assert "Traceback" not in gateway.text() and "never retrieved" not in gateway.text()


async def send(gateway: Gateway, chance: random.Random, count: int) -> Counter[int]:
    """Send this many bodies over a few kept connections; counts the answers by status."""
    bodies = (body(chance) for _ in range(count))
    seen: Counter[int] = Counter()

    async def one_connection() -> None:
        # The callers share one generator: each takes the next body when it is free.
        for data in bodies:
            async with session.post(f"{gateway.base_url}/chat/completions", data=data) as answer:
                text = await answer.read()
                seen[answer.status] += 1
                if answer.status != 200:
                    assert set(json.loads(text)) == {"error"}, data

    headers = {"Authorization": f"Bearer {g.KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=10),
        connector=aiohttp.TCPConnector(limit=CONNECTIONS),
    ) as session:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(one_connection())
    return seen


def body(chance: random.Random) -> bytes:
    """A good body with something changed in its values, its text or its bytes, or only noise."""
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.randrange(300))
    if kind < 0.15:
        opening = chance.choice([b"[", b'{"a":', b'{"model":"mock/echo","messages":['])
        return opening * chance.randrange(1, 3000)
    value = copy.deepcopy(chance.choice(GOOD))
    for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
        mutate(chance, value)
    data = bytearray(json.dumps(value, ensure_ascii=chance.random() < 0.5).encode(errors="replace"))
    if kind < 0.45:
        for _ in range(chance.choice([1, 1, 2, 8])):
            place = chance.randrange(len(data) + 1)
            data[place : place + chance.choice([0, 1, 1, 5])] = chance.randbytes(
                chance.choice([0, 1, 1, 3])
            )
    return bytes(data)


def mutate(chance: random.Random, value: Any) -> None:
    """Replace, remove or add one entry somewhere in this list or object."""
    while True:
        inner = [
            child
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list) and child
        ]
        if not inner or chance.random() < 0.4:
            break
        value = chance.choice(inner)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = chance.choice(places) if places else None
    choice = chance.random()
    odd = copy.deepcopy(chance.choice(ODD))
    if isinstance(value, list) and (choice < 0.2 or place is None):
        value.append(odd)
    elif isinstance(value, dict) and (choice < 0.2 or place is None):
        value[chance.choice(["x", "", "\r\n", "user", "reasoning_effort"])] = copy.deepcopy(
            chance.choice(ODD)
        )
    elif choice < 0.35:
        del value[place]
    else:
        value[place] = odd


def resident(gateway: Gateway) -> int:
    """The gateway's resident memory in bytes."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
