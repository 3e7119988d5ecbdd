"""Resources → the snapshot that gateways serve, and what there is to say about each resource.

Pure: no I/O and no clock. The same resources on the same day give the same snapshot and findings,
in the same order; the day decides which published prices hold. Each object is compiled by a
function of its own; then come the rules between objects: names that two routes claim, names to
choose among, and a key that two ApiKeys hold. Whatever is wrong with one object is a finding about
it and leaves all others as they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import TypeVar

import msgspec

from tollhouse.allowance import Budget, Policy
from tollhouse.compiling import known
from tollhouse.compiling.caller import (
    KEY_NAME,
    PREVIOUS_DIGESTS,
    Caller,
    compile_caller,
    secret_of,
)
from tollhouse.compiling.limits import Attached, Attachments, compile_budget, compile_policy
from tollhouse.compiling.memo import Ages, Memo
from tollhouse.compiling.names import Claims, Names, Namespaces, Overlap
from tollhouse.compiling.provider import compile_provider, named_by_provider
from tollhouse.compiling.route import Upstreams, check_select, compile_route, known_models
from tollhouse.findings import Condition, Finding, Reason, conditions, refused, warning
from tollhouse.resources import (
    ApiKey,
    ModelRoute,
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
    "Compiler",
    "Condition",
    "Finding",
    "Reason",
    "compile_snapshot",
    "conditions",
    "oversized",
]

_R = TypeVar("_R", bound=Resource)
_T = TypeVar("_T")


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
    return Compiler().compile(resources, day)


class Compiler:
    """``compile_snapshot``, for one state of the resources after another.

    It keeps what it made of each object for as long as that and all that it looks at are the very
    objects that they were. What is said does not depend on what was kept: a fresh one says the
    same. Parts of a snapshot in which nothing changed are the same objects as before.
    """

    def __init__(self) -> None:
        self._upstreams = _UpstreamTable()
        self._routes = _RouteTable()
        self._keys = _KeyTable()
        self._limits = _LimitTable()

    def compile(self, resources: Resources, day: date = known.DAY) -> Compiled:
        """As ``compile_snapshot``. Not for several threads at once."""
        findings = [finding for it in resources.refused for finding in _refused(it)]
        attachments = self._limits.attachments(resources)
        upstreams = self._upstreams.compile(resources, day, attachments, findings)
        routes, names = self._routes.compile(resources, upstreams, attachments, findings)
        _check_selects(resources, routes, findings)
        keys = self._keys.compile(resources, names, attachments, findings)
        policies, budgets = self._limits.compile(resources, findings)
        return Compiled(
            snapshot=Snapshot.of(
                providers=self._upstreams.known(routes, upstreams),
                routes=routes,
                keys=keys,
                policies=policies,
                budgets=budgets,
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


class _LimitTable:
    """The RateLimitPolicies and Budgets."""

    def __init__(self) -> None:
        self._attachments = Attachments((), ())
        self._policies: Memo[Policy] = Memo()
        self._budgets: Memo[Budget] = Memo()

    def attachments(self, resources: Resources) -> Attachments:
        """What they concern."""
        policies, budgets = _living(resources.policies), _living(resources.budgets)
        self._attachments = Attachments(policies, budgets, self._attachments)
        return self._attachments

    def compile(
        self, resources: Resources, findings: list[Finding]
    ) -> tuple[list[Policy], list[Budget]]:
        """What is found depends on all objects that may be limited, what comes of them does not."""
        policies: list[Policy] = []
        for policy in _living(resources.policies):
            made = compile_policy(policy, resources, findings)
            policies.append(_kept(self._policies, policy, made))
        budgets: list[Budget] = []
        for budget in _living(resources.budgets):
            counted = compile_budget(budget, resources, findings)
            budgets.append(_kept(self._budgets, budget, counted))
        self._policies.keep(resources.policies)
        self._budgets.keep(resources.budgets)
        return policies, budgets


class _UpstreamTable:
    """The Providers."""

    def __init__(self) -> None:
        self._compiled: Memo[tuple[Upstream | None, tuple[Finding, ...]]] = Memo()
        self._known: Memo[list[Upstream]] = Memo()

    def compile(
        self, resources: Resources, day: date, attachments: Attachments, findings: list[Finding]
    ) -> Upstreams:
        usable: dict[Ref, Upstream] = {}
        broken = {it.ref for it in resources.refused if it.kind == Provider.kind}
        for resource in _living(resources.providers):
            attached = attachments.within(resource.metadata.namespace)
            made_from = (resource, attached, *named_by_provider(resource, resources))
            done = self._compiled.known(resource.ref, made_from)
            if done is None:
                upstream, found = _found(compile_provider, resource, resources)
                if upstream is not None:
                    policies = attached.policies(resource)
                    upstream = msgspec.structs.replace(upstream, policies=policies)
                done = upstream, found
                self._compiled.add(resource.ref, made_from, done)
            upstream, found = done
            if upstream is not None:
                usable[resource.ref] = upstream
            else:
                broken.add(resource.ref)
            findings += found
        self._compiled.keep(resources.providers)
        timeouts = {ref: resources.providers[ref].spec.timeouts for ref in usable}
        return Upstreams(usable, timeouts, frozenset(broken), day)

    def known(self, routes: list[Route], upstreams: Upstreams) -> list[Upstream]:
        """The upstreams, those that wildcards go to with what is known about their models."""
        wild = [it for it in routes if any(target.model is None for target in it.targets)]

        def complete() -> list[Upstream]:
            tables = known_models(wild, upstreams)
            return [
                msgspec.structs.replace(it, known=tables[it.id]) if it.id in tables else it
                for it in upstreams.usable.values()
            ]

        made_from = (*wild, None, *upstreams.usable.values())
        return self._known.get("", made_from, complete, (upstreams.day,))


class _RouteTable:
    """The ModelRoutes in force. Of two in a namespace that claim one name the older wins."""

    def __init__(self) -> None:
        self._ages: Ages[ModelRoute] = Ages()
        self._compiled: Memo[tuple[Route | None, tuple[Finding, ...]]] = Memo()
        self._names: Names | None = None

    def compile(
        self,
        resources: Resources,
        upstreams: Upstreams,
        attachments: Attachments,
        findings: list[Finding],
    ) -> tuple[list[Route], Names]:
        """The routes by namespace and name, and the names that they have."""
        namespaces, claims = Namespaces(resources), Claims()
        said: dict[str, list[Finding]] = {}
        for _, resource in self._ages.sorted(resources.routes):
            attached = attachments.within(resource.metadata.namespace)
            route, own = self._route(resource, upstreams, namespaces, attached)
            conflict = claims.claim(route) if route is not None else None
            if conflict is not None:
                name, older = conflict
                message = (
                    f"the model {name} is claimed by the ModelRoute {older.id}, {_first(resource)}"
                )
                own = (refused(resource, _claim(resource, name), Reason.CONFLICT, message),)
            said["/".join(resource.ref)] = list(own)
        for overlap in claims.overlaps():
            route = overlap.route
            resource = resources.routes[route.namespace, route.name]
            said[route.id].append(_overlap(resource, overlap))
        for found in said.values():
            findings += found
        self._compiled.keep(resources.routes)
        self._names = Names(claims.routes, self._names)
        routes = sorted(claims.routes, key=lambda route: (route.namespace, route.name))
        return routes, self._names

    def _route(
        self,
        resource: ModelRoute,
        upstreams: Upstreams,
        namespaces: Namespaces,
        attached: Attached,
    ) -> tuple[Route | None, tuple[Finding, ...]]:
        own = resource.metadata.namespace
        targets: list[object] = []
        for target in resource.spec.targets or ():
            ref = (own, target.provider.name)
            targets += upstreams.usable.get(ref), ref in upstreams.broken
        platform = namespaces.platform(own)

        def make() -> tuple[Route | None, tuple[Finding, ...]]:
            found: list[Finding] = []
            route = compile_route(resource, upstreams, namespaces, found)
            if route is None:
                return None, tuple(found)
            created = resource.metadata.creation_timestamp
            return msgspec.structs.replace(
                route,
                platform=platform,
                created=created.timestamp() if created else None,
                policies=attached.policies(resource),
            ), tuple(found)

        seen_by = namespaces.shared_with(resource)
        equal = (seen_by, platform, upstreams.day)
        return self._compiled.get(resource.ref, (resource, attached, *targets), make, equal)


class _KeyTable:
    """The callers. The older of two ApiKeys with the same key has it; a current key always goes
    before one that was rotated away."""

    def __init__(self) -> None:
        self._ages: Ages[ApiKey] = Ages()
        self._compiled: Memo[tuple[Caller, tuple[Finding, ...]]] = Memo()
        self._all: Memo[tuple[dict[str, Key], list[Finding]]] = Memo()

    def compile(
        self,
        resources: Resources,
        names: Names,
        attachments: Attachments,
        findings: list[Finding],
    ) -> dict[str, Key]:
        """The callers by digest."""
        keys, found = self._all.get(
            "",
            (resources.api_keys, resources.secrets, *attachments.scopes(), *names.scopes()),
            lambda: self._compile(resources, names, attachments),
            (resources.standalone,),
        )
        findings += found
        return keys

    def _compile(
        self, resources: Resources, names: Names, attachments: Attachments
    ) -> tuple[dict[str, Key], list[Finding]]:
        keys: dict[str, Key] = {}
        findings: list[Finding] = []
        rotated: list[Caller] = []
        equal = (resources.standalone,)
        for ref, resource in self._ages.sorted(resources.api_keys):
            secret = secret_of(resource, resources)
            attached = attachments.within(ref[0])
            made_from = (resource, secret, attached, *names.seen(ref[0]))
            done = self._compiled.known(ref, made_from, equal)
            if done is None:
                done = _found(compile_caller, resource, resources, names, attached)
                self._compiled.add(ref, made_from, done, equal)
            caller, found = done
            if caller.current in keys:
                older = keys[caller.current].id
                message = f"the ApiKey {older}, {_first(resource)}, has the same key"
                found = (refused(resource, "spec.secretName", Reason.CONFLICT, message),)
            else:
                if caller.previous:
                    rotated.append(caller)
                if caller.current is not None:
                    keys[caller.current] = caller.key
            if found:
                findings += found
        self._compiled.keep(resources.api_keys)
        for caller in rotated:
            for digest, key in caller.previous:
                keys.setdefault(digest, key)
        return keys, findings


def _check_selects(resources: Resources, routes: list[Route], findings: list[Finding]) -> None:
    """Say which routes choose among models that nobody has."""
    choosing = [it for it in routes if it.select is not None]
    if choosing:
        names = Names(it for it in routes if it.select is None)
        for it in choosing:
            check_select(resources.routes[it.namespace, it.name], names, findings)


def _found(make: Callable[..., _T], *given: object) -> tuple[_T, tuple[Finding, ...]]:
    """What one of ``compiling``'s functions returns, and what it finds."""
    found: list[Finding] = []
    return make(*given, found), tuple(found)


def _kept(memo: Memo[_T], resource: Resource, made: _T) -> _T:
    """What was made of the same object before, else this."""
    known = memo.known(resource.ref, (resource,))
    if known is None:
        memo.add(resource.ref, (resource,), made)
        return made
    return known


def _overlap(resource: ModelRoute, overlap: Overlap) -> Finding:
    name, other = overlap.name, overlap.other.id
    who = (
        f"callers in {overlap.route.namespace} get it from this route and not from"
        if overlap.own
        else "callers in other namespaces that see both get it from"
    )
    why = "which is the platform's" if overlap.other.platform else "which is older"
    message = f"the model {name} is shared by another namespace too: {who} {other}, {why}"
    return warning(resource, _claim(resource, name), Reason.NAME_SHARED, message)


def _claim(resource: ModelRoute, name: str) -> str:
    return f"spec.models[{resource.spec.models.index(name)}]"


def _about(finding: Finding) -> tuple[str, str, str]:
    return (finding.kind, finding.namespace, finding.name)


def _living(table: Mapping[Ref, _R]) -> list[_R]:
    """What is not being deleted, by namespace and name."""
    return [table[ref] for ref in sorted(table) if not table[ref].metadata.deletion_timestamp]


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
