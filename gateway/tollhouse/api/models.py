"""Catalogues: the models that a key may call, the public ones, and what a key is.

Source of the list's format: the OpenAI API reference, "List models"; ``pricing`` (as in a
snapshot), ``context_window`` (tokens) and ``capabilities`` are the gateway's own.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tollhouse.pricing import searches
from tollhouse.snapshot import Key, Route


def model_list(routes: Iterable[Route]) -> bytes:
    """The body of ``GET /v1/models``: each route by its canonical id."""
    data = [_entry(route.models[0], route) for route in routes]
    return msgspec.json.encode({"object": "list", "data": data})


def model(name: str, route: Route) -> bytes:
    """The body of ``GET /v1/models/{id}``."""
    return msgspec.json.encode(_entry(name, route))


def catalogue(routes: Iterable[Route]) -> bytes:
    """The body of ``GET /api/models``: canonical ids by the provider that they name, if any."""
    providers: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        prefix, slash, _ = route.models[0].partition("/")
        entry = {"id": route.models[0], "free": route.free, **_facts(route)}
        providers.setdefault(prefix if slash else "other", []).append(entry)
    data = [{"id": name, "models": models} for name, models in sorted(providers.items())]
    return msgspec.json.encode({"object": "list", "providers": data})


def key(caller: Key, bounds: Mapping[str, Any]) -> bytes:
    """The body of ``GET /v1/key``: what the caller's ApiKey says of itself. Null: no bound.

    ``bounds`` are its ``limits`` and ``budgets`` with what is left of them.
    """
    ends = [it for it in (caller.expires_at, caller.valid_until) if it is not None]
    expires = datetime.fromtimestamp(min(ends), UTC).isoformat() if ends else None
    return msgspec.json.encode(
        {
            "object": "key",
            "name": caller.name,
            "namespace": caller.namespace,
            "owner": caller.owner,
            "tags": caller.tags,
            "allowed_models": caller.allowed_models,
            "model_aliases": caller.model_aliases,
            "max_tokens": caller.max_tokens,
            "expires_at": expires,
            **bounds,
        }
    )


def _entry(name: str, route: Route) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": route.namespace,
        **_facts(route),
    }


def _facts(route: Route) -> dict[str, Any]:
    """Null is unknown. The price is that of the targets which are tried first; where these
    differ, of the first among them. Prices that few models have are there where they are known."""
    able = route.capabilities
    first = min(route.targets, key=lambda it: it.priority, default=None)
    pricing = first.pricing if first is not None else None
    return {
        "pricing": None
        if pricing is None
        else {
            "input": pricing.input,
            "cached_input": pricing.cached_input,
            "output": pricing.output,
            **msgspec.to_builtins(pricing),
        },
        "context_window": able.context_window,
        "capabilities": {
            "vision": able.vision,
            "tools": able.tools,
            "reasoning": able.reasoning,
            # One target that has it is enough: requests that need it pass over the others.
            "web_search": any(searches(it, able) for it in route.targets) or able.web_search,
        },
    }
