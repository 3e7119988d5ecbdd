"""Where snapshots come from: a folder of YAML, or Secrets in the cluster.

Both sources work alike. They hand over whole snapshots, each only when it differs from the one
before, never an older one after a newer. Whatever goes wrong, the last good snapshot stays in
force, what is wrong is logged once and reported, and the source tries again by itself.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import structlog
from watchfiles import awatch

from tollhouse.compile import Finding, Reason, compile_snapshot
from tollhouse.errors import ClusterError, ConfigError
from tollhouse.folder import FolderReader, Loaded, find_files
from tollhouse.kube import Cluster, SecretData, backoff
from tollhouse.snapshot import (
    INDEX_KEY,
    SHARD_KEY,
    Assembler,
    ShardRef,
    Snapshot,
    decode_index,
    digest_of,
    shards,
    slot_name,
    whole_digest,
)

log = structlog.get_logger()

FETCHES_AT_ONCE = 8
SPREAD_SECONDS = 0.03
"""Fetches start at a random moment of this span: a thousand gateways do not arrive at once."""
_DECODE_ON_LOOP_BYTES = 16 * 1024
"""Compressed. More than this is decoded in a thread, so that requests are not held up."""
_DEBOUNCE_MS = 50
_QUIET_MS = 20
_LOOK_SECONDS = 1.0
_WATCH_AGAIN_SECONDS = 30.0
_LONGEST_WAIT_SECONDS = 30.0
_PROBLEMS_REPORTED = 5
"""More would make /config unreadable; the log has them all."""


@dataclass(frozen=True, slots=True)
class Update:
    """A snapshot to serve from now on; ``digest`` names its content, whatever it came from."""

    snapshot: Snapshot
    digest: str


Apply = Callable[[Update], None]
"""Puts a snapshot into force, or raises ConfigError and leaves the one before in force."""

Report = Callable[[bool, str | None], None]
"""Called on change only, with whether what is in force is what the source says, and if not, why.
The source has logged it already."""


class Source(Protocol):
    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled. ``apply`` and ``report`` are called on the event loop."""


class _Status:
    """Reports and logs what changes about being in sync, and nothing twice.

    Being in sync has parts: every one of them must be free of problems.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._parts: dict[str, str | None] = {}
        self._said: str | None = "nothing yet"

    def say(self, part: str, problem: str | None, *, logged: bool = False) -> None:
        """``problem`` None: this part is well. ``logged``: the details are in the log already."""
        self._parts[part] = problem
        now = "; ".join(text for text in self._parts.values() if text) or None
        if now == self._said or (now is None and "content" not in self._parts):
            return
        if now is None:
            log.info("configuration in sync")
        elif not logged:
            log.warning("configuration out of sync, what was good before stays", problem=now)
        self._said = now
        self._report(now is None, now)


class FolderSource:
    """Compiles the YAML of a folder and follows its edits.

    ``environ`` is where credentials come from that have no Secret in the folder. Reading and
    compiling happen in a thread.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._path = path
        self._reader = FolderReader(path, environ)
        self._wake = asyncio.Event()
        self._digest: str | None = None
        self._logged: frozenset[str] = frozenset()

    def reload(self) -> None:
        """Read the folder again now, whether or not anything seems to have changed."""
        self._wake.set()

    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled."""
        status = _Status(report)
        seen: object = None
        self._wake.set()
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                now = await asyncio.to_thread(_fingerprint, self._path)
                if not self._wake.is_set():
                    if now == seen:
                        continue
                    # Missed by the watch: what it watches is perhaps not what the path names now.
                    await _stop(watch)
                    watch = asyncio.create_task(self._watch())
                self._wake.clear()
                seen = now
                await self._load(apply, status)
        finally:
            await _stop(watch)

    async def _watch(self) -> None:
        """Wakes the loop soon after an edit. It may miss some: the loop looks for itself too."""
        told: str | None = None
        while True:
            try:
                async for _ in awatch(
                    self._path,
                    watch_filter=None,
                    debounce=_DEBOUNCE_MS,
                    step=_QUIET_MS,
                    rust_timeout=1000,
                ):
                    self._wake.set()
            except (OSError, RuntimeError) as error:
                # The limits of inotify, a file system without it, or a folder that is not there.
                if told != str(error):
                    told = str(error)
                    log.info("no notification of edits, looking every second", reason=told)
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    async def _load(self, apply: Apply, status: _Status) -> None:
        try:
            folder = await asyncio.to_thread(_compile, self._reader)
            if folder.update.digest != self._digest:
                apply(folder.update)
                self._digest = folder.update.digest
        except (ConfigError, OSError) as error:
            status.say("content", str(error))
        except Exception as error:
            # A fault of ours ends neither the source nor what is being served.
            log.exception("the folder could not be loaded")
            status.say("content", f"internal error: {type(error).__name__}", logged=True)
        else:
            for text in folder.errors:
                if text not in self._logged:
                    log.error(text)
            for text in folder.warnings:
                if text not in self._logged:
                    log.warning(text)
            self._logged = frozenset(folder.errors + folder.warnings)
            status.say("content", _brief(folder.stale), logged=True)


@dataclass(frozen=True, slots=True)
class _CompiledFolder:
    """``stale`` are the errors for which something older, or nothing, is in force."""

    update: Update
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    stale: tuple[str, ...]


def _compile(reader: FolderReader) -> _CompiledFolder:
    loaded = reader.load()
    compiled = compile_snapshot(loaded.resources)
    digests = {name: digest_of(data) for name, data in shards(compiled.snapshot).items()}
    unread = [f"{problem.file}:{problem.line} {problem.message}" for problem in loaded.problems]
    invalid = [_line(loaded, it) for it in compiled.findings if it.reason is Reason.INVALID]
    errors = [
        _line(loaded, it)
        for it in compiled.findings
        if it.severity == "Error" and it.reason is not Reason.INVALID
    ]
    return _CompiledFolder(
        update=Update(compiled.snapshot, whole_digest(digests)),
        errors=(*unread, *invalid, *errors),
        warnings=tuple(_line(loaded, it) for it in compiled.findings if it.severity == "Warning"),
        stale=(*unread, *invalid),
    )


def _line(loaded: Loaded, finding: Finding) -> str:
    where = loaded.locate(finding)
    what = f"{finding.kind} {finding.namespace}/{finding.name}: {loaded.explain(finding)}"
    return f"{where[0]}:{where[1]} {what}" if where else what


def _brief(problems: tuple[str, ...]) -> str | None:
    more = len(problems) - _PROBLEMS_REPORTED
    shown = [*problems[:_PROBLEMS_REPORTED], *([f"and {more} more"] if more > 0 else [])]
    return "; ".join(shown) or None


def _fingerprint(path: Path) -> object:
    """Something that differs when a file did; links are followed to what they name."""
    found = []
    with contextlib.suppress(ConfigError):
        for name, file in find_files(path):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


class SecretSource:
    """Follows the snapshot that the operator keeps in the Secrets ``NAME-0`` … ``NAME-63``.

    The index is watched; a shard is fetched only when its digest changed. Whatever is unfit (a
    shard gone, replaced meanwhile, or broken) is tried again from a fresh index. ``spread`` is the
    span in seconds from which each gateway draws how long it waits before it fetches.
    """

    def __init__(
        self, namespace: str, name: str, cluster: Cluster, *, spread: float = SPREAD_SECONDS
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._cluster = cluster
        self._spread = spread
        self._assembler = Assembler()
        self._digest: str | None = None
        self._failures = 0

    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled."""
        status = _Status(report)
        while True:
            try:
                await self._follow(apply, status)
            except Exception as error:
                # A fault of ours ends neither the source nor what is being served.
                log.exception("the snapshot could not be loaded")
                status.say("content", f"internal error: {type(error).__name__}", logged=True)
                await asyncio.sleep(_LONGEST_WAIT_SECONDS)

    async def _follow(self, apply: Apply, status: _Status) -> None:
        """Takes one index after another; returns when the index should be read afresh."""

        def trouble(error: ClusterError | None) -> None:
            status.say("watch", None if error is None else f"the snapshot is not watched: {error}")

        watch = self._cluster.watch_secret(self._namespace, slot_name(self._name, 0), trouble)
        async with _Newest(watch) as indexes:
            patience: float | None = None
            while True:
                try:
                    async with asyncio.timeout(patience):
                        state = await indexes.next()
                except TimeoutError:
                    return
                try:
                    status.say("content", await self._take(state, apply))
                except (ConfigError, ClusterError) as error:
                    if indexes.waiting:
                        continue  # outdated while its shards were fetched
                    # Once is no news either: the next index may be on its way.
                    if self._failures:
                        status.say("content", str(error))
                    patience = backoff(self._failures, most=_LONGEST_WAIT_SECONDS)
                    self._failures += 1
                else:
                    patience, self._failures = None, 0

    async def _take(self, state: SecretData | None, apply: Apply) -> str | None:
        """Puts the snapshot of this index into force, or says what there is to wait for.

        Raises ConfigError (SnapshotError mostly) and ClusterError, with nothing changed.
        """
        if state is None:
            index_name = f"Secret {self._namespace}/{slot_name(self._name, 0)}"
            if self._digest is None:
                return f"no snapshot yet ({index_name}): is the operator running?"
            return f"{index_name} was deleted: is the operator running?"
        index = decode_index(state.data.get(INDEX_KEY, b""))
        if index.digest == self._digest:
            return None
        missing = self._assembler.missing(index)
        if missing and self._digest is not None:
            await asyncio.sleep(random.uniform(0, self._spread))
        fetched = await self._fetch(missing)
        if sum(map(len, fetched.values())) > _DECODE_ON_LOOP_BYTES:
            snapshot = await asyncio.to_thread(self._assembler.assemble, index, fetched)
        else:
            snapshot = self._assembler.assemble(index, fetched)
        apply(Update(snapshot, index.digest))
        self._digest = index.digest
        return None

    async def _fetch(self, missing: Mapping[str, ShardRef]) -> dict[str, bytes]:
        """The bytes of these shards by name; those that are not there are left out."""
        gate = asyncio.Semaphore(FETCHES_AT_ONCE)
        fetched: dict[str, bytes] = {}
        errors: list[ClusterError] = []

        async def fetch(name: str, slot: int) -> None:
            async with gate:
                try:
                    found = await self._cluster.secret(self._namespace, slot_name(self._name, slot))
                except ClusterError as error:
                    errors.append(error)
                else:
                    if found is not None and SHARD_KEY in found.data:
                        fetched[name] = found.data[SHARD_KEY]

        async with asyncio.TaskGroup() as tasks:
            for name, ref in missing.items():
                tasks.create_task(fetch(name, ref.slot))
        if errors:
            raise errors[0]
        return fetched


class _Newest:
    """The newest state of a watch. A task of its own drains it, so that work on one state never
    makes the next wait in line: what is outdated by then is never seen."""

    def __init__(self, watch: AsyncGenerator[SecretData | None, None]) -> None:
        self._watch = watch
        self._arrived = asyncio.Event()
        self._state: SecretData | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._drain())
        return self

    async def __aexit__(self, *_: object) -> None:
        await _stop(self._task)

    @property
    def waiting(self) -> bool:
        """Whether ``next`` would return at once."""
        return self._arrived.is_set()

    async def next(self) -> SecretData | None:
        """Waits for a state newer than the last one returned. Raises what the watch did."""
        await self._arrived.wait()
        self._arrived.clear()
        if self._task.done():
            self._task.result()
        return self._state

    async def _drain(self) -> None:
        try:
            async with contextlib.aclosing(self._watch) as states:
                async for state in states:
                    self._state = state
                    self._arrived.set()
        finally:
            self._arrived.set()


async def _stop(task: "asyncio.Task[None]") -> None:
    """Cancels and waits until the task is gone, whatever it ended with."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
