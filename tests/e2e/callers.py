"""A hundred callers in a pod, who together want more than a limit lets through.

    callers.py CALLERS CALLS SECONDS

Each makes its calls one after another, each on a connection of its own, spread over so many
seconds. One JSON line counts statuses every quarter of a second; the last one has ``"done": true``.
Nothing is retried.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter

import aiohttp

BASE, KEY = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)
BODY = {"model": "load/stream", "messages": [{"role": "user", "content": "go"}], "stream": True}


async def call(session: aiohttp.ClientSession) -> str:
    """The status; ``broken`` for a stream without an end, else what went wrong."""
    try:
        async with session.post(
            f"{BASE}/chat/completions", headers={"Authorization": f"Bearer {KEY}"}, json=BODY
        ) as response:
            body = await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return type(error).__name__
    if response.status == 200 and not body.rstrip().endswith("data: [DONE]"):
        return "broken"
    return str(response.status)


async def main(callers: int, calls: int, seconds: float) -> None:
    counts: Counter[str] = Counter()

    async def one(session: aiohttp.ClientSession) -> None:
        for _ in range(calls):
            await asyncio.sleep(random.uniform(0, 2 * seconds / calls))
            counts[await call(session)] += 1

    async def tell() -> None:
        while True:
            print(json.dumps(counts), flush=True)
            await asyncio.sleep(0.25)

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        telling = asyncio.create_task(tell())
        await asyncio.gather(*(one(session) for _ in range(callers)))
        telling.cancel()
    print(json.dumps({**counts, "done": True}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
