"""What a caller is told about limits: headers on answers, refusals, ``/v1/key``. Pure.

The headers are OpenAI's (API reference, "Rate limits"): times such as ``1s`` and ``6m0s``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tollhouse.errors import RequestError
from tollhouse.limits import calendar
from tollhouse.limits.plan import MONEY, Line, Rule
from tollhouse.store import Admission, State

_FAMILIES = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
}
_HEADERS = {
    family: tuple(f"x-ratelimit-{what}-{family}" for what in ("limit", "remaining", "reset"))
    for family in ("requests", "tokens")
}
_CODES = {"requests": "requests_limit", "concurrent": "concurrency_limit", MONEY: "budget_exceeded"}
_UNITS = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86400.0: "day"}
_NANO = 1_000_000_000


def headers(lines: Iterable[Line], states: Iterable[State]) -> dict[str, str]:
    """``x-ratelimit-*`` by the strictest limit on requests and the strictest on tokens: the one
    with the least left. Where two leave the same, the one that takes longer to reset."""
    strictest: dict[str, tuple[int, float, int]] = {}
    for line, state in zip(lines, states, strict=True):
        family = _FAMILIES.get(line.rule.counts)
        if family is None:
            continue
        limit, resets = line.rule.limit, state.resets
        left, other = max(0, limit - state.used), strictest.get(family)
        if other is None or left < other[0] or (left == other[0] and resets > other[1]):
            strictest[family] = (left, resets, limit)
    found: dict[str, str] = {}
    for family, (left, resets, limit) in strictest.items():
        limits, remains, reset = _HEADERS[family]
        found[limits] = str(limit)
        found[remains] = str(left)
        found[reset] = duration(resets)
    return found


def remaining(line: Line, state: State) -> int:
    """What is left of a limit, never less than nothing."""
    return max(0, line.count.limit - state.used)


def duration(seconds: float) -> str:
    """Seconds as Go writes them, ``6m0s``; below one in whole milliseconds, above rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def usd(nano: int) -> str:
    """Nano-USD as plain digits in USD: ``49.5``."""
    text = f"{Decimal(nano) / _NANO:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def too_large(lines: Iterable[Line]) -> RequestError | None:
    """The refusal of a request that no empty counter could take, or None."""
    for line in lines:
        count, rule = line.count, line.rule
        if not count.refuses or count.amount <= count.limit:
            continue
        if rule.counts == MONEY:
            asks = f"may cost {usd(count.amount)} USD, more than all of {rule.whose}"
            allowed = f"{usd(count.limit)} USD"
        else:
            asks = f"may take {count.amount} {rule.counts.replace('_', ' ')}, more than "
            asks += f"{rule.title} {rule.whose} ever allows"
            allowed = rate(rule)
        return RequestError(
            _code(rule),
            f"This request {asks} ({allowed}). Set a lower `max_tokens`, or send a shorter prompt.",
            metadata={"limit": rule.name, **_figures(line)},
            headers={"x-should-retry": "false"},
        )
    return None


def refusal(lines: Sequence[Line], admission: Admission) -> RequestError:
    """Why an admission that was not granted was refused, and when to come again."""
    if admission.refused:
        # A budget is the last word: nothing else that resets earlier helps.
        index = max(
            admission.refused,
            key=lambda it: (lines[it].rule.counts == MONEY, admission.states[it].resets),
        )
        line, state = lines[index], admission.states[index]
        return _spent(line, state) if line.rule.counts == MONEY else _exceeded(line, state)
    rule = lines[admission.unavailable[0]].rule
    return RequestError(
        "limits_unavailable",
        f"{_subject(rule)} cannot be counted now, and lets nothing through meanwhile "
        "(onStoreFailure: Deny). Try again shortly.",
        metadata={"limit": rule.name},
        headers={"retry-after": "1"},
    )


def _spent(line: Line, state: State) -> RequestError:
    count, rule = line.count, line.rule
    metadata: dict[str, Any] = {"limit": rule.name, **_figures(line), "used": usd(state.used)}
    retry: dict[str, str] = {}
    message = (
        f"{_subject(rule)} is used up: {usd(state.used)} USD of {usd(count.limit)} USD are spent "
        f"or held for requests under way, and this one may cost {usd(count.amount)} USD. "
    )
    if count.until == calendar.FOREVER:
        message += "It never starts again: ask its owner to raise it."
    else:
        metadata["resets_at"] = at = _instant(count.until)
        retry["retry-after"] = str(_wait(state))
        message += f"It starts again at {at}."
    return RequestError(_code(rule), message, metadata=metadata, headers=retry)


def _exceeded(line: Line, state: State) -> RequestError:
    count, rule, wait = line.count, line.rule, _wait(state)
    metadata: dict[str, Any] = {"limit": rule.name, **_figures(line), "used": state.used}
    if rule.counts == "concurrent":
        message = (
            f"{_subject(rule)} allows {count.limit} requests at once, and as many are under way. "
            "Try again when one has ended."
        )
    else:
        metadata["resets_in"] = state.resets
        message = f"{_subject(rule)} allows {rate(rule)}"
        if rule.counts == "requests":
            message += f", and they are used. Try again in {wait} s."
        else:
            message += (
                f"; {state.used} are used or held for requests under way, and this one may take "
                f"{count.amount}. Try again in {wait} s, or with a lower `max_tokens`."
            )
    return RequestError(_code(rule), message, metadata=metadata, headers={"retry-after": str(wait)})


def shown(lines: Sequence[Line], states: Sequence[State] | None) -> dict[str, list[dict[str, Any]]]:
    """``limits`` and ``budgets`` for ``/v1/key``; without ``states`` what is left is null."""
    found: dict[str, list[dict[str, Any]]] = {"limits": [], "budgets": []}
    for number, line in enumerate(lines):
        state = states[number] if states is not None else None
        if line.rule.counts == MONEY:
            found["budgets"].append(spending(line, state))
            continue
        left = remaining(line, state) if state is not None else None
        windowed = line.rule.counts != "concurrent"
        found["limits"].append(
            {
                "name": line.rule.name,
                "counts": line.rule.counts,
                "limit": line.count.limit,
                "per_seconds": line.count.span if windowed else None,
                "remaining": left,
                "resets_in": state.resets if state is not None and windowed else None,
            }
        )
    return found


def spending(line: Line, state: State | None) -> dict[str, Any]:
    """A budget and what was spent of it, requests under way included: USD as decimal strings."""
    count = line.count
    ends = count.until != calendar.FOREVER
    return {
        "name": line.rule.name,
        "amount": usd(count.limit),
        "spent": usd(state.used) if state is not None else None,
        "remaining": usd(remaining(line, state)) if state is not None else None,
        "period": line.rule.allowance.period,
        "time_zone": line.rule.allowance.time_zone,
        "since": _instant(count.since) if ends else None,
        "resets": _instant(count.until) if ends else None,
    }


def beyond(line: Line, state: State) -> int | None:
    """The highest percentage at which this budget warns and that is reached; None below all.

    One that goes on when it is exceeded warns at 100, too.
    """
    if line.rule.rejects and not line.rule.warn_at:
        return None
    marks = line.rule.warn_at if line.rule.rejects else (*line.rule.warn_at, 100)
    reached = [it for it in marks if state.used * 100 >= line.count.limit * it]
    return max(reached, default=None)


def _code(rule: Rule) -> str:
    return _CODES.get(rule.counts, "tokens_limit")


def _subject(rule: Rule) -> str:
    text = f"{rule.title} {rule.whose}".strip()
    return f"{text[0].upper()}{text[1:]}"


def rate(rule: Rule) -> str:
    """How much a limit allows, and per what: ``60 requests per minute``."""
    unit = _UNITS.get(rule.window, f"{rule.window:g} s")
    return f"{rule.limit} {rule.counts.replace('_', ' ')} per {unit}"


def _wait(state: State) -> int:
    """Whole seconds to wait, at least one."""
    return max(1, math.ceil(state.resets))


def _figures(line: Line) -> Mapping[str, Any]:
    limit, asked = line.count.limit, line.count.amount
    if line.rule.counts == MONEY:
        return {"amount": usd(limit), "requested": usd(asked)}
    return {"amount": limit, "requested": asked}


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
