"""Which route a name comes to for the callers of a namespace. Pure.

A name belongs to a route within a namespace only, so several routes that a caller may see can
answer to one. They stand in *layers*: the routes of the caller's own namespace, beyond them the
platform's, and beyond those the ones that other namespaces share. A name is looked for in a layer
only when nothing nearer has it in any way, so no tenant can take a name from another or from the
platform, by an exact name under a wildcard or by making a bare name ambiguous.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tollhouse.snapshot import Route


@dataclass(frozen=True, slots=True)
class View:
    """One layer of the routes that a namespace's keys may see, by each way to name them.

    ``bare`` has None for names that two routes end in. ``beyond`` is the next layer.
    """

    exact: dict[str, Route]
    bare: dict[str, Route | None]
    wildcards: tuple[tuple[str, Route], ...]
    families: tuple[tuple[str, Route], ...]
    beyond: "View | None" = None
    platform: bool = False

    def layers(self) -> "Iterator[View]":
        """This one, and those beyond it."""
        layer: View | None = self
        while layer is not None:
            yield layer
            layer = layer.beyond


def find(view: View, name: str) -> tuple[Route, str, str | None] | None:
    """(route, canonical model id, what ``*`` matched) for a name without alias and suffix."""
    layer: View | None = view
    while layer is not None:
        found = _in_layer(layer, name)
        if found is not None:
            return found
        layer = layer.beyond
    return None


def _in_layer(view: View, name: str) -> tuple[Route, str, str | None] | None:
    route = view.exact.get(name) or view.bare.get(name)
    if route is not None:
        canonical = route.models[0]
        return route, name if canonical.endswith("*") else canonical, None
    for prefix, wildcard in view.wildcards:
        if name.startswith(prefix) and len(name) > len(prefix):
            return wildcard, name, name[len(prefix) :]
    if "/" not in name:
        for pattern, wildcard in view.families:
            if matches(pattern, name):
                return wildcard, wildcard.models[0][:-1] + name, name
    return None


def trusts(view: View, namespace: str, asked: Route, route: Route) -> bool:
    """Whether a choice that ``asked`` makes for a caller of ``namespace`` may fall on a route.

    What other tenants share must not draw requests to itself, by a low price say, from where the
    platform shares routes of its own.
    """
    if route.platform or route.namespace in (namespace, asked.namespace):
        return True
    return not any(layer.platform for layer in view.layers())


def make_view(namespace: str, routes: Iterable[Route]) -> View:
    """The view of a namespace, from the routes that its keys may see."""
    own: list[Route] = []
    platform: list[Route] = []
    others: list[Route] = []
    for route in routes:
        (own if route.namespace == namespace else platform if route.platform else others).append(
            route
        )
    last = _layer(others, None) if others else None
    middle = _layer(platform, last) if platform else last
    return _layer(own, middle) if own or middle is None else middle


def _layer(routes: list[Route], beyond: View | None) -> View:
    """The older of two routes that have a name answers to it."""
    routes.sort(key=lambda route: route.precedence)
    exact: dict[str, Route] = {}
    bare: dict[str, Route | None] = {}
    wildcards: dict[str, Route] = {}
    families: dict[str, Route] = {}
    for route in routes:
        for pattern in route.families:
            families.setdefault(pattern, route)
        for name in route.models:
            if name.endswith("*"):
                wildcards.setdefault(name[:-1], route)
            else:
                exact.setdefault(name, route)
        canonical = route.models[0]
        _, slash, tail = canonical.rpartition("/")
        if slash and not tail.endswith("*"):
            # Two routes that end alike leave the bare name to neither.
            bare[tail] = None if tail in bare else route
    return View(
        exact=exact,
        bare=bare,
        wildcards=tuple(sorted(wildcards.items(), key=lambda item: len(item[0]), reverse=True)),
        families=tuple(sorted(families.items(), key=lambda item: len(item[0]), reverse=True)),
        beyond=beyond,
        platform=any(route.platform for route in routes),
    )


def matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
