"""The counters of one process: exact against a plain model, bounded, and kept in the journal."""

import asyncio
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from support import counting_model as cm
from tollhouse.errors import ConfigError
from tollhouse.settings import Settings
from tollhouse.store import Count, Kind, OnFailure, open_store
from tollhouse.store.counting import Counters
from tollhouse.store.journal import Journal
from tollhouse.store.memory import MemoryStore
from tollhouse.store.opening import open_journal
from tollhouse.store.shared import SharedStore
from tollhouse.telemetry import Metrics


def window(limit: int, amount: int = 1, span: float = 60.0, **more: object) -> Count:
    return Count("k", Kind.WINDOW, limit, amount, span=span, **more)  # type: ignore[arg-type]  # options by name


def budget(amount: int, counter: str = "b", limit: int = 1000, since: int = 1_700_000_000) -> Count:
    return Count(
        counter, Kind.PERIOD, limit, amount, since=since, until=1_900_000_000, settles=True
    )


async def nothing() -> None:
    """The memory store knows at once."""


@given(moves=cm.steps)
@settings(max_examples=200, deadline=None)
def test_it_counts_as_the_plain_model_does(moves: list[tuple[str, object]]) -> None:
    clock = cm.Clock()
    asyncio.run(cm.play(MemoryStore(clock=clock), cm.Model(clock, None), moves, nothing))


@given(
    waits=st.lists(st.integers(0, 400), min_size=50, max_size=300),
    limit=st.integers(1, 20),
    start=st.integers(0, 100_000),
)
def test_no_stretch_of_the_span_holds_more_than_the_limit(
    waits: list[int], limit: int, start: int
) -> None:
    clock = cm.Clock(1_800_000_000_000 + start)
    counters = Counters(clock)
    granted = []
    for wait in waits:
        clock.now += wait
        if not counters.take([window(limit, span=1.0)])[1]:
            granted.append(clock.now)
    for first, last in zip(granted, granted[limit:], strict=False):
        assert last - first > 1000


def test_a_window_says_when_what_was_asked_for_would_fit() -> None:
    clock = cm.Clock()
    counters = Counters(clock)
    counters.take([window(10, 6)])
    clock.now += 10_000
    counters.take([window(10, 4)])
    states, refused = counters.take([window(10, 6)])
    assert refused == (0,)
    clock.now += round(states[0].resets * 1000) - 1
    assert counters.take([window(10, 6)])[1] == (0,)
    clock.now += 1
    assert counters.take([window(10, 6)])[1] == ()


def test_counters_that_mean_nothing_any_more_are_forgotten() -> None:
    clock = cm.Clock()
    counters = Counters(clock)
    most = 0
    for number in range(20_000):
        counters.take([Count(f"user-{number}", Kind.WINDOW, 5, 1, span=1.0)])
        clock.now += 10
        most = max(most, len(counters))
    # A hundred mean something at any time.
    assert most < 1000


def spend(path: Path, amount: int) -> int:
    """Count this in a process' life, and say what was there before."""

    async def main() -> int:
        store = MemoryStore(Journal(path))
        found = await store.read([budget(0)])
        assert found is not None
        store.settle(await store.reserve([budget(10)]), [amount])
        await store.close()
        return found[0].used

    return asyncio.run(main())


def test_spend_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "j.sqlite"
    assert [spend(path, 7), spend(path, 5), spend(path, 0)] == [0, 7, 12]


def test_a_window_of_a_day_is_there_after_a_restart_and_a_minutes_is_not(tmp_path: Path) -> None:
    clock = cm.Clock()
    path = tmp_path / "j.sqlite"

    async def life() -> list[int]:
        store = MemoryStore(Journal(path), clock)
        counts = [window(10, 3, span=86_400.0), window(10, 3)]
        used = [state.used for state in (await store.reserve(counts)).states]
        await store.close()
        return used

    assert [asyncio.run(life()), asyncio.run(life())] == [[3, 3], [6, 3]]
    clock.now += 2 * 86_400_000
    assert asyncio.run(life()) == [3, 3]


def test_forgotten_counters_leave_the_journal(tmp_path: Path) -> None:
    clock = cm.Clock()
    path = tmp_path / "j.sqlite"

    async def life() -> None:
        store = MemoryStore(Journal(path), clock)
        store.settle(await store.reserve([budget(1)]), [1])
        await store.flush()
        clock.now = 2_000_000_000_000
        store.counters.sweep(10)
        store.counters.sweep(10)
        await store.close()

    asyncio.run(life())
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM counters").fetchone() == (0,)
    file.close()


CRASH = """
import asyncio, sys
from pathlib import Path
from tollhouse.store import Count, Kind
from tollhouse.store.journal import Journal
from tollhouse.store.memory import MemoryStore

async def main():
    store = MemoryStore(Journal(Path(sys.argv[1])))
    running = asyncio.create_task(store.run())
    count = Count("b", Kind.PERIOD, 10**9, 1, since=1700000000, until=1900000000, settles=True)
    done = 0
    while True:
        store.settle(await store.reserve([count]), [1])
        held = await store.reserve([count])
        done += 1
        print(done, flush=True)
        await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_kill_loses_at_most_a_second_of_finished_requests(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed: list[tuple[float, int]] = []
        while len(printed) < 150:
            printed.append((time.monotonic(), int(process.stdout.readline())))
        process.kill()
        killed = time.monotonic()
    finished = max(done for at, done in printed if at < killed - 1)
    found = spend(path, 0)
    print(f"{printed[-1][1]} requests finished, {found} kept")
    assert finished <= found <= printed[-1][1] + 50


class TestUnusableJournals:
    def test_not_a_database(self, tmp_path: Path) -> None:
        path = tmp_path / "j.sqlite"
        path.write_bytes(b"no database at all, and long enough to be looked at" * 100)
        with pytest.raises(ConfigError, match="--journal"):
            Journal(path)

    def test_a_value_that_is_not_ours(self, tmp_path: Path) -> None:
        path = tmp_path / "j.sqlite"
        spend(path, 5)
        with sqlite3.connect(path) as file:
            file.execute("UPDATE counters SET counted = x'c1'")
        file.close()
        with pytest.raises(ConfigError, match="--journal"):
            MemoryStore(Journal(path))

    def test_another_version(self, tmp_path: Path) -> None:
        path = tmp_path / "j.sqlite"
        with sqlite3.connect(path) as file:
            file.execute("PRAGMA user_version = 99")
        file.close()
        with pytest.raises(ConfigError, match="another version"):
            Journal(path)

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="--journal"):
            Journal(tmp_path / "file" / "j.sqlite")

    def test_the_second_process_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tollhouse.store.journal._WAIT_SECONDS", 0.05)
        first = Journal(tmp_path / "j.sqlite")
        with pytest.raises(ConfigError, match="another process"):
            Journal(tmp_path / "j.sqlite")
        first.close()

    def test_the_default_one_is_done_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        assert open_journal(Settings(directory=tmp_path)) is None
        assert "a restart forgets it" in capsys.readouterr().out
        with pytest.raises(ConfigError):
            open_journal(Settings(directory=tmp_path, journal=str(tmp_path / "file" / "j")))

    def test_one_that_fails_later_is_logged_once_and_tried_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def main() -> None:
            store = MemoryStore(Journal(tmp_path / "j.sqlite"))
            file = store._journal._file  # type: ignore[union-attr]  # there is one
            file.execute("PRAGMA query_only = 1")
            store.settle(await store.reserve([budget(1)]), [3])
            await store.flush()
            await store.flush()
            file.execute("PRAGMA query_only = 0")
            await store.close()

        asyncio.run(main())
        printed = capsys.readouterr().out
        assert printed.count("cannot be written") == 1
        assert printed.count("written again") == 1
        assert spend(tmp_path / "j.sqlite", 0) == 3


async def test_the_settings_say_which_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    metrics = Metrics(CollectorRegistry())
    memory = open_store(Settings(directory=tmp_path), metrics, {})
    memory.settle(await memory.reserve([budget(1)]), [1])
    await memory.close()
    assert list((tmp_path / "tollhouse").glob("*.sqlite"))
    url = "redis://u:PLANTED-password-in-a-url@127.0.0.1:1/0"
    shared = Settings(directory=tmp_path, store=url)
    assert "PLANTED" not in repr(shared)
    store = open_store(shared, metrics, {})
    assert isinstance(store, SharedStore)
    assert not (await store.reserve([replace(budget(1), on_failure=OnFailure.DENY)])).granted
    await store.close()
    with pytest.raises(ConfigError, match="--store takes memory"):
        open_store(Settings(directory=tmp_path, store="http://127.0.0.1"), metrics, {})
