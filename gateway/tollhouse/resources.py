"""The custom resources: Provider, ModelRoute, ApiKey, RateLimitPolicy, Budget; and what they name.

The CRDs come from the same models, and so do the words of ``kubectl explain``: what the API server
refuses, ``parse`` refuses with the same message. Durations (``30s``) and money (``"2.50"``, USD)
stay the strings that the manifest holds; ``seconds`` reads a duration.

What this module will not do: look at more than one object. Whether a Secret or a Provider that
is named exists is ``compile``'s to find out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tollhouse.errors import ConfigError
from tollhouse.kinds.caller import ApiKeySpec, BudgetSpec, RateLimitPolicySpec
from tollhouse.kinds.fields import LabelSelector, ObjectName, seconds
from tollhouse.kinds.provider import ProviderSpec
from tollhouse.kinds.route import ModelRouteSpec
from tollhouse.kinds.schema import Problem, dotted, problems, unknown
from tollhouse.snapshot import Credential

__all__ = [
    "GROUP",
    "KINDS",
    "VERSION",
    "ApiKey",
    "Budget",
    "ConfigMapObject",
    "LabelSelector",
    "Metadata",
    "ModelRoute",
    "NamespaceObject",
    "Problem",
    "Provider",
    "RateLimitPolicy",
    "Ref",
    "Refused",
    "Resource",
    "ResourceError",
    "Resources",
    "SecretObject",
    "ServiceObject",
    "dotted",
    "parse",
    "seconds",
]

GROUP = "tollhouse.dev"
VERSION = "v1alpha1"

Ref = tuple[str, str]
"""An object by namespace and name."""


class ResourceError(ConfigError):
    """A manifest is no resource; ``problems`` says where and why, and never shows a value."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Metadata(BaseModel):
    """What Kubernetes keeps about every object; fields that nobody here reads are left out."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )
    name: ObjectName
    namespace: Annotated[str, Field(min_length=1)] = "default"
    uid: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resource(BaseModel):
    """One custom resource. ``status`` is not read: it is ours to write."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    kind: ClassVar[str]
    metadata: Metadata

    @property
    def ref(self) -> Ref:
        return (self.metadata.namespace, self.metadata.name)


class Provider(Resource):
    kind = "Provider"
    spec: ProviderSpec


class ModelRoute(Resource):
    kind = "ModelRoute"
    spec: ModelRouteSpec


class ApiKey(Resource):
    kind = "ApiKey"
    spec: ApiKeySpec = ApiKeySpec()


class RateLimitPolicy(Resource):
    kind = "RateLimitPolicy"
    spec: RateLimitPolicySpec


class Budget(Resource):
    kind = "Budget"
    spec: BudgetSpec


KINDS: Mapping[str, type[Resource]] = {
    model.kind: model for model in (Provider, ModelRoute, ApiKey, RateLimitPolicy, Budget)
}


@dataclass(frozen=True, slots=True)
class SecretObject:
    namespace: str
    name: str
    data: Mapping[str, Credential]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfigMapObject:
    namespace: str
    name: str
    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServiceObject:
    namespace: str
    name: str
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceObject:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """An object whose newest version does not parse; ``kept``: an older one stays in force."""

    kind: str
    ref: Ref
    generation: int
    problems: tuple[Problem, ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that a snapshot is compiled from, at one moment.

    ``platform`` names namespaces that are the platform's, label or not.
    ``standalone``: from a folder, where no operator keeps the Secrets of ApiKeys.
    """

    providers: Mapping[Ref, Provider] = field(default_factory=dict)
    routes: Mapping[Ref, ModelRoute] = field(default_factory=dict)
    api_keys: Mapping[Ref, ApiKey] = field(default_factory=dict)
    policies: Mapping[Ref, RateLimitPolicy] = field(default_factory=dict)
    budgets: Mapping[Ref, Budget] = field(default_factory=dict)
    secrets: Mapping[Ref, SecretObject] = field(default_factory=dict)
    config_maps: Mapping[Ref, ConfigMapObject] = field(default_factory=dict)
    services: Mapping[Ref, ServiceObject] = field(default_factory=dict)
    namespaces: Mapping[str, NamespaceObject] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()
    platform: frozenset[str] = frozenset()
    standalone: bool = False


_TOP = ("apiVersion", "kind", "metadata", "spec", "status")


def parse(manifest: Mapping[str, Any]) -> Resource:
    """A manifest, as YAML or JSON gives it, as the resource that its ``kind`` names.

    Raises ResourceError with every problem found, each with its path from the manifest's root.
    """
    model = KINDS.get(str(manifest.get("kind")))
    if model is None:
        raise ResourceError((Problem(("kind",), f"must be one of {', '.join(KINDS)}"),))
    found = [Problem((str(key),), unknown(str(key), _TOP)) for key in manifest if key not in _TOP]
    if manifest.get("apiVersion") != f"{GROUP}/{VERSION}":
        found.append(Problem(("apiVersion",), f"must be {GROUP}/{VERSION}"))
    try:
        # Through JSON, so that types are as strict here as in the API server: no "5" for 5, but
        # a list for a tuple and a string for a time.
        text = json.dumps(
            {key: manifest[key] for key in ("metadata", "spec") if key in manifest},
            default=_json,
            allow_nan=False,
        )
        resource = model.model_validate_json(text)
    except ValidationError as error:
        raise ResourceError((*found, *problems(error, model))) from None
    except (TypeError, ValueError, RecursionError):
        found.append(Problem((), "must hold nothing but what JSON can hold"))
        raise ResourceError(tuple(found)) from None
    if found:
        raise ResourceError(tuple(found))
    return resource


def _json(value: Any) -> str:
    """YAML reads an unquoted time as one, which JSON does not know."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError
