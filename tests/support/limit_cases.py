"""Callers, routes and policies to plan limits for."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tollhouse.allowance import Budget, Limit, Policy
from tollhouse.limits import plan
from tollhouse.limits.plan import Demand, Line
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key, Route, Snapshot, Target

NOW = 1_800_000_000.0
DEMAND = Demand(prompt_tokens=30, output_tokens=100, cost=5_000)
KEY = Key(namespace="shop", name="checkout")


def route(**more: Any) -> Route:
    targets = (Target(provider="ai/up", model="m"),)
    return Route(
        **{"namespace": "ai", "name": "r", "models": ("m", "team/*"), "targets": targets} | more
    )


def resolved(model: str = "m", **more: Any) -> Resolution:
    return Resolution(
        requested=model, model=model, route=more.pop("route", None) or route(), **more
    )


def fields(**given: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in given.items()}


def policy(*limits: Limit, **more: Any) -> Policy:
    return Policy(**{"namespace": "ai", "name": "p", "limits": limits} | more)


def lines(
    caller: Key,
    *policies: Policy,
    user: str | None = None,
    demand: Demand = DEMAND,
    budgets: Sequence[Budget] = (),
    **more: Any,
) -> list[Line]:
    snapshot = Snapshot.of(policies=policies, budgets=budgets)
    return plan.of_request(snapshot, caller, resolved(**more)).lines(user, demand, NOW)


def keyed(**more: Any) -> Key:
    return msgspec.structs.replace(KEY, **more)
