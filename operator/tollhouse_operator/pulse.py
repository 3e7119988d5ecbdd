"""Many small reasons for one piece of work: wait until they stop coming, but not for long."""

import asyncio


class Pulse:
    """``beat`` says that there is work; ``next`` returns when it has been quiet for ``quiet``
    seconds since, or ``most`` seconds after the first beat."""

    def __init__(self, *, quiet: float, most: float) -> None:
        self._quiet = quiet
        self._most = most
        self._beaten = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None

    def beat(self) -> None:
        self._beaten.set()

    def beat_later(self, seconds: float) -> None:
        """One beat after so many seconds, unless one is already to come."""
        if self._later is None or self._later.when() < asyncio.get_running_loop().time():
            self._later = asyncio.get_running_loop().call_later(seconds, self.beat)

    async def next(self, timeout: float | None) -> bool:
        """Whether there was a beat; False after ``timeout`` seconds without one."""
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(self._beaten.wait(), timeout)
        except TimeoutError:
            return False
        latest = loop.time() + self._most
        while self._beaten.is_set() and loop.time() < latest:
            self._beaten.clear()
            await asyncio.sleep(min(self._quiet, latest - loop.time()))
        self._beaten.clear()
        return True
