"""The limits and budgets that a request would have to pass, in words.

They are those that the gateway itself plans by, so that what is explained is what is enforced.
"""

from dataclasses import dataclass

from tollhouse.limits import answers, plan
from tollhouse.limits.plan import MONEY, Rule
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key, Snapshot


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit or a budget, whose it is, and what it says in words."""

    source: str
    says: str


def bounds(
    snapshot: Snapshot, caller: Key, resolution: Resolution
) -> tuple[tuple[Bound, ...], tuple[Bound, ...]]:
    """The limits and the budgets that the request would have to pass; a provider's own limits
    count only where it is tried."""
    rules = list(plan.of_request(snapshot, caller, resolution).rules)
    for target in resolution.route.targets:
        provider = snapshot.providers.get(target.provider)
        if provider is not None:
            rules += plan.of_provider(snapshot, caller, resolution, provider).rules
    # Two targets at one provider meet the same limits.
    once = list({rule.counter: rule for rule in rules}.values())
    limits = tuple(Bound(_source(it), _limit(it)) for it in once if it.counts != MONEY)
    budgets = tuple(Bound(_source(it), _money(it)) for it in once if it.counts == MONEY)
    return limits, budgets


def _source(rule: Rule) -> str:
    return rule.whose.removeprefix("the budget of the ").removeprefix("of ").removeprefix("the ")


def _limit(rule: Rule) -> str:
    name, failing = rule.name.rpartition("/")[2], rule.failing.value
    at_once = rule.counts == "concurrent"
    rate = f"{rule.limit} requests at once" if at_once else answers.rate(rule)
    each = " for each `user`" if rule.by_user else ""
    return f"{name}: {rate}{each}; without the counters: {failing}"


def _money(rule: Rule) -> str:
    given = rule.allowance
    every = "in all" if given.period == "Total" else f"per {given.period} ({given.time_zone})"
    then = "Reject" if rule.rejects else "Warn"
    return f"{answers.usd(given.amount)} USD {every}, then {then}"
