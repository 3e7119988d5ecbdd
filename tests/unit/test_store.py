"""The store: right whatever order events come in, and whole before anything is published."""

import asyncio
from typing import Any

from tollhouse_operator.audit import Audit, Scope
from tollhouse_operator.cluster import CallError, Identity
from tollhouse_operator.store import BY_KIND, BY_LABEL, BY_NAME, Key, Store

ROUTE = ("ModelRoute", "ai", "r")
SECRET = ("Secret", "ai", "s")


def _manifest(key: Key, version: int, uid: str = "u-1", **more: Any) -> dict[str, Any]:
    kind, namespace, name = key
    found: dict[str, Any] = {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "generation": version,
        },
    }
    if kind == "ModelRoute":
        found["spec"] = {"models": ["m"], "targets": [{"provider": {"name": "p"}}]}
    return {**found, **more}


class Changes:
    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.store = Store(self.keys.append)

    def observe(self, key: Key, version: int, source: str = BY_KIND, **more: Any) -> None:
        self.store.observe(key[0], _manifest(key, version, **more), source)

    def forget(self, key: Key, version: int, source: str = BY_KIND, **more: Any) -> None:
        self.store.forget(key[0], _manifest(key, version, **more), source)


class TestOrder:
    def test_a_deletion_that_comes_after_the_next_life_began_deletes_nothing(self) -> None:
        at = Changes()
        at.observe(ROUTE, 10, uid="first")
        at.observe(ROUTE, 30, uid="second")
        at.forget(ROUTE, 20, uid="first")
        assert ("ai", "r") in at.store.resources().routes

    def test_an_older_version_changes_nothing(self) -> None:
        at = Changes()
        at.observe(SECRET, 20, BY_NAME, data={"new": "bmV3LXZhbHVl"})
        at.observe(SECRET, 10, BY_NAME, data={"old": "b2xkLXZhbHVl"})
        assert set(at.store.resources().secrets["ai", "s"].data) == {"new"}

    def test_a_status_alone_is_no_change(self) -> None:
        at = Changes()
        manifest = _manifest(ROUTE, 10)
        at.store.observe("ModelRoute", manifest, BY_KIND)
        at.keys.clear()
        manifest["metadata"] |= {"resourceVersion": "11"}
        at.store.observe("ModelRoute", {**manifest, "status": {"conditions": []}}, BY_KIND)
        assert at.keys == []


class TestTwoReasons:
    def test_a_removed_label_leaves_a_secret_that_is_followed_by_name(self) -> None:
        at = Changes()
        at.observe(SECRET, 10, BY_LABEL)
        at.observe(SECRET, 10, BY_NAME)
        at.forget(SECRET, 11, BY_LABEL)
        assert ("ai", "s") in at.store.resources().secrets

    def test_a_deletion_seen_by_name_is_one(self) -> None:
        at = Changes()
        at.observe(SECRET, 10, BY_LABEL)
        at.observe(SECRET, 10, BY_NAME)
        at.forget(SECRET, 11, BY_NAME)
        assert ("ai", "s") not in at.store.resources().secrets

    def test_a_reference_that_is_dropped_leaves_a_labelled_secret(self) -> None:
        at = Changes()
        at.observe(SECRET, 10, BY_LABEL)
        at.observe(SECRET, 10, BY_NAME)
        at.store.release(*SECRET)
        assert ("ai", "s") in at.store.resources().secrets

    def test_a_removed_label_alone_is_the_end(self) -> None:
        at = Changes()
        at.observe(SECRET, 10, BY_LABEL)
        at.forget(SECRET, 11, BY_LABEL)
        assert ("ai", "s") not in at.store.resources().secrets


class Lists:
    """What the API server would list, by version; ``away`` makes it fail."""

    def __init__(self) -> None:
        self.items: list[Identity] = []
        self.version = "1"
        self.away = False
        self.calls = 0

    async def identities(self, where: str, *, labels: str = "") -> tuple[list[Identity], str]:
        self.calls += 1
        if self.away:
            raise CallError(where, None, "TimeoutError")
        return list(self.items), self.version

    async def get(self, where: str) -> dict[str, Any] | None:
        return None


def _audit(lists: Lists, store: Store) -> Audit:
    return Audit(lists, store, [Scope("ModelRoute", "ai", BY_KIND)])  # type: ignore[arg-type]  # because Lists is a Cluster only in what an Audit asks


async def _soon(audit: Audit) -> bool:
    try:
        async with asyncio.timeout(0.3):
            await audit.until_whole()
    except TimeoutError:
        return False
    return True


class TestWhole:
    """``audit`` decides when the first snapshot may be published."""

    async def test_not_before_every_listed_object_came_in(self) -> None:
        at, lists = Changes(), Lists()
        lists.items = [Identity(n, f"u-{n}", "5", "ai") for n in ("r", "other")]
        audit = _audit(lists, at.store)
        running = asyncio.create_task(audit.run())
        at.observe(ROUTE, 5)
        assert not await _soon(audit)
        at.observe(("ModelRoute", "ai", "other"), 5)
        assert await _soon(audit)
        running.cancel()

    async def test_not_by_an_older_version(self) -> None:
        at, lists = Changes(), Lists()
        lists.items = [Identity("r", "u-1", "5", "ai")]
        audit = _audit(lists, at.store)
        running = asyncio.create_task(audit.run())
        at.observe(ROUTE, 4)
        assert not await _soon(audit)
        running.cancel()

    async def test_not_while_the_api_server_is_away(self) -> None:
        at, lists = Changes(), Lists()
        lists.away = True
        audit = _audit(lists, at.store)
        running = asyncio.create_task(audit.run())
        assert not await _soon(audit)
        lists.away = False
        async with asyncio.timeout(5):
            await audit.until_whole()
        running.cancel()

    async def test_an_object_that_was_deleted_meanwhile_is_not_waited_for(self) -> None:
        at, lists = Changes(), Lists()
        lists.items = [Identity("r", "u-1", "5", "ai")]
        audit = _audit(lists, at.store)
        running = asyncio.create_task(audit.run())
        assert not await _soon(audit)
        lists.items = []
        async with asyncio.timeout(5):
            await audit.until_whole()
        running.cancel()

    async def test_what_vanished_while_a_watch_was_away_is_dropped(self) -> None:
        at, lists = Changes(), Lists()
        at.observe(ROUTE, 5)
        at.observe(("ModelRoute", "ai", "newer"), 9)
        audit = _audit(lists, at.store)
        running = asyncio.create_task(audit.run())
        assert await _soon(audit)
        lists.version = "7"
        audit.relisted()
        await asyncio.sleep(0.1)
        assert ("ai", "r") not in at.store.resources().routes
        assert ("ai", "newer") in at.store.resources().routes
        running.cancel()
