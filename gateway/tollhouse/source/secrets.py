"""Snapshots from the Secrets in which the operator keeps them."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Self

import structlog

from tollhouse.errors import ClusterError, ConfigError
from tollhouse.kube import Cluster, SecretData, backoff
from tollhouse.snapshot import (
    INDEX_KEY,
    SHARD_KEY,
    Assembler,
    ShardRef,
    decode_index,
    slot_name,
)
from tollhouse.source import Apply, Report, Status, Update, stopped

log = structlog.get_logger()

FETCHES_AT_ONCE = 8
SPREAD_SECONDS = 0.03
"""Fetches start at a random moment of this span: a thousand gateways do not arrive at once."""
_DECODE_ON_LOOP_BYTES = 16 * 1024
"""Compressed. More than this is decoded in a thread, so that requests are not held up."""
_LONGEST_WAIT_SECONDS = 30.0


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

    def reload(self) -> None:
        """Changes nothing: the index is watched, so there is never anything unseen."""

    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled."""
        status = Status(report)
        while True:
            try:
                await self._follow(apply, status)
            except Exception as error:
                # A fault of ours ends neither the source nor what is being served.
                log.exception("the snapshot could not be loaded")
                status.say("content", f"internal error: {type(error).__name__}", logged=True)
                await asyncio.sleep(_LONGEST_WAIT_SECONDS)

    async def _follow(self, apply: Apply, status: Status) -> None:
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
        await stopped(self._task)

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
