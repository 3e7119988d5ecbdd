"""Every object that a snapshot depends on, kept up to date one manifest at a time.

It remembers the last good version of each: an object whose newer version does not parse stays in
force as it was, and is listed in ``Resources.refused`` until it is mended or removed.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tollhouse.resources import (
    GROUP,
    KINDS,
    ConfigMapObject,
    ModelRoute,
    NamespaceObject,
    Problem,
    Ref,
    Refused,
    Resource,
    ResourceError,
    Resources,
    SecretObject,
    ServiceObject,
    parse,
)
from tollhouse.snapshot import Credential

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""The label that the API server gives every Namespace: its name."""
PLATFORM_LABEL = f"{GROUP}/platform"
"""``"true"`` on a Namespace: its routes go before those that others share. Only who may edit
Namespaces can give it, so no tenant can."""
DEFAULT_NAMESPACE = "default"

_FIELDS: Mapping[str, str] = {
    "Provider": "providers",
    "ModelRoute": "routes",
    "ApiKey": "api_keys",
    "RateLimitPolicy": "policies",
    "Budget": "budgets",
    "Secret": "secrets",
    "ConfigMap": "config_maps",
    "Service": "services",
    "Namespace": "namespaces",
}
"""The kinds that are kept, and where ``Resources`` has them."""


def identify(manifest: Mapping[str, Any]) -> tuple[str, Ref] | None:
    """(kind, (namespace, name)) of a manifest that an inventory keeps, else None.

    A Namespace has itself as its namespace.
    """
    kind = str(manifest.get("kind"))
    group = str(manifest.get("apiVersion")).rpartition("/")[0]
    metadata = manifest.get("metadata")
    if kind not in _FIELDS or group != (GROUP if kind in KINDS else ""):
        return None
    if not isinstance(metadata, Mapping) or metadata.get("name") in (None, ""):
        return None
    name = str(metadata["name"])
    if kind == "Namespace":
        return kind, (name, name)
    return kind, (str(metadata.get("namespace") or DEFAULT_NAMESPACE), name)


class Inventory:
    """Not for several threads at once; what ``resources`` returns may go to any.

    ``platform`` names namespaces that are the platform's without a label that says so.
    """

    def __init__(self, platform: Iterable[str] = ()) -> None:
        self._platform = frozenset(platform)
        self._tables: dict[str, dict[Ref, Any]] = {kind: {} for kind in _FIELDS}
        self._refused: dict[tuple[str, Ref], Refused] = {}
        self._copies: dict[str, Mapping[Any, Any]] = {}

    def apply(self, manifest: Mapping[str, Any]) -> bool:
        """Takes in an object as it is now; True when that changed anything.

        An object that is being deleted counts as gone. Other kinds, and what has no name, are
        ignored.
        """
        identity = identify(manifest)
        if identity is None:
            return False
        kind, ref = identity
        if manifest["metadata"].get("deletionTimestamp") is not None:
            return self.remove(kind, *ref)
        known, refused = self._tables[kind].get(ref), self._refused.get(identity)
        try:
            read = _READERS.get(kind)
            found = parse(_relevant(manifest)) if read is None else read(manifest, ref)
        except ResourceError as error:
            generation = manifest["metadata"].get("generation")
            now = Refused(
                kind=kind,
                ref=ref,
                generation=generation if isinstance(generation, int) else 0,
                problems=error.problems,
                kept=known is not None,
            )
            self._refused[identity] = now
            return now != refused
        self._refused.pop(identity, None)
        if refused is None and _same(found, known):
            return False
        self._tables[kind][ref] = found
        self._copies.pop(kind, None)
        return True

    def remove(self, kind: str, namespace: str, name: str) -> bool:
        """Forgets an object, whatever its state; True when it was known."""
        ref = (name, name) if kind == "Namespace" else (namespace, name)
        refused = self._refused.pop((kind, ref), None)
        known = self._tables.get(kind, {}).pop(ref, None)
        self._copies.pop(kind, None)
        return known is not None or refused is not None

    def known(self, kind: str, ref: Ref) -> Resource | None:
        """The last good version of a custom resource."""
        found = self._tables.get(kind, {}).get(ref)
        return found if isinstance(found, Resource) else None

    def resources(self) -> Resources:
        """All objects as they are now; later changes do not show in it."""
        for kind, table in self._tables.items():
            if kind not in self._copies:
                self._copies[kind] = (
                    {name: found for (name, _), found in table.items()}
                    if kind == "Namespace"
                    else dict(table)
                )
        refused = tuple(self._refused[identity] for identity in sorted(self._refused))
        fields: dict[str, Any] = {field: self._copies[kind] for kind, field in _FIELDS.items()}
        return Resources(**fields, refused=refused, platform=self._platform)


def _same(found: object, known: object) -> bool:
    """Whether nothing differs. To Python 1, 1.0 and True are equal, to a provider they are not."""
    if found != known:
        return False
    if isinstance(found, ModelRoute) and isinstance(known, ModelRoute):
        return found.spec.parameters.model_dump_json() == known.spec.parameters.model_dump_json()
    return True


_METADATA = ("name", "namespace", "uid", "generation", "creationTimestamp", "labels")


def _relevant(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest without what would cost much and say nothing: managed fields and status."""
    metadata = manifest["metadata"]
    kept = {key: metadata[key] for key in _METADATA if metadata.get(key) is not None}
    kept["annotations"] = ours(metadata.get("annotations"))
    return {key: value for key, value in manifest.items() if key != "status"} | {"metadata": kept}


def ours(annotations: Any) -> dict[str, str]:
    """Our own annotations alone. kubectl's hold the whole manifest, a Secret's values included."""
    if not isinstance(annotations, Mapping):
        return {}
    return {
        key: value
        for key, value in annotations.items()
        if key.startswith(f"{GROUP}/") and isinstance(value, str)
    }


def _secret(manifest: Mapping[str, Any], ref: Ref) -> SecretObject:
    data: dict[str, Credential] = {}
    problems: list[Problem] = []
    for key, value in _entries(manifest, "data", problems):
        try:
            decoded = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            problems.append(
                Problem(("data", key), "must be base64; plain text belongs into stringData")
            )
            continue
        try:
            data[key] = Credential(decoded.decode())
        except UnicodeDecodeError:
            # Binary data is somebody else's: no credential or certificate is.
            continue
    for key, value in _entries(manifest, "stringData", problems):
        data[key] = Credential(value)
    if problems:
        raise ResourceError(tuple(problems))
    return SecretObject(*ref, data, ours(manifest["metadata"].get("annotations")))


def _config_map(manifest: Mapping[str, Any], ref: Ref) -> ConfigMapObject:
    problems: list[Problem] = []
    data = dict(_entries(manifest, "data", problems))
    if problems:
        raise ResourceError(tuple(problems))
    return ConfigMapObject(*ref, data)


def _service(manifest: Mapping[str, Any], ref: Ref) -> ServiceObject:
    spec = manifest.get("spec")
    ports = spec.get("ports") if isinstance(spec, Mapping) else None
    numbers = [port.get("port") for port in ports or () if isinstance(port, Mapping)]
    return ServiceObject(*ref, tuple(number for number in numbers if isinstance(number, int)))


def _namespace(manifest: Mapping[str, Any], ref: Ref) -> NamespaceObject:
    _, name = ref
    labels = manifest["metadata"].get("labels")
    given = labels if isinstance(labels, Mapping) else {}
    return NamespaceObject(name, {**given, NAMESPACE_LABEL: name})


_READERS: Mapping[str, Callable[[Mapping[str, Any], Ref], Any]] = {
    "Secret": _secret,
    "ConfigMap": _config_map,
    "Service": _service,
    "Namespace": _namespace,
}


def _entries(
    manifest: Mapping[str, Any], field: str, problems: list[Problem]
) -> Iterator[tuple[str, str]]:
    """The text entries of a map; others are added to the problems, without their values."""
    entries = manifest.get(field)
    if entries is not None and not isinstance(entries, Mapping):
        problems.append(Problem((field,), "must be a map of names to values"))
        return
    for key, value in (entries or {}).items():
        if isinstance(value, str):
            yield str(key), value
        else:
            message = "must be a string; put numbers and true or false in quotes"
            problems.append(Problem((field, str(key)), message))
