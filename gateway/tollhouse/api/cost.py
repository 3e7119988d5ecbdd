"""What an answer cost, or may come to cost, in money: exact decimals in USD, never floats.

A kind of token without a price of its own costs what the plainer kind does: written to a cache for
an hour as written to one at all; cached, written, audio and images as ``input``; reasoning, audio
and images that come out as ``output``. A count that nothing prices leaves the cost unknown.
"""

from collections.abc import Iterable
from decimal import ROUND_CEILING, Decimal

import msgspec

from tollhouse.api.usage import Usage
from tollhouse.snapshot import Pricing, Route, Target

_PER = Decimal(1_000_000)
_NANO = Decimal(1_000_000_000)
_ZERO = Decimal(0)
_FREE = Pricing(input="0", output="0", web_search="0")
_INPUTS = (
    *("input", "cached_input", "cache_write", "cache_write_hour"),
    *("input_audio", "cached_audio", "input_image", "cached_image"),
)
_OUTPUTS = ("output", "reasoning", "output_audio", "output_image")
_Parts = tuple[tuple[int, str | None], ...]
"""Tokens of each kind, and what a million of them cost."""
_Ceiling = tuple[Decimal, Decimal, Decimal, Decimal]
"""The dearest prompt and output token (USD per million), a search and a request (USD)."""
_MOST_CEILINGS = 4096
_ceilings: dict[tuple[int, int], tuple[Pricing, _Ceiling]] = {}
"""By the id of prices and the number of the tier: hashing prices takes longer than all the rest."""


def pricing_of(route: Route, target: Target) -> Pricing | None:
    """What this target charges for a request by this route; None where nobody knows."""
    return _FREE if route.free else target.pricing


def of(usage: Usage | None, pricing: Pricing | None, searches: int = 0) -> Decimal | None:
    """USD for one answer; None where the counts, or a price that they need, are unknown.

    ``searches`` is how many web searches are charged where the provider does not count them.
    A price per ``request`` without one for searches holds them.
    """
    if usage is None or pricing is None or (pricing.input is None and pricing.output is None):
        return None
    rates = _at(pricing, usage.prompt_tokens) if pricing.tiers else pricing
    total = _ZERO
    if rates.reasoning is None and not usage.has_kinds:
        parts = _plain(usage, rates)
    else:
        parts = (*_prompt(usage, rates), *_completion(usage, rates))
    for tokens, price in parts:
        if tokens:
            if price is None:
                return None
            total += tokens * Decimal(price)
    total /= _PER
    searched = searches if usage.web_searches is None else usage.web_searches
    if searched > 0 and (rates.web_search is not None or rates.request is None):
        if rates.web_search is None:
            return None
        total += searched * Decimal(rates.web_search)
    return total if rates.request is None else total + Decimal(rates.request)


def most(
    prompt_tokens: int,
    output_tokens: int,
    pricings: Iterable[Pricing | None],
    searches: int = 0,
) -> Decimal | None:
    """USD that a request may cost at the dearest of its targets; None where no target has a price.

    Every token is taken to be of the dearest kind, written to a cache say, so that no answer with
    as many tokens and ``searches`` costs more. Targets without a price are passed over.
    """
    dearest: Decimal | None = None
    for pricing in pricings:
        if pricing is None or pricing.input is None or (output_tokens and pricing.output is None):
            continue
        prompt, output, search, request = _ceiling(pricing, prompt_tokens)
        cost = (prompt_tokens * prompt + output_tokens * output) / _PER
        cost += searches * search + request
        if dearest is None or cost > dearest:
            dearest = cost
    return dearest


def nano(cost: Decimal) -> int:
    """A cost in whole nano-USD (10⁻⁹), rounded up: what budgets count in."""
    return int((cost * _NANO).to_integral_value(ROUND_CEILING))


def text(cost: Decimal) -> str:
    """A cost as plain digits, ``0.00058``: never in exponent form, without zeros at the end."""
    digits = f"{cost:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _plain(usage: Usage, rates: Pricing) -> _Parts:
    """What most answers are made of: the same as ``_prompt`` and ``_completion``, sooner."""
    cached = _within(usage.cached_tokens, usage.prompt_tokens)
    return (
        (usage.prompt_tokens - cached, rates.input),
        (cached, rates.cached_input or rates.input),
        (usage.completion_tokens, rates.output),
    )


def _prompt(usage: Usage, rates: Pricing) -> _Parts:
    """The prompt's tokens by kind, each counted once, with their prices.

    Counts that do not add up are cut to the prompt's, cached ones before written ones before
    audio and images.
    """
    prompt = usage.prompt_tokens
    cached = _within(usage.cached_tokens, prompt)
    cached_price = rates.cached_input or rates.input
    written = _within(usage.cache_write_tokens, prompt - cached)
    hour = _within(usage.cache_write_hour_tokens, written)
    written_price = rates.cache_write or rates.input
    cached_audio = _within(usage.cached_audio_tokens, cached)
    cached_image = _within(usage.cached_image_tokens, cached - cached_audio)
    left = prompt - cached - written
    audio = _within((usage.prompt_audio_tokens or 0) - cached_audio, left)
    image = _within((usage.prompt_image_tokens or 0) - cached_image, left - audio)
    return (
        (left - audio - image, rates.input),
        (cached - cached_audio - cached_image, cached_price),
        (cached_audio, rates.cached_audio or rates.input_audio or cached_price),
        (cached_image, rates.cached_image or rates.input_image or cached_price),
        (written - hour, written_price),
        (hour, rates.cache_write_hour or written_price),
        (audio, rates.input_audio or rates.input),
        (image, rates.input_image or rates.input),
    )


def _completion(usage: Usage, rates: Pricing) -> _Parts:
    """The completion's tokens by kind, as ``_prompt`` does."""
    completion = usage.completion_tokens
    audio = _within(usage.completion_audio_tokens, completion)
    image = _within(usage.completion_image_tokens, completion - audio)
    reasoning = _within(usage.reasoning_tokens, completion - audio - image)
    if rates.reasoning is None:
        reasoning = 0
    return (
        (completion - audio - image - reasoning, rates.output),
        (reasoning, rates.reasoning),
        (audio, rates.output_audio or rates.output),
        (image, rates.output_image or rates.output),
    )


def _within(count: int | None, most: int) -> int:
    return min(max(0, count or 0), most)


def _at(pricing: Pricing, prompt_tokens: int) -> Pricing:
    """The prices that hold for a prompt of this length."""
    for tier in reversed(pricing.tiers):
        if prompt_tokens > tier.above:
            said = msgspec.structs.asdict(tier)
            del said["above"]
            given = {name: price for name, price in said.items() if price is not None}
            return msgspec.structs.replace(pricing, **given)
    return pricing


def _ceiling(pricing: Pricing, prompt_tokens: int) -> _Ceiling:
    """The dearest that there is for a prompt of this length."""
    tier = sum(prompt_tokens > it.above for it in pricing.tiers) if pricing.tiers else 0
    known = _ceilings.get((id(pricing), tier))
    if known is not None and known[0] is pricing:
        return known[1]
    if len(_ceilings) >= _MOST_CEILINGS:
        _ceilings.clear()
    rates = _at(pricing, prompt_tokens)
    ceiling = (
        max(Decimal(getattr(rates, it) or 0) for it in _INPUTS),
        max(Decimal(getattr(rates, it) or 0) for it in _OUTPUTS),
        Decimal(rates.web_search or 0),
        Decimal(rates.request or 0),
    )
    # Beside the prices themselves, so that no others can come to have their id.
    _ceilings[id(pricing), tier] = (pricing, ceiling)
    return ceiling
