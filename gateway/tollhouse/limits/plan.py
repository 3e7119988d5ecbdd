"""Which limits and budgets concern a request, and how much of each it may take. Pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from tollhouse.allowance import Allowance, Budget
from tollhouse.api import estimate
from tollhouse.limits import calendar
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key, Provider, Route, Snapshot
from tollhouse.store import Count, Kind, OnFailure

MONEY = "money"
"""What a budget counts; limits count what ``Limit.counts`` says."""
ASSUMED_OUTPUT = 4096
"""Tokens that an answer is taken to have at most where neither its caller nor anybody else says."""
_WHOLE = frozenset({"requests", "concurrent"})
"""What every request takes one of."""
_WINDOW, _PERIOD = Kind.WINDOW, Kind.PERIOD
_KEY_NAMES = frozenset(
    f"key/{what}{window}"
    for what in ("budget", "concurrent", "requests", "tokens", "input-tokens", "output-tokens")
    for window in ("", "-per-second", "-per-minute", "-per-hour", "-per-day")
)
"""Every name that a limit of an ApiKey's own can have, and a few that none has."""
_LONGEST_COUNTER = 200
_ANSWERS = ("n", "best_of")
_CAPS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
MOST_TOKENS = 10**9
"""More than any one request uses, whatever its caller or its provider says."""
_PROMPTS = ("messages", "input", "instructions", "prompt", "tools", "query", "documents")
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Demand(msgspec.Struct, frozen=True):
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


class Rule(msgspec.Struct, frozen=True):
    """One limit or budget of a caller on a route, whatever the request.

    ``counter`` is how the store knows it, ``name`` how metrics do; ``title`` and ``whose`` say it
    to people. ``counts`` is what ``Limit.counts`` says, or MONEY, which ``allowance`` bounds.
    ``by_user`` counts each ``user`` apart.
    """

    counter: str
    name: str
    title: str
    whose: str
    counts: str
    limit: int
    window: float = 0.0
    failing: OnFailure = OnFailure.LOCAL
    by_user: bool = False
    allowance: Allowance = Allowance(0)
    rejects: bool = True
    warn_at: tuple[int, ...] = ()


class Line(msgspec.Struct, frozen=True):
    """A rule, and what one request takes of it."""

    rule: Rule
    count: Count


class Plan:
    """What a caller's requests by one route take of which rules.

    It is worked out once, since a request must not pay for names and dates that stay the same.
    """

    __slots__ = ("_bounds", "_entries", "by_user", "spends", "weighs")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._entries = tuple((rule, _fixed(rule)) for rule in rules)
        self._bounds: dict[str, tuple[int, int]] = {}
        self.by_user = any(rule.by_user for rule, _ in self._entries)
        self.weighs = any(rule.counts not in _WHOLE for rule, _ in self._entries)
        """Whether it matters how large a request is."""
        self.spends = any(rule.counts == MONEY for rule, _ in self._entries)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The limits and budgets in it."""
        return tuple(rule for rule, _ in self._entries)

    def lines(self, user: str | None, demand: Demand, now: float) -> list[Line]:
        """What a request of this size takes; ``now`` in seconds since the epoch, ``user`` the
        field of that name."""
        found: list[Line] = []
        for rule, line in self._entries:
            if line is not None:
                found.append(line)
            elif rule.counts == MONEY:
                found.append(Line(rule, self._money(rule, demand, now)))
            else:
                found.append(Line(rule, _count(rule, user, demand)))
        return found

    def _money(self, rule: Rule, demand: Demand, now: float) -> Count:
        since, until = self._bounds.get(rule.counter, (0, 0))
        if not since <= now < until:
            allowance = rule.allowance
            since, until = calendar.bounds(allowance.period, allowance.time_zone, now)
            self._bounds[rule.counter] = (since, until)
        # At least one, so that a budget that is spent refuses what costs next to nothing too.
        takes = (demand.cost or 1) if demand.cost is not None else 0
        if demand.assumed:
            takes = min(takes, rule.limit)
        refuses = rule.rejects and demand.cost is not None
        return Count(rule.counter, _PERIOD, rule.limit, takes, 0.0, since, until, True, refuses)


def names(snapshot: Snapshot) -> set[str]:
    """What metrics know limits and budgets by: all that keys may have, and the snapshot's."""
    found = {*_KEY_NAMES}
    for policy in snapshot.policies.values():
        found |= {f"policy/{policy.id}/{limit.name}" for limit in policy.limits}
    return found | {f"budget/{ident}" for ident in snapshot.budgets}


def concerned(caller: Key, route: Route) -> bool:
    """Whether any limit or budget concerns a request; a provider's own aside."""
    return bool(
        caller.limits
        or caller.policies
        or route.policies
        or ((caller.budgets or caller.budget is not None) and not route.free)
    )


def of_request(snapshot: Snapshot, caller: Key, resolution: Resolution) -> Plan:
    """Every limit and budget that concerns a caller's requests by this route.

    A policy on both the key and the route counts a request once. Free routes spend no money.
    """
    route = resolution.route
    idents = dict.fromkeys((*caller.policies, *route.policies))
    rules = [*_own(caller), *_policies(snapshot, idents, caller, resolution)]
    if not route.free:
        rules += _budgets(snapshot, caller)
    return Plan(rules)


def of_provider(
    snapshot: Snapshot, caller: Key, resolution: Resolution, provider: Provider
) -> Plan:
    """The limits that an attempt at this provider has to pass; what the whole request was asked
    for already is left out."""
    asked = {*caller.policies, *resolution.route.policies}
    idents = [it for it in provider.policies if it not in asked]
    return Plan(_policies(snapshot, idents, caller, resolution))


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
        (line,) = Plan([_budget(budget)]).lines(None, _LOOK, now)
        yield Purse("Budget", budget.namespace, budget.name, line)
    for shard in snapshot.key_shards:
        for key in shard.values():
            # The older digest of a key that is being rotated spends from the same budget.
            if key.budget is not None and key.valid_until is None:
                (line,) = Plan([_key_budget(key, key.budget)]).lines(None, _LOOK, now)
                yield Purse("ApiKey", key.namespace, key.name, line)


def overview(
    snapshot: Snapshot, caller: Key, routes: Iterable[Route], now: float
) -> Iterator[Line]:
    """Everything that may limit a caller on these routes, and takes nothing of it: its own limits
    and budgets first. Limits for each ``user`` are those of requests that name none."""
    idents = dict.fromkeys(caller.policies)
    for route in routes:
        idents |= dict.fromkeys(route.policies)
    rules = [
        *_own(caller),
        *_budgets(snapshot, caller),
        *_policies(snapshot, idents, caller, None),
    ]
    for line in Plan(rules).lines(None, _LOOK, now):
        yield Line(line.rule, msgspec.structs.replace(line.count, amount=0, refuses=False))


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
        value = parameters.overrides.get(name) if parameters.overrides else None
        if value is None and name in fields:
            value = _number(fields[name])
        if value is None and parameters.defaults:
            value = parameters.defaults.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            told.append(value)
    cap = resolution.max_tokens
    if cap is not None:
        told = [min(cap, max(told, default=cap))]
    most, answers = max(told) if told else ASSUMED_OUTPUT, 1
    for name in _ANSWERS:
        if name in fields:
            answers = max(answers, _number(fields[name]) or 1)
    return min(most * answers, MOST_TOKENS), not told


def prompt_of(fields: Mapping[str, msgspec.Raw]) -> int:
    """About how many tokens the prompt of a request has, tools included."""
    found = sum(estimate.prompt(bytes(fields[name])) for name in _PROMPTS if name in fields)
    return min(found, MOST_TOKENS)


def user_of(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """The request's ``user``: whom the caller asks for."""
    try:
        return _texts.decode(fields["user"]) if "user" in fields else None
    except _BROKEN:
        return None


def _own(caller: Key) -> Iterator[Rule]:
    for limit in caller.limits:
        yield Rule(
            counter=_counter(["k", caller.id, limit.name]),
            name=f"key/{limit.name}",
            title=f"the limit {limit.name!r}",
            whose=f"of the ApiKey {caller.id}",
            counts=limit.counts,
            limit=limit.amount,
            window=limit.window,
        )


def _policies(
    snapshot: Snapshot, idents: Iterable[str], caller: Key, resolution: Resolution | None
) -> Iterator[Rule]:
    """Those limits of these policies that count the caller's requests for the model that this
    came to; for any model, without it."""
    for ident in idents:
        policy = snapshot.policies.get(ident)
        for limit in policy.limits if policy is not None else ():
            if policy is None or not _covers(limit.models, resolution):
                continue
            parts = ["p", ident, limit.name, limit.counts, f"{limit.window:g}"]
            if limit.scope != "Shared":
                parts.append(caller.id)
            yield Rule(
                counter=_counter(parts),
                name=f"policy/{ident}/{limit.name}",
                title=f"the limit {limit.name!r}",
                whose=f"of the RateLimitPolicy {ident}",
                counts=limit.counts,
                limit=limit.amount,
                window=limit.window,
                failing=OnFailure(policy.on_store_failure),
                by_user=limit.scope == "User",
            )


def _budgets(snapshot: Snapshot, caller: Key) -> Iterator[Rule]:
    """The ApiKey's own budget and every Budget that it spends from."""
    if caller.budget is not None:
        yield _key_budget(caller, caller.budget)
    for ident in caller.budgets:
        budget = snapshot.budgets.get(ident)
        if budget is not None:
            yield _budget(budget)


def _key_budget(key: Key, allowance: Allowance) -> Rule:
    return Rule(
        counter=_counter(["s", key.id]),
        name="key/budget",
        title="",
        whose=f"the budget of the ApiKey {key.id}",
        counts=MONEY,
        limit=allowance.amount,
        allowance=allowance,
    )


def _budget(budget: Budget) -> Rule:
    return Rule(
        counter=_counter(["b", budget.id]),
        name=f"budget/{budget.id}",
        title="",
        whose=f"the Budget {budget.id}",
        counts=MONEY,
        limit=budget.allowance.amount,
        allowance=budget.allowance,
        rejects=budget.rejects,
        warn_at=budget.warn_at,
    )


def _fixed(rule: Rule) -> Line | None:
    """The line of every request, where nothing of it depends on the request."""
    if rule.by_user or rule.counts not in _WHOLE:
        return None
    return Line(rule, _count(rule, None, _LOOK))


def _count(rule: Rule, user: str | None, demand: Demand) -> Count:
    """What a request takes of a limit."""
    counts, limit = rule.counts, rule.limit
    takes, settles = amount(counts, demand), counts not in _WHOLE
    if settles and demand.assumed:
        certain = 0 if counts == "output_tokens" else demand.prompt_tokens
        takes = max(certain, min(takes, limit))
    return Count(
        _for_user(rule.counter, user) if rule.by_user and user else rule.counter,
        Kind.CONCURRENT if counts == "concurrent" else _WINDOW,
        limit,
        takes,
        rule.window,
        settles=settles,
        on_failure=rule.failing,
    )


def _for_user(counter: str, user: str) -> str:
    # A caller may send text of any length, and a person's address among it.
    return f"{counter}:{hashlib.sha256(user.encode('utf-8', 'replace')).hexdigest()[:32]}"


def _covers(patterns: tuple[str, ...] | None, resolution: Resolution | None) -> bool:
    """Whether a pattern has the model, by its canonical id or another name of its route's own."""
    if patterns is None or resolution is None:
        return True
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


_numbers = msgspec.json.Decoder(int)
_texts = msgspec.json.Decoder(str)


def _number(raw: msgspec.Raw) -> int | None:
    """A caller's field; None where it is no number."""
    try:
        return _numbers.decode(raw)
    except _BROKEN:
        return None
