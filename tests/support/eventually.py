"""Waiting for what another process does in its own time."""

import asyncio
import time
from collections.abc import Callable


async def eventually(holds: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until this holds, asked in a thread; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
