"""Bounds on waits that follow one another, with one timer for all of them.

A stream waits for hundreds of chunks, and nearly every wait is over long before its time: setting
and clearing a timer for each would cost more than forwarding the chunk.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Watchdog:
    """Bounds waits of which only one is under way at a time; ``close`` when there are no more.

    The timer is left where it stands when a later wait may end later, and moved only when it fires
    too early. A wait is cut within milliseconds of its time all the same.
    """

    __slots__ = ("_due", "_fires", "_late", "_loop", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._fires = 0.0
        self._due = 0.0
        self._task: asyncio.Task[object] | None = None
        self._late = False

    async def within(self, seconds: float, awaitable: Awaitable[T]) -> T:
        """What this comes to. Raises TimeoutError, the wait cancelled, when it takes longer."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be kept from waiting")
        self._task = task
        self._due = due = time.monotonic() + seconds
        if self._timer is None or due < self._fires:
            self._arm(seconds)
        cancelled = task.cancelling()
        try:
            result = await awaitable
            if self._late:
                task.uncancel()
            return result
        except asyncio.CancelledError:
            # Where others have cancelled the task too, theirs counts.
            if self._late and task.uncancel() <= cancelled:
                raise TimeoutError from None
            raise
        finally:
            self._task = None
            self._late = False

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = self._due
        self._timer = self._loop.call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._task is None:
            return
        left = self._due - time.monotonic()
        if left > 0:
            # The loop's clock has whole milliseconds, and may be a little behind.
            self._arm(max(left, 0.001))
        else:
            self._late = True
            self._task.cancel()
