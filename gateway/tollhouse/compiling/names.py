"""Who sees which model names: the part of compiling that looks at all routes together."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tollhouse.inventory import NAMESPACE_LABEL, PLATFORM_LABEL
from tollhouse.resources import LabelSelector, ModelRoute, Resources
from tollhouse.snapshot import Route


class Namespaces:
    """Every namespace there is, or that holds an ApiKey or a ModelRoute, with its labels."""

    def __init__(self, resources: Resources) -> None:
        names = {namespace for namespace, _ in (*resources.api_keys, *resources.routes)}
        labels = {name: {NAMESPACE_LABEL: name} for name in names}
        labels |= {name: dict(it.labels) for name, it in resources.namespaces.items()}
        self._labels = dict(sorted(labels.items()))
        self._platform = resources.platform
        self._selected: dict[str, tuple[str, ...]] = {}

    def platform(self, namespace: str) -> bool:
        """Whether the routes of this namespace go before those that others share."""
        labels = self._labels.get(namespace, {})
        return namespace in self._platform or labels.get(PLATFORM_LABEL) == "true"

    def shared_with(self, route: ModelRoute) -> tuple[str, ...] | None:
        """The namespaces whose ApiKeys may call the route, its own among them; None: all."""
        own, share = route.metadata.namespace, route.spec.share_with
        if share.from_ == "All":
            return None
        if share.selector is None:
            return (own,)
        return tuple(sorted({own, *self._matching(share.selector)}))

    def _matching(self, selector: LabelSelector) -> tuple[str, ...]:
        said = selector.model_dump_json()
        if said not in self._selected:
            self._selected[said] = tuple(
                name for name, labels in self._labels.items() if selector.matches(labels)
            )
        return self._selected[said]


class Claims:
    """Which routes have which names. Routes come oldest first.

    Within a namespace a name belongs to one route. Across namespaces nobody takes a name from
    anybody: ``overlaps`` tells where several routes answer to one, and ``routing`` decides for each
    namespace which of them its callers meet.
    """

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self._taken: dict[tuple[str, str], Route] = {}
        self._named: dict[str, list[Route]] = {}

    def claim(self, route: Route) -> tuple[str, Route] | None:
        """Takes all names of a route; or takes none, and returns one that an older route of its
        namespace has, with that route. Two wildcards clash only when they are the same."""
        for name in route.models:
            older = self._taken.get((route.namespace, name))
            if older is not None:
                return name, older
        for name in route.models:
            self._taken[route.namespace, name] = route
            self._named.setdefault(name, []).append(route)
        self.routes.append(route)
        return None

    def overlaps(self) -> "Iterator[Overlap]":
        """The names for which a route stands behind or before one that takes precedence over it.

        A platform's route is told nothing: others do not take its names, but hide them from
        themselves.
        """
        for name, routes in self._named.items():
            if len(routes) == 1:
                continue
            beyond = [it for it in routes if it.shared_with != (it.namespace,)]
            beyond.sort(key=lambda it: it.precedence)
            for route in routes:
                if not route.platform:
                    yield from _overlaps(name, route, beyond)


@dataclass(frozen=True, slots=True)
class Overlap:
    """``own``: callers in the route's own namespace get it, and not the other. Otherwise callers
    in namespaces that have neither, and see both, get the other."""

    name: str
    route: Route
    other: Route
    own: bool


def _overlaps(name: str, route: Route, beyond: Sequence[Route]) -> Iterator[Overlap]:
    """At most one of each sort; ``beyond`` holds what other namespaces see, the first first."""
    before = list(takewhile(lambda it: it.precedence < route.precedence, beyond))
    hidden = next((it for it in before if it.seen_from(route.namespace)), None)
    if hidden is not None:
        yield Overlap(name, route, hidden, own=True)
    first = next((it for it in before if _seen_together(it, route)), None)
    if first is not None:
        yield Overlap(name, route, first, own=False)


def _seen_together(one: Route, other: Route) -> bool:
    """Whether some namespace that has neither of these routes sees both."""
    if one.shared_with is None and other.shared_with is None:
        return True
    named = {*(one.shared_with or ()), *(other.shared_with or ())}
    return any(
        one.seen_from(it) and other.seen_from(it) for it in named - {one.namespace, other.namespace}
    )


class Names:
    """The names that each namespace sees, as patterns can be looked up in them.

    What is as it was in the ``Names`` before is taken from there, the same object.
    """

    def __init__(self, routes: Iterable[Route], before: "Names | None" = None) -> None:
        named: dict[str | None, list[_Named]] = {}
        for route in routes:
            for namespace in _scopes(route):
                named.setdefault(namespace, []).append((route.models, route.families))
        known = before._scopes if before is not None else {}
        self._scopes: dict[str | None, _Scope] = {}
        for namespace, it in named.items():
            old = known.get(namespace)
            self._scopes[namespace] = old if old is not None and old.named == it else _Scope(it)

    def scopes(self) -> "tuple[object, ...]":
        """What all answers depend on."""
        return (*self._scopes, *self._scopes.values())

    def seen(self, namespace: str) -> "tuple[_Scope | None, _Scope | None]":
        """What the answers for this namespace depend on."""
        return self._scopes.get(None), self._scopes.get(namespace)

    def allow(self, namespace: str, pattern: str) -> bool:
        """Whether an allow-list's entry admits anything that the namespace sees."""
        return any(scope.admitted(pattern) for scope in self.seen(namespace) if scope)

    def resolve(self, namespace: str, name: str) -> bool:
        """Whether a name that the namespace's callers ask for comes to a route."""
        return any(
            scope.admitted(name) or name in scope.bare or scope.known(name)
            for scope in self.seen(namespace)
            if scope
        )

    def choosable(self, namespace: str, pattern: str) -> bool:
        """Whether a ``select`` finds something by this pattern: a name of its own that fits, or
        for a whole name whatever it comes to."""
        if not pattern.endswith("*"):
            return self.resolve(namespace, pattern)
        return any(scope.names(pattern[:-1]) for scope in self.seen(namespace) if scope)


class _Scope:
    def __init__(self, named: "list[_Named]") -> None:
        self.named = named
        self.bare = {models[0].rpartition("/")[2] for models, _ in named}
        names = [name for models, _ in named for name in models]
        self._exact = sorted(name for name in names if not name.endswith("*"))
        self._prefixes = {name[:-1] for name in names if name.endswith("*")}
        self._families = {it for _, families in named for it in families}

    def known(self, name: str) -> bool:
        """Whether a bare name belongs to a family that some wildcard serves."""
        return any(
            name.startswith(it[:-1]) if it.endswith("*") else name == it for it in self._families
        )

    def names(self, stem: str) -> bool:
        """Whether a name without ``*`` begins so."""
        nearest = self._nearest(stem)
        return nearest is not None and nearest.startswith(stem)

    def admitted(self, pattern: str) -> bool:
        stem = pattern.removesuffix("*")
        nearest = self._nearest(stem)
        if pattern == stem:
            fits = any(stem.startswith(prefix) and stem != prefix for prefix in self._prefixes)
            return nearest == stem or fits
        return (nearest is not None and nearest.startswith(stem)) or any(
            stem.startswith(prefix) or prefix.startswith(stem) for prefix in self._prefixes
        )

    def _nearest(self, stem: str) -> str | None:
        at = bisect_left(self._exact, stem)
        return self._exact[at] if at < len(self._exact) else None


def _scopes(route: Route) -> tuple[str | None, ...]:
    """The namespaces that see a route; None stands for all."""
    return (None,) if route.shared_with is None else route.shared_with


_Named = tuple[tuple[str, ...], tuple[str, ...]]
"""A route's models and families."""
