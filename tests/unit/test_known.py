"""What compiling knows about models from the published data."""

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
