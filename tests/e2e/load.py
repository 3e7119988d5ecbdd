"""Callers in a pod: a steady rate of whole and streamed requests, each checked to its end.

    load.py RATE

It needs aiohttp alone, retries nothing, and prints one JSON line a second, which counts everything
since the start; on SIGTERM it finishes what it has begun and prints a last one. Every third request
is a stream, which takes about a second.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter

import aiohttp

BASE, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
TEXT = "Every lorry that comes to the toll house shows its pass, and then the road is free."
TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)


class Callers:
    """``counts`` has whole, streamed, failed and broken; ``slowest`` is in seconds."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    async def call(self, *, stream: bool) -> None:
        began = time.monotonic()
        try:
            await (self._streamed() if stream else self._whole())
            self.counts["streamed" if stream else "whole"] += 1
            if not stream:
                self.slowest = max(self.slowest, time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError, OSError, AssertionError) as error:
            self.counts["broken" if stream else "failed"] += 1
            after = f"after {time.monotonic() - began:.2f} s at {time.strftime('%X')}"
            self.problems.append(f"{type(error).__name__}: {error} {after}"[:300])

    async def _whole(self) -> None:
        async with self._post("load/whole", stream=False) as response:
            body = await response.text()
            assert response.status == 200, f"status {response.status}: {body[:200]}"
            assert json.loads(body)["choices"][0]["message"]["content"] == TEXT

    async def _streamed(self) -> None:
        text, done = "", False
        async with self._post("load/stream", stream=True) as response:
            assert response.status == 200, f"status {response.status}"
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                for choice in json.loads(data)["choices"]:
                    text += choice["delta"].get("content") or ""
        assert done, "the stream ended without [DONE]"
        assert text == TEXT, f"the stream said {text!r}"

    def _post(self, model: str, *, stream: bool) -> "aiohttp.client._RequestContextManager":
        return self.session.post(
            f"{BASE}/chat/completions",
            headers={"Authorization": f"Bearer {KEY}"},
            json={
                "model": model,
                "messages": [{"role": "user", "content": "go"}],
                "stream": stream,
            },
        )

    def report(self, under_way: int) -> None:
        line = {
            "at": time.time(),
            "under_way": under_way,
            "slowest": round(self.slowest, 3),
            **{name: self.counts[name] for name in ("whole", "streamed", "failed", "broken")},
            "problems": self.problems[-5:],
        }
        self.slowest = 0.0
        print(json.dumps(line), flush=True)


async def main(rate: float) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tasks: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(
        timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        callers = Callers(session)
        began = told = time.monotonic()
        for number in range(sys.maxsize):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if stop.is_set():
                break
            task = asyncio.create_task(callers.call(stream=number % 3 == 2))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                callers.report(len(tasks))
        await asyncio.gather(*tasks)
        callers.report(0)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
