"""What is publicly known about models: prices and context windows, from the package genai-prices.

The package takes a second and 25 MB to load, so it is loaded when a resource first needs it, by
whatever compiles; a gateway finds what it needs in the snapshot. Prices that change with time are
those of the day on which the package was loaded; off-peak discounts are left out, and of prices
that rise with the prompt's length the base is taken.
"""

import re
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tollhouse.snapshot import KnownModel, Pricing

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider


def account_of(base_url: str, model: str) -> str | None:
    """The id under which the provider behind a base URL is known, or the one in the model's name
    (``openai`` in ``openai/gpt-4o`` and ``openai/*``); None where neither is known."""
    for provider in _providers().values():
        if re.match(provider.api_pattern, base_url):
            return provider.id
    prefix, slash, _ = model.partition("/")
    return prefix if slash and prefix in _providers() else None


def model_of(account: str, name: str) -> KnownModel | None:
    """What is known about a provider's model by this name."""
    found = _find(_providers()[account], name)
    return _known(found) if found is not None else None


@lru_cache(maxsize=64)
def table_of(account: str) -> dict[str, KnownModel]:
    """All that is known about a provider's models, by name; a trailing ``*`` matches any rest.

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
                    table[name] = _known(first or model)
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


@lru_cache(maxsize=1)
def _today() -> datetime:
    return datetime.now(tz=UTC)


def _known(model: "ModelInfo") -> KnownModel:
    prices = _prices(model)
    return KnownModel(
        pricing=Pricing(
            input=_dollars(getattr(prices, "input_mtok", None)),
            cached_input=_dollars(getattr(prices, "cache_read_mtok", None)),
            output=_dollars(getattr(prices, "output_mtok", None)),
        ),
        context_window=model.context_window,
        web_search=True if getattr(prices, "web_searches_kcount", None) is not None else None,
    )


def _prices(model: "ModelInfo") -> object:
    from genai_prices.types import StartDateConstraint

    if not isinstance(model.prices, list):
        return model.prices
    if not model.prices:
        return None
    for it in reversed(model.prices):
        starts = it.constraint
        if starts is None or (isinstance(starts, StartDateConstraint) and starts.active(_today())):
            return it.prices
    return model.prices[0].prices


def _dollars(price: Any) -> str | None:
    """A price as a decimal string without needless zeros; of a tiered one its base."""
    amount = getattr(price, "base", price)
    if not isinstance(amount, Decimal):
        return None
    return f"{amount.normalize():f}"


def _patterns(clause: object) -> list[str]:
    """The names and beginnings among the alternatives of a rule, in lower case."""
    exact = [it.lower() for it in _clauses(clause, "equals")]
    return exact + [f"{it.lower()}*" for it in _clauses(clause, "starts_with")]


def _clauses(clause: Any, kind: str) -> list[str]:
    said = getattr(clause, kind, None)
    if said is not None:
        return [said]
    return [it for part in getattr(clause, "or_", ()) for it in _clauses(part, kind)]
