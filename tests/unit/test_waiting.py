"""One timer for many waits: cut in time, and only what is late."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from tollhouse.waiting import Watchdog


def on(loop_factory: Callable[[], asyncio.AbstractEventLoop], main: Awaitable[None]) -> None:
    async def run() -> None:
        await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    factory: Callable[[], asyncio.AbstractEventLoop] = request.param
    return factory


class TestWithin:
    def test_a_wait_is_cut_in_time_after_any_number_of_quick_ones(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            for _ in range(50):
                assert await watchdog.within(0.3, asyncio.sleep(0.005, "on time")) == "on time"
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                await watchdog.within(0.3, asyncio.sleep(10))
            took = time.monotonic() - begun
            print(f"a wait of 300 ms was cut after {took * 1000:.0f} ms")
            assert 0.3 <= took < 0.6
            watchdog.close()

        on(loop_factory, main())

    def test_a_shorter_wait_after_a_longer_one_is_cut_at_its_own_time(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            await watchdog.within(60, asyncio.sleep(0))
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                await watchdog.within(0.1, asyncio.sleep(10))
            assert time.monotonic() - begun < 1
            assert await watchdog.within(1, asyncio.sleep(0.01, "again")) == "again"
            watchdog.close()

        on(loop_factory, main())

    def test_no_time_left_is_late_at_once(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            with pytest.raises(TimeoutError):
                await watchdog.within(-1, asyncio.sleep(10))
            watchdog.close()

        on(loop_factory, main())

    def test_who_cancels_the_task_is_heard(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            task = asyncio.ensure_future(watchdog.within(10, asyncio.sleep(10)))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            watchdog.close()

        on(loop_factory, main())

    def test_a_bound_around_it_is_told_apart(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await watchdog.within(10, asyncio.sleep(10))
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0
            watchdog.close()

        on(loop_factory, main())

    def test_waits_of_several_tasks_follow_one_another(self, loop_factory) -> None:
        async def main() -> None:
            watchdog = Watchdog()
            for seconds in (0.5, 0.01):
                task = asyncio.ensure_future(watchdog.within(0.1, asyncio.sleep(seconds)))
                await asyncio.wait({task})
                assert isinstance(task.exception(), TimeoutError) == (seconds > 0.1)
            watchdog.close()

        on(loop_factory, main())
