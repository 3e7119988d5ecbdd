"""The ledger as a stream in Valkey or Redis, for whoever bills.

Events are queued and sent in the order of the requests, many in one trip, and no request waits for
it. While the server is away they wait too, up to a bound; what is lost beyond it is counted. An
event whose answer was lost is sent again: ``event_id`` tells the two from one.
"""

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from redis import exceptions

from tollhouse.settings import Settings
from tollhouse.store.valkey import connect
from tollhouse.telemetry import Metrics

log = structlog.get_logger()

MOST_QUEUED = 20_000
"""Events; one takes about a kilobyte."""
_BATCH = 500
_CALL_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_PAUSE = 1.0
"""Seconds between tries while the server is away."""


class Billing:
    """Sends events to the stream ``{tollhouse:SCOPE}:usage`` of the store's server.

    Each entry has one field, ``event``: JSON. ``run`` is owned by the composition root.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._client = connect(settings.store, os.environ)
        self._name = f"{{tollhouse:{settings.store_scope}}}:usage"
        self._length = settings.ledger_length
        self._metrics = metrics
        self._queue: deque[bytes] = deque()
        self._something = asyncio.Event()
        self._up = True

    def write(self, event: Mapping[str, Any]) -> None:
        """Queue an event. Returns at once."""
        if len(self._queue) >= MOST_QUEUED:
            self._queue.popleft()
            self._metrics.ledger_lost.inc()
        self._queue.append(msgspec.json.encode({"event_id": os.urandom(8).hex(), **event}))
        self._something.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._queue:
                if not await self._send():
                    await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Send what is left to send, within a second or two, and let go."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._queue and await self._send():
                    pass
        except TimeoutError:
            pass
        if self._queue:
            log.error("the ledger's last events are lost", count=len(self._queue))
            self._metrics.ledger_lost.inc(len(self._queue))
        await self._client.aclose()

    async def _send(self) -> bool:
        """Send one batch; False, with the batch still the first in the queue, when that failed."""
        batch = [self._queue[index] for index in range(min(_BATCH, len(self._queue)))]
        pipeline = self._client.pipeline(transaction=False)
        for event in batch:
            pipeline.xadd(self._name, {"event": event}, maxlen=self._length, approximate=True)
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await pipeline.execute()
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._tell(up=False, why=type(error).__name__)
            return False
        self._tell(up=True)
        # The queue may have dropped some of them meanwhile, and only from its beginning.
        for event in batch:
            if self._queue and self._queue[0] is event:
                self._queue.popleft()
        return True

    def _tell(self, *, up: bool, **why: str) -> None:
        if up == self._up:
            return
        self._up = up
        if up:
            log.info("the ledger's stream takes events again", queued=len(self._queue))
        else:
            log.error("the ledger's stream takes no events; they wait", **why)
