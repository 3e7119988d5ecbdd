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
from tollhouse.limits.plan import MONEY, Line
from tollhouse.store import Admission, State

_FAMILIES = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
}
_CODES = {"requests": "requests_limit", "concurrent": "concurrency_limit", MONEY: "budget_exceeded"}
_UNITS = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86400.0: "day"}
_NANO = 1_000_000_000


def headers(lines: Sequence[Line], states: Sequence[State]) -> dict[str, str]:
    """``x-ratelimit-*`` by the strictest limit on requests and the strictest on tokens: the one
    with the least left. Where two leave the same, the one that takes longer to reset."""
    strictest: dict[str, tuple[int, float, int]] = {}
    for line, state in zip(lines, states, strict=True):
        family = _FAMILIES.get(line.counts)
        if family is None:
            continue
        left = (remaining(line, state), -state.resets, line.count.limit)
        if family not in strictest or left < strictest[family]:
            strictest[family] = left
    found: dict[str, str] = {}
    for family, (left_over, minus_resets, limit) in strictest.items():
        found[f"x-ratelimit-limit-{family}"] = str(limit)
        found[f"x-ratelimit-remaining-{family}"] = str(left_over)
        found[f"x-ratelimit-reset-{family}"] = duration(-minus_resets)
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


def too_large(lines: Sequence[Line]) -> RequestError | None:
    """The refusal of a request that no empty counter could take, or None."""
    for line in lines:
        count = line.count
        if not count.refuses or count.amount <= count.limit:
            continue
        if line.counts == MONEY:
            message = (
                f"This request may cost {usd(count.amount)} USD, more than all of {line.whose} "
                f"({usd(count.limit)} USD). Set a lower `max_tokens`, or send a shorter prompt."
            )
        else:
            what = line.counts.replace("_", " ")
            message = (
                f"This request may take {count.amount} {what}, more than {line.title} "
                f"{line.whose} ever allows ({_rate(line)}). Set a lower `max_tokens`, or send a "
                "shorter prompt."
            )
        metadata = {"limit": line.name, **_figures(line, count.amount)}
        return RequestError(
            _code(line), message, metadata=metadata, headers={"x-should-retry": "false"}
        )
    return None


def refusal(lines: Sequence[Line], admission: Admission) -> RequestError:
    """Why an admission that was not granted was refused, and when to come again."""
    if admission.refused:
        # A budget is the last word: nothing else that resets earlier helps.
        index = max(
            admission.refused,
            key=lambda it: (lines[it].counts == MONEY, admission.states[it].resets),
        )
        return _refused(lines[index], admission.states[index])
    line = lines[admission.unavailable[0]]
    return RequestError(
        "limits_unavailable",
        f"{_subject(line)} cannot be counted now, and lets nothing through meanwhile "
        "(onStoreFailure: Deny). Try again shortly.",
        metadata={"limit": line.name},
        headers={"retry-after": "1"},
    )


def _refused(line: Line, state: State) -> RequestError:
    count = line.count
    wait = max(1, math.ceil(state.resets))
    metadata: dict[str, Any] = {
        "limit": line.name,
        **_figures(line, count.amount),
        "used": usd(state.used) if line.counts == MONEY else state.used,
    }
    retry: dict[str, str] = {"retry-after": str(wait)}
    if line.counts == MONEY:
        spent = f"{usd(state.used)} USD of {usd(count.limit)} USD"
        message = f"{line.whose[0].upper()}{line.whose[1:]} is used up: {spent} are spent or held "
        message += "for requests under way"
        if count.until == calendar.FOREVER:
            retry = {}
            message += ". It never starts again: ask its owner to raise it."
        else:
            at = datetime.fromtimestamp(count.until, UTC).isoformat().replace("+00:00", "Z")
            metadata["resets_at"] = at
            message += f", and this one may cost {usd(count.amount)} USD. It starts again at {at}."
    elif line.counts == "concurrent":
        message = (
            f"{_subject(line)} allows {count.limit} requests at once, and as many are under way. "
            "Try again when one has ended."
        )
    else:
        metadata["resets_in"] = state.resets
        message = f"{_subject(line)} allows {_rate(line)}"
        if line.counts == "requests":
            message += f", and they are used. Try again in {wait} s."
        else:
            message += (
                f"; {state.used} are used or held for requests under way, and this one may take "
                f"{count.amount}. Try again in {wait} s, or with a lower `max_tokens`."
            )
    return RequestError(_code(line), message, metadata=metadata, headers=retry)


def shown(lines: Sequence[Line], states: Sequence[State] | None) -> dict[str, list[dict[str, Any]]]:
    """``limits`` and ``budgets`` for ``/v1/key``; without ``states`` what is left is null."""
    found: dict[str, list[dict[str, Any]]] = {"limits": [], "budgets": []}
    for number, line in enumerate(lines):
        state = states[number] if states is not None else None
        if line.counts == MONEY:
            found["budgets"].append(spending(line, state))
            continue
        left = remaining(line, state) if state is not None else None
        windowed = line.counts != "concurrent"
        found["limits"].append(
            {
                "name": line.name,
                "counts": line.counts,
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
        "name": line.name,
        "amount": usd(count.limit),
        "spent": usd(state.used) if state is not None else None,
        "remaining": usd(remaining(line, state)) if state is not None else None,
        "period": line.period,
        "time_zone": line.time_zone,
        "since": _instant(count.since) if ends else None,
        "resets": _instant(count.until) if ends else None,
    }


def beyond(line: Line, state: State) -> int | None:
    """The highest percentage at which this budget warns and that is reached; None below all.

    One that goes on when it is exceeded warns at 100, too.
    """
    marks: Iterable[int] = line.warn_at if line.count.refuses else (*line.warn_at, 100)
    reached = [it for it in marks if state.used * 100 >= line.count.limit * it]
    return max(reached, default=None)


def _code(line: Line) -> str:
    return _CODES.get(line.counts, "tokens_limit")


def _subject(line: Line) -> str:
    text = f"{line.title} {line.whose}".strip()
    return f"{text[0].upper()}{text[1:]}"


def _rate(line: Line) -> str:
    unit = _UNITS.get(line.count.span, f"{line.count.span:g} s")
    return f"{line.count.limit} {line.counts.replace('_', ' ')} per {unit}"


def _figures(line: Line, asked: int) -> Mapping[str, Any]:
    if line.counts == MONEY:
        return {"amount": usd(line.count.limit), "requested": usd(asked)}
    return {"amount": line.count.limit, "requested": asked}


def _instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
