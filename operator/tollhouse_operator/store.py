"""The operator's own picture of the cluster, fed by every watch.

Events of one object can arrive out of order: kopf handles an object and its namesake of a later
life in different tasks, a Secret can be followed twice, and our own writes are noted before their
event comes. Resource versions put them right: what is older than what is known changes nothing.
The API promises that versions of one resource type can be compared as integers (KEP-5504).

What this module will not do: ask the API server anything, or decide what to publish.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tollhouse.inventory import Inventory, ours
from tollhouse.resources import GROUP, KINDS, VERSION, Resources

Key = tuple[str, str | None, str]
"""Kind, namespace (None for a Namespace itself) and name."""

BY_KIND = "kind"
BY_LABEL = "label"
BY_NAME = "name"
"""Why an object is followed. One that is followed twice stays known until neither reason holds."""

_NOTHING: frozenset[str] = frozenset()
_API_VERSIONS = dict.fromkeys(KINDS, f"{GROUP}/{VERSION}")


@dataclass(slots=True)
class Seen:
    """The newest version of one object that any watch showed.

    ``status`` is a custom resource's own; ``data`` names a Secret's entries that are not empty,
    and ``owned`` says that a Secret goes when its ApiKey goes.
    """

    uid: str
    version: int
    generation: int
    status: Mapping[str, Any]
    data: frozenset[str]
    owned: bool = False
    sources: set[str] = field(default_factory=set)


class Store:
    """``changed`` is called with the key of each object whose content became another, ``touched``
    with each custom resource of which there is a new version, whatever is new about it.
    ``platform`` names the namespaces that are the platform's without a label."""

    def __init__(
        self,
        changed: Callable[[Key], None],
        touched: Callable[[Key], None] = lambda _: None,
        platform: Iterable[str] = (),
    ) -> None:
        self._inventory = Inventory(platform)
        self._seen: dict[Key, Seen] = {}
        self._changed = changed
        self._touched = touched

    def resources(self) -> Resources:
        """Everything known, as ``compile`` takes it."""
        return self._inventory.resources()

    def observe(self, kind: str, manifest: Mapping[str, Any], source: str) -> None:
        """Take in an object that exists, as any watch, list or answer showed it."""
        key = key_of(kind, manifest)
        metadata = manifest["metadata"]
        version = int(metadata["resourceVersion"])
        seen = self._seen.get(key)
        if seen is not None and version <= seen.version:
            seen.sources.add(source)
            return
        self._seen[key] = Seen(
            uid=metadata["uid"],
            version=version,
            generation=metadata.get("generation", 0),
            status=(manifest.get("status") or {}) if kind in KINDS else {},
            data=frozenset(name for name, value in (manifest.get("data") or {}).items() if value)
            if kind == "Secret"
            else _NOTHING,
            owned=kind == "Secret" and _owned(metadata),
            sources={source} if seen is None else seen.sources | {source},
        )
        if seen is None or not self._only_status(key, seen, metadata):
            api_version = _API_VERSIONS.get(kind, "v1")
            if self._inventory.apply({**manifest, "kind": kind, "apiVersion": api_version}):
                self._changed(key)
        if kind in KINDS:
            self._touched(key)

    def forget(self, kind: str, manifest: Mapping[str, Any], source: str) -> None:
        """Take in that ``source`` showed the object's deletion.

        To a watch by label a removed label is a deletion too, so an object that is followed by
        its name as well stays.
        """
        key = key_of(kind, manifest)
        seen = self._seen.get(key)
        if seen is None or seen.version > int(manifest["metadata"]["resourceVersion"]):
            return
        if source == BY_LABEL and BY_NAME in seen.sources:
            seen.sources.discard(source)
        else:
            self._remove(key)

    def release(self, kind: str, namespace: str | None, name: str) -> None:
        """The object is not there, or no longer followed, by its name."""
        key = (kind, namespace, name)
        seen = self._seen.get(key)
        if seen is None:
            return
        seen.sources.discard(BY_NAME)
        if not seen.sources:
            self._remove(key)

    def drop(self, key: Key, source: str, version: int) -> None:
        """A list at ``version`` did not have the object: forget it unless it is newer than that."""
        seen = self._seen.get(key)
        if seen is None or seen.version > version:
            return
        seen.sources.discard(source)
        if not seen.sources:
            self._remove(key)

    def knows(self, key: Key, version: int, source: str) -> bool:
        """Whether this version of the object, or a later one, came in from ``source``."""
        seen = self._seen.get(key)
        return seen is not None and seen.version >= version and source in seen.sources

    def seen(self, key: Key) -> Seen | None:
        return self._seen.get(key)

    def keys(self, kind: str, namespace: str | None, source: str) -> list[Key]:
        """The objects of a kind that ``source`` showed; ``namespace`` None means all of them."""
        return [
            key
            for key, seen in self._seen.items()
            if key[0] == kind and source in seen.sources and namespace in (None, key[1])
        ]

    def custom(self) -> Iterator[tuple[Key, Seen]]:
        """Every custom resource, also those that do not parse."""
        return ((key, seen) for key, seen in list(self._seen.items()) if key[0] in KINDS)

    def _only_status(self, key: Key, seen: Seen, metadata: Mapping[str, Any]) -> bool:
        """Whether a new version says nothing new but in its status: then it need not be parsed.

        The API server counts a custom resource's generation up with every change of its spec.
        """
        kind, namespace, name = key
        if kind not in KINDS or metadata.get("deletionTimestamp") is not None:
            return False
        generation = metadata.get("generation", 0)
        if not generation or (seen.uid, seen.generation) != (metadata["uid"], generation):
            return False
        known = self._inventory.known(kind, (namespace or "", name))
        return (
            known is not None
            and known.metadata.generation == generation
            and known.metadata.labels == (metadata.get("labels") or {})
            and known.metadata.annotations == ours(metadata.get("annotations"))
        )

    def _remove(self, key: Key) -> None:
        kind, namespace, name = key
        del self._seen[key]
        if self._inventory.remove(kind, namespace or "", name):
            self._changed(key)


def key_of(kind: str, manifest: Mapping[str, Any]) -> Key:
    metadata = manifest["metadata"]
    return kind, metadata.get("namespace"), metadata["name"]


def _owned(metadata: Mapping[str, Any]) -> bool:
    owners = metadata.get("ownerReferences") or ()
    return any(
        it["kind"] == "ApiKey" and it["apiVersion"] == _API_VERSIONS["ApiKey"] for it in owners
    )
