"""Who sees which model names: the part of compiling that looks at all routes together."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from tollhouse.inventory import NAMESPACE_LABEL
from tollhouse.resources import LabelSelector, ModelRoute, Resources
from tollhouse.snapshot import Route


class Namespaces:
    """Every namespace there is, or that holds an ApiKey or a ModelRoute, with its labels."""

    def __init__(self, resources: Resources) -> None:
        names = {namespace for namespace, _ in (*resources.api_keys, *resources.routes)}
        labels = {name: {NAMESPACE_LABEL: name} for name in names}
        labels |= {name: dict(it.labels) for name, it in resources.namespaces.items()}
        self._labels = dict(sorted(labels.items()))
        self._selected: dict[str, tuple[str, ...]] = {}

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
    """Which routes have which names, and for whom. Routes come oldest first."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self._taken: dict[str, dict[str | None, Route]] = {}

    def claim(self, route: Route) -> tuple[str, Route] | None:
        """Takes all names of a route; or takes none, and returns one that somebody who would see
        this route sees already, with the route that has it.

        Two wildcards clash only when they are the same.
        """
        for name in route.models:
            older = self._holder(name, route)
            if older is not None:
                return name, older
        for name in route.models:
            scopes = self._taken.setdefault(name, {})
            for namespace in _scopes(route):
                scopes[namespace] = route
        self.routes.append(route)
        return None

    def _holder(self, name: str, route: Route) -> Route | None:
        scopes = self._taken.get(name)
        if not scopes:
            return None
        if route.shared_with is None:
            return next(iter(scopes.values()))
        seen_by = (None, *route.shared_with)
        return next((scopes[namespace] for namespace in seen_by if namespace in scopes), None)


class Names:
    """The names that each namespace sees, as patterns can be looked up in them."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._scopes: dict[str | None, _Scope] = {}
        for route in routes:
            for namespace in _scopes(route):
                self._scopes.setdefault(namespace, _Scope()).add(route)

    def allow(self, namespace: str, pattern: str) -> bool:
        """Whether an allow-list's entry admits anything that the namespace sees."""
        return any(scope.admitted(pattern) for scope in self._seen(namespace))

    def resolve(self, namespace: str, name: str) -> bool:
        """Whether a name that the namespace's callers ask for comes to a route."""
        return any(
            scope.admitted(name) or name in scope.bare or scope.known(name)
            for scope in self._seen(namespace)
        )

    def choosable(self, namespace: str, pattern: str) -> bool:
        """Whether a ``select`` finds something by this pattern: a name of its own that fits, or
        for a whole name whatever it comes to."""
        if not pattern.endswith("*"):
            return self.resolve(namespace, pattern)
        return any(scope.names(pattern[:-1]) for scope in self._seen(namespace))

    def _seen(self, namespace: str) -> "list[_Scope]":
        return [self._scopes[it] for it in (None, namespace) if it in self._scopes]


class _Scope:
    def __init__(self) -> None:
        self.bare: set[str] = set()
        self._exact: list[str] = []
        self._prefixes: set[str] = set()
        self._families: set[str] = set()

    def add(self, route: Route) -> None:
        self.bare.add(route.models[0].rpartition("/")[2])
        self._families.update(route.families)
        for name in route.models:
            if name.endswith("*"):
                self._prefixes.add(name[:-1])
            else:
                insort(self._exact, name)

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
