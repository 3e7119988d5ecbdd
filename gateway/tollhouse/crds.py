"""The CustomResourceDefinitions, made from the models in ``kinds``.

The API server wants *structural* schemas: no references, no ``anyOf`` with null, no titles. What
pydantic writes is turned into that here, and nothing is said twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel

from tollhouse.kinds.status import ApiKeyStatus, BudgetStatus, Status
from tollhouse.resources import GROUP, KINDS, VERSION

HEADER = "# Written by `tollhouse crds` from gateway/tollhouse/kinds. Do not edit.\n"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of ``kubectl get``; ``wide`` ones show with ``-o wide``."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False

    def manifest(self) -> dict[str, Any]:
        column = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "description": self.description,
        }
        return column | ({"priority": 1} if self.wide else {})


@dataclass(frozen=True, slots=True)
class _Naming:
    short: str
    description: str
    columns: tuple[_Column, ...]
    status: type[Status] = Status


def _condition(name: str, description: str, *, wide: bool = False) -> _Column:
    path = f'.status.conditions[?(@.type=="{name}")].status'
    return _Column(name, path, description, wide=wide)


_LIVE = (
    _condition("Accepted", "Whether the spec is valid and conflicts with nothing older."),
    _condition("ResolvedRefs", "Whether all that it names exists.", wide=True),
    _condition("Programmed", "Whether it is live on every gateway."),
    _Column("Age", ".metadata.creationTimestamp", "When it was created.", "date"),
)
_SPEND = _Column("Spend", ".status.spend.amount", "USD spent in this period.")

_NAMING: Mapping[str, _Naming] = {
    "Provider": _Naming(
        "prov",
        "An upstream account: where requests go, and what they authenticate with.",
        (
            _Column("Type", ".spec.type", "The protocol that the upstream speaks."),
            _Column("URL", ".spec.baseURL", "The upstream's address.", wide=True),
            _Column("Service", ".spec.serviceRef.name", "The upstream's Service.", wide=True),
            *_LIVE,
        ),
    ),
    "ModelRoute": _Naming(
        "mroute",
        "Names of models that callers use, and where requests for them go.",
        (
            _Column("Model", ".spec.models[0]", "The canonical id."),
            _Column("Provider", ".spec.targets[0].provider.name", "The first target's Provider."),
            _Column("Shared", ".spec.shareWith.from", "Whose ApiKeys may call it."),
            *_LIVE,
        ),
    ),
    "ApiKey": _Naming(
        "ak",
        "A caller: the key itself lies in a Secret, and this says what it may do.",
        (
            _Column("Prefix", ".status.prefix", "The head of the key."),
            _Column("Owner", ".spec.owner", "Who answers for the key."),
            _SPEND,
            _Column("Budget", ".spec.budget.amount", "USD that may be spent in a period."),
            # Not of type date: that one counts backwards, and shows a time to come as invalid.
            _Column("Expires", ".spec.expiresAt", "When the key stops working."),
            _Column("Disabled", ".spec.disabled", "Whether it is refused.", "boolean", wide=True),
            *_LIVE[1:],
        ),
        ApiKeyStatus,
    ),
    "RateLimitPolicy": _Naming(
        "rlp",
        "Limits on requests and tokens, attached to many objects at once.",
        (
            _Column("Limit", ".spec.limits[0].name", "The first limit's name."),
            _Column("OnFailure", ".spec.onStoreFailure", "What happens without the counters."),
            *_LIVE,
        ),
    ),
    "Budget": _Naming(
        "bud",
        "Money for a group of ApiKeys, per period.",
        (
            _SPEND,
            _Column("Budget", ".spec.amount", "USD that may be spent in a period."),
            _Column("Period", ".spec.period", "When spend starts again from zero."),
            _condition("Exhausted", "Whether all of it is spent."),
            *_LIVE,
        ),
        BudgetStatus,
    ),
}


def crd_manifests() -> dict[str, dict[str, Any]]:
    """The CustomResourceDefinition of every kind, by the name of its file."""
    return {f"{GROUP}_{_plural(kind)}.yaml": _crd(kind) for kind in KINDS}


def render(manifest: Mapping[str, Any]) -> str:
    """A manifest as YAML, the same text each time."""
    text: str = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    return HEADER + text


def write(directory: Path) -> list[Path]:
    """Writes every CRD into ``directory``, and says which files those are."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, manifest in crd_manifests().items():
        path = directory / name
        path.write_text(render(manifest), encoding="utf-8")
        paths.append(path)
    return paths


class _Dumper(yaml.SafeDumper):
    """Writes what is used twice twice, instead of as an alias."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _plural(kind: str) -> str:
    return "ratelimitpolicies" if kind == "RateLimitPolicy" else f"{kind.lower()}s"


def _crd(kind: str) -> dict[str, Any]:
    naming = _NAMING[kind]
    spec = KINDS[kind].model_fields["spec"]
    schema = {
        "type": "object",
        "description": naming.description,
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{kind}."},
            "metadata": {"type": "object"},
            "spec": structural(cast(type[BaseModel], spec.annotation)),
            "status": structural(naming.status),
        },
    } | ({"required": ["spec"]} if spec.is_required() else {})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{_plural(kind)}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": _plural(kind),
                "singular": kind.lower(),
                "shortNames": [naming.short],
                "categories": ["tollhouse"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.manifest() for column in naming.columns],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """A model's schema as the API server wants it."""
    schema = model.model_json_schema(by_alias=True)
    return _node(schema, schema.get("$defs", {}))


_KEPT = (
    "enum",
    "format",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)


def _node(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """One schema, references put in, what belongs to it alone kept, its children likewise."""
    if "$ref" in schema:
        referred = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return _node({**referred, **_without(schema, "$ref")}, definitions)
    if "anyOf" in schema:
        (only,) = (choice for choice in schema["anyOf"] if choice.get("type") != "null")
        return _node({**only, **_without(schema, "anyOf")}, definitions)

    node: dict[str, Any] = {"type": schema["type"]}
    if "description" in schema:
        node["description"] = " ".join(schema["description"].split())
    if "const" in schema:
        node["enum"] = [schema["const"]]
    node |= {key: schema[key] for key in _KEPT if key in schema}
    if schema["type"] == "integer":
        node["format"] = "int64"
    if (default := _default(schema)) is not None:
        node["default"] = default
    return node | _children(schema, definitions)


def _default(schema: Mapping[str, Any]) -> Any:
    default = schema.get("default")
    if "properties" in schema and default is not None:
        # Empty, so that each field's own default fills it: those are said once, at the field.
        return {}
    return None if default == [] else default


def _children(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    children: dict[str, Any] = {}
    if "items" in schema:
        children["items"] = _node(schema["items"], definitions)
    others = schema.get("additionalProperties")
    if others is True:
        children["x-kubernetes-preserve-unknown-fields"] = True
    elif others:
        children["additionalProperties"] = _node(others, definitions)
    if "properties" in schema:
        children["properties"] = {
            name: _node(child, definitions) for name, child in schema["properties"].items()
        }
    return children


def _without(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}
