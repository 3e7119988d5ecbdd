"""From a caller and a model name to the targets to try, in order. Pure: no I/O and no clock.

A ``Table`` is built once per snapshot, beside the one in force, and then replaces it; a request
keeps the table that it started with.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tollhouse.errors import RequestError
from tollhouse.snapshot import Key, Route, Snapshot, Target

EFFORTS = frozenset({"minimal", "low", "medium", "high", "xhigh", "max"})
_HINT_POOL = 500
"""How many names are searched for near ones: a wrong name must not cost more than a right one."""


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


@dataclass(frozen=True, slots=True)
class _View:
    """The routes that one namespace's keys may see, by each way to name them."""

    exact: dict[str, Route]
    bare: dict[str, Route | None]
    wildcards: tuple[tuple[str, Route], ...]


class Table:
    """The routing table of one snapshot, whose digest (SHA-256, hex) is ``digest``."""

    def __init__(self, snapshot: Snapshot, digest: str) -> None:
        self.snapshot = snapshot
        self.digest = digest
        self._views: dict[str, _View] = {}

    def resolve(self, caller: Key, requested: str) -> Resolution:
        """Effort suffix → alias → exact route → bare name → longest wildcard → allow-list → caps.

        Raises RequestError: model_not_found when no route has the name, model_not_allowed when
        the caller's list leaves it out.
        """
        view = self._view(caller.namespace)
        stem, _, suffix = requested.rpartition(":")
        name, effort = (stem, suffix) if stem and suffix in EFFORTS else (requested, None)
        name = caller.model_aliases.get(name, name)
        found = _find(view, name)
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
        return Resolution(
            requested=requested,
            model=model,
            route=route,
            matched=matched,
            effort=effort,
            max_tokens=_cap(caller, model, route),
        )

    def visible(self, caller: Key) -> list[Route]:
        """The routes that this caller may call, by canonical id."""
        view = self._view(caller.namespace)
        routes = {id(route): route for route in view.exact.values()}
        routes |= {id(route): route for _, route in view.wildcards}
        allowed = (route for route in routes.values() if allows(caller, route.models[0], route))
        return sorted(allowed, key=lambda route: route.models[0])

    def _view(self, namespace: str) -> _View:
        view = self._views.get(namespace)
        if view is None:
            shared = (
                route
                for route in self.snapshot.routes.values()
                if route.shared_with is None or namespace in route.shared_with
            )
            # Bounded by the snapshot: namespaces come from its own keys.
            view = self._views[namespace] = _make_view(shared)
        return view

    def _unknown(self, caller: Key, view: _View, name: str) -> RequestError:
        names = [
            name for name, route in view.exact.items() if allows(caller, route.models[0], route)
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
    return any(_matches(pattern, name) for pattern in caller.allowed_models for name in names)


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


def _find(view: _View, name: str) -> tuple[Route, str, str | None] | None:
    """(route, canonical model id, what ``*`` matched) for a name without alias and suffix."""
    route = view.exact.get(name) or view.bare.get(name)
    if route is not None:
        canonical = route.models[0]
        return route, name if canonical.endswith("*") else canonical, None
    for prefix, wildcard in view.wildcards:
        if name.startswith(prefix) and len(name) > len(prefix):
            return wildcard, name, name[len(prefix) :]
    return None


def _make_view(routes: Iterable[Route]) -> _View:
    exact: dict[str, Route] = {}
    bare: dict[str, Route | None] = {}
    wildcards: dict[str, Route] = {}
    for route in routes:
        for name in route.models:
            if name.endswith("*"):
                wildcards[name[:-1]] = route
            else:
                exact[name] = route
        canonical = route.models[0]
        _, slash, tail = canonical.rpartition("/")
        if slash and not tail.endswith("*"):
            # Two routes that end alike leave the bare name to neither.
            bare[tail] = None if tail in bare else route
    return _View(
        exact=exact,
        bare=bare,
        wildcards=tuple(sorted(wildcards.items(), key=lambda item: len(item[0]), reverse=True)),
    )


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


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
        if pattern.endswith("*") and any(_matches(pattern, name) for name in (model, *names))
    ]
    return caps[max(fitting, key=len)] if fitting else None
