"""From a caller and a model name to the targets to try, in order. Pure: no I/O and no clock.

A ``Table`` is built once per snapshot, beside the one in force, and then replaces it; a request
keeps the table that it started with.
"""

import difflib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import groupby

import msgspec

from tollhouse import views
from tollhouse.errors import RequestError
from tollhouse.pricing import completed, searches
from tollhouse.snapshot import Key, KnownModel, Route, Select, Snapshot, Target
from tollhouse.views import View

EFFORTS = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})
_HINT_POOL = 500
"""How many names are searched for near ones: a wrong name must not cost more than a right one."""


_CONCRETE_POOL = 1024
"""How many models of wildcard routes a table keeps worked out."""
_LEVELS = 1001
"""More priorities than a route can have: so far apart are those of two chosen routes."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of whatever serves it; ``prompt_tokens`` is an estimate, 0 unknown.

    ``free_only`` keeps to free routes, also where the caller names the model.
    """

    vision: bool = False
    tools: bool = False
    reasoning: bool = False
    web_search: bool = False
    free_only: bool = False
    prompt_tokens: int = 0


NOTHING = Needs()


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a choice among routes may depend on beside the request: first-byte times (seconds) by
    (Provider id, upstream model), and the draw of numbers in [0, 1)."""

    latencies: Mapping[tuple[str, str], float] = field(default_factory=dict)
    draw: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a request's ``model`` came to.

    ``requested`` is the name as sent, ``model`` the canonical id (on a wildcard route: the name
    itself), ``matched`` what the route's ``*`` stood for, ``effort`` the suffix's word, and
    ``max_tokens`` the caller's and the route's cap on output tokens.
    """

    requested: str
    model: str
    route: Route
    matched: str | None = None
    effort: str | None = None
    max_tokens: int | None = None


class Table:
    """The routing table of one snapshot, whose digest (SHA-256, hex) is ``digest``."""

    def __init__(self, snapshot: Snapshot, digest: str) -> None:
        self.snapshot = snapshot
        self.digest = digest
        self._views: dict[str, View] = {}
        self._concretes: dict[tuple[str, str], Route] = {}

    def resolve(
        self,
        caller: Key,
        requested: str,
        needs: Needs = NOTHING,
        conditions: Conditions | None = None,
    ) -> Resolution:
        """Effort suffix → alias → exact route → bare name → longest wildcard → family of models →
        allow-list → choice of a route, for ``select`` → caps.

        Raises RequestError: model_not_found when no route has the name, model_not_allowed when
        the caller's list leaves it out, not_free when a paid model is asked for with
        ``free_only``, and unsupported_parameter when no route to choose can serve the ``needs``.
        """
        view = self._view(caller.namespace)
        name, effort = split_effort(requested)
        name = caller.model_aliases.get(name, name)
        found = views.find(view, name)
        if found is None:
            raise self._unknown(caller, view, name)
        route, model, matched = found
        if not allows(caller, model, route):
            raise RequestError(
                "model_not_allowed",
                f"The ApiKey {caller.id} may not use {model!r}. "
                "Ask its owner to add the model to spec.allowedModels.",
                param="model",
            )
        if route.select is not None:
            circumstances = conditions or Conditions()
            chosen = self._choose(caller, view, route, route.select, needs, circumstances)
            return replace(chosen, requested=requested, effort=effort)
        route = self._concrete(route, model, matched)
        if needs.free_only and not _is_free(route):
            raise RequestError(
                "not_free",
                f"{model} is not free, and the request says free_models_only. "
                "Leave that out, or ask for a free model.",
                param="free_models_only",
            )
        return Resolution(
            requested=requested,
            model=model,
            route=route,
            matched=matched,
            effort=effort,
            max_tokens=_cap(caller, model, route),
        )

    def describe(self, caller: Key, model: str) -> Route:
        """The route for a model's name, with the prices and capabilities of that very model.

        Raises RequestError as ``resolve`` does; for a ``select`` route it is that route itself.
        """
        view = self._view(caller.namespace)
        found = views.find(view, caller.model_aliases.get(model, model))
        if found is None or found[0].select is None or not allows(caller, found[1], found[0]):
            return self.resolve(caller, model).route
        return found[0]

    def candidates(self, caller: Key, select: Select) -> list[tuple[str, Route]]:
        """What a ``select`` route looks at for this caller, by canonical model id."""
        found = _candidates(self._view(caller.namespace), select.models)
        return [(model, self._concrete(route, model, matched)) for route, model, matched in found]

    def _concrete(self, route: Route, model: str, matched: str | None) -> Route:
        """A wildcard route as one for this very model: with its prices and capabilities."""
        if matched is None:
            return route
        key = (route.id, model)
        concrete = self._concretes.get(key)
        if concrete is None:
            if len(self._concretes) >= _CONCRETE_POOL:
                # Callers make these names up.
                self._concretes.clear()
            concrete = self._concretes[key] = self._worked_out(route, matched)
        return concrete

    def _worked_out(self, route: Route, matched: str) -> Route:
        models = [
            known(self.snapshot, target, matched) if target.model is None else None
            for target in route.targets
        ]
        targets, able = completed(route.targets, route.capabilities, models)
        return msgspec.structs.replace(route, targets=targets, capabilities=able)

    def _choose(
        self,
        caller: Key,
        view: View,
        asked: Route,
        select: Select,
        needs: Needs,
        conditions: Conditions,
    ) -> Resolution:
        """The best of the routes to choose among, with the targets of the others behind its own.

        Others whose ``parameters`` differ are left out: what is sent must fit every target.
        """
        lacking: set[str] = set()
        able: list[tuple[Route, str, str | None]] = []
        for route, model, matched in _candidates(view, select.models):
            if not (
                allows(caller, model, route) and views.trusts(view, caller.namespace, asked, route)
            ):
                continue
            concrete = self._concrete(route, model, matched)
            missing = lacks(concrete, needs)
            lacking.update(missing)
            if not missing and concrete.targets:
                able.append((concrete, model, matched))
        if not able:
            raise _nothing_left(asked, lacking)
        able.sort(key=lambda it: _rank(it, select.by, conditions))
        first, model, matched = able[0]
        same = [it for it in able if it[0].parameters == first.parameters]
        targets = tuple(
            msgspec.structs.replace(
                target,
                model=target.model or its or name,
                priority=target.priority + number * _LEVELS,
                # The targets of one route are judged by its own capabilities.
                web_search=searches(target, route.capabilities),
            )
            for number, (route, name, its) in enumerate(same)
            for target in route.targets
        )
        caps = [_cap(caller, name, route) for route, name, _ in same]
        # What limits the choice itself limits whatever it comes to.
        policies = tuple(sorted({*asked.policies, *first.policies}))
        return Resolution(
            requested=asked.models[0],
            model=model,
            route=msgspec.structs.replace(first, targets=targets, policies=policies),
            matched=matched,
            max_tokens=min((cap for cap in caps if cap is not None), default=None),
        )

    def visible(self, caller: Key) -> list[Route]:
        """The routes that this caller may call, by canonical id."""
        view = self._view(caller.namespace)
        routes: dict[str, Route] = {}
        for layer in view.layers():
            for route in (*layer.exact.values(), *(it for _, it in layer.wildcards)):
                routes.setdefault(route.models[0], route)
        return [it for name, it in sorted(routes.items()) if allows(caller, name, it)]

    def shared(self) -> list[Route]:
        """The routes that keys of every namespace may call, by canonical id."""
        routes = (it for it in self.snapshot.routes.values() if it.shared_with is None)
        return sorted(routes, key=lambda route: route.models[0])

    def _view(self, namespace: str) -> View:
        view = self._views.get(namespace)
        if view is None:
            routes = (it for it in self.snapshot.routes.values() if it.seen_from(namespace))
            # Bounded by the snapshot: namespaces come from its own keys.
            view = self._views[namespace] = views.make_view(namespace, routes)
        return view

    def _unknown(self, caller: Key, view: View, name: str) -> RequestError:
        names = [
            name
            for layer in view.layers()
            for name, route in layer.exact.items()
            if allows(caller, route.models[0], route)
        ]
        near = difflib.get_close_matches(name[:128], names[:_HINT_POOL], n=3, cutoff=0.5)
        hint = (
            f" Did you mean {', '.join(near)}?"
            if near
            else " GET /v1/models lists the models that this key may use."
        )
        return RequestError(
            "model_not_found", f"No route serves the model {name[:128]!r}.{hint}", param="model"
        )


def split_effort(requested: str) -> tuple[str, str | None]:
    """A model's name without its effort suffix, and the suffix; None where there is no such."""
    stem, _, suffix = requested.rpartition(":")
    return (stem, suffix) if stem and suffix in EFFORTS else (requested, None)


def known(snapshot: Snapshot, target: Target, model: str) -> KnownModel | None:
    """What is known about a wildcard target's model: by its name, else by its longest beginning."""
    provider = snapshot.providers.get(target.provider)
    if provider is None or not provider.known:
        return None
    name = model.lower()
    found = provider.known.get(name)
    if found is not None:
        return found
    for end in range(len(name), 0, -1):
        found = provider.known.get(f"{name[:end]}*")
        if found is not None:
            return found
    return None


def searching(resolution: Resolution, param: str) -> Resolution:
    """The same with those of the targets that search the web; the others are passed over.

    Raises RequestError, naming ``param`` as what asks for it, when none of the targets does. A
    route without any target is left as it is: what is wrong with that is not the caller's.
    """
    route = resolution.route
    able = tuple(it for it in route.targets if searches(it, route.capabilities))
    if len(able) == len(route.targets):
        return resolution
    if not able:
        raise RequestError(
            "unsupported_parameter",
            f"{resolution.model} has no target that searches the web. Leave out `{param}`, or use "
            "a model whose `capabilities` at GET /v1/models name web search.",
            param=param,
        )
    return replace(resolution, route=msgspec.structs.replace(route, targets=able))


def order(targets: Iterable[Target], draw: Callable[[], float]) -> list[list[Target]]:
    """The targets by priority level, lowest first; each level in a weighted random order.

    ``draw`` gives numbers in [0, 1). A target of weight 0 is tried only when all others failed.
    """
    ranked = sorted(targets, key=lambda target: target.priority)
    return [
        _shuffle(list(level), draw) for _, level in groupby(ranked, lambda target: target.priority)
    ]


def allows(caller: Key, model: str, route: Route) -> bool:
    """Whether the caller's allow-list has the model, by its own or any name of its route."""
    if caller.allowed_models is None:
        return True
    names = (model, *route.models)
    return any(views.matches(pattern, name) for pattern in caller.allowed_models for name in names)


def upstream_model(resolution: Resolution, target: Target) -> str:
    """The provider's own name for the model: the target's, else what the wildcard matched."""
    if target.model is not None:
        return target.model
    return resolution.matched if resolution.matched is not None else resolution.model


def _shuffle(level: list[Target], draw: Callable[[], float]) -> list[Target]:
    if len(level) == 1:
        return level
    # Efraimidis and Spirakis, "Weighted random sampling" (2006): sorting by draw^(1/weight)
    # puts each target first with the probability of its share.
    keyed = [
        (draw() ** (1 / target.weight) if target.weight > 0 else -1.0, target) for target in level
    ]
    keyed.sort(key=lambda pair: pair[0], reverse=True)
    return [target for _, target in keyed]


def _candidates(view: View, patterns: Iterable[str]) -> list[tuple[Route, str, str | None]]:
    """What a choice is among: each route once that has a name of its own which a pattern matches,
    and the models of wildcards that a pattern names in full."""
    found: dict[str, tuple[Route, str, str | None]] = {}
    for pattern in patterns:
        if pattern.endswith("*"):
            names = [
                it for layer in view.layers() for it in layer.exact if views.matches(pattern, it)
            ]
        else:
            names = [pattern]
        for name in names:
            it = views.find(view, name)
            if it is not None and it[0].select is None and not it[1].endswith("*"):
                found.setdefault(it[1], it)
    return list(found.values())


def lacks(route: Route, needs: Needs) -> list[str]:
    """What a request needs and the route does not give; what nobody says is taken to be there,
    but for web search, which few models have."""
    able = route.capabilities
    missing: list[str] = []
    if needs.vision and able.vision is False:
        missing.append("vision")
    if needs.tools and able.tools is False:
        missing.append("tools")
    if needs.reasoning and able.reasoning is False:
        missing.append("reasoning")
    if needs.web_search and not any(searches(it, able) for it in route.targets):
        missing.append("web search")
    if able.context_window is not None and needs.prompt_tokens > able.context_window:
        missing.append(f"a context window for about {needs.prompt_tokens} tokens")
    if needs.free_only and not _is_free(route):
        missing.append("being free")
    return missing


def _nothing_left(asked: Route, lacking: set[str]) -> RequestError:
    if not lacking:
        return RequestError(
            "model_not_found",
            f"{asked.models[0]} has no model to choose that this key may use. "
            "Ask the owner of the key or of the ModelRoute.",
            param="model",
        )
    return RequestError(
        "unsupported_parameter",
        f"No model that {asked.models[0]} chooses among has all that the request needs; missing: "
        f"{', '.join(sorted(lacking))}. Leave that out, or name a model.",
        param="model",
    )


def _is_free(route: Route) -> bool:
    return route.free or bool(route.targets and all(map(_is_gratis, route.targets)))


def _is_gratis(target: Target) -> bool:
    pricing = target.pricing
    return pricing is not None and _cost(target) == 0 and Decimal(pricing.request or 0) == 0


def _cost(target: Target) -> Decimal:
    """Dollars for a million tokens, three of prompt to one of answer; infinite when unknown."""
    pricing = target.pricing
    if pricing is None or pricing.input is None or pricing.output is None:
        return Decimal("inf")
    return (3 * Decimal(pricing.input) + Decimal(pricing.output)) / 4


def _rank(
    candidate: tuple[Route, str, str | None], by: str, conditions: Conditions
) -> Decimal | float:
    """Where a candidate stands among the others, the smallest first.

    By its first targets: those that a request meets unless they fail. A target that nobody has
    waited for yet counts as quick, so that its time becomes known.
    """
    route, model, matched = candidate
    lowest = min(it.priority for it in route.targets)
    targets = [it for it in route.targets if it.priority == lowest]
    if by == "Price":
        return Decimal(0) if route.free else max(_cost(it) for it in targets)
    if by == "Latency":
        times = conditions.latencies
        return max(times.get((it.provider, it.model or matched or model), 0.0) for it in targets)
    weight = sum(it.weight for it in targets)
    # Efraimidis and Spirakis, as in ``_shuffle``.
    return -(conditions.draw() ** (1 / weight)) if weight else 0.0


def _cap(caller: Key, model: str, route: Route) -> int | None:
    caps = [cap for cap in (_longest(caller.max_tokens, model, route.models),) if cap is not None]
    if route.parameters.max_tokens is not None:
        caps.append(route.parameters.max_tokens)
    return min(caps) if caps else None


def _longest(caps: dict[str, int], model: str, names: Sequence[str]) -> int | None:
    """The cap whose pattern says most about the model: an exact name, else the longest wildcard."""
    if not caps:
        return None
    for name in (model, *names):
        if name in caps:
            return caps[name]
    fitting = [
        pattern
        for pattern in caps
        if pattern.endswith("*") and any(views.matches(pattern, name) for name in (model, *names))
    ]
    return caps[max(fitting, key=len)] if fitting else None
