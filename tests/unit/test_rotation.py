"""When a key is due to be replaced, and what one write then says. The clock is given."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from support.planted import register
from tollhouse.auth import new_key
from tollhouse.compile import KEY_NAME, PREVIOUS_DIGESTS, compile_snapshot
from tollhouse.inventory import Inventory
from tollhouse.resources import ApiKey, Resources, parse
from tollhouse.snapshot import key_digest
from tollhouse_operator import rotation
from tollhouse_operator.keys import change_to, new_secret

URL = "http://tollhouse.ai.svc:8080/v1"
THEIRS = "sk-other-gateway-PLANTED-0123456789"
NOW = 1_800_000_000.0
HOUR = 3600.0
EVERY = {"every": "10h", "overlap": "2h"}


def api_key(asked: str | None = None, **spec: Any) -> ApiKey:
    annotations = {} if asked is None else {rotation.ROTATE: asked}
    found = parse(
        {
            "apiVersion": "tollhouse.dev/v1alpha1",
            "kind": "ApiKey",
            "metadata": {
                "namespace": "shop", "name": "checkout", "uid": "u-1", "annotations": annotations
            },
            "spec": spec,
        }
    )  # fmt: skip
    assert isinstance(found, ApiKey)
    return found


def made(owner: ApiKey) -> dict[str, Any]:
    """The Secret of an ApiKey as the operator makes it, and the API server then has it."""
    secret = new_secret(owner, URL, NOW)
    secret["metadata"]["resourceVersion"] = "7"
    register(key_in(secret))
    return secret


def brought() -> dict[str, Any]:
    encoded = base64.b64encode(THEIRS.encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"namespace": "shop", "name": "checkout", "resourceVersion": "7"},
        "data": {KEY_NAME: encoded},
    }


def key_in(secret: Mapping[str, Any]) -> str:
    return base64.b64decode(secret["data"][KEY_NAME]).decode()


def patched(secret: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """What a merge patch (RFC 7386) leaves of a Secret."""
    merged = dict(secret)
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = patched(merged.get(name) or {}, value)
        else:
            merged[name] = value
    return merged


def state(secret: Mapping[str, Any]) -> rotation.State:
    found = rotation.state_of_manifest(secret)
    assert found is not None
    return found


def turned(owner: ApiKey, secret: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The Secret after what was due at ``now`` was done."""
    told = state(secret)
    assert rotation.due(owner, told) <= now
    key = register(new_key()) if rotation.rotates(owner, told, now) else None
    return patched(secret, rotation.change(owner, secret, told, key, now))


def valid(secret: Mapping[str, Any], at: float) -> set[str]:
    """The digests that gateways take at this instant, by the compiler itself."""
    inventory = Inventory()
    inventory.apply({**secret, "apiVersion": "v1", "kind": "Secret"})
    found = inventory.resources()
    resources = Resources(api_keys={("shop", "checkout"): api_key()}, secrets=found.secrets)
    compiled = compile_snapshot(resources)
    assert compiled.findings == ()
    return {
        digest
        for shard in compiled.snapshot.key_shards
        for digest, key in shard.items()
        if key.valid_until is None or at < key.valid_until
    }


class TestDue:
    def test_nothing_is_due_without_a_wish(self) -> None:
        owner = api_key()
        assert rotation.due(owner, state(made(owner))) == rotation.NEVER
        assert rotation.due(owner, state(brought())) == rotation.NEVER

    def test_a_key_is_due_at_its_age(self) -> None:
        owner = api_key(rotation=EVERY)
        told = state(made(owner))
        assert rotation.due(owner, told) == NOW + 10 * HOUR
        assert not rotation.rotates(owner, told, NOW + 10 * HOUR - 1)
        assert rotation.rotates(owner, told, NOW + 10 * HOUR)

    def test_each_new_value_of_the_annotation_asks_once(self) -> None:
        secret = made(api_key())
        for number, asked in enumerate(("now", "again")):
            owner, now = api_key(asked), NOW + number
            assert rotation.due(owner, state(secret)) == 0
            before = key_in(secret)
            secret = turned(owner, secret, now)
            assert key_in(secret) != before
            assert not rotation.rotates(owner, state(secret), now + HOUR)
        # Taking the annotation away asks for nothing, and what it said is still remembered.
        assert not rotation.rotates(api_key(), state(secret), NOW + HOUR)
        assert not rotation.rotates(api_key("again"), state(secret), NOW + HOUR)

    def test_a_key_made_under_the_annotation_is_new_already(self) -> None:
        owner = api_key("now")
        assert rotation.due(owner, state(made(owner))) == rotation.NEVER

    def test_an_adopted_key_counts_from_its_adoption(self) -> None:
        owner = api_key("now", rotation=EVERY)
        change = change_to(brought(), owner, URL, NOW)
        assert change is not None and "data" not in change
        told = state(patched(brought(), change))
        assert rotation.due(owner, told) == NOW + 10 * HOUR

    def test_a_key_that_somebody_else_wrote_begins_anew(self) -> None:
        owner = api_key(rotation=EVERY)
        secret = {**made(owner), "data": brought()["data"]}
        later = NOW + 9 * HOUR
        secret = turned(owner, secret, later)
        assert key_in(secret) == THEIRS
        assert rotation.due(owner, state(secret)) == later + 10 * HOUR

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"digest": 1}', '{"since": "x"}'])
    def test_a_life_that_cannot_be_read_begins_anew(self, text: str) -> None:
        owner = api_key(rotation=EVERY)
        secret = made(owner)
        secret["metadata"]["annotations"] = {rotation.LIFE: text}
        after = turned(owner, secret, NOW)
        assert key_in(after) == key_in(secret)
        assert rotation.due(owner, state(after)) == NOW + 10 * HOUR


class TestChange:
    def test_one_write_holds_the_new_key_and_the_old_digest(self) -> None:
        owner = api_key("now", rotation=EVERY)
        secret = made(api_key(rotation=EVERY))
        told = state(secret)
        key = register(new_key())
        change = rotation.change(owner, secret, told, key, NOW + HOUR)
        assert set(change) == {"metadata", "data"}
        assert change["metadata"]["resourceVersion"] == "7"
        assert key not in json.dumps(change["metadata"])
        after = patched(secret, change)
        assert valid(after, NOW + HOUR) == {told.digest, key_digest(key)}
        assert valid(after, NOW + 3 * HOUR) == {key_digest(key)}
        assert change["data"].keys() == {KEY_NAME}

    def test_without_an_overlap_the_old_key_ends_at_once(self) -> None:
        owner = api_key("now", rotation={"every": "10h", "overlap": "0s"})
        after = turned(owner, made(api_key()), NOW)
        assert valid(after, NOW) == {key_digest(key_in(after))}

    def test_without_a_rotation_the_overlap_is_a_day(self) -> None:
        before = made(api_key())
        after = turned(api_key("now"), before, NOW)
        assert key_digest(key_in(before)) in valid(after, NOW + 24 * HOUR - 1)
        assert key_digest(key_in(before)) not in valid(after, NOW + 24 * HOUR)

    def test_what_has_ended_is_taken_out_of_the_list(self) -> None:
        after = turned(api_key("now"), made(api_key()), NOW)
        owner = api_key("now")
        end = NOW + 24 * HOUR + rotation.PRUNE_SECONDS
        assert rotation.due(owner, state(after)) == end
        pruned = turned(owner, after, end)
        assert PREVIOUS_DIGESTS not in pruned["metadata"]["annotations"]
        assert key_in(pruned) == key_in(after)
        assert rotation.due(owner, state(pruned)) == rotation.NEVER

    def test_so_many_older_keys_work_at_once_and_no_more(self) -> None:
        secret = made(api_key())
        digests = [key_digest(key_in(secret))]
        for number in range(rotation.MOST_PREVIOUS + 3):
            secret = turned(api_key(str(number)), secret, NOW + number)
            digests.append(key_digest(key_in(secret)))
        assert valid(secret, NOW + HOUR) == set(digests[-rotation.MOST_PREVIOUS - 1 :])

    def test_a_very_long_value_asks_once_too(self) -> None:
        owner = api_key("x" * 5000)
        after = turned(owner, made(api_key()), NOW)
        assert not rotation.rotates(owner, state(after), NOW + HOUR)


class TestTimes:
    def test_of_a_key_that_was_never_replaced(self) -> None:
        owner = api_key(rotation=EVERY)
        assert rotation.times(owner, state(made(owner))) == (None, "2027-01-15T18:00:00Z")
        assert rotation.times(api_key(), state(made(owner))) == (None, None)

    def test_of_one_that_was(self) -> None:
        owner = api_key("now", rotation=EVERY)
        after = turned(owner, made(api_key(rotation=EVERY)), NOW + HOUR)
        told = rotation.times(owner, state(after))
        assert told == ("2027-01-15T09:00:00Z", "2027-01-15T19:00:00Z")


def test_a_secret_without_a_key_has_no_state() -> None:
    assert rotation.state_of_manifest({"metadata": {}, "data": {}}) is None
    assert rotation.state_of_manifest({"metadata": {}, "data": {KEY_NAME: "*"}}) is None
