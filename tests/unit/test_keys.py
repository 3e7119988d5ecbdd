"""Which Secret an ApiKey gets, and what is done to one that is there already."""

import base64
from typing import Any

from tollhouse.auth import checksum_holds, new_key
from tollhouse.resources import ApiKey, parse
from tollhouse_operator.keys import BASE_URL, KEY, LABEL, change_to, new_secret, prefix, secret_of

URL = "http://tollhouse.ai.svc:8080/v1"
NOW = 1_800_000_000.0
THEIRS = "sk-other-gateway-PLANTED-0123456789"


def _api_key(**spec: Any) -> ApiKey:
    found = parse(
        {
            "apiVersion": "tollhouse.dev/v1alpha1",
            "kind": "ApiKey",
            "metadata": {"namespace": "shop", "name": "checkout", "uid": "u-1"},
            "spec": spec,
        }
    )
    assert isinstance(found, ApiKey)
    return found


def _secret(**values: str) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "name": "checkout", "resourceVersion": "7"},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    }


def _change(secret: dict[str, Any]) -> dict[str, Any] | None:
    return change_to(secret, _api_key(), URL, NOW)


def _decoded(secret: dict[str, Any], name: str) -> str:
    return base64.b64decode(secret["data"][name]).decode()


class TestNewSecret:
    def test_it_holds_a_key_of_ours_and_the_address(self) -> None:
        secret = new_secret(_api_key(), URL, NOW)
        assert checksum_holds(_decoded(secret, KEY))
        assert _decoded(secret, BASE_URL) == URL

    def test_two_keys_differ(self) -> None:
        assert new_secret(_api_key(), URL, NOW)["data"] != new_secret(_api_key(), URL, NOW)["data"]

    def test_it_goes_with_its_api_key(self) -> None:
        (owner,) = new_secret(_api_key(), URL, NOW)["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("ApiKey", "checkout", "u-1")

    def test_it_is_found_by_its_label(self) -> None:
        assert new_secret(_api_key(), URL, NOW)["metadata"]["labels"][LABEL] == "true"

    def test_it_has_the_name_that_was_asked_for(self) -> None:
        assert secret_of(_api_key()) == ("shop", "checkout")
        assert secret_of(_api_key(secretName="checkout-llm")) == ("shop", "checkout-llm")


class TestAdoption:
    def test_a_key_that_is_there_is_not_touched(self) -> None:
        change = _change(_secret(**{KEY: THEIRS}))
        assert change is not None
        assert "data" not in change
        assert change["metadata"]["labels"][LABEL] == "true"

    def test_a_users_secret_gets_no_owner(self) -> None:
        change = _change(_secret(**{KEY: THEIRS}))
        assert change is not None
        assert "ownerReferences" not in change["metadata"]

    def test_a_secret_without_a_key_gets_one(self) -> None:
        change = _change(_secret(other="PLANTED-value"))
        assert change is not None
        assert checksum_holds(_decoded(change, KEY))
        assert _decoded(change, BASE_URL) == URL
        assert set(change["data"]) == {KEY, BASE_URL}

    def test_an_address_that_is_there_stays(self) -> None:
        change = _change(_secret(**{BASE_URL: "https://elsewhere/v1"}))
        assert change is not None
        assert set(change["data"]) == {KEY}

    def test_an_adopted_secret_needs_nothing(self) -> None:
        secret = _secret(**{KEY: THEIRS})
        secret["metadata"]["labels"] = {LABEL: "true"}
        assert _change(secret) is None

    def test_a_change_is_for_the_version_that_was_read(self) -> None:
        change = _change(_secret())
        assert change is not None
        assert change["metadata"]["resourceVersion"] == "7"


class TestPrefix:
    def test_of_our_own_key(self) -> None:
        key = new_key()
        assert prefix(key) == key[:10]

    def test_of_an_adopted_key(self) -> None:
        assert prefix(THEIRS) == "sk-o"

    def test_of_a_mistyped_key_of_ours(self) -> None:
        assert prefix(new_key()[:-1]) == "sk-t"

    def test_of_what_is_too_short_for_a_key(self) -> None:
        assert prefix("PLANTED") is None
