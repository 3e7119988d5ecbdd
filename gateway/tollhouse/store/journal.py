"""A file that keeps what must outlive the process: spend, and windows of a day or longer.

SQLite, written by one thread in one transaction per flush. The file belongs to one process at a
time. What is held by requests under way is not written: it ends with the process.
"""

import asyncio
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tollhouse.errors import ConfigError
from tollhouse.store.counting import Counter, Key, Period, Window

DAY = 86_400.0
_VERSION = 1
_WAIT_SECONDS = 2.0
"""For a process that is just closing the file."""

Row = tuple[str, float, int, int, bytes]
"""Counter, span, since, until in ms (0 for windows), and msgpack: the buckets, or the amount."""

_pack = msgspec.msgpack.encode
_buckets = msgspec.msgpack.Decoder(list[tuple[int, int]])
_amount = msgspec.msgpack.Decoder(int)


def durable(key: Key) -> bool:
    """Whether a restart has to remember this counter."""
    _, span, since = key
    return since > 0 or span == 0 or span >= DAY


def row(counter: Counter) -> Row:
    """What is written of a counter."""
    until = counter.until if isinstance(counter, Period) else 0
    counted = list(counter.buckets) if isinstance(counter, Window) else counter.counted
    return (*counter.key, until, _pack(counted))


class Journal:
    """The open file. Raises ConfigError when it cannot be used, with what to do about it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = sqlite3.connect(
                path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._file.close()
            raise self._unusable(error) from None
        except ConfigError:
            self._file.close()
            raise
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def _prepare(self) -> None:
        run = self._file.execute
        # Nobody else may count into the same file; the lock is taken by the first write.
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")
        (version,) = run("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise ConfigError(
                f"the journal {self._path} was written by another version of tollhouse "
                f"(format {version}): choose another --journal"
            )
        run(
            "CREATE TABLE IF NOT EXISTS counters (counter TEXT, span REAL, since INTEGER, "
            "until INTEGER, counted BLOB, PRIMARY KEY (counter, span, since)) WITHOUT ROWID"
        )
        run(f"PRAGMA user_version = {_VERSION}")
        run("COMMIT")

    def _unusable(self, error: Exception) -> ConfigError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        advice = (
            "another process uses it, so choose another --journal"
            if "locked" in str(error)
            else "repair or remove it, choose another --journal, or do without by --journal none"
        )
        return ConfigError(f"cannot keep the journal {self._path} ({reason}): {advice}")

    def load(self) -> list[Counter]:
        """Everything that was kept."""
        try:
            rows: list[Row] = self._file.execute(
                "SELECT counter, span, since, until, counted FROM counters"
            ).fetchall()
            return [_counter(found) for found in rows]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            self._file.close()
            raise self._unusable(error) from None

    async def write(self, rows: Iterable[Row], gone: Iterable[Key]) -> None:
        """Keep these and forget those, both or nothing. Raises sqlite3.Error."""
        await asyncio.get_running_loop().run_in_executor(
            self._thread, self._write, tuple(rows), tuple(gone)
        )

    def _write(self, rows: tuple[Row, ...], gone: tuple[Key, ...]) -> None:
        run = self._file.execute
        run("BEGIN IMMEDIATE")
        try:
            self._file.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)", rows)
            self._file.executemany(
                "DELETE FROM counters WHERE counter = ? AND span = ? AND since = ?", gone
            )
            run("COMMIT")
        except BaseException:
            if self._file.in_transaction:
                run("ROLLBACK")
            raise

    def close(self) -> None:
        """Let go of the file; what is being written is finished first."""
        self._thread.shutdown()
        self._file.close()


def _counter(found: Row) -> Counter:
    name, span, since, until, counted = found
    key = (name, span, since)
    if until:
        period = Period(key, 0)
        period.until = until
        period.counted = _amount.decode(counted)
        return period
    window = Window(key)
    for number, amount in _buckets.decode(counted):
        window.buckets.append([number, amount])
        window.counted += amount
    return window
