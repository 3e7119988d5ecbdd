"""The operator on a real API server: custom resources in, Secrets and statuses out."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from support import planted
from support.gateway import Manifest, caller, manifest, mock, openai_compatible, route, secret
from support.kubernetes import KubernetesCluster
from support.operator import (
    BASE_URL,
    Operator,
    Slots,
    condition,
    eventually,
    running,
    until_condition,
    values,
)
from tollhouse.auth import checksum_holds
from tollhouse.snapshot import key_digest

PROVIDER_KEY = "sk-provider-PLANTED-first"
ROTATED_KEY = "sk-provider-PLANTED-second"
BROUGHT_KEY = "sk-brought-PLANTED-0123456789"


@pytest.fixture(scope="module")
def place(cluster: KubernetesCluster) -> Iterator[str]:
    """The namespace that this module's operator serves."""
    name = f"operator-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.apply(
        _in(name, mock("base"), route("base", ["base"], "base"), *caller("base", BROUGHT_KEY))
    )
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def operator(cluster: KubernetesCluster, place: str) -> Iterator[Operator]:
    with running(cluster.kubeconfig, place) as started:
        yield started


@pytest.fixture
def slots(cluster: KubernetesCluster, place: str, operator: Operator) -> Slots:
    return Slots(cluster, place)


def _in(namespace: str, *manifests: Manifest) -> list[Manifest]:
    """The manifests, moved into this namespace."""
    return [{**one, "metadata": {**one["metadata"], "namespace": namespace}} for one in manifests]


def _made_key(cluster: KubernetesCluster, place: str, name: str) -> str:
    """The key that the operator made, once it is there; registered for the search for leaks."""

    def key() -> str:
        return values(cluster.get("secret", name, place)).get("OPENAI_API_KEY", "")

    return planted.register(eventually(key))


class TestSnapshot:
    def test_what_is_applied_is_published(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(
            _in(
                place,
                secret("openai", {"api-key": PROVIDER_KEY}),
                openai_compatible("openai", "https://api.example.com/v1")[0],
                route("gpt", ["openai/gpt-4o"], "openai"),
                manifest("ApiKey", "checkout", {"owner": "payments"}),
            )
        )
        key = _made_key(cluster, place, "checkout")

        def published() -> bool:
            snapshot = slots.snapshot()
            caller = snapshot.key(key_digest(key))
            provider = snapshot.providers.get(f"{place}/openai")
            return (
                caller is not None
                and caller.owner == "payments"
                and f"{place}/gpt" in snapshot.routes
                and provider is not None
                and provider.credential is not None
                and provider.credential.value == PROVIDER_KEY
            )

        eventually(published)

    def test_one_more_key_rewrites_one_shard_and_the_index(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        before, index = slots.versions(), slots.index()
        cluster.apply(_in(place, *caller("one-more", "sk-brought-PLANTED-one-more-key")))
        digest = key_digest("sk-brought-PLANTED-one-more-key")
        eventually(lambda: slots.snapshot().key(digest))
        after = slots.index()
        changed = {name for name in after.shards if after.shards[name] != index.shards.get(name)}
        assert len(changed) == 1
        written = {
            name for name, version in slots.versions().items() if before.get(name) != version
        }
        assert len(written) == 2
        assert "snap-0" in written

    def test_a_rotated_provider_secret_is_used(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(
            _in(place, mock("rotated"), *openai_compatible("rotated", "https://a.example/v1"))
        )
        cluster.apply(_in(place, secret("rotated", {"api-key": ROTATED_KEY})))

        def used() -> bool:
            provider = slots.snapshot().providers.get(f"{place}/rotated")
            return bool(
                provider and provider.credential and provider.credential.value == ROTATED_KEY
            )

        eventually(used, 2)

    def test_nothing_is_written_to_the_users_objects(
        self, cluster: KubernetesCluster, place: str, operator: Operator
    ) -> None:
        until_condition(cluster, "modelroute", "base", place, "Accepted", "True")
        found = cluster.get("modelroute", "base", place)
        assert "finalizers" not in found["metadata"]
        own = {"kubectl.kubernetes.io/last-applied-configuration"}
        assert set(found["metadata"]["annotations"]) == own


class TestKeys:
    def test_a_made_secret_belongs_to_its_api_key(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(_in(place, manifest("ApiKey", "made", {"secretName": "made-llm"})))
        key = _made_key(cluster, place, "made-llm")
        assert checksum_holds(key)
        made = cluster.get("secret", "made-llm", place)
        assert values(made)["OPENAI_BASE_URL"] == BASE_URL
        (owner,) = made["metadata"]["ownerReferences"]
        api_key = cluster.get("apikey", "made", place)
        assert (owner["kind"], owner["uid"]) == ("ApiKey", api_key["metadata"]["uid"])
        eventually(lambda: cluster.get("apikey", "made", place).get("status", {}).get("prefix"))
        assert cluster.get("apikey", "made", place)["status"]["prefix"] == key[:10]

    def test_a_brought_key_stays_as_it_is(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(_in(place, secret("brought", {"OPENAI_API_KEY": BROUGHT_KEY + "-1"})))
        before = cluster.get("secret", "brought", place)
        cluster.apply(_in(place, manifest("ApiKey", "brought", {})))
        eventually(lambda: slots.snapshot().key(key_digest(BROUGHT_KEY + "-1")))
        after = cluster.get("secret", "brought", place)
        assert after["data"] == before["data"]
        assert "ownerReferences" not in after["metadata"]
        assert after["metadata"]["labels"]["tollhouse.dev/apikey"] == "true"

        def prefix() -> Any:
            return cluster.get("apikey", "brought", place).get("status", {}).get("prefix")

        assert eventually(prefix) == BROUGHT_KEY[:4]

    def test_a_brought_secret_outlives_its_api_key(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        digest = key_digest(BROUGHT_KEY + "-2")
        cluster.apply(_in(place, *caller("outlives", BROUGHT_KEY + "-2")))
        eventually(lambda: slots.snapshot().key(digest))
        cluster.kubectl("delete", "apikey", "outlives", "-n", place)
        eventually(lambda: slots.snapshot().key(digest) is None, 2)
        assert values(cluster.get("secret", "outlives", place))["OPENAI_API_KEY"]

    def test_a_secret_without_a_key_gets_one(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(_in(place, secret("half", {"other": "PLANTED-other-value"})))
        cluster.apply(_in(place, manifest("ApiKey", "half", {})))
        key = _made_key(cluster, place, "half")
        eventually(lambda: slots.snapshot().key(key_digest(key)))
        assert values(cluster.get("secret", "half", place))["other"] == "PLANTED-other-value"

    def test_a_deleted_api_key_is_revoked_and_its_secret_goes(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(_in(place, manifest("ApiKey", "leaving", {})))
        digest = key_digest(_made_key(cluster, place, "leaving"))
        eventually(lambda: slots.snapshot().key(digest))
        cluster.kubectl("delete", "apikey", "leaving", "-n", place)
        eventually(lambda: slots.snapshot().key(digest) is None, 1)
        gone = ("get", "secret", "leaving", "-n", place)
        eventually(lambda: cluster.kubectl(*gone, check=False).returncode != 0, 15)

    def test_a_disabled_api_key_is_told_so_in_the_snapshot(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        digest = key_digest(BROUGHT_KEY + "-3")
        cluster.apply(_in(place, *caller("disabled", BROUGHT_KEY + "-3")))
        eventually(lambda: slots.snapshot().key(digest))
        cluster.apply(_in(place, *caller("disabled", BROUGHT_KEY + "-3", disabled=True)))

        def disabled() -> bool:
            found = slots.snapshot().key(digest)
            return found is not None and found.disabled

        eventually(disabled, 1)
        ready = until_condition(cluster, "apikey", "disabled", place, "Ready", "False")
        assert ready["reason"] == "Disabled"

    def test_an_edited_key_replaces_the_one_before(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        old, new = BROUGHT_KEY + "-old", BROUGHT_KEY + "-new"
        cluster.apply(_in(place, *caller("edited", old)))
        eventually(lambda: slots.snapshot().key(key_digest(old)))
        cluster.apply(_in(place, secret("edited", {"OPENAI_API_KEY": new})))
        eventually(lambda: slots.snapshot().key(key_digest(new)), 2)
        assert slots.snapshot().key(key_digest(old)) is None


class TestStatus:
    def test_a_younger_claim_is_refused_and_all_others_go_on(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        cluster.apply(_in(place, route("claim-a", ["claimed"], "base")))
        until_condition(cluster, "modelroute", "claim-a", place, "Accepted", "True")
        # Creation times have seconds; among equals the name decides, and b comes after a.
        cluster.apply(
            _in(
                place,
                route("claim-b", ["claimed"], "base"),
                route("bystander", ["bystander"], "base"),
            )
        )
        refused = until_condition(cluster, "modelroute", "claim-b", place, "Accepted", "False")
        assert refused["reason"] == "Conflict"
        assert "claim-a" in refused["message"]
        until_condition(cluster, "modelroute", "bystander", place, "Accepted", "True")
        eventually(lambda: f"{place}/bystander" in slots.snapshot().routes)
        assert f"{place}/claim-b" not in slots.snapshot().routes

        def warned() -> bool:
            answer = cluster.kubectl("get", "events.events.k8s.io", "-n", place, "-o", "json")
            return any(
                (event["type"], event["reason"], event["regarding"]["name"])
                == ("Warning", "Conflict", "claim-b")
                for event in json.loads(answer.stdout)["items"]
            )

        eventually(warned)

    def test_a_spec_that_only_we_can_refuse_keeps_its_last_good_version(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        good = caller("zoned", BROUGHT_KEY + "-4", budget={"amount": "1", "period": "Month"})
        cluster.apply(_in(place, *good))
        digest = key_digest(BROUGHT_KEY + "-4")
        eventually(lambda: slots.snapshot().key(digest))
        budget = {"amount": "1", "period": "Month", "timeZone": "Nowhere/Nothing"}
        cluster.apply(_in(place, caller("zoned", budget=budget)[0]))
        refused = until_condition(cluster, "apikey", "zoned", place, "Accepted", "False")
        assert refused["reason"] == "Invalid"
        assert slots.snapshot().key(digest) is not None

    def test_a_missing_secret_is_named_and_its_arrival_noticed(
        self, cluster: KubernetesCluster, place: str, slots: Slots
    ) -> None:
        late = openai_compatible("late", "https://late.example/v1")
        cluster.apply(_in(place, late[0], route("late", ["late"], "late", "base")))
        missing = until_condition(cluster, "provider", "late", place, "ResolvedRefs", "False")
        assert missing["reason"] == "SecretNotFound"
        assert "late" in missing["message"]
        until_condition(cluster, "modelroute", "late", place, "ResolvedRefs", "False")
        targets = slots.snapshot().routes[f"{place}/late"].targets
        assert [target.provider for target in targets] == [f"{place}/base"]
        cluster.apply(_in(place, late[1]))
        until_condition(cluster, "provider", "late", place, "ResolvedRefs", "True", 1)
        until_condition(cluster, "modelroute", "late", place, "ResolvedRefs", "True", 1)

        cluster.kubectl("delete", "secret", "late", "-n", place)
        until_condition(cluster, "provider", "late", place, "ResolvedRefs", "False", 1)

    def test_without_gateways_nothing_is_live(
        self, cluster: KubernetesCluster, place: str, operator: Operator
    ) -> None:
        found = until_condition(cluster, "modelroute", "base", place, "Programmed", "False")
        assert found["reason"] == "NoGateways"

    def test_policies_and_budgets_are_live_with_the_snapshot_that_holds_them(
        self, cluster: KubernetesCluster, place: str, operator: Operator
    ) -> None:
        budget = {"selector": {}, "amount": "10", "period": "Month"}
        policy = {
            "targetRefs": [{"kind": "ApiKey", "name": "nobody"}],
            "limits": [{"name": "burst", "requests": 5, "per": "Minute"}],
        }
        cluster.apply(_in(place, manifest("Budget", "team", budget)))
        cluster.apply(_in(place, manifest("RateLimitPolicy", "few", policy)))
        for kind, name in (("budget", "team"), ("ratelimitpolicy", "few")):
            until_condition(cluster, kind, name, place, "Accepted", "True")
            found = until_condition(cluster, kind, name, place, "Programmed", "False")
            assert found["reason"] == "NoGateways"
        found = until_condition(cluster, "ratelimitpolicy", "few", place, "ResolvedRefs", "False")
        assert found["reason"] == "TargetNotFound"

    def test_a_status_is_written_once(
        self, cluster: KubernetesCluster, place: str, operator: Operator
    ) -> None:
        cluster.apply(_in(place, route("quiet", ["quiet"], "base")))
        until_condition(cluster, "modelroute", "quiet", place, "Accepted", "True")
        version = cluster.get("modelroute", "quiet", place)["metadata"]["resourceVersion"]
        cluster.apply(_in(place, route("noise", ["noise"], "base")))
        until_condition(cluster, "modelroute", "noise", place, "Accepted", "True")
        found = cluster.get("modelroute", "quiet", place)
        assert found["metadata"]["resourceVersion"] == version
        assert condition(found, "Accepted")["observedGeneration"] == 1
