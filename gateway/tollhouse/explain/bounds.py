"""The limits and budgets that a request would have to pass, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

from tollhouse.kinds.caller import KeyBudget, Limit
from tollhouse.resources import Ref, Resources
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit or a budget, whose it is, and what it says in words."""

    source: str
    says: str


def bounds(
    resources: Resources, caller: Key, resolution: Resolution
) -> tuple[tuple[Bound, ...], tuple[Bound, ...]]:
    """The limits and the budgets that the request would have to pass."""
    route = resolution.route
    resource = resources.api_keys[caller.namespace, caller.name]
    whose = f"ApiKey {caller.id}"
    limits = [Bound(whose, _limit(it)) for it in resource.spec.limits]
    budgets = []
    if resource.spec.budget is not None:
        budgets.append(Bound(whose, _money(resource.spec.budget, "Reject")))
    met: dict[tuple[str, Ref], Mapping[str, str]] = {
        ("ApiKey", resource.ref): resource.metadata.labels
    }
    if (known := resources.routes.get((route.namespace, route.name))) is not None:
        met["ModelRoute", known.ref] = known.metadata.labels
    for target in route.targets:
        namespace, _, name = target.provider.partition("/")
        provider = resources.providers.get((namespace, name))
        if provider is not None:
            met["Provider", provider.ref] = provider.metadata.labels
    for ref, policy in sorted(resources.policies.items()):
        spec = policy.spec
        named = {(it.kind, (ref[0], it.name)) for it in spec.target_refs or ()}
        chosen = spec.selector
        if not any(
            about in named
            or (
                chosen is not None
                and about[0] == chosen.kind
                and about[1][0] == ref[0]
                and chosen.matches(labels)
            )
            for about, labels in met.items()
        ):
            continue
        names = (resolution.model, *route.models)
        limits += [
            Bound(
                f"RateLimitPolicy {'/'.join(ref)}",
                f"{it.name}: {_limit(it)}, scope {it.scope}; "
                f"without the counters: {spec.on_store_failure}",
            )
            for it in spec.limits
            if it.models is None or any(_matches(one, name) for one in it.models for name in names)
        ]
    budgets += [
        Bound(f"Budget {'/'.join(ref)}", _money(budget.spec, budget.spec.on_exceeded))
        for ref, budget in sorted(resources.budgets.items())
        if ref[0] == caller.namespace and budget.spec.selector.matches(resource.metadata.labels)
    ]
    return tuple(limits), tuple(budgets)


def _limit(limit: Limit) -> str:
    for count, noun in (
        (limit.requests, "requests"),
        (limit.tokens, "tokens"),
        (limit.input_tokens, "prompt tokens"),
        (limit.output_tokens, "answer tokens"),
    ):
        if count is not None:
            return f"{count} {noun} per {limit.per}"
    return f"{limit.concurrent} requests at once"


def _money(budget: KeyBudget, on_exceeded: str) -> str:
    every = "in all" if budget.period == "Total" else f"per {budget.period} ({budget.time_zone})"
    return f"{budget.amount} USD {every}, then {on_exceeded}"


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
