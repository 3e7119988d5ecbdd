"""Limits and budgets: what a request takes before it is sent, and what it gives back at its end.

Admission asks every limit that concerns a request in one step of the store, and settlement tells
it what was really used. ``plan`` says which limits those are, ``calendar`` when budgets begin anew,
``answers`` what callers are told, ``ledger`` what is written down of each request.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from time import time
from typing import Any

import msgspec

from tollhouse.api import cost
from tollhouse.api.usage import Usage
from tollhouse.errors import Limited, RequestError
from tollhouse.limits import answers, plan
from tollhouse.limits.plan import MONEY, Demand, Line, Plan
from tollhouse.routing import Resolution
from tollhouse.snapshot import Key, Provider, Route, Snapshot
from tollhouse.store import Admission, State, Store
from tollhouse.telemetry import Metrics

_BATCH = 500
"""Counters that are read in one step when all spend is asked for."""
_KEPT = 4096
"""Plans that are kept worked out."""
_SHOWN = 256
"""The most counters that one look at a key reads."""
_MOST_MONEY = 10**18
"""Nano-USD. No answer costs more, whatever its provider says of its tokens."""
_NOTHING = Demand(0, 0, 0)


class Asking(msgspec.Struct, frozen=True):
    """A request as limits see it. ``fields`` are those of its body, ``writes`` says whether its
    answer is written in tokens, and ``searches`` how many web searches are to be charged."""

    snapshot: Snapshot
    caller: Key
    resolution: Resolution
    fields: Mapping[str, msgspec.Raw]
    writes: bool
    searches: int = 0

    def __repr__(self) -> str:
        """Without what the caller wrote."""
        return f"Asking(of {self.caller.id})"

    def demand(self) -> Demand:
        """What it may use at most."""
        route = self.resolution.route
        prompt = plan.prompt_of(self.fields)
        output, assumed = (
            plan.output_of(self.fields, self.resolution) if self.writes else (0, False)
        )
        pricings = [cost.pricing_of(route, target) for target in route.targets]
        most = cost.most(prompt, output, pricings, self.searches)
        return Demand(prompt, output, cost.nano(most) if most is not None else None, assumed)


class Ticket:
    """What one request holds until it is settled. ``headers`` tell its caller what is left, and
    ``spends`` says whether a budget pays for it."""

    __slots__ = ("_attempt", "_demand", "_whole", "asking", "headers", "spends")

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.headers: dict[str, str] = {}
        self.spends = False
        self._demand: Demand | None = None
        self._whole = _NOBODY
        self._attempt = _NOBODY

    @property
    def demand(self) -> Demand:
        """What the request may use at most; worked out when it is first asked for."""
        if self._demand is None:
            self._demand = self.asking.demand()
        return self._demand

    def hold(self, held: "_Held", *, attempt: bool) -> None:
        """Keep what was granted: to the whole request, or to one attempt of it."""
        if attempt:
            self._attempt = held
        else:
            self._whole = held
        whole, own = self._whole, self._attempt
        if own is _NOBODY:
            self.headers = answers.headers(whole.lines, whole.admission.states)
        else:
            self.headers = answers.headers(
                [*whole.lines, *own.lines], [*whole.admission.states, *own.admission.states]
            )

    def release(self, *, attempt: bool) -> "list[_Held]":
        """What is to be settled: an attempt's alone, or everything. Each is given out once."""
        found = [self._attempt] if attempt else [self._whole, self._attempt]
        self._attempt = _NOBODY
        if not attempt:
            self._whole = _NOBODY
        return [it for it in found if it is not _NOBODY]


@dataclass(frozen=True, slots=True)
class _Held:
    """Limits, and what the store granted of them."""

    lines: Sequence[Line]
    admission: Admission


_NOBODY = _Held((), Admission((), ()))


class Limits:
    """Admission and settlement for one process."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._planned: Snapshot | None = None
        self._plans: dict[tuple[object, ...], Plan] = {}
        """Of the snapshot ``_planned``: by caller, route, model, and provider or None."""

    async def admit(self, asking: Asking) -> Ticket:
        """Take what the request may use of everything that limits it.

        Raises RequestError, with what is left in its headers, when the request may not pass.
        """
        ticket = Ticket(asking)
        if plan.concerned(asking.caller, asking.resolution.route):
            whole = self._plan(asking, None)
            ticket.spends = whole.spends
            await self._take(ticket, whole, attempt=False)
        return ticket

    async def enter(self, ticket: Ticket, provider: Provider) -> None:
        """Take what an attempt at this provider needs; the attempt before it has failed.

        Raises Limited when a limit on the provider has no room.
        """
        self._settle(ticket.release(attempt=True), _NOTHING)
        try:
            await self._take(ticket, self._plan(ticket.asking, provider), attempt=True)
        except RequestError as error:
            raise Limited(error) from None

    def settle(
        self, ticket: Ticket, usage: Usage | None, spent: Decimal | None, *, unknown: bool
    ) -> None:
        """End a request: count what it used and cost (``spent`` in USD, None where unknown).

        Without ``usage`` it has used nothing; or, where that is ``unknown``, what it might have.
        """
        if usage is not None:
            money = None if spent is None else min(cost.nano(spent), _MOST_MONEY)
            used = Demand(
                min(max(0, usage.prompt_tokens), plan.MOST_TOKENS),
                min(max(0, usage.completion_tokens), plan.MOST_TOKENS),
                money,
            )
        else:
            used = ticket.demand if unknown else _NOTHING
        if used.cost is None and ticket.spends:
            self._metrics.unpriced(ticket.asking.resolution.route.id).inc()
        self._settle(ticket.release(attempt=False), used)

    async def look(
        self, snapshot: Snapshot, caller: Key, routes: Iterable[Route]
    ) -> dict[str, list[dict[str, Any]]]:
        """``limits`` and ``budgets`` of a caller, for ``/v1/key``, those on ``routes`` included."""
        lines = list(islice(plan.overview(snapshot, caller, routes, time()), _SHOWN))
        states = await self._store.read([line.count for line in lines]) if lines else ()
        return answers.shown(lines, states)

    async def spend(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Every budget and what was spent of it, for the operator; ``spent`` is null where the
        store cannot be reached."""
        found: list[dict[str, Any]] = []
        budgets = plan.budgets(snapshot, time())
        while batch := list(islice(budgets, _BATCH)):
            states = await self._store.read([it.line.count for it in batch])
            for number, it in enumerate(batch):
                state = states[number] if states is not None else None
                money = answers.spending(it.line, state)
                found.append(
                    {
                        "kind": it.kind,
                        "namespace": it.namespace,
                        "name": it.name,
                        **{name: money[name] for name in ("amount", "spent", "since", "resets")},
                    }
                )
            # Ten thousand budgets must not hold up the requests of this process.
            await asyncio.sleep(0)
        return found

    def _plan(self, asking: Asking, provider: Provider | None) -> Plan:
        """What the request has to pass, or with a ``provider`` an attempt there."""
        snapshot, caller, resolution = asking.snapshot, asking.caller, asking.resolution
        route = resolution.route
        if self._planned is not snapshot:
            self._planned = snapshot
            self._plans.clear()
        place = None if provider is None else provider.id
        key = (caller.namespace, caller.name, route.namespace, route.name, route.policies)
        found = self._plans.get((*key, resolution.model, place))
        if found is None:
            if len(self._plans) >= _KEPT:
                # Callers of wildcard routes make models up.
                self._plans.clear()
            found = (
                plan.of_request(snapshot, caller, resolution)
                if provider is None
                else plan.of_provider(snapshot, caller, resolution, provider)
            )
            self._plans[*key, resolution.model, place] = found
        return found

    async def _take(self, ticket: Ticket, planned: Plan, *, attempt: bool) -> None:
        user = plan.user_of(ticket.asking.fields) if planned.by_user else None
        demand = ticket.demand if planned.weighs else _NOTHING
        lines = planned.lines(user, demand, time())
        if not lines:
            return
        impossible = answers.too_large(lines)
        if impossible is not None:
            raise self._limited(impossible, {})
        admission = await self._store.reserve([line.count for line in lines])
        if not admission.granted:
            told = answers.headers(lines, admission.states)
            raise self._limited(answers.refusal(lines, admission), told)
        ticket.hold(_Held(lines, admission), attempt=attempt)
        if planned.spends:
            for line, state in zip(lines, admission.states, strict=True):
                if line.rule.counts == MONEY:
                    self._warn(line, state)

    def _limited(self, error: RequestError, told: Mapping[str, str]) -> RequestError:
        error.headers = {**told, **error.headers}
        self._metrics.limited(str(error.metadata["limit"]), error.code).inc()
        return error

    def _warn(self, line: Line, state: State) -> None:
        reached = answers.beyond(line, state)
        if reached is not None:
            self._metrics.budget_warnings(line.rule.name, str(reached)).inc()

    def _settle(self, held: Iterable[_Held], used: Demand) -> None:
        for it in held:
            amounts = [plan.amount(line.rule.counts, used) for line in it.lines]
            self._store.settle(it.admission, amounts)


def concern(snapshot: Snapshot, caller: Key, route: Route) -> bool:
    """Whether anything limits a request of this caller by this route, providers' limits too."""
    return plan.concerned(caller, route) or on_providers(snapshot, route)


def on_providers(snapshot: Snapshot, route: Route) -> bool:
    """Whether a provider of this route has limits of its own."""
    providers = snapshot.providers
    return any(it.provider in providers and providers[it.provider].policies for it in route.targets)
