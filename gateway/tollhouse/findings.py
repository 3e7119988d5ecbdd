"""What there is to say about a resource, and how it reads as conditions in its status."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tollhouse.resources import Resource

ConditionType = Literal["Accepted", "ResolvedRefs"]
Severity = Literal["Error", "Warning"]
_LONGEST_MESSAGE = 8192
"""Kubernetes takes 32 KiB; nobody reads more than this."""


class Reason(StrEnum):
    """Why a condition is as it is: one word for programs, the same in every release."""

    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"

    INVALID = "Invalid"
    CONFLICT = "Conflict"
    UNSUPPORTED_TYPE = "UnsupportedType"
    UNSUPPORTED_FIELD = "UnsupportedField"

    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_KEY_NOT_FOUND = "SecretKeyNotFound"
    INVALID_CREDENTIAL = "InvalidCredential"
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    PROVIDER_NOT_READY = "ProviderNotReady"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    SERVICE_PORT_NOT_FOUND = "ServicePortNotFound"
    CA_REF_NOT_FOUND = "CARefNotFound"
    INVALID_CA = "InvalidCA"
    INVALID_KEY = "InvalidKey"

    NOT_ENFORCED = "NotEnforced"
    NO_CREDENTIALS = "NoCredentials"
    UNKNOWN_PRICE = "UnknownPrice"
    NO_MATCHING_ROUTE = "NoMatchingRoute"
    TARGET_NOT_FOUND = "TargetNotFound"
    NOTHING_SELECTED = "NothingSelected"
    DUPLICATE_LIMIT = "DuplicateLimit"
    INVALID_ANNOTATION = "InvalidAnnotation"
    NAME_SHARED = "NameShared"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one object.

    An Error makes the condition False; a Warning leaves it True and is told in its message.
    ``path`` is the field, as in ``spec.targets[0].provider``, or empty. ``generation`` is the
    ``metadata.generation`` that was looked at, 0 where there is none. No message holds a secret.
    """

    kind: str
    namespace: str
    name: str
    generation: int
    condition: ConditionType
    severity: Severity
    reason: Reason
    message: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def refused(resource: Resource, path: str, reason: Reason, message: str) -> Finding:
    """An Error that takes the object as a whole, or its newest version, out of force."""
    return _about(resource, path, "Accepted", "Error", reason, message)


def unresolved(resource: Resource, path: str, reason: Reason, message: str) -> Finding:
    """An Error about something that the object names."""
    return _about(resource, path, "ResolvedRefs", "Error", reason, message)


def warning(resource: Resource, path: str, reason: Reason, message: str) -> Finding:
    """Something that its author should know about an object that is in force."""
    return _about(resource, path, "Accepted", "Warning", reason, message)


def _about(
    resource: Resource,
    path: str,
    condition: ConditionType,
    severity: Severity,
    reason: Reason,
    message: str,
) -> Finding:
    return Finding(
        kind=resource.kind,
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        generation=resource.metadata.generation,
        condition=condition,
        severity=severity,
        reason=reason,
        message=message,
        path=path,
    )


@dataclass(frozen=True, slots=True)
class Condition:
    """A ``metav1.Condition`` without its time and generation."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


def conditions(kind: str, findings: Iterable[Finding]) -> tuple[Condition, ...]:
    """The conditions of one object, from all findings about it.

    Budgets name nothing that must exist, so they have no ResolvedRefs.
    """
    about = tuple(findings)
    accepted = _condition("Accepted", Reason.ACCEPTED, "The spec is valid.", about)
    if kind == "Budget":
        return (accepted,)
    resolved = _condition("ResolvedRefs", Reason.RESOLVED_REFS, "All that it names exists.", about)
    if accepted.reason is Reason.INVALID and resolved.status == "True":
        unknown = "Not looked at: the spec is not valid."
        resolved = Condition("ResolvedRefs", "Unknown", Reason.INVALID, unknown)
    return (accepted, resolved)


def _condition(
    type_: ConditionType, positive: Reason, well: str, findings: tuple[Finding, ...]
) -> Condition:
    mine = [finding for finding in findings if finding.condition == type_]
    errors = [finding for finding in mine if finding.severity == "Error"]
    said = " ".join(dict.fromkeys(_sentence(str(finding)) for finding in errors or mine))
    if errors:
        return Condition(type_, "False", errors[0].reason, said[:_LONGEST_MESSAGE])
    return Condition(type_, "True", positive, f"{well} {said}".strip()[:_LONGEST_MESSAGE])


def _sentence(message: str) -> str:
    return message if message.endswith((".", "!", "?")) else f"{message}."
