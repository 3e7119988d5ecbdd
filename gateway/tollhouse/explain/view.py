"""What a request is explained by: a folder, or a cluster as its user may see it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tollhouse.compile import KEY_NAME
from tollhouse.errors import ConfigError
from tollhouse.folder import FolderReader
from tollhouse.inventory import Inventory
from tollhouse.kubectl import Kubectl, Manifest
from tollhouse.resources import ApiKey, Ref, Resources, SecretObject, ServiceObject
from tollhouse.snapshot import Credential

_PLACEHOLDER = "sk-explain-placeholder-"
"""Stands for the key of an ApiKey whose Secret is not read."""


@dataclass(frozen=True, slots=True)
class View:
    """What a request is explained by. ``told`` has what the cluster itself says about an object,
    by kind and ref, in place of our findings; ``notes`` are for the reader."""

    resources: Resources
    told: Mapping[tuple[str, Ref], str]
    notes: tuple[str, ...] = ()


def of_folder(path: Path, environ: Mapping[str, str]) -> View:
    """A folder as ``tollhouse serve`` would read it. Raises ConfigError when it is not there."""
    loaded = FolderReader(path, environ).load()
    notes = tuple(f"{it.file}:{it.line} is not read: {it.message}" for it in loaded.problems)
    return View(loaded.resources, {}, notes)


def of_cluster(kubectl: Kubectl, *, keys: bool) -> View:
    """The custom resources as their user may read them; Secrets only for ``keys``.

    Whether a Secret or a Service is there is taken from the conditions that the operator wrote, so
    nobody needs the right to read one. Raises ConfigError.
    """
    manifests = kubectl.resources()
    notes: list[str] = []
    inventory = Inventory()
    try:
        for manifest in kubectl.namespaces():
            inventory.apply({**manifest, "apiVersion": "v1", "kind": "Namespace"})
    except ConfigError as error:
        notes.append(f"labels of namespaces are unknown, so selectors match none ({error})")
    told: dict[tuple[str, Ref], str] = {}
    for manifest in manifests:
        inventory.apply(_without_authorities(manifest))
        metadata = manifest["metadata"]
        for condition in (manifest.get("status") or {}).get("conditions") or ():
            if condition["type"] == "ResolvedRefs" and condition["status"] == "False":
                about = (manifest["kind"], (metadata["namespace"], metadata["name"]))
                told[about] = f"{condition['reason']}: {condition['message']}"
    for manifest in kubectl.keys() if keys else ():
        inventory.apply({**manifest, "apiVersion": "v1", "kind": "Secret"})
    return View(_assumed(inventory.resources(), told), told, tuple(notes))


def secret_of(resource: ApiKey) -> Ref:
    """Namespace and name of the ApiKey's Secret."""
    return resource.metadata.namespace, resource.spec.secret_name or resource.metadata.name


def _without_authorities(manifest: Manifest) -> Manifest:
    """A Provider without its ``tls``: whether its certificates are fit is in its conditions."""
    spec = manifest.get("spec")
    if manifest.get("kind") != "Provider" or not isinstance(spec, Mapping):
        return manifest
    return {**manifest, "spec": {key: it for key, it in spec.items() if key != "tls"}}


def _assumed(resources: Resources, told: Mapping[tuple[str, Ref], str]) -> Resources:
    """With a stand-in for each Secret and Service that the operator found, by its conditions."""
    secrets = dict(resources.secrets)
    services = dict(resources.services)

    def stand_in(ref: Ref, key: str) -> None:
        before = secrets.get(ref) or SecretObject(*ref, {})
        value = before.data.get(key) or Credential(f"{_PLACEHOLDER}{'/'.join(ref)}")
        secrets[ref] = SecretObject(*ref, {**before.data, key: value}, before.annotations)

    for ref, provider in resources.providers.items():
        if (provider.kind, ref) in told:
            continue
        spec = provider.spec
        if spec.credentials is not None and spec.credentials.secret_ref is not None:
            named = spec.credentials.secret_ref
            stand_in((ref[0], named.name), named.key)
        if spec.service_ref is not None:
            services[ref[0], spec.service_ref.name] = ServiceObject(ref[0], spec.service_ref.name)
    for ref, resource in resources.api_keys.items():
        if (resource.kind, ref) not in told:
            stand_in(secret_of(resource), KEY_NAME)
    return replace(resources, secrets=secrets, services=services)
