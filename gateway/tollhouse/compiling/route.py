"""ModelRoute → a route of the snapshot, with those of its targets that can be used."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

import msgspec

from tollhouse import pricing
from tollhouse import snapshot as live
from tollhouse.compiling import known
from tollhouse.compiling.names import Names, Namespaces
from tollhouse.findings import Finding, Reason, refused, unresolved, warning
from tollhouse.kinds.fields import Timeouts
from tollhouse.kinds.route import Pricing
from tollhouse.resources import ModelRoute, Ref, seconds


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The Providers that can be used, with their timeouts, and those that exist but cannot.

    Their published prices are those of the ``day`` (UTC).
    """

    usable: Mapping[Ref, live.Provider]
    timeouts: Mapping[Ref, Timeouts]
    broken: frozenset[Ref]
    day: date = known.DAY


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
    own = live.Capabilities(**capabilities.model_dump() if capabilities else {})
    priced, able = _priced(resource, targets, own, upstreams, found)
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
                table = known.table_of(account, upstreams.day)
                tables[target.provider] = table | tables.get(target.provider, {})
    return tables


def check_select(resource: ModelRoute, names: Names, found: list[Finding]) -> None:
    """A warning for each of ``select.from`` that comes to nothing which the namespace sees.

    ``names`` are those of the routes that can be chosen: of all without a ``select``.
    """
    namespace = resource.metadata.namespace
    for number, pattern in enumerate(resource.spec.select.from_ if resource.spec.select else ()):
        if not names.choosable(namespace, pattern):
            message = (
                f"{pattern} matches no model that the namespace {namespace} sees, so nothing is "
                "chosen by it: name models of ModelRoutes, those of a wildcard in full"
            )
            path = f"spec.select.from[{number}]"
            found.append(warning(resource, path, Reason.NO_MATCHING_ROUTE, message))


def _priced(
    resource: ModelRoute,
    targets: tuple[live.Target, ...],
    able: live.Capabilities,
    upstreams: Upstreams,
    found: list[Finding],
) -> tuple[tuple[live.Target, ...], live.Capabilities]:
    """The targets and the route's capabilities, completed by what is known about the models.

    A wildcard's models are priced when they are asked for, unless the route gives prices. Without
    an input price no answer has a cost; what an output costs, embeddings for one do not need.
    """
    providers = {it.id: it for it in upstreams.usable.values()}
    accounts = [_account(providers[it.provider], resource.spec.models[0]) for it in targets]
    models = [
        known.model_of(account, it.model, upstreams.day)
        if account is not None and it.model is not None
        else None
        for account, it in zip(accounts, targets, strict=True)
    ]
    priced, able = pricing.completed(targets, able, models)
    for account, target in zip(accounts, priced, strict=True):
        provider = providers[target.provider]
        given = target.pricing is not None and target.pricing.input is not None
        later = target.model is None and account is not None
        if not (given or later or resource.spec.free or provider.type == "Mock"):
            message = (
                f"nobody publishes what {target.model or 'its models'} cost at the Provider "
                f"{provider.id}: give spec.targets[].pricing, or answers carry no cost"
            )
            found.append(warning(resource, "spec.targets", Reason.UNKNOWN_PRICE, message))
    return priced, able


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
        usable.append(
            live.Target(
                provider=upstreams.usable[ref].id,
                model=target.model or model,
                weight=target.weight,
                priority=target.priority,
                pricing=_own(target.pricing),
                timeouts=_timeouts(upstreams.timeouts[ref], resource.spec.timeouts),
                web_search=target.web_search,
            )
        )
    if not usable:
        message = "no target is left: callers get a 503 no_healthy_target"
        found.append(unresolved(resource, "spec.targets", found[0].reason, message))
    return tuple(usable)


def _own(said: Pricing | None) -> live.Pricing | None:
    if said is None:
        return None
    given = said.model_dump()
    tiers = (live.Tier(**tier) for tier in sorted(given.pop("tiers"), key=lambda it: it["above"]))
    return live.Pricing(**given, tiers=tuple(tiers))


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
