"""The CRDs in a real API server: what it takes, refuses, explains and shows."""

import json
from typing import Any, cast

import kubernetes
import pytest

from support import refused_callers, refused_upstreams
from support.kubernetes import KubernetesCluster
from support.resource_cases import GOOD, OPENAI, ROUTE, Bad, Good, manifest
from tollhouse.resources import GROUP, KINDS, VERSION, parse

BAD = (*refused_upstreams.REFUSED, *refused_callers.REFUSED)
PLURALS = {kind: f"{kind.lower()}s" for kind in KINDS} | {"RateLimitPolicy": "ratelimitpolicies"}


@pytest.fixture(scope="module")
def objects(cluster: KubernetesCluster) -> kubernetes.client.CustomObjectsApi:
    client = kubernetes.config.new_client_from_config(config_file=str(cluster.kubeconfig))
    return kubernetes.client.CustomObjectsApi(client)


def _try(objects: kubernetes.client.CustomObjectsApi, document: dict[str, Any]) -> dict[str, Any]:
    """Create it in earnest but for the last step, as strictly as kubectl does."""
    created = objects.create_namespaced_custom_object(
        GROUP,
        VERSION,
        "default",
        PLURALS[document["kind"]],
        document,
        dry_run="All",
        field_validation="Strict",
        _request_timeout=10,
    )
    return cast(dict[str, Any], created)


def _refusal(objects: kubernetes.client.CustomObjectsApi, document: dict[str, Any]) -> str:
    with pytest.raises(kubernetes.client.ApiException) as caught:
        _try(objects, document)
    assert caught.value.status in (400, 422)
    return str(json.loads(caught.value.body or "{}")["message"])


class TestObjects:
    @pytest.mark.parametrize("case", GOOD, ids=lambda case: f"{case.kind}: {case.name}")
    def test_good_ones_are_taken(self, objects, case: Good):
        created = _try(objects, manifest(case.kind, case.spec))
        # With its defaults filled in, it is still what the operator reads.
        read = parse({key: created[key] for key in ("apiVersion", "kind", "metadata", "spec")})
        written = parse(manifest(case.kind, case.spec))
        assert read.model_dump(include={"spec"}) == written.model_dump(include={"spec"})

    @pytest.mark.parametrize("case", BAD, ids=lambda case: f"{case.kind}: {case.name}")
    def test_bad_ones_are_refused_with_what_to_do(self, objects, case: Bad):
        message = _refusal(objects, manifest(case.kind, case.spec))
        assert (case.server or case.message) in message
        if case.server is None:
            assert f"{case.path}: Invalid value" in message

    @pytest.mark.parametrize("kind", sorted(set(KINDS) - {"ApiKey"}))
    def test_a_spec_is_needed(self, objects, kind: str):
        document = manifest(kind, {})
        del document["spec"]
        assert "spec: Required value" in _refusal(objects, document)

    def test_an_apikey_needs_nothing(self, objects):
        document = manifest("ApiKey", {})
        del document["spec"]
        assert _try(objects, document)["kind"] == "ApiKey"

    def test_defaults_are_filled_in(self, objects):
        spec = _try(objects, manifest("ModelRoute", ROUTE))["spec"]
        assert spec["shareWith"] == {"from": "Same"}
        assert spec["retries"]["retryOn"] == ["Connect", "Timeout", "429", "5xx"]
        assert spec["targets"][0]["weight"] == 1
        spec = _try(objects, manifest("Provider", OPENAI))["spec"]
        assert spec["timeouts"]["total"] == "10m"
        assert spec["credentials"]["secretRef"]["key"] == "api-key"


class TestDefinitions:
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_established_and_structural(self, cluster: KubernetesCluster, kind: str):
        answer = cluster.kubectl("get", "crd", f"{PLURALS[kind]}.{GROUP}", "-o", "json")
        conditions = {
            condition["type"]: condition["status"]
            for condition in json.loads(answer.stdout)["status"]["conditions"]
        }
        assert conditions["Established"] == conditions["NamesAccepted"] == "True"
        assert "NonStructuralSchema" not in conditions

    def test_apply_without_a_warning(self, cluster: KubernetesCluster):
        answer = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "crds")
        assert answer.stderr == ""

    @pytest.mark.parametrize(
        ("what", "taught"),
        [
            ("apikey.spec.budget", "How much this key may spend, in USD per period."),
            (
                "apikey.spec.budget.amount",
                'The most that may be spent in a period, in USD: "50.00".',
            ),
            ("mroute.spec.targets.weight", "This target's share among those of the same priority"),
            (
                "prov.spec.credentials.secretRef",
                "A Secret in this namespace that holds the API key",
            ),
            ("rlp.spec.onStoreFailure", "ENUM: Allow Deny Local"),
            ("bud.spec.warnAt", "Percentages of the amount at which to warn"),
        ],
    )
    def test_explain_teaches(self, cluster: KubernetesCluster, what: str, taught: str):
        text = cluster.kubectl("explain", what).stdout
        assert taught in " ".join(text.split())


class TestObjectsInUse:
    def test_categories_short_names_and_columns(self, cluster: KubernetesCluster, namespace: str):
        key = {
            "owner": "payments@shop",
            "budget": {"amount": "50.00"},
            "expiresAt": "2027-01-01T00:00:00Z",
        }
        cluster.apply(
            [
                manifest("Provider", OPENAI, "openai"),
                manifest("ModelRoute", ROUTE, "gpt-4o"),
                manifest("ApiKey", key, "checkout"),
            ],
            namespace,
        )
        listed = cluster.kubectl("get", "tollhouse", "-n", namespace, "-o", "name").stdout
        assert set(listed.split()) == {
            "provider.tollhouse.dev/openai",
            "modelroute.tollhouse.dev/gpt-4o",
            "apikey.tollhouse.dev/checkout",
        }
        cluster.kubectl(
            *("patch", "ak", "checkout", "-n", namespace, "--subresource=status", "--type=merge"),
            "-p",
            json.dumps(
                {
                    "status": {
                        "prefix": "sk-th-Ab12",
                        "spend": {"amount": "3.10"},
                        "conditions": [
                            {
                                "type": "Programmed",
                                "status": "True",
                                "observedGeneration": 1,
                                "lastTransitionTime": "2026-01-01T00:00:00Z",
                                "reason": "Programmed",
                                "message": "live on 3/3 gateways",
                            }
                        ],
                    }
                }
            ),
        )
        header, row = cluster.kubectl("get", "ak", "-n", namespace).stdout.splitlines()
        assert header.split() == [
            *("NAME", "PREFIX", "OWNER", "SPEND", "BUDGET", "EXPIRES", "PROGRAMMED", "AGE")
        ]
        assert row.split()[:-1] == [
            *("checkout", "sk-th-Ab12", "payments@shop", "3.10", "50.00"),
            *("2027-01-01T00:00:00Z", "True"),
        ]

    def test_the_status_is_not_the_users_to_write(self, cluster: KubernetesCluster, namespace: str):
        document = {**manifest("ApiKey", {}, "a"), "status": {"prefix": "sk-th-mine"}}
        cluster.apply(document, namespace)
        assert "status" not in cluster.get("apikey", "a", namespace)

    def test_lists_merge_between_two_owners(self, cluster: KubernetesCluster, namespace: str):
        for owner, model in (("platform", "openai/gpt-4o"), ("team", "openai/o3")):
            document = manifest("ApiKey", {"allowedModels": [model]}, "shared")
            cluster.kubectl(
                *("apply", "--server-side", f"--field-manager={owner}", "-n", namespace),
                *("-f", "-"),
                input=json.dumps(document),
            )
        spec = cluster.get("apikey", "shared", namespace)["spec"]
        assert sorted(spec["allowedModels"]) == ["openai/gpt-4o", "openai/o3"]
