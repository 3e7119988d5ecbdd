"""kopf's part: watch, and hand every event to the store.

Handlers are ``on.event`` alone: they need no finalizer and no annotation on anybody's objects, and
they keep up with ten thousand of them, which ``kopf.index`` does not. What they cannot know, when
a first listing is over and what vanished between two watches, is ``audit``'s to find out.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import kopf

from tollhouse.resources import GROUP, KINDS, VERSION
from tollhouse_operator import keys
from tollhouse_operator.audit import Scope
from tollhouse_operator.cluster import SILENCE_SECONDS, WATCH_SECONDS, plural
from tollhouse_operator.store import BY_KIND, BY_LABEL, Store


class _Backoffs:
    """Seconds between tries of one API call, without end: an operator outlives its API server."""

    def __iter__(self) -> Iterator[float]:
        pause = 0.2
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(pause * 2, 10.0)


class _NoDiffs(kopf.DiffBaseStorage):
    """``on.event`` knows no difference to an object's last state; kopf would copy each object
    twice to find one, which is a fifth of all that an event costs."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Nor is there a handler whose progress would be kept on an object."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def scopes(namespaces: Sequence[str]) -> list[Scope]:
    """What the handlers follow: in these namespaces, or in the whole cluster where there are none.

    In the first case Namespaces are not among it, since that needs rights on the whole cluster.
    """
    where: Sequence[str | None] = namespaces or [None]
    found = [Scope(kind, namespace, BY_KIND) for kind in KINDS for namespace in where]
    found += [Scope("Secret", namespace, BY_LABEL, keys.SELECTOR) for namespace in where]
    if not namespaces:
        found.append(Scope("Namespace", None, BY_KIND))
    return found


def registry(
    store: Store,
    relisted: Callable[[], None],
    credentials: Callable[[], Awaitable[kopf.ConnectionInfo]],
    *,
    whole_cluster: bool,
) -> kopf.OperatorRegistry:
    """The handlers. ``relisted`` is called for each object that a list, not a watch, brought."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await credentials()

    def take(event: Any, source: str) -> None:
        found = event["object"]
        if event["type"] == "DELETED":
            store.forget(found["kind"], found, source)
            return
        store.observe(found["kind"], found, source)
        if event["type"] is None:
            relisted()

    async def by_kind(event: Any, **_: Any) -> None:
        take(event, BY_KIND)

    async def by_label(event: Any, **_: Any) -> None:
        take(event, BY_LABEL)

    for kind in KINDS:
        kopf.on.event(GROUP, VERSION, plural(kind), id=kind, registry=handlers)(by_kind)
    kopf.on.event("", "v1", "secrets", id="Secret", registry=handlers)(by_label)
    if whole_cluster:
        kopf.on.event("", "v1", "namespaces", id="Namespace", registry=handlers)(by_kind)
    return handlers


def settings() -> kopf.OperatorSettings:
    """kopf's settings: silent towards users' objects, patient with the API server."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.persistence.progress_storage = _NoProgress()
    chosen.scanning.disabled = True  # the CRDs are there before we start, or we do not start
    chosen.process.ultimate_exiting_timeout = 30
    chosen.networking.connect_timeout = 3
    chosen.networking.request_timeout = 60
    chosen.networking.error_backoffs = _Backoffs()
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.client_timeout = WATCH_SECONDS + 30
    chosen.watching.connect_timeout = 3
    chosen.watching.inactivity_timeout = SILENCE_SECONDS
    chosen.watching.label_selectors["", "v1", "secrets"] = keys.SELECTOR
    return chosen
