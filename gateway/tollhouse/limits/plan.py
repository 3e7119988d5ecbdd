"""Which limits and budgets concern a request, and how much of each it may take. Pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tollhouse.allowance import Allowance, Limit, Policy
from tollhouse.limits import calendar
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key, Route, Snapshot
from tollhouse.store import Count, Kind, OnFailure

MONEY = "money"
"""What a budget counts; limits count what ``Limit.counts`` says."""
ASSUMED_OUTPUT = 4096
"""Tokens that an answer is taken to have at most where neither its caller nor anybody else says."""
_LONGEST_COUNTER = 200
_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
MOST_TOKENS = 10**9
"""More than any one request uses, whatever its caller or its provider says."""
_PROMPTS = ("messages", "input", "instructions", "prompt", "tools", "query", "documents")
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one request may use at most: tokens, and nano-USD, None where nobody knows a price.

    ``assumed``: nobody capped the answer, so that ``output_tokens`` is the gateway's own guess. A
    guess never makes a request larger than a whole limit; it then waits until all of it is free.
    """

    prompt_tokens: int
    output_tokens: int
    cost: int | None = None
    assumed: bool = False


_LOOK = Demand(0, 0)
"""Asks for nothing: only to see what is there."""


@dataclass(frozen=True, slots=True)
class Line:
    """One limit or budget that concerns a request.

    ``name`` is what metrics know it by, of bounded number; ``whose`` and ``title`` say it to
    people. ``counts`` is what ``Limit.counts`` says, or MONEY.
    """

    count: Count
    name: str
    title: str
    whose: str
    counts: str
    warn_at: tuple[int, ...] = ()
    period: str = ""
    time_zone: str = "UTC"


def concerned(caller: Key, route: Route) -> bool:
    """Whether any limit or budget concerns a request; a provider's own aside."""
    return bool(
        caller.limits
        or caller.policies
        or route.policies
        or ((caller.budgets or caller.budget is not None) and not route.free)
    )


def lines(
    snapshot: Snapshot,
    caller: Key,
    resolution: Resolution,
    user: str | None,
    demand: Demand,
    now: float,
) -> list[Line]:
    """Every limit and budget that concerns the request; ``now`` in seconds since the epoch.

    ``user`` is the request's field of that name. A policy on both the key and the route counts the
    request once. Free routes spend no money.
    """
    route = resolution.route
    found = list(_own(caller, demand))
    for policy in _policies(snapshot, dict.fromkeys((*caller.policies, *route.policies))):
        found += policy_lines(policy, caller, resolution, user, demand)
    if not route.free:
        found += budget_lines(snapshot, caller, demand, now)
    return found


def provider_lines(
    snapshot: Snapshot,
    caller: Key,
    resolution: Resolution,
    user: str | None,
    demand: Demand,
    policies: Iterable[str],
) -> list[Line]:
    """The limits on a provider that this attempt has to pass, given the ids of its policies; what
    the whole request was asked for already is left out."""
    asked = {*caller.policies, *resolution.route.policies}
    found: list[Line] = []
    for policy in _policies(snapshot, (it for it in policies if it not in asked)):
        found += policy_lines(policy, caller, resolution, user, demand)
    return found


def policy_lines(
    policy: Policy, caller: Key, resolution: Resolution | None, user: str | None, demand: Demand
) -> Iterator[Line]:
    """Those limits of a policy that count this request; all, without a ``resolution``."""
    failing = OnFailure(policy.on_store_failure)
    for limit in policy.limits:
        if (
            limit.models is not None
            and resolution is not None
            and not _covers(limit.models, resolution)
        ):
            continue
        parts = ["p", policy.id, limit.name, limit.counts, f"{limit.window:g}"]
        if limit.scope != "Shared":
            parts.append(caller.id)
        if limit.scope == "User" and user:
            # A caller may send text of any length, and a person's address among it.
            parts.append(hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:32])
        yield _line(
            limit,
            counter=_counter(parts),
            name=f"policy/{policy.id}/{limit.name}",
            whose=f"of the RateLimitPolicy {policy.id}",
            demand=demand,
            failing=failing,
        )


def budget_lines(snapshot: Snapshot, caller: Key, demand: Demand, now: float) -> Iterator[Line]:
    """The ApiKey's own budget and every Budget that it spends from."""
    if caller.budget is not None:
        yield key_budget(caller.id, caller.budget, demand, now)
    for ident in caller.budgets:
        budget = snapshot.budgets.get(ident)
        if budget is not None:
            yield _money(
                budget.allowance,
                counter=_counter(["b", ident]),
                name=f"budget/{ident}",
                whose=f"the Budget {ident}",
                demand=demand,
                now=now,
                rejects=budget.rejects,
                warn_at=budget.warn_at,
            )


def key_budget(ident: str, allowance: Allowance, demand: Demand, now: float) -> Line:
    """The budget of the ApiKey with this id (namespace/name)."""
    return _money(
        allowance,
        counter=_counter(["s", ident]),
        name="key/budget",
        whose=f"the budget of the ApiKey {ident}",
        demand=demand,
        now=now,
    )


@dataclass(frozen=True, slots=True)
class Purse:
    """A Budget, or the budget of an ApiKey, by the object that it stands in."""

    kind: str
    namespace: str
    name: str
    line: Line


def budgets(snapshot: Snapshot, now: float) -> Iterator[Purse]:
    """Everything that holds money, each once."""
    for budget in snapshot.budgets.values():
        line = _money(
            budget.allowance,
            counter=_counter(["b", budget.id]),
            name=f"budget/{budget.id}",
            whose=f"the Budget {budget.id}",
            demand=_LOOK,
            now=now,
        )
        yield Purse("Budget", budget.namespace, budget.name, line)
    for shard in snapshot.key_shards:
        for key in shard.values():
            # The older digest of a key that is being rotated spends from the same budget.
            if key.budget is not None and key.valid_until is None:
                line = key_budget(key.id, key.budget, _LOOK, now)
                yield Purse("ApiKey", key.namespace, key.name, line)


def overview(
    snapshot: Snapshot, caller: Key, routes: Iterable[Route], now: float
) -> Iterator[Line]:
    """Everything that may limit a caller on these routes, and takes nothing of it: its own limits
    and budgets first. Limits for each ``user`` are those of requests that name none."""
    idents = dict.fromkeys(caller.policies)
    for route in routes:
        idents |= dict.fromkeys(route.policies)
    found = [*_own(caller, _LOOK), *budget_lines(snapshot, caller, _LOOK, now)]
    for policy in _policies(snapshot, idents):
        found += policy_lines(policy, caller, None, None, _LOOK)
    for line in found:
        yield replace(line, count=replace(line.count, amount=0, refuses=False))


def amount(counts: str, used: Demand) -> int:
    """How much of what is counted a request uses."""
    match counts:
        case "tokens":
            return used.prompt_tokens + used.output_tokens
        case "input_tokens":
            return used.prompt_tokens
        case "output_tokens":
            return used.output_tokens
        case "money":
            return used.cost or 0
        case _:
            return 1


def output_of(fields: Mapping[str, msgspec.Raw], resolution: Resolution) -> tuple[int, bool]:
    """(the most tokens that all answers to a request may have together, whether that is assumed).

    The caller's own cap, which the route's parameters may replace or stand in for, times how many
    answers it asks for; never more than the caps of key and route.
    """
    parameters = resolution.route.parameters
    told: list[int] = []
    for name in _CAPS:
        value = parameters.overrides.get(name)
        if value is None:
            value = _number(fields.get(name))
        if value is None:
            value = parameters.defaults.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            told.append(value)
    if resolution.max_tokens is not None:
        told.append(resolution.max_tokens)
    answers = max(1, _number(fields.get("n")) or 1, _number(fields.get("best_of")) or 1)
    most = min(told) if told else ASSUMED_OUTPUT
    return min(most * answers, MOST_TOKENS), not told


def prompt_of(fields: Mapping[str, msgspec.Raw]) -> int:
    """About how many tokens the prompt of a request has."""
    return sum(len(bytes(fields[name])) for name in _PROMPTS if name in fields) // 3


def user_of(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """The request's ``user``: whom the caller asks for."""
    user: str | None = _read(fields.get("user"), str)
    return user


def _own(caller: Key, demand: Demand) -> Iterator[Line]:
    for limit in caller.limits:
        yield _line(
            limit,
            counter=_counter(["k", caller.id, limit.name]),
            name=f"key/{limit.name}",
            whose=f"of the ApiKey {caller.id}",
            demand=demand,
            failing=OnFailure.LOCAL,
        )


def _policies(snapshot: Snapshot, idents: Iterable[str]) -> Iterator[Policy]:
    for ident in idents:
        policy = snapshot.policies.get(ident)
        if policy is not None:
            yield policy


def _line(
    limit: Limit, *, counter: str, name: str, whose: str, demand: Demand, failing: OnFailure
) -> Line:
    counts = limit.counts
    takes = amount(counts, demand)
    if demand.assumed and counts.endswith("tokens"):
        certain = 0 if counts == "output_tokens" else demand.prompt_tokens
        takes = max(certain, min(takes, limit.amount))
    count = Count(
        counter=counter,
        kind=Kind.CONCURRENT if counts == "concurrent" else Kind.WINDOW,
        limit=limit.amount,
        amount=takes,
        span=limit.window,
        settles=counts.endswith("tokens"),
        on_failure=failing,
    )
    return Line(count, name, f"the limit {limit.name!r}", whose, counts)


def _money(
    allowance: Allowance,
    *,
    counter: str,
    name: str,
    whose: str,
    demand: Demand,
    now: float,
    rejects: bool = True,
    warn_at: tuple[int, ...] = (),
) -> Line:
    since, until = calendar.bounds(allowance.period, allowance.time_zone, now)
    # At least one, so that a budget that is spent refuses what costs next to nothing too.
    takes = max(1, demand.cost) if demand.cost is not None else 0
    count = Count(
        counter=counter,
        kind=Kind.PERIOD,
        limit=allowance.amount,
        amount=min(takes, allowance.amount) if demand.assumed else takes,
        since=since,
        until=until,
        settles=True,
        refuses=rejects and demand.cost is not None,
    )
    period, zone = allowance.period, allowance.time_zone
    return Line(count, name, "", whose, MONEY, warn_at, period, zone)


def _covers(patterns: Iterable[str], resolution: Resolution) -> bool:
    """Whether a pattern has the model, by its canonical id or another name of its route's own."""
    names = [it for it in resolution.route.models if not it.endswith("*")]
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
        for name in (resolution.model, *names)
    )


def _counter(parts: list[str]) -> str:
    """The name of a counter: readable, and never longer than a store takes."""
    text = ":".join(parts)
    if len(text) <= _LONGEST_COUNTER:
        return text
    return f"{text[:100]}:{hashlib.sha256(text.encode()).hexdigest()}"


def _number(raw: msgspec.Raw | None) -> int | None:
    number: int | None = _read(raw, int)
    return number


def _read(raw: msgspec.Raw | None, kind: type) -> Any:
    """A caller's field; None where it is absent, null, or of another type."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except _BROKEN:
        return None
