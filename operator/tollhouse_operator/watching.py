"""Follow a collection of objects: what is there now, then every change, for as long as we run."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import structlog

from tollhouse_operator.cluster import AWAY_SECONDS, CallError, Cluster, backoff

_log = structlog.get_logger(__name__)

_GONE = 410
_STEADY_SECONDS = 1.0
"""A watch that ended sooner than this is not opened again without a pause."""


class Watch:
    """Lists, then watches, and lists again only when the API server has forgotten our place.

    ``listed`` gets all that exists, so that it can drop what it knew and is not among it;
    ``changed`` gets (type, object) in order; ``failed`` hears of every failure before it is tried
    again. None of them may block. ``fields`` and ``labels`` are selectors.
    """

    def __init__(
        self,
        cluster: Cluster,
        where: str,
        *,
        listed: Callable[[list[dict[str, Any]]], None],
        changed: Callable[[str, dict[str, Any]], None],
        failed: Callable[[CallError], None] = lambda _: None,
        labels: str = "",
        fields: str = "",
    ) -> None:
        self._cluster = cluster
        self._where = where
        self._listed = listed
        self._changed = changed
        self._failed = failed
        self._labels = labels
        self._fields = fields

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        loop = asyncio.get_running_loop()
        version: str | None = None
        failures = 0
        while True:
            started = loop.time()
            try:
                if version is None:
                    listing = await self._cluster.listing(
                        self._where, labels=self._labels, fields=self._fields
                    )
                    version = listing.version
                    self._listed(listing.items)
                version = await self._follow(version)
                failures = 0 if loop.time() - started > _STEADY_SECONDS else failures + 1
            except _Interrupted as interrupted:
                error = interrupted.error
                steady = loop.time() - started > _STEADY_SECONDS
                failures = 0 if steady and error.status is None else failures + 1
                version = None if error.status is not None else interrupted.version
                if error.status != _GONE:
                    self._failed(error)
                    _log.info("watch interrupted", where=self._where, reason=error.reason)
            except CallError as error:
                failures += 1
                self._failed(error)
                _log.warning("list failed", error=str(error), failures=failures)
            if failures:
                await asyncio.sleep(backoff(failures - 1, most=AWAY_SECONDS))

    async def _follow(self, version: str) -> str:
        stream = self._cluster.watch(self._where, version, labels=self._labels, fields=self._fields)
        try:
            async with aclosing(stream) as events:
                async for kind, found in events:
                    version = found["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        self._changed(kind, found)
        except CallError as error:
            raise _Interrupted(error, version) from error
        return version


class _Interrupted(Exception):
    """A watch broke; ``version`` is how far it came."""

    def __init__(self, error: CallError, version: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.version = version
