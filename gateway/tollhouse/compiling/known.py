"""What is publicly known about models: prices and context windows, from the package genai-prices.

Loading the package costs a fifth of a second and 6 MiB, and several times that where no bytecode of
it is kept, so it is loaded when a resource first needs it, by whatever compiles; a gateway finds
what it needs in the snapshot. Of prices that change from some day on, those of the ``day`` (UTC)
that is asked for hold; off-peak discounts, service tiers and batches are left out.
"""

import re
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tollhouse.snapshot import KnownModel, Pricing, Tier

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

DAY = date(2026, 11, 1)
"""The day whose prices hold where nobody names one: fixed, so that the same resources compile to
the same snapshot whenever that is done. What serves callers names the day that it is."""
_TOKENS = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_hour": "cache_write_1h_mtok",
    "output": "output_mtok",
    "reasoning": "output_reasoning_mtok",
    "input_audio": "input_audio_mtok",
    "cached_audio": "cache_audio_read_mtok",
    "output_audio": "output_audio_mtok",
    "input_image": "input_image_mtok",
    "cached_image": "cache_image_read_mtok",
    "output_image": "output_image_mtok",
}
"""Our names for prices of a million tokens, and the package's."""
_CALLS = {"web_search": "web_searches_kcount", "request": "requests_kcount"}
"""The same for what is priced by the thousand there and by the piece here."""
_MODELS = 4096
"""How many answers about single models are kept: finding one means asking every model's rules."""


@lru_cache(maxsize=1024)
def account_of(base_url: str, model: str) -> str | None:
    """The id under which the provider behind a base URL is known, or the one in the model's name
    (``openai`` in ``openai/gpt-4o`` and ``openai/*``); None where neither is known."""
    for provider in _providers().values():
        if re.match(provider.api_pattern, base_url):
            return provider.id
    prefix, slash, _ = model.partition("/")
    return prefix if slash and prefix in _providers() else None


@lru_cache(maxsize=_MODELS)
def model_of(account: str, name: str, day: date = DAY) -> KnownModel | None:
    """What is known about a provider's model by this name, with the prices of this day."""
    found = _find(_providers()[account], name)
    return _known(found, day) if found is not None else None


@lru_cache(maxsize=64)
def table_of(account: str, day: date = DAY) -> dict[str, KnownModel]:
    """All that is known about a provider's models, by name; a trailing ``*`` matches any rest.
    Prices are those of this day.

    Rules that are neither a name nor a beginning (parts of names, regular expressions) are left
    out: the names that they were made for are in the data anyway.
    """
    providers = _providers()
    own = providers[account]
    table: dict[str, KnownModel] = {}
    for provider in (own, *(providers[it] for it in own.fallback_model_providers or ())):
        for model in provider.models:
            for name in (model.id.lower(), *_patterns(model.match)):
                if name not in table:
                    # Another model's rule, or the account's own, may come first for this name.
                    first = None if name.endswith("*") else _find(own, name)
                    table[name] = _known(first or model, day)
    return table


@lru_cache(maxsize=64)
def families_of(account: str) -> tuple[str, ...]:
    """Patterns of bare model names that mean this provider's models, such as ``claude*``."""
    provider = _providers().get(account)
    match = provider.model_match if provider is not None else None
    if provider is None or match is None:
        return ()
    found = set(_patterns(match)) | {f"{it}*" for it in _clauses(match, "contains")}
    rules = list(_clauses(match, "regex"))
    names = {
        name
        for model in provider.models
        for name in (model.id.lower(), *_patterns(model.match))
        if not name.endswith("*") and any(re.search(rule, name) for rule in rules)
    }
    found |= {f"{name}*" for name in names}
    stems = {it[:-1] for it in found if it.endswith("*")}
    return tuple(
        sorted(
            it
            for it in found
            if not any(it.removesuffix("*").startswith(stem) and it != f"{stem}*" for stem in stems)
        )
    )


def _find(provider: "Provider", name: str) -> "ModelInfo | None":
    return provider.find_model(name, all_providers=list(_providers().values()))


@lru_cache(maxsize=1)
def _providers() -> "dict[str, Provider]":
    from genai_prices.data import providers

    return {provider.id: provider for provider in providers}


def _known(model: "ModelInfo", day: date) -> KnownModel:
    pricing = _pricing(_prices(model, day))
    return KnownModel(
        pricing=pricing,
        context_window=model.context_window,
        web_search=True if pricing.web_search is not None else None,
    )


def _prices(model: "ModelInfo", day: date) -> object:
    from genai_prices.types import StartDateConstraint

    if not isinstance(model.prices, list):
        return model.prices
    if not model.prices:
        return None
    noon = datetime.combine(day, time(12), UTC)
    for it in reversed(model.prices):
        starts = it.constraint
        if starts is None or (isinstance(starts, StartDateConstraint) and starts.active(noon)):
            return it.prices
    return model.prices[0].prices


def _pricing(prices: object) -> Pricing:
    said = {ours: getattr(prices, theirs, None) for ours, theirs in _TOKENS.items()}
    base = {name: _dollars(getattr(price, "base", price)) for name, price in said.items()}
    steps: dict[int, dict[str, str | None]] = {}
    for name, price in said.items():
        for step in getattr(price, "tiers", ()):
            steps.setdefault(step.start, {})[name] = _dollars(step.price)
    for name, theirs in _CALLS.items():
        thousand = getattr(prices, theirs, None)
        base[name] = _dollars(thousand / 1000) if isinstance(thousand, Decimal) else None
    tiers = (_tier(above, step) for above, step in sorted(steps.items()))
    return Pricing(**base, tiers=tuple(tiers))


def _tier(above: int, step: dict[str, str | None]) -> Tier:
    return Tier(above, **step)


def _dollars(price: object) -> str | None:
    """A price as a decimal string without needless zeros."""
    return f"{price.normalize():f}" if isinstance(price, Decimal) else None


def _patterns(clause: object) -> list[str]:
    """The names and beginnings among the alternatives of a rule, in lower case."""
    exact = [it.lower() for it in _clauses(clause, "equals")]
    return exact + [f"{it.lower()}*" for it in _clauses(clause, "starts_with")]


def _clauses(clause: Any, kind: str) -> list[str]:
    said = getattr(clause, kind, None)
    if said is not None:
        return [said]
    return [it for part in getattr(clause, "or_", ()) for it in _clauses(part, kind)]
