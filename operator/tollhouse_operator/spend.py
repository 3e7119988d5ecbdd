"""What was spent: from the gateways' answers to what a status says of it. Pure.

Money is counted in whole nano-USD (10⁻⁹ USD). A status shows it in cents, or in thousandths of a
small budget, rounded down: what no reader would see is not worth a write.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import msgspec

from tollhouse.kinds.caller import KeyBudget
from tollhouse.resources import ApiKey, Budget, Resource
from tollhouse_operator.events import Note
from tollhouse_operator.status import SPEND, Condition, Desired, warned
from tollhouse_operator.store import Key

EXHAUSTED = "Exhausted"
_NO_BUDGET = frozenset({EXHAUSTED})
_NANO = 1_000_000_000
_CENT = _NANO // 100
_WHOLE = 100
"""The percentage at which a budget is spent; an event tells of it without any ``warnAt``."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent of a budget of ``amount``, both in nano-USD, requests under way included.

    ``since`` and ``resets`` are the period's bounds in RFC 3339, None where it never ends.
    """

    amount: int
    spent: int
    since: str | None
    resets: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One gateway's. ``shared``: its counters are everybody's, so no other need be asked.

    A budget whose counter it cannot reach is None.
    """

    shared: bool
    budgets: Mapping[Key, Spent | None]


class _Row(msgspec.Struct, frozen=True):
    kind: str
    namespace: str
    name: str
    amount: str
    spent: str | None
    since: str | None
    resets: str | None


class _Body(msgspec.Struct, frozen=True):
    store: str
    budgets: list[_Row]


_bodies = msgspec.json.Decoder(_Body)


def read(body: bytes) -> Answer:
    """What ``GET /spend`` of a gateway answered. Raises ValueError where it makes no sense."""
    try:
        told = _bodies.decode(body)
        return Answer(
            told.store == "shared",
            {(it.kind, it.namespace, it.name): _spent(it) for it in told.budgets},
        )
    except (msgspec.MsgspecError, ArithmeticError) as error:
        raise ValueError(f"no answer about spend: {type(error).__name__}") from error


def _spent(row: _Row) -> Spent | None:
    if row.spent is None:
        return None
    return Spent(_nano(row.amount), _nano(row.spent), row.since, row.resets)


def _nano(amount: str) -> int:
    return int(Decimal(amount) * _NANO)


def together(answers: Sequence[Answer]) -> dict[Key, Spent]:
    """What was spent at all of these gateways, each of which counts by itself.

    A budget is left out while a gateway cannot tell, or knows it with another amount than the
    others. What a gateway says of a period that has ended for another no longer counts.
    """
    if len(answers) == 1:
        return {key: it for key, it in answers[0].budgets.items() if it is not None}
    rows: dict[Key, list[Spent | None]] = {}
    for answer in answers:
        for key, spent in answer.budgets.items():
            rows.setdefault(key, []).append(spent)
    found = {}
    for key, all_told in rows.items():
        told = [it for it in all_told if it is not None]
        if len(told) < len(all_told) or len({it.amount for it in told}) > 1:
            continue
        latest = max(told, key=lambda it: it.since or "")
        now = sum(it.spent for it in told if it.since == latest.since)
        found[key] = Spent(latest.amount, now, latest.since, latest.resets)
    return found


def budget_of(resource: Resource | None) -> KeyBudget | None:
    """What a Budget allows, or an ApiKey's own budget."""
    if isinstance(resource, Budget):
        return resource.spec
    return resource.spec.budget if isinstance(resource, ApiKey) else None


@dataclass(frozen=True, slots=True)
class Saying:
    """What a status says of a budget. ``note`` is the event for ``field["warned"]``, if any."""

    field: Mapping[str, Any]
    condition: Condition
    note: Note | None


def saying(
    resource: Resource, spent: Spent, current: Mapping[str, Any], generation: int
) -> Saying | None:
    """What the object's status should say, by its ``current`` status.

    None where there is nothing to say: without a budget, or where the gateway spoke of an amount
    that the object no longer has, so that it is to be asked again.
    """
    budget = budget_of(resource)
    if budget is None or _nano(budget.amount) != spent.amount:
        return None
    step = _step(spent.amount)
    rejects = not isinstance(resource, Budget) or resource.spec.on_exceeded == "Reject"
    marks = resource.spec.warn_at if isinstance(resource, Budget) else ()
    reached = _reached(spent, marks, step)
    field: dict[str, Any] = {"amount": _shown(spent.spent, step)}
    if spent.resets is not None:
        field |= {"since": spent.since, "resets": spent.resets}
    before = warned(current, field)
    if _looked_at(current) != generation:
        # The object was edited: what a smaller budget had reached is to be told of again.
        before = min(before, reached)
    most = max(before, reached)
    if most:
        field["warned"] = most
    condition = _condition(budget, spent, rejects=rejects, exhausted=reached == _WHOLE)
    return Saying(field, condition, _note(budget, spent, condition, most))


def joined(
    desired: Desired, resource: Resource | None, spent: Spent | None, current: Mapping[str, Any]
) -> Desired:
    """With what was spent of the object's budget. What is not known stays as it is, and an ApiKey
    that has no budget shows none."""
    if isinstance(resource, ApiKey) and resource.spec.budget is None:
        return replace(desired, fields={**desired.fields, SPEND: None}, gone=_NO_BUDGET)
    if resource is None or spent is None:
        return desired
    said = saying(resource, spent, current, desired.generation)
    if said is None:
        return desired
    return replace(
        desired,
        conditions=(*desired.conditions, said.condition),
        fields={**desired.fields, SPEND: said.field},
        milestone=said.note,
    )


def _step(amount: int) -> int:
    """What a status counts in: cents, or for a small budget a power of ten that is at most a
    thousandth of it."""
    step = _CENT
    while step > 1 and step * 1000 > amount:
        step //= 10
    return step


def _shown(nano: int, step: int) -> str:
    """An amount rounded down to whole steps, in USD: ``3.10``."""
    digits = len(str(_NANO // step)) - 1
    whole, rest = divmod(nano - nano % step, _NANO)
    return f"{whole}.{rest // step:0{digits}d}"


def _reached(spent: Spent, marks: Iterable[int], step: int) -> int:
    """The highest percentage that is reached, 0 below all. A budget of which less is left than a
    status shows is spent."""
    if spent.spent + step > spent.amount:
        return _WHOLE
    below = (it for it in marks if it < _WHOLE and spent.spent * 100 >= spent.amount * it)
    return max(below, default=0)


def _condition(budget: KeyBudget, spent: Spent, *, rejects: bool, exhausted: bool) -> Condition:
    if not exhausted:
        return Condition(EXHAUSTED, "False", "WithinBudget", "Something is left of the budget")
    all_of = f"All of {budget.amount} USD is spent"
    if not rejects:
        return Condition(EXHAUSTED, "True", "BudgetExceeded", f"{all_of}; requests go on")
    until = f"until {spent.resets}, or until" if spent.resets is not None else "until"
    return Condition(
        EXHAUSTED, "True", "BudgetSpent", f"{all_of}; requests get a 429 {until} it is raised"
    )


def _note(budget: KeyBudget, spent: Spent, condition: Condition, most: int) -> Note | None:
    if most == _WHOLE:
        return Note("Warning", condition.reason, condition.message)
    if not most:
        return None
    text = f"{most} % of {budget.amount} USD is spent"
    if spent.resets is not None:
        text += f"; the period ends at {spent.resets}"
    return Note("Warning", "BudgetThreshold", text)


def _looked_at(status: Mapping[str, Any]) -> int:
    """The generation that the condition was said of; 0 where there is none."""
    return int(_said(status).get("observedGeneration") or 0)


def _said(status: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = status.get("conditions") or []
    return next((it for it in conditions if it.get("type") == EXHAUSTED), {})


@dataclass(frozen=True, slots=True)
class Difference:
    """A status is not what it should be. ``urgent``: somebody waits to hear it."""

    urgent: bool


def difference(said: Saying, current: Mapping[str, Any], generation: int) -> Difference | None:
    """How the ``current`` status of an object differs from what it should say, or None."""
    old, new = _said(current), said.condition
    before = current.get(SPEND) or {}
    if dict(said.field) == before and (new.status, new.reason, new.message, generation) == (
        old.get("status"),
        old.get("reason"),
        old.get("message"),
        old.get("observedGeneration"),
    ):
        return None
    risen = said.field.get("warned", 0) > warned(current, said.field)
    return Difference(risen or old.get("status", "False") != new.status)
