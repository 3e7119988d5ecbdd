"""What compiling knows about models from the published data."""

from datetime import date
from decimal import Decimal

import pytest

from tollhouse.compiling import known


@pytest.mark.parametrize(
    ("base_url", "model", "account"),
    [
        ("https://api.openai.com/v1", "team/gpt", "openai"),
        ("https://openrouter.ai/api/v1", "openai/*", "openrouter"),
        ("http://vllm.ai.svc:8000/v1", "mistral/large", "mistral"),
        ("http://vllm.ai.svc:8000/v1", "llama3", None),
        ("", "*", None),
    ],
)
def test_an_account_is_known_by_its_address_and_then_by_the_models_name(base_url, model, account):
    assert known.account_of(base_url, model) == account


@pytest.mark.parametrize(
    ("account", "name", "served"),
    [
        ("anthropic", "claude-3-5-sonnet-20241022", True),
        ("openai", "gpt-9-later", True),
        ("openai", "o3-mini", True),
        ("openai", "claude-3", False),
        ("openrouter", "gpt-5", False),
    ],
)
def test_bare_names_belong_to_families(account, name, served):
    families = known.families_of(account)
    assert served == any(
        name.startswith(it[:-1]) if it.endswith("*") else name == it for it in families
    )


@pytest.mark.parametrize("account", ["openai", "anthropic", "google", "azure", "openrouter"])
def test_a_table_says_for_every_name_what_the_data_says(account):
    table = known.table_of(account)
    names = [name for name in table if not name.endswith("*")]
    assert names
    for name in names:
        found = known.model_of(account, name)
        assert found is None or table[name] == found


def test_prices_are_plain_digits():
    found = known.model_of("openai", "gpt-4o-mini")
    assert found is not None
    assert found.pricing.input == "0.15"
    assert found.context_window == 128_000


def test_every_unit_that_a_price_needs_is_read():
    found = known.model_of("anthropic", "claude-sonnet-4-5")
    assert found is not None
    pricing = found.pricing
    assert (pricing.cached_input, pricing.cache_write, pricing.cache_write_hour) == (
        "0.3",
        "3.75",
        "6",
    )
    assert (pricing.web_search, found.web_search) == ("0.01", True)
    (tier,) = pricing.tiers
    assert (tier.above, tier.input, tier.output) == (200_000, "6", "22.5")
    flash = known.model_of("google", "gemini-2.5-flash")
    assert flash is not None
    assert (flash.pricing.input_audio, flash.pricing.cached_audio) == ("1", "0.1")
    sonar = known.model_of("perplexity", "sonar")
    assert sonar is not None and sonar.pricing.request is not None
    assert Decimal(sonar.pricing.request) == Decimal("0.012")


def test_prices_are_those_of_the_day():
    before = known.model_of("zhipuai", "glm-5.3-flash", date(2026, 9, 9))
    after = known.model_of("zhipuai", "glm-5.3-flash", date(2026, 9, 10))
    assert before is not None and after is not None
    assert (before.pricing.input, after.pricing.input) == ("0.055", "0.11")
    assert known.table_of("zhipuai", date(2026, 9, 9))["glm-5.3-flash"] == before
