"""Another gateway's configuration → custom resources, and a list of what needs a person.

Secrets that a configuration holds in clear are kept apart (``Imported.secrets``): they are written
to a file that only its owner may read, and only when that was asked for.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tollhouse.errors import ConfigError
from tollhouse.resources import GROUP, VERSION
from tollhouse.snapshot import Credential

Manifest = dict[str, Any]
Sort = Literal["do", "differs", "no equivalent"]


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to know about one place of the configuration.

    ``path`` leads there (``model_list[0].litellm_params.rpm``). ``do`` is work that is left,
    ``differs`` what was carried over with another meaning, ``no equivalent`` what was not carried
    over. No remark holds a value of the configuration.
    """

    sort: Sort
    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.sort}: {self.path}: {self.why}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Secret that the resources name: its data key, where its value is said to be, and the value
    itself where the configuration holds it in clear.

    ``generated``: without the Secret the operator makes one, so no placeholder is needed.
    """

    name: str
    key: str
    said: str
    value: Credential | None = None
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """``files`` holds manifests by the name of the file they belong into."""

    namespace: str
    files: Mapping[str, Sequence[Manifest]]
    secrets: tuple[Wanted, ...]
    remarks: tuple[Remark, ...] = field(default=())

    def to_yaml(self) -> str:
        """Everything as one stream of documents, without any secret value."""
        manifests = [it for each in self.files.values() for it in each]
        return text([*manifests, *self.secret_manifests(with_values=False)])

    def secret_manifests(self, *, with_values: bool) -> list[Manifest]:
        """The Secrets, with their values or with a placeholder for each.

        A caller's key gets no placeholder: one that everybody can guess would let them in.
        """
        found = []
        for wanted in self.secrets:
            known = wanted.value is not None and with_values
            if wanted.generated and not known:
                continue
            value = f"REPLACE-ME-with-{wanted.said}"
            if known and wanted.value is not None:
                value = wanted.value.value
            found.append(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": wanted.name, "namespace": self.namespace},
                    "stringData": {wanted.key: value},
                }
            )
        return found


def resource(kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> Manifest:
    """One custom resource."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


class _Dumper(yaml.SafeDumper):
    """Writes everything out: anchors are not what people expect in a manifest."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(manifests: Sequence[Manifest]) -> str:
    """The manifests as one YAML file."""
    return "\n---\n".join(
        yaml.dump(it, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).rstrip()
        for it in manifests
    ) + ("\n" if manifests else "")


def write(imported: Imported, directory: Path, *, with_secrets: bool) -> list[Path]:
    """Write the files, ``secrets.yaml`` for its owner's eyes alone; nothing is overwritten.

    Raises ConfigError when one of them is there already or cannot be written.
    """
    files = {name: list(manifests) for name, manifests in imported.files.items() if manifests}
    secrets = imported.secret_manifests(with_values=with_secrets)
    if secrets:
        files["secrets.yaml"] = secrets
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (directory / name).exists():
                raise ConfigError(f"{directory / name} is there already: give another folder")
        written = []
        for name, manifests in files.items():
            path = directory / name
            mode = 0o600 if name == "secrets.yaml" else 0o644
            # Made with its mode, so that there is no moment in which others could read it.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text(manifests))
            written.append(path)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error
    return written
