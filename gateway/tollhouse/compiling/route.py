"""ModelRoute → a route of the snapshot, with those of its targets that can be used."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from tollhouse import snapshot as live
from tollhouse.compiling import known
from tollhouse.compiling.names import Namespaces
from tollhouse.findings import Finding, Reason, refused, unresolved, warning
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
    for field in ("defaults", "overrides"):
        if not _encodes(getattr(spec.parameters, field)):
            message = "holds a number or text that JSON and 64 bits cannot hold"
            path = f"spec.parameters.{field}"
            found.append(refused(resource, path, Reason.INVALID, message))
    if found:
        return None
    capabilities = spec.capabilities
    targets = _targets(resource, upstreams, found) if spec.select is None else ()
    priced, models = _priced(resource, targets, upstreams, found)
    able = live.Capabilities(**capabilities.model_dump() if capabilities else {})
    if models and len(models) == len(targets):
        able = live.completed(able, models)
    return live.Route(
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        models=spec.models,
        targets=priced,
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
        capabilities=able,
        free=spec.free,
        strict=spec.strict,
        shared_with=namespaces.shared_with(resource),
        select=live.Select(spec.select.from_, spec.select.by) if spec.select else None,
        families=_families(spec.models[0], targets, upstreams),
    )


def known_models(
    routes: Iterable[live.Route], upstreams: Upstreams
) -> Mapping[str, dict[str, live.KnownModel]]:
    """By the id of each Provider that wildcard routes target: what is known about its models."""
    tables: dict[str, dict[str, live.KnownModel]] = {}
    providers = {it.id: it for it in upstreams.usable.values()}
    for route in routes:
        for target in route.targets:
            account = _account(providers[target.provider], route.models[0])
            if target.model is None and account is not None:
                table = known.table_of(account)
                tables[target.provider] = table | tables.get(target.provider, {})
    return tables


def _priced(
    resource: ModelRoute,
    targets: tuple[live.Target, ...],
    upstreams: Upstreams,
    found: list[Finding],
) -> tuple[tuple[live.Target, ...], list[live.KnownModel]]:
    """The targets with what they cost, and what is known about their models.

    A wildcard's models are priced when they are asked for, unless the route gives prices.
    """
    providers = {it.id: it for it in upstreams.usable.values()}
    priced: list[live.Target] = []
    models: list[live.KnownModel] = []
    for target in targets:
        provider = providers[target.provider]
        own = target.pricing or live.Pricing()
        account = _account(provider, resource.spec.models[0])
        if target.model is None:
            unknown = account is None and own.input is None
        else:
            model = known.model_of(account, target.model) if account is not None else None
            if model is not None:
                own = live.price(own, model)
                models.append(model)
            unknown = own.input is None and own.output is None
        if unknown and not resource.spec.free and provider.type != "Mock":
            message = (
                f"nobody publishes what {target.model or 'its models'} cost at the Provider "
                f"{provider.id}: give spec.targets[].pricing, or answers carry no cost"
            )
            found.append(warning(resource, "spec.targets", Reason.UNKNOWN_PRICE, message))
        pricing = own if own != live.Pricing() else None
        priced.append(msgspec.structs.replace(target, pricing=pricing))
    return tuple(priced), models


def _account(provider: live.Provider, model: str) -> str | None:
    return known.account_of(provider.base_url, model) if provider.type != "Mock" else None


def _families(
    canonical: str, targets: tuple[live.Target, ...], upstreams: Upstreams
) -> tuple[str, ...]:
    """The bare names that mean a model of this wildcard: those of the provider it is named after.

    A route to Mocks alone has none: it is not worth the second that the data takes to load.
    """
    prefix, slash, rest = canonical.partition("/")
    providers = {it.id: it for it in upstreams.usable.values()}
    if not slash or rest != "*" or all(providers[it.provider].type == "Mock" for it in targets):
        return ()
    return known.families_of(prefix)


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
