"""What an answer cost in money: exact decimals in USD, never floats."""

from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal

from tollhouse.api.usage import Usage
from tollhouse.snapshot import Pricing, Route, Target

_PER = Decimal(1_000_000)
_FREE = Pricing(input="0", output="0")


def pricing_of(route: Route, target: Target) -> Pricing | None:
    """What this target charges for a request by this route; None where nobody knows."""
    return _FREE if route.free else target.pricing


def of(usage: Usage | None, pricing: Pricing | None) -> Decimal | None:
    """USD for these tokens; None where the tokens, or a price that they need, are unknown.

    Cached tokens cost ``cached_input`` where that is given and ``input`` elsewhere; reasoning
    tokens are part of the completion's.
    """
    if usage is None or pricing is None:
        return None
    cached = min(max(0, usage.cached_tokens or 0), usage.prompt_tokens)
    cached_price = pricing.cached_input if pricing.cached_input is not None else pricing.input
    total = Decimal(0)
    for tokens, price in (
        (usage.prompt_tokens - cached, pricing.input),
        (cached, cached_price),
        (usage.completion_tokens, pricing.output),
    ):
        if tokens:
            if price is None:
                return None
            total += tokens * Decimal(price)
    return total / _PER


def most(
    prompt_tokens: int, output_tokens: int, pricings: Iterable[Pricing | None], searches: int = 0
) -> Decimal | None:
    """USD that a request may cost at the dearest of its targets; None where none has a price."""
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=output_tokens)
    costs = [it for it in (of(usage, pricing) for pricing in pricings) if it is not None]
    return max(costs, default=None)


def nano(cost: Decimal) -> int:
    """A cost in whole nano-USD (10⁻⁹), rounded up: what budgets count in."""
    return int((cost * 1_000_000_000).to_integral_value(ROUND_CEILING))


def text(cost: Decimal) -> str:
    """A cost as plain digits, ``0.00058``: never in exponent form, without zeros at the end."""
    digits = f"{cost:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
