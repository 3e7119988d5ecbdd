"""ModelRoute → a route of the snapshot, with those of its targets that can be used."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tollhouse import snapshot as live
from tollhouse.compiling.names import Namespaces
from tollhouse.findings import Finding, Reason, refused, unresolved
from tollhouse.kinds.fields import Timeouts
from tollhouse.resources import ModelRoute, Ref, seconds


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The Providers that can be used, with their timeouts, and those that exist but cannot."""

    usable: Mapping[Ref, live.Provider]
    timeouts: Mapping[Ref, Timeouts]
    broken: frozenset[Ref]


def compile_route(
    resource: ModelRoute,
    upstreams: Upstreams,
    namespaces: Namespaces,
    found: list[Finding],
) -> live.Route | None:
    """The route with those of its targets that can be used; None, with an Error among ``found``,
    when it is refused. ``found`` is empty at first.

    A route without a usable target stays: its callers are to get a 503 that says so, and not what
    some wildcard makes of the name.
    """
    spec = resource.spec
    if spec.select is not None:
        message = "this version cannot choose among models yet; give targets"
        found.append(refused(resource, "spec.select", Reason.UNSUPPORTED_FIELD, message))
    for field in ("defaults", "overrides"):
        if not _encodes(getattr(spec.parameters, field)):
            message = "holds a number or text that JSON and 64 bits cannot hold"
            path = f"spec.parameters.{field}"
            found.append(refused(resource, path, Reason.INVALID, message))
    if found:
        return None
    capabilities = spec.capabilities
    return live.Route(
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        models=spec.models,
        targets=_targets(resource, upstreams, found),
        retries=live.Retries(
            attempts=spec.retries.attempts,
            backoff=seconds(spec.retries.backoff),
            on=spec.retries.retry_on,
        ),
        parameters=live.Parameters(
            defaults=spec.parameters.defaults,
            overrides=spec.parameters.overrides,
            max_tokens=spec.parameters.max_tokens,
            unsupported=spec.parameters.unsupported,
        ),
        capabilities=live.Capabilities(**capabilities.model_dump() if capabilities else {}),
        free=spec.free,
        strict=spec.strict,
        shared_with=namespaces.shared_with(resource),
    )


def _targets(
    resource: ModelRoute, upstreams: Upstreams, found: list[Finding]
) -> tuple[live.Target, ...]:
    canonical = resource.spec.models[0]
    model = None if canonical.endswith("*") else canonical.partition("/")[2] or canonical
    usable: list[live.Target] = []
    for number, target in enumerate(resource.spec.targets or ()):
        ref = (resource.metadata.namespace, target.provider.name)
        if ref not in upstreams.usable:
            known = ref in upstreams.broken
            reason = Reason.PROVIDER_NOT_READY if known else Reason.PROVIDER_NOT_FOUND
            what = "cannot be used" if known else "does not exist"
            message = f"the Provider {'/'.join(ref)} {what}, so the target is left out"
            found.append(unresolved(resource, f"spec.targets[{number}].provider", reason, message))
            continue
        pricing = target.pricing
        usable.append(
            live.Target(
                provider=upstreams.usable[ref].id,
                model=target.model or model,
                weight=target.weight,
                priority=target.priority,
                pricing=live.Pricing(**pricing.model_dump()) if pricing else None,
                timeouts=_timeouts(upstreams.timeouts[ref], resource.spec.timeouts),
            )
        )
    if not usable:
        message = "no target is left: callers get a 503 no_healthy_target"
        found.append(unresolved(resource, "spec.targets", found[0].reason, message))
    return tuple(usable)


def _timeouts(*layers: Timeouts | None) -> live.Timeouts:
    """Whatever the last layer says, and where it is silent the one before."""
    said: dict[str, float] = {}
    for layer in layers:
        given = layer.model_dump(exclude_none=True) if layer else {}
        said |= {field: seconds(duration) for field, duration in given.items()}
    return live.Timeouts(**said)


def _encodes(fields: Mapping[str, object]) -> bool:
    """Whether a snapshot can hold these values: one that cannot would take all others down."""
    try:
        msgspec.msgpack.encode(fields)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True
