"""What resources refer to, watched one object at a time.

A provider's Secret, a CA bundle, a Service: each is followed by its own name, so the operator
never asks for every Secret of the cluster. A reference is *unread* until the API server has
answered for it, found or not found; nothing that depends on it may be published before that.
"""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import structlog

from tollhouse_operator.cluster import CallError, Cluster, path
from tollhouse_operator.store import BY_NAME, Store
from tollhouse_operator.watching import Watch

_log = structlog.get_logger(__name__)

Reference = tuple[str, str | None, str]
"""Kind, namespace (None for a Namespace itself) and name."""

REFUSED_SECONDS = 30.0
"""An API server that is starting refuses what it will soon allow. After this long a refusal is
taken for an answer: the object cannot be read, as if it were not there."""
_REFUSALS = (401, 403)


class References:
    """Owns one watch for each wanted reference. ``answered`` is called when one becomes read."""

    def __init__(self, cluster: Cluster, store: Store, answered: Callable[[], None]) -> None:
        self._cluster = cluster
        self._store = store
        self._answered = answered
        self._followed: dict[Reference, _Followed] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def want(self, references: Iterable[Reference]) -> None:
        """Follow exactly these from now on."""
        wanted = frozenset(references)
        for reference in self._followed.keys() - wanted:
            followed = self._followed.pop(reference)
            followed.task.cancel()
            self._leaving.add(followed.task)
            followed.task.add_done_callback(self._leaving.discard)
            self._store.release(*reference)
        for reference in wanted - self._followed.keys():
            self._followed[reference] = _Followed(
                self._cluster, self._store, reference, self._answered
            )

    def unread(self) -> list[Reference]:
        """The references that the API server has not answered for yet."""
        return [reference for reference, one in self._followed.items() if not one.read]

    async def close(self) -> None:
        """Stop every watch."""
        tasks = self._leaving | {followed.task for followed in self._followed.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._followed.clear()


class _Followed:
    """One reference and the task that follows it."""

    def __init__(
        self, cluster: Cluster, store: Store, reference: Reference, answered: Callable[[], None]
    ) -> None:
        kind, namespace, name = reference
        self._reference = reference
        self._store = store
        self._answered = answered
        self._refused_since: float | None = None
        self.read = False
        watch = Watch(
            cluster,
            path(kind, namespace),
            fields=f"metadata.name={name}",
            listed=self._listed,
            changed=self._changed,
            failed=self._failed,
        )
        self.task = asyncio.create_task(watch.run(), name=f"watch {kind} {namespace}/{name}")

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self._refused_since = None
        kind = self._reference[0]
        if items:
            self._store.observe(kind, items[0], BY_NAME)
        else:
            self._store.release(*self._reference)
        self._answer()

    def _changed(self, event: str, found: dict[str, Any]) -> None:
        if event == "DELETED":
            self._store.forget(self._reference[0], found, BY_NAME)
        else:
            self._store.observe(self._reference[0], found, BY_NAME)

    def _failed(self, error: CallError) -> None:
        if self.read or error.status not in _REFUSALS:
            return
        now = monotonic()
        if self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since > REFUSED_SECONDS:
            kind, namespace, name = self._reference
            _log.error("reference may not be read", kind=kind, namespace=namespace, name=name)
            self._answer()

    def _answer(self) -> None:
        if not self.read:
            self.read = True
            self._answered()
