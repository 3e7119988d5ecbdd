"""Keys: who a presented key belongs to, and what is said when it is nobody's."""

import pytest

from tollhouse import auth
from tollhouse.errors import RequestError
from tollhouse.snapshot import Key, Snapshot, key_digest

NOW = 1_800_000_000.0
KEY = "sk-th-PLANTED-unit-test-key"


def snapshot(**fields: object) -> Snapshot:
    return Snapshot.of(keys={key_digest(KEY): Key(namespace="shop", name="web", **fields)})  # type: ignore[arg-type]  # because the fields vary by test


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"api-key": KEY},
    ],
    ids=["bearer", "bearer-untidy", "anthropic", "azure"],
)
def test_every_sdk_finds_its_caller(headers: dict[str, str]) -> None:
    assert auth.identify(headers, snapshot(), NOW).id == "shop/web"


def refusal(headers: dict[str, str], at: Snapshot) -> RequestError:
    with pytest.raises(RequestError) as caught:
        auth.identify(headers, at, NOW)
    assert caught.value.status == 401
    assert "PLANTED" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"x-api-key": ""}, "missing_api_key"),
        ({"Authorization": "Basic abc"}, "malformed_api_key"),
        ({"Authorization": "Bearer "}, "malformed_api_key"),
        ({"Authorization": "Bearer " + "x" * 600}, "malformed_api_key"),
        ({"Authorization": "Bearer kéy-PLANTED-not-ascii"}, "malformed_api_key"),
        ({"Authorization": "Bearer some-PLANTED-unknown-key"}, "invalid_api_key"),
    ],
)
def test_a_key_that_is_nobodys_is_refused(headers: dict[str, str], code: str) -> None:
    assert refusal(headers, snapshot()).code == code


def test_a_typo_is_told_from_a_revoked_key() -> None:
    key = auth.new_key()
    mistyped = key[:-1] + ("0" if key[-1] != "0" else "1")
    assert refusal({"x-api-key": key}, snapshot()).code == "invalid_api_key"
    assert refusal({"x-api-key": mistyped}, snapshot()).code == "malformed_api_key"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"disabled": True}, "disabled_api_key"),
        ({"expires_at": NOW}, "expired_api_key"),
        ({"valid_until": NOW - 1}, "expired_api_key"),
    ],
)
def test_a_key_past_its_life_says_why(fields: dict[str, object], code: str) -> None:
    assert refusal({"x-api-key": KEY}, snapshot(**fields)).code == code


def test_a_key_within_its_life_is_accepted() -> None:
    at = snapshot(expires_at=NOW + 1, valid_until=NOW + 1)
    assert auth.identify({"x-api-key": KEY}, at, NOW).name == "web"


def test_new_keys_have_the_documented_form() -> None:
    keys = {auth.new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert key.startswith("sk-th-") and len(key) == 55
        assert auth.looks_like_ours(key) and auth.checksum_holds(key)


@pytest.mark.parametrize("key", ["sk-th-", "sk-th-short", "sk-other", "sk-th-" + "0" * 49 + "x"])
def test_the_checksum_refuses_what_we_did_not_make(key: str) -> None:
    assert not auth.checksum_holds(key)
