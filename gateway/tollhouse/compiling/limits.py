"""RateLimitPolicies and Budgets → what the snapshot holds of them, and which objects they concern.

Policies and budgets are stored once; keys, routes and providers refer to them by id, so that ten
thousand keys under one policy stay small.
"""

import operator
from collections.abc import Iterable, Mapping
from decimal import Decimal

from tollhouse import allowance as live
from tollhouse.findings import Finding, Reason, unresolved, warning
from tollhouse.kinds.caller import KeyBudget, Limit, PolicyLimit
from tollhouse.resources import (
    ApiKey,
    Budget,
    LabelSelector,
    RateLimitPolicy,
    Ref,
    Resource,
    Resources,
)

_COUNTED = ("requests", "tokens", "input_tokens", "output_tokens", "concurrent")
_WINDOWS = {"Second": 1.0, "Minute": 60.0, "Hour": 3600.0, "Day": 86400.0}
_NANO = 1_000_000_000


class Attached:
    """What the policies and Budgets of one namespace concern: objects by their names, or by their
    labels."""

    def __init__(self, made_from: tuple[RateLimitPolicy | Budget, ...]) -> None:
        self.made_from = made_from
        self._named: dict[tuple[str, str], list[str]] = {}
        self._selecting: dict[str, list[tuple[LabelSelector, str]]] = {}
        self._budgets: list[tuple[LabelSelector, str]] = []
        for it in made_from:
            ident = "/".join(it.ref)
            if isinstance(it, Budget):
                self._budgets.append((it.spec.selector, ident))
                continue
            for ref in it.spec.target_refs or ():
                self._named.setdefault((ref.kind, ref.name), []).append(ident)
            selector = it.spec.selector
            if selector is not None:
                self._selecting.setdefault(selector.kind, []).append((selector, ident))

    def policies(self, resource: Resource) -> tuple[str, ...]:
        """The ids of the policies on a Provider, ModelRoute or ApiKey, sorted."""
        named = self._named.get((resource.kind, resource.metadata.name), ())
        selecting = self._selecting.get(resource.kind, ())
        return tuple(sorted({*named, *_matching(selecting, resource)}))

    def budgets(self, resource: ApiKey) -> tuple[str, ...]:
        """The ids of the Budgets that an ApiKey spends from, sorted; its own is not among them."""
        return tuple(sorted(_matching(self._budgets, resource)))


class Attachments:
    """What policies and Budgets concern, by namespace.

    A namespace of whose policies and Budgets nothing changed since ``before`` has the same object
    as then.
    """

    def __init__(
        self,
        policies: Iterable[RateLimitPolicy],
        budgets: Iterable[Budget],
        before: "Attachments | None" = None,
    ) -> None:
        found: dict[str, list[RateLimitPolicy | Budget]] = {}
        everything: tuple[RateLimitPolicy | Budget, ...] = (*policies, *budgets)
        for it in everything:
            found.setdefault(it.metadata.namespace, []).append(it)
        known: dict[str, Attached] = before._within if before is not None else {}
        self._within: dict[str, Attached] = {
            namespace: _same(known.get(namespace, NOTHING_ATTACHED), tuple(made_from))
            for namespace, made_from in found.items()
        }

    def scopes(self) -> tuple[Attached, ...]:
        """All that differs from one namespace to another."""
        return tuple(self._within.values())

    def within(self, namespace: str) -> Attached:
        """What the policies and Budgets of this namespace concern."""
        return self._within.get(namespace, NOTHING_ATTACHED)


NOTHING_ATTACHED = Attached(())


def _same(known: Attached, made_from: tuple[RateLimitPolicy | Budget, ...]) -> Attached:
    before = known.made_from
    if len(before) == len(made_from) and all(map(operator.is_, before, made_from)):
        return known
    return Attached(made_from)


def compile_policy(
    resource: RateLimitPolicy, resources: Resources, found: list[Finding]
) -> live.Policy:
    """The policy, and among ``found`` what there is to say about what it is attached to."""
    namespace, name = resource.ref
    spec = resource.spec
    for number, ref in enumerate(spec.target_refs or ()):
        if (namespace, ref.name) not in _table(resources, ref.kind):
            path = f"spec.targetRefs[{number}]"
            message = f"the {ref.kind} {namespace}/{ref.name} does not exist"
            found.append(unresolved(resource, path, Reason.TARGET_NOT_FOUND, message))
    if spec.selector is not None:
        selected = _table(resources, spec.selector.kind)
        found += _unless_any(resource, spec.selector, f"{spec.selector.kind}s", selected)
    limits = tuple(_policy_limit(limit) for limit in spec.limits)
    return live.Policy(namespace, name, limits, spec.on_store_failure)


def compile_budget(resource: Budget, resources: Resources, found: list[Finding]) -> live.Budget:
    """The budget, and among ``found`` that it selects no ApiKey."""
    spec = resource.spec
    found += _unless_any(resource, spec.selector, "ApiKeys", resources.api_keys)
    return live.Budget(
        *resource.ref,
        allowance=allowance(spec),
        warn_at=tuple(sorted(set(spec.warn_at))),
        rejects=spec.on_exceeded == "Reject",
    )


def key_limits(resource: ApiKey, found: list[Finding]) -> tuple[live.Limit, ...]:
    """The ApiKey's own limits; of two that count the same per the same time the stricter one,
    with a warning among ``found``."""
    limits: dict[str, live.Limit] = {}
    for number, given in enumerate(resource.spec.limits):
        counts, amount, window = _counted(given)
        name = _name(counts, given.per)
        older = limits.get(name)
        if older is not None:
            message = f"limits the same as an entry before it; {min(amount, older.amount)} holds"
            path = f"spec.limits[{number}]"
            found.append(warning(resource, path, Reason.DUPLICATE_LIMIT, message))
            amount = min(amount, older.amount)
        limits[name] = live.Limit(name, counts, amount, window)
    return tuple(limits.values())


def allowance(given: KeyBudget) -> live.Allowance:
    """Money as the snapshot holds it: a decimal string of at most nine places is whole nano-USD."""
    return live.Allowance(int(Decimal(given.amount) * _NANO), given.period, given.time_zone)


def _policy_limit(given: PolicyLimit) -> live.Limit:
    counts, amount, window = _counted(given)
    return live.Limit(given.name, counts, amount, window, given.scope, given.models)


def _counted(given: Limit) -> tuple[str, int, float]:
    """What is counted, how much of it is allowed, and in which window (seconds; 0: at once)."""
    counts = next(it for it in _COUNTED if getattr(given, it) is not None)
    window = _WINDOWS[given.per] if given.per is not None else 0.0
    return counts, getattr(given, counts), window


def _name(counts: str, per: str | None) -> str:
    """What callers know a limit of an ApiKey by: ``tokens-per-minute``."""
    what = counts.replace("_", "-")
    return what if per is None else f"{what}-per-{per.lower()}"


def _table(resources: Resources, kind: str) -> Mapping[Ref, Resource]:
    if kind == "ModelRoute":
        return resources.routes
    return resources.api_keys if kind == "ApiKey" else resources.providers


def _unless_any(
    resource: Resource, selector: LabelSelector, kinds: str, selected: Mapping[Ref, Resource]
) -> list[Finding]:
    namespace = resource.ref[0]
    for (where, _), it in selected.items():
        if where == namespace and selector.matches(it.metadata.labels):
            return []
    message = f"no {kinds} in the namespace {namespace} have these labels, so it limits nothing"
    return [warning(resource, "spec.selector", Reason.NOTHING_SELECTED, message)]


def _matching(entries: Iterable[tuple[LabelSelector, str]], resource: Resource) -> list[str]:
    labels = resource.metadata.labels
    return [ident for selector, ident in entries if selector.matches(labels)]
