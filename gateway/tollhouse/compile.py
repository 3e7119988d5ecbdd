"""Resources → the snapshot that gateways serve, and what there is to say about each resource.

Pure: no I/O and no clock. The same resources on the same day give the same snapshot and findings,
in the same order; the day decides which published prices hold. Each object is compiled by a
function of its own; then come the rules between objects: names that two routes claim, names to
choose among, and a key that two ApiKeys hold. Whatever is wrong with one object is a finding about
it and leaves all others as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import TypeVar

import msgspec

from tollhouse.compiling import known
from tollhouse.compiling.caller import KEY_NAME, PREVIOUS_DIGESTS, Caller, compile_caller
from tollhouse.compiling.limits import Attachments, compile_budget, compile_policy
from tollhouse.compiling.names import Claims, Names, Namespaces
from tollhouse.compiling.provider import compile_provider
from tollhouse.compiling.route import Upstreams, check_select, compile_route, known_models
from tollhouse.findings import Condition, Finding, Reason, conditions, refused
from tollhouse.resources import (
    Provider,
    Ref,
    Refused,
    Resource,
    Resources,
    dotted,
)
from tollhouse.snapshot import MAX_SHARD_BYTES, Key, Route, Snapshot
from tollhouse.snapshot import Provider as Upstream

__all__ = [
    "KEY_NAME",
    "PREVIOUS_DIGESTS",
    "Compiled",
    "Condition",
    "Finding",
    "Reason",
    "age",
    "compile_snapshot",
    "conditions",
    "oversized",
]

_R = TypeVar("_R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Compiled:
    """``findings`` are sorted by kind, namespace and name; ``conditions`` reads them."""

    snapshot: Snapshot
    findings: tuple[Finding, ...]

    def by_object(self) -> dict[tuple[str, str, str], tuple[Finding, ...]]:
        """The findings by (kind, namespace, name); objects without any are left out."""
        return {about: tuple(found) for about, found in groupby(self.findings, _about)}


def compile_snapshot(resources: Resources, day: date = known.DAY) -> Compiled:
    """The snapshot of these resources, and every finding about them.

    Published prices are those of the ``day`` (UTC); see ``known.DAY`` for what is taken otherwise.

    Findings are about the five kinds, and about Secrets and ConfigMaps that cannot be read.
    """
    findings = [finding for it in resources.refused for finding in _refused(it)]
    policies, budgets = _living(resources.policies), _living(resources.budgets)
    attachments = Attachments(policies, budgets)
    upstreams = _upstreams(resources, day, attachments, findings)
    routes = _routes(resources, upstreams, attachments, findings)
    names = Names(routes)
    _check_selects(resources, routes, findings)
    keys = _keys(resources, names, attachments, findings)
    compiled_policies = [compile_policy(it, resources, findings) for it in policies]
    compiled_budgets = [compile_budget(it, resources, findings) for it in budgets]
    tables = known_models(routes, upstreams)
    providers = [
        msgspec.structs.replace(it, known=tables[it.id]) if it.id in tables else it
        for it in upstreams.usable.values()
    ]
    return Compiled(
        snapshot=Snapshot.of(
            providers=providers,
            routes=routes,
            keys=keys,
            policies=compiled_policies,
            budgets=compiled_budgets,
        ),
        findings=tuple(sorted(findings, key=_about)),
    )


def oversized(encoded: Mapping[str, bytes]) -> tuple[str, ...]:
    """What to say about shards too large for a Secret; a snapshot with any cannot be published."""
    return tuple(
        f"shard {name} has {len(data)} bytes compressed, a Secret takes {MAX_SHARD_BYTES} of them"
        for name, data in sorted(encoded.items())
        if len(data) > MAX_SHARD_BYTES
    )


def _upstreams(
    resources: Resources, day: date, attachments: Attachments, findings: list[Finding]
) -> Upstreams:
    usable: dict[Ref, Upstream] = {}
    broken = {it.ref for it in resources.refused if it.kind == Provider.kind}
    for resource in _living(resources.providers):
        found: list[Finding] = []
        upstream = compile_provider(resource, resources, found)
        if upstream is not None:
            policies = attachments.within(resource.metadata.namespace).policies(resource)
            usable[resource.ref] = msgspec.structs.replace(upstream, policies=policies)
        else:
            broken.add(resource.ref)
        findings += found
    timeouts = {ref: resources.providers[ref].spec.timeouts for ref in usable}
    return Upstreams(usable, timeouts, frozenset(broken), day)


def _routes(
    resources: Resources, upstreams: Upstreams, attachments: Attachments, findings: list[Finding]
) -> list[Route]:
    """The routes in force, by namespace and name. The older of two that claim one name wins."""
    namespaces, claims = Namespaces(resources), Claims()
    for resource in sorted(_living(resources.routes), key=age):
        found: list[Finding] = []
        route = compile_route(resource, upstreams, namespaces, found)
        if route is not None:
            policies = attachments.within(resource.metadata.namespace).policies(resource)
            route = msgspec.structs.replace(route, policies=policies)
        conflict = claims.claim(route) if route is not None else None
        if conflict is not None:
            name, older = conflict
            message = (
                f"the model {name} is claimed by the ModelRoute {older.id}, {_first(resource)}"
            )
            path = f"spec.models[{resource.spec.models.index(name)}]"
            found = [refused(resource, path, Reason.CONFLICT, message)]
        findings += found
    return sorted(claims.routes, key=lambda route: (route.namespace, route.name))


def _check_selects(resources: Resources, routes: list[Route], findings: list[Finding]) -> None:
    """Say which routes choose among models that nobody has."""
    choosing = [it for it in routes if it.select is not None]
    if choosing:
        names = Names(it for it in routes if it.select is None)
        for it in choosing:
            check_select(resources.routes[it.namespace, it.name], names, findings)


def _keys(
    resources: Resources, names: Names, attachments: Attachments, findings: list[Finding]
) -> dict[str, Key]:
    """The callers by digest. The older of two ApiKeys with the same key has it; a current key
    always goes before one that was rotated away."""
    keys: dict[str, Key] = {}
    callers: list[Caller] = []
    for resource in sorted(_living(resources.api_keys), key=age):
        found: list[Finding] = []
        caller = compile_caller(
            resource, resources, names, attachments.within(resource.metadata.namespace), found
        )
        if caller.current in keys:
            message = f"the ApiKey {keys[caller.current].id}, {_first(resource)}, has the same key"
            found = [refused(resource, "spec.secretName", Reason.CONFLICT, message)]
        else:
            callers.append(caller)
            if caller.current is not None:
                keys[caller.current] = caller.key
        findings += found
    for caller in callers:
        for digest, until in caller.previous:
            keys.setdefault(digest, msgspec.structs.replace(caller.key, valid_until=until))
    return keys


def _about(finding: Finding) -> tuple[str, str, str]:
    return (finding.kind, finding.namespace, finding.name)


def _living(table: Mapping[Ref, _R]) -> list[_R]:
    """What is not being deleted, by namespace and name."""
    return [table[ref] for ref in sorted(table) if not table[ref].metadata.deletion_timestamp]


def age(resource: Resource) -> tuple[float, Ref]:
    """Sorts the oldest first; what was never in a cluster has no age, and goes by its name."""
    created = resource.metadata.creation_timestamp
    return (created.timestamp() if created else float("inf"), resource.ref)


def _first(resource: Resource) -> str:
    """Why the other one wins."""
    return "which is older" if resource.metadata.creation_timestamp else "which comes first"


def _refused(it: Refused) -> list[Finding]:
    kept = "the last valid version stays in force" if it.kept else "it is not in force"
    last = len(it.problems) - 1
    return [
        Finding(
            kind=it.kind,
            namespace=it.ref[0],
            name=it.ref[1],
            generation=it.generation,
            condition="Accepted",
            severity="Error",
            reason=Reason.INVALID,
            message=f"{problem.message} ({kept})" if number == last else problem.message,
            path=dotted(problem.path),
        )
        for number, problem in enumerate(it.problems)
    ]
