"""ApiKey → entries of the snapshot under the digests of the caller's keys, current and older."""

import json
import re
from dataclasses import dataclass
from datetime import datetime

import msgspec

from tollhouse import snapshot as live
from tollhouse.compiling.limits import Attached, allowance, key_limits
from tollhouse.compiling.names import Names
from tollhouse.findings import Finding, Reason, unresolved, warning
from tollhouse.resources import ApiKey, Ref, Resources, SecretObject
from tollhouse.snapshot import key_digest

KEY_NAME = "OPENAI_API_KEY"
"""The data key of an ApiKey's Secret that holds the key."""
PREVIOUS_DIGESTS = "tollhouse.dev/previous-digests"
"""The annotation of an ApiKey's Secret with the keys that a rotation replaced and that still work:
JSON, ``[{"digest": <SHA-256, hex>, "validUntil": <RFC 3339>}]``."""
_SHORTEST_KEY, _LONGEST_KEY = 16, 512
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Caller:
    """An ApiKey's entry, and the digests (SHA-256, hex) that it is to stand under.

    ``current`` is None when its Secret has no key. ``previous`` holds older keys, each with its
    own entry, which says until when it is valid.
    """

    key: live.Key
    current: str | None
    previous: tuple[tuple[str, live.Key], ...]


def secret_of(resource: ApiKey, resources: Resources) -> SecretObject | None:
    """The Secret that holds the caller's key, where there is one."""
    name = resource.spec.secret_name or resource.metadata.name
    return resources.secrets.get((resource.metadata.namespace, name))


def compile_caller(
    resource: ApiKey,
    resources: Resources,
    names: Names,
    attached: Attached,
    found: list[Finding],
) -> Caller:
    """The caller, and among ``found`` what there is to say about it."""
    ref = (resource.metadata.namespace, resource.spec.secret_name or resource.metadata.name)
    secret, key = secret_of(resource, resources), _key(resource, attached, found)
    current = _current(resource, ref, secret, found)
    previous = _previous(resource, secret, found) if secret else []
    found += _remarks(resource, names)
    if resources.standalone and resource.spec.rotation is not None:
        message = "keys in a folder are not rotated: write a new one into the Secret yourself"
        found.append(warning(resource, "spec.rotation", Reason.NOT_ENFORCED, message))
    return Caller(
        key=key,
        current=current,
        previous=tuple(
            (digest, msgspec.structs.replace(key, valid_until=until)) for digest, until in previous
        ),
    )


def _key(resource: ApiKey, attached: Attached, found: list[Finding]) -> live.Key:
    spec = resource.spec
    return live.Key(
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        owner=spec.owner,
        allowed_models=spec.allowed_models,
        model_aliases=dict(spec.model_aliases),
        max_tokens=dict(spec.max_tokens),
        expires_at=spec.expires_at.timestamp() if spec.expires_at else None,
        disabled=spec.disabled,
        tags=dict(spec.tags),
        limits=key_limits(resource, found),
        budget=allowance(spec.budget) if spec.budget is not None else None,
        policies=attached.policies(resource),
        budgets=attached.budgets(resource),
    )


def _current(
    resource: ApiKey, ref: Ref, secret: SecretObject | None, found: list[Finding]
) -> str | None:
    """The digest of the key in the ApiKey's Secret."""
    path, where = "spec.secretName", f"the Secret {'/'.join(ref)}"
    if secret is None:
        message = f"{where} does not exist"
        found.append(unresolved(resource, path, Reason.SECRET_NOT_FOUND, message))
        return None
    if KEY_NAME not in secret.data:
        message = f"{where} has no text under the key {KEY_NAME}"
        found.append(unresolved(resource, path, Reason.SECRET_KEY_NOT_FOUND, message))
        return None
    value = secret.data[KEY_NAME].value.strip()
    fits = _SHORTEST_KEY <= len(value) <= _LONGEST_KEY
    if not (fits and value.isascii() and value.isprintable() and " " not in value):
        message = (
            f"{KEY_NAME} in {where} is not a key: one is {_SHORTEST_KEY} to {_LONGEST_KEY} "
            "printable ASCII characters without spaces"
        )
        found.append(unresolved(resource, path, Reason.INVALID_KEY, message))
        return None
    return key_digest(value)


def _previous(
    resource: ApiKey, secret: SecretObject, found: list[Finding]
) -> list[tuple[str, float]]:
    """(digest, seconds since the epoch until which it is valid) of the keys rotated away."""
    text = secret.annotations.get(PREVIOUS_DIGESTS)
    if text is None:
        return []
    try:
        entries = [(it["digest"], _instant(it["validUntil"])) for it in json.loads(text)]
        if not all(_DIGEST.match(digest) for digest, _ in entries):
            raise ValueError("no digest")
    except (ValueError, TypeError, KeyError, RecursionError):
        message = (
            f"the annotation {PREVIOUS_DIGESTS} of its Secret cannot be read, so no older key "
            "is valid"
        )
        found.append(warning(resource, "", Reason.INVALID_ANNOTATION, message))
        return []
    return entries


def _instant(text: str) -> float:
    """Seconds since the epoch. Raises ValueError when the text has no time zone, too."""
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("no time zone")
    return instant.timestamp()


def _remarks(resource: ApiKey, names: Names) -> list[Finding]:
    """What an author should know about an ApiKey that works."""
    spec, namespace = resource.spec, resource.metadata.namespace
    found: list[Finding] = []
    lost = [
        (f"spec.allowedModels[{number}]", pattern)
        for number, pattern in enumerate(spec.allowed_models or ())
        if not names.allow(namespace, pattern)
    ] + [
        (f"spec.modelAliases.{alias}", model)
        for alias, model in sorted(spec.model_aliases.items())
        if not names.resolve(namespace, model)
    ]
    for path, name in lost:
        message = f"no route that is shared with the namespace {namespace} serves {name}"
        found.append(warning(resource, path, Reason.NO_MATCHING_ROUTE, message))
    return found
