"""The inventory: the last good version of every object, one manifest at a time."""

import base64
import time

import pytest

from tollhouse.inventory import Inventory
from tollhouse.resources import GROUP, VERSION

NAMES = {"metadata": {"name": "it", "namespace": "ai"}}


def manifest(kind: str, spec: object, **metadata: object) -> dict[str, object]:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": "it", "namespace": "ai", **metadata},
        "spec": spec,
    }


def core(kind: str, **fields: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": kind, **NAMES, **fields}


GOOD = manifest("Provider", {"type": "Mock"}, generation=1)
BAD = manifest("Provider", {"type": "Mork"}, generation=2)


class TestChanges:
    def test_an_object_appears_changes_and_goes(self):
        inventory = Inventory()
        assert inventory.apply(GOOD)
        assert inventory.resources().providers[("ai", "it")].spec.type == "Mock"
        assert inventory.apply(manifest("Provider", {"type": "OpenAI"}, generation=2))
        assert inventory.resources().providers[("ai", "it")].spec.type == "OpenAI"
        assert inventory.remove("Provider", "ai", "it")
        assert inventory.resources().providers == {}
        assert not inventory.remove("Provider", "ai", "it")

    def test_what_says_nothing_new_is_no_change(self):
        inventory = Inventory()
        inventory.apply(GOOD)
        noise = {
            "managedFields": [{"manager": "kubectl"}],
            "resourceVersion": "7",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        }
        again = manifest("Provider", {"type": "Mock"}, generation=1, **noise)
        assert not inventory.apply({**again, "status": {"conditions": []}})

    @pytest.mark.parametrize(
        "metadata",
        [
            {"labels": {"team": "a"}},
            {"generation": 2},
            {"creationTimestamp": "2026-01-01T00:00:00Z"},
        ],
    )
    def test_metadata_that_matters_is_a_change(self, metadata):
        inventory = Inventory()
        inventory.apply(GOOD)
        assert inventory.apply(
            manifest("Provider", {"type": "Mock"}, **{"generation": 1, **metadata})
        )

    def test_what_is_being_deleted_is_gone(self):
        inventory = Inventory()
        inventory.apply(GOOD)
        leaving = manifest("Provider", {"type": "Mock"}, deletionTimestamp="2026-01-01T00:00:00Z")
        assert inventory.apply(leaving)
        assert not inventory.apply(leaving)
        assert inventory.resources().providers == {}

    @pytest.mark.parametrize(
        "other",
        [
            {},
            {"apiVersion": "apps/v1", "kind": "Deployment", **NAMES},
            {"apiVersion": "pkg.crossplane.io/v1", "kind": "Provider", **NAMES},
            {"apiVersion": "serving.knative.dev/v1", "kind": "Service", **NAMES},
            {"apiVersion": "v1", "kind": "Secret"},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": ""}},
            {"apiVersion": ["v1"], "kind": {"a": 1}, "metadata": "x"},
        ],
    )
    def test_other_things_are_ignored(self, other):
        assert not Inventory().apply(other)

    def test_what_was_handed_out_does_not_change(self):
        inventory = Inventory()
        inventory.apply(GOOD)
        before = inventory.resources()
        inventory.remove("Provider", "ai", "it")
        assert ("ai", "it") in before.providers

    def test_no_namespace_means_default(self):
        inventory = Inventory()
        inventory.apply({**GOOD, "metadata": {"name": "it"}})
        assert list(inventory.resources().providers) == [("default", "it")]


class TestRefusal:
    def test_a_bad_version_leaves_the_good_one_in_force(self):
        inventory = Inventory()
        inventory.apply(GOOD)
        assert inventory.apply(BAD)
        resources = inventory.resources()
        (refused,) = resources.refused
        assert (refused.kind, refused.ref, refused.generation) == ("Provider", ("ai", "it"), 2)
        assert refused.kept
        assert refused.problems[0].path == ("spec", "type")
        assert resources.providers[("ai", "it")].metadata.generation == 1

    def test_the_same_mistake_again_is_no_change(self):
        inventory = Inventory()
        inventory.apply(BAD)
        assert not inventory.apply(BAD)
        assert not inventory.resources().refused[0].kept

    @pytest.mark.parametrize("mended", [GOOD, {**GOOD, "metadata": BAD["metadata"]}])
    def test_mending_it_clears_the_refusal(self, mended):
        inventory = Inventory()
        inventory.apply(GOOD)
        inventory.apply(BAD)
        assert inventory.apply(mended)
        assert inventory.resources().refused == ()

    def test_removing_it_removes_the_version_that_was_kept(self):
        inventory = Inventory()
        inventory.apply(GOOD)
        inventory.apply(BAD)
        assert inventory.remove("Provider", "ai", "it")
        assert inventory.resources().providers == {} and inventory.resources().refused == ()

    def test_a_version_of_ours_that_is_unknown_is_refused_and_not_ignored(self):
        inventory = Inventory()
        assert inventory.apply({**GOOD, "apiVersion": f"{GROUP}/v9"})
        assert inventory.resources().refused[0].problems[0].path == ("apiVersion",)


class TestCoreObjects:
    def secret(self, **fields: object) -> dict[str, str]:
        inventory = Inventory()
        inventory.apply(core("Secret", **fields))
        found = inventory.resources().secrets[("ai", "it")]
        return {key: credential.value for key, credential in found.data.items()}

    def test_a_secret_in_base64_and_in_plain_text_which_goes_first(self):
        encoded = base64.b64encode(b"PLANTED-encoded").decode()
        found = self.secret(data={"a": encoded, "b": encoded}, stringData={"b": "PLANTED-plain"})
        assert found == {"a": "PLANTED-encoded", "b": "PLANTED-plain"}

    def test_binary_values_are_left_out(self):
        assert self.secret(data={"a": base64.b64encode(b"\xff\xfe").decode()}) == {}

    def test_a_secret_that_cannot_be_read_is_refused_without_its_value(self):
        inventory = Inventory()
        inventory.apply(core("Secret", data={"a": "PLANTED not base64!"}, stringData={"b": 5}))
        (refused,) = inventory.resources().refused
        assert [it.path for it in refused.problems] == [("data", "a"), ("stringData", "b")]
        assert "PLANTED" not in str(refused)

    def test_only_our_own_annotations_are_kept(self):
        inventory = Inventory()
        annotations = {
            "tollhouse.dev/previous-digests": "[]",
            "kubectl.kubernetes.io/last-applied-configuration": "PLANTED-everything",
        }
        metadata = {"name": "it", "namespace": "ai", "annotations": annotations}
        inventory.apply({**core("Secret"), "metadata": metadata})
        found = inventory.resources().secrets[("ai", "it")]
        assert found.annotations == {"tollhouse.dev/previous-digests": "[]"}

    def test_config_maps_and_services(self):
        inventory = Inventory()
        inventory.apply(core("ConfigMap", data={"ca.crt": "text"}))
        inventory.apply(core("Service", spec={"ports": [{"port": 80}, {"port": 443}]}))
        assert inventory.resources().config_maps[("ai", "it")].data == {"ca.crt": "text"}
        assert inventory.resources().services[("ai", "it")].ports == (80, 443)

    def test_a_namespace_has_the_label_of_its_name(self):
        inventory = Inventory()
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
        inventory.apply(space)
        labels = inventory.resources().namespaces["shop"].labels
        assert labels == {"kubernetes.io/metadata.name": "shop"}
        assert inventory.remove("Namespace", "", "shop")
        assert inventory.resources().namespaces == {}


def test_an_event_among_ten_thousand_objects_is_cheap():
    inventory = Inventory()
    for number in range(10_000):
        inventory.apply(manifest("ApiKey", {"owner": "team"}, name=f"key-{number}"))
    inventory.resources()
    start = time.perf_counter()
    for number in range(100):
        inventory.apply(manifest("ApiKey", {"owner": "other"}, name=f"key-{number}"))
    events = time.perf_counter() - start
    start = time.perf_counter()
    resources = inventory.resources()
    whole = time.perf_counter() - start
    print(
        f"at 10,000 ApiKeys: {events * 10:.3f} ms an event, {whole * 1000:.2f} ms for resources()"
    )
    assert len(resources.api_keys) == 10_000
    assert events / 100 < 0.02 and whole < 0.5
