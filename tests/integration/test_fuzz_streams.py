"""Thousands of broken streams from a real upstream: each one ends as documented, nothing stays."""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from support import gateway as g
from support import upstream as u
from support.eventually import eventually

CASES = int(os.environ.get("TOLLHOUSE_FUZZ_STREAMS", "5000"))
AT_ONCE = 40
GOOD = [
    u.chunk({"role": "assistant", "content": ""}),
    u.chunk({"content": "hé€😀 "}),
    u.chunk({"content": "there"}),
    u.chunk({}, "stop"),
    u.USAGE_EVENT,
    u.DONE,
]
ODD = [
    b"data: {\n\n",
    b"data: null\n\n",
    b'data: {"choices":7}\n\n',
    b'data: {"choices":[{"delta":null}]}\n\n',
    b'data: {"choices":[{"delta":{"content":1}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":-5,"completion_tokens":' + b"9" * 18 + b"}}\n\n",
    b'data: {"usage":{"prompt_tokens":"x"}}\n\n',
    b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n',
    b'data: {"error":{"message":"overloaded","code":529}}\n\n',
    b'data: {"error":"no"}\n\n',
    b"data: " + b"[" * 5000 + b"\n\n",
    b"data: \xff\xfe\x00\n\n",
    b": comment\n\n",
    b"\n\n\n\n",
    b"event: ping\r\n\r\n",
    b"data\n\ndata:\n\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"data: " + b"y" * 300_000 + b"\n\n",
]


def mutated(dice: random.Random) -> tuple[bytes, dict[str, str], bool]:
    """The bytes of a broken stream, its head, and whether the connection is reset at its end."""
    events = list(GOOD)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(events) + 1)
        match dice.randrange(6):
            case 0:
                events.insert(at, dice.choice(ODD))
            case 1:
                events.insert(at, dice.choice(GOOD))
            case 2:
                dice.shuffle(events)
            case 3 if at < len(events):
                del events[at]
            case 4:
                events.insert(at, dice.randbytes(dice.randint(1, 200)))
            case _:
                ending = dice.choice([b"\r\n", b"\r", b"\n\n"])
                events = [event.replace(b"\n", ending) for event in events]
    body = b"".join(events)
    if dice.random() < 0.3:
        body = body[: dice.randrange(len(body) + 1)]
    if dice.random() < 0.1:
        body = b"\xef\xbb\xbf" + body
    kind = dice.choice(
        ["text/event-stream"] * 6 + ["application/json", "text/html; charset=utf-16"]
    )
    return body, {"Content-Type": kind}, dice.random() < 0.15


async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
    dice = random.Random(received.json["seed"])
    body, headers, reset = mutated(dice)
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for _ in range(dice.randrange(4)):
        cut = dice.randrange(len(body) + 1)
        if cut:
            await response.write(body[:cut])
            await asyncio.sleep(0)
        body = body[cut:]
    if body:
        await response.write(body)
    if reset and request.transport is not None:
        request.transport.abort()
    return response


def ending(status: int, body: bytes) -> str:
    """How an answer ended; fails unless it is one of the documented ways."""
    if status != 200:
        error = json.loads(body)["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        return f"{status} {error['code']}"
    if body.endswith(u.DONE):
        assert body.count(b"data: [DONE]\n\n") >= 1
        return "done"
    last = body.splitlines()[-2]
    assert last.startswith(b"data: "), last[:200]
    return f"error event {json.loads(last[6:])['error']['code']}"


def resident(gateway: g.Gateway) -> int:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def in_flight(gateway: g.Gateway) -> float:
    text = gateway.ops("/metrics")[1]
    return float(re.findall(r"^tollhouse_in_flight_requests (\S+)", text, re.MULTILINE)[0])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("flags", [(), ("--stream-keepalive", "0.05")], ids=["plain", "keepalive"])
async def test_every_broken_stream_ends_as_documented(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    endings: Counter[str] = Counter()
    # The plain run is the long one; the other is there for the tasks that comments take.
    cases = CASES if not flags else CASES // 5

    async with u.serving(answer) as upstream:
        g.write(
            tmp_path,
            g.caller(),
            g.openai_compatible("wild", upstream.base_url, timeouts={"idle": "5s"}),
            g.route("m", ["m"], "wild", retries={"attempts": 0}),
        )
        gateway = g.launch(tmp_path, *flags, name="fuzz-streams")
        try:
            await asyncio.to_thread(g.wait_until_ready, gateway)
            timeout = aiohttp.ClientTimeout(total=30)
            numbers = iter(range(cases))
            sizes: list[int] = []

            async def ask(session: aiohttp.ClientSession) -> None:
                for number in numbers:
                    if number % (cases // 5) == 0:
                        sizes.append(resident(gateway))
                    async with session.post(
                        f"{gateway.base_url}/chat/completions",
                        json={
                            "model": "m",
                            "messages": [{"role": "user", "content": "hi"}],
                            "stream": True,
                            "seed": number,
                        },
                        headers={"Authorization": f"Bearer {g.KEY}"},
                    ) as got:
                        body = await got.read()
                        assert got.status != 500, (number, body)
                        endings[ending(got.status, body)] += 1
                    upstream.received.clear()

            begun = time.monotonic()
            async with aiohttp.ClientSession(timeout=timeout) as session:
                await asyncio.gather(*(ask(session) for _ in range(AT_ONCE)))
            spent = time.monotonic() - begun
            sizes.append(resident(gateway))
            await eventually(lambda: in_flight(gateway) == 0 and upstream.active == 0)
        finally:
            await asyncio.to_thread(gateway.stop)
    print(f"{cases} streams in {spent:.1f} s; resident MiB {sizes}")
    print(*(f"{count:6} {how}" for how, count in endings.most_common()), sep="\n")
    assert sum(endings.values()) == cases
    assert sizes[-1] - sizes[1] < 40
    log = gateway.text()
    assert "Traceback" not in log and "never retrieved" not in log and "was destroyed" not in log
