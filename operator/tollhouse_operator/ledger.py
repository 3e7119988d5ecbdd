"""What compiling said of each custom resource, from one compilation to the next.

Ten thousand objects are compared where a compilation runs, off the event loop, so that the rest of
the operator hears of nothing but what changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from tollhouse.compile import Compiled
from tollhouse.compiling.caller import secret_of
from tollhouse.findings import Finding
from tollhouse.resources import KINDS, ApiKey, Ref, Resource, Resources, SecretObject
from tollhouse_operator.store import Key


@dataclass(frozen=True, slots=True)
class Verdict:
    """``generation`` is the one that was looked at, and ``uid`` whose it was: None where an object
    never parsed. ``present``: it is in the snapshot. ``secret`` is an ApiKey's."""

    resource: Resource | None
    uid: str | None
    generation: int
    present: bool
    findings: tuple[Finding, ...]
    secret: SecretObject | None = None


class Ledger:
    """Not for several threads at once."""

    def __init__(self) -> None:
        self._verdicts: dict[str, dict[Ref, Verdict]] = {}

    def changes(self, resources: Resources, compiled: Compiled) -> dict[Key, Verdict | None]:
        """The verdicts that differ from those of the last call; None for what is gone."""
        changed: dict[Key, Verdict | None] = {}
        findings = _by_kind(compiled)
        present = _present(compiled)
        refused = {(it.kind, it.ref): it.generation for it in resources.refused}
        for kind, table in _tables(resources):
            before, now = self._verdicts.get(kind, {}), dict[Ref, Verdict]()
            said, there = findings.get(kind, {}), present.get(kind, _NOBODY)
            wanting = {ref: None for at, ref in refused if at == kind and ref not in table}
            for ref, resource in (*table.items(), *wanting.items()):
                generation = refused.get((kind, ref))
                if generation is None and resource is not None:
                    generation = resource.metadata.generation
                secret = secret_of(resource, resources) if isinstance(resource, ApiKey) else None
                known, found = before.get(ref), said.get(ref, ())
                if (
                    known is not None
                    and known.resource is resource
                    and known.secret is secret
                    and known.present == (ref in there)
                    and known.generation == generation
                    and known.findings == found
                ):
                    now[ref] = known
                    continue
                uid = resource.metadata.uid if resource and (kind, ref) not in refused else None
                now[ref] = changed[kind, *ref] = Verdict(
                    resource, uid, generation or 0, ref in there, found, secret
                )
            changed |= {(kind, *ref): None for ref in before.keys() - now.keys()}
            self._verdicts[kind] = now
        return changed


_NOBODY: frozenset[Ref] = frozenset()


def _tables(resources: Resources) -> Iterator[tuple[str, Mapping[Ref, Resource]]]:
    yield "Provider", resources.providers
    yield "ModelRoute", resources.routes
    yield "ApiKey", resources.api_keys
    yield "RateLimitPolicy", resources.policies
    yield "Budget", resources.budgets


def _by_kind(compiled: Compiled) -> dict[str, dict[Ref, tuple[Finding, ...]]]:
    found: dict[str, dict[Ref, tuple[Finding, ...]]] = {kind: {} for kind in KINDS}
    for (kind, *ref), about in groupby(
        compiled.findings, lambda it: (it.kind, it.namespace, it.name)
    ):
        if kind in found:
            found[kind][ref[0], ref[1]] = tuple(about)
    return found


def _present(compiled: Compiled) -> dict[str, set[Ref]]:
    snapshot = compiled.snapshot
    return {
        "Provider": {(one.namespace, one.name) for one in snapshot.providers.values()},
        "ModelRoute": {(one.namespace, one.name) for one in snapshot.routes.values()},
        "ApiKey": {
            (one.namespace, one.name) for shard in snapshot.key_shards for one in shard.values()
        },
        "RateLimitPolicy": {(one.namespace, one.name) for one in snapshot.policies.values()},
        "Budget": {(one.namespace, one.name) for one in snapshot.budgets.values()},
    }
