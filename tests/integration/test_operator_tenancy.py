"""The operator among tenants, and with an API server that has troubles of its own."""

import asyncio
import json
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import accounts, planted
from support.faulty_api import faulty
from support.gateway import Manifest, caller, manifest, mock, openai_compatible, route, secret
from support.kubernetes import KubernetesCluster
from support.operator import Slots, eventually, running, until_condition, values
from tollhouse.routing import Table
from tollhouse.snapshot import Key, key_digest
from tollhouse_operator.cluster import Cluster, path


@pytest.fixture
def spaces(cluster: KubernetesCluster) -> Iterator[tuple[str, str, str]]:
    """The platform's namespace, a tenant's, and one that the operator does not serve."""
    base = f"tenancy-{uuid.uuid4().hex[:8]}"
    names = (base, f"{base}-tenant", f"{base}-other")
    for name in names:
        cluster.kubectl("create", "namespace", name)
    yield names
    for name in names:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def _in(namespace: str, *manifests: Manifest) -> list[Manifest]:
    return [{**one, "metadata": {**one["metadata"], "namespace": namespace}} for one in manifests]


def test_listed_namespaces_are_served_and_no_other_is_touched(
    cluster: KubernetesCluster, spaces: tuple[str, str, str]
) -> None:
    platform, tenant, other = spaces
    share = {"from": "All"}
    both = [mock("base"), route("r", ["x"], "base", shareWith=share)]
    cluster.apply(_in(tenant, *both, *caller("mine", "sk-brought-PLANTED-tenant-key")))
    cluster.apply(_in(other, *both, manifest("ApiKey", "theirs", {})))
    cluster.apply(_in(platform, *both))
    with running(cluster.kubeconfig, platform, "--namespace", tenant):
        slots = Slots(cluster, platform)
        digest = key_digest("sk-brought-PLANTED-tenant-key")
        eventually(lambda: slots.snapshot().key(digest), 15)
        snapshot = slots.snapshot()
        assert set(snapshot.routes) == {f"{platform}/r", f"{tenant}/r"}
        table = Table(snapshot, "d")
        # The tenant's is the older, and only the tenant's callers meet it.
        assert table.resolve(Key(tenant, "k"), "x").route.id == f"{tenant}/r"
        assert table.resolve(Key("elsewhere", "k"), "x").route.id == f"{platform}/r"
        until_condition(cluster, "modelroute", "r", platform, "Accepted", "True")
        told = until_condition(cluster, "modelroute", "r", tenant, "Accepted", "True")
        assert f"{platform}/r" in told["message"]
    untouched = cluster.get("apikey", "theirs", other)
    assert "status" not in untouched
    assert cluster.kubectl("get", "secret", "theirs", "-n", other, check=False).returncode


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("Provider", {"type": "OpenAI", "credentials": {
            "secretRef": {"name": "s", "key": "api-key", "namespace": "kube-system"}}}),
        ("Provider", {"type": "OpenAI", "credentials": {
            "secretRef": {"name": "kube-system/s", "key": "api-key"}}}),
        ("Provider", {"type": "OpenAI", "tls": {
            "caRef": {"kind": "Secret", "name": "s", "namespace": "kube-system"}}}),
        ("Provider", {"type": "OpenAI", "serviceRef": {
            "name": "s", "port": 80, "namespace": "kube-system"}}),
        ("ApiKey", {"secretName": "kube-system/s"}),
        ("ModelRoute", {"models": ["x"], "targets": [
            {"provider": {"name": "p", "namespace": "kube-system"}}]}),
    ],
)  # fmt: skip
def test_the_api_server_refuses_a_reference_into_another_namespace(
    cluster: KubernetesCluster, namespace: str, kind: str, spec: dict[str, object]
) -> None:
    done = cluster.apply(manifest(kind, "reaching", spec, namespace), check=False)
    assert done.returncode
    assert "spec." in done.stderr


def test_an_adopted_secret_loses_the_label_with_its_api_key(
    cluster: KubernetesCluster, namespace: str
) -> None:
    def labels(name: str) -> dict[str, str]:
        found: dict[str, str] = cluster.get("secret", name, namespace)["metadata"].get("labels", {})
        return found

    key = "sk-brought-PLANTED-label"
    mine = secret("mine", {"OPENAI_API_KEY": key}, namespace)
    mine["metadata"]["labels"] = {"app": "shop"}
    cluster.apply(
        [mine, *_in(namespace, *caller("moved", f"{key}-2"), mock(), *caller("gone", key))]
    )
    cluster.apply(manifest("ApiKey", "mine", {}, namespace))
    with running(cluster.kubeconfig, namespace):
        eventually(lambda: "tollhouse.dev/apikey" in labels("mine"), 30)
        assert labels("mine")["app"] == "shop"
        assert "app.kubernetes.io/managed-by" not in labels("mine")
        cluster.kubectl("delete", "apikey", "mine", "-n", namespace)
        eventually(lambda: labels("mine") == {"app": "shop"}, 30)
        assert values(cluster.get("secret", "mine", namespace))["OPENAI_API_KEY"] == key
        cluster.apply(manifest("ApiKey", "moved", {"secretName": "gone"}, namespace))
        eventually(lambda: labels("moved") == {}, 30)
        assert labels("gone")["tollhouse.dev/apikey"] == "true"
    cluster.kubectl("delete", "apikey", "gone", "moved", "-n", namespace)
    with running(cluster.kubeconfig, namespace):
        eventually(lambda: labels("gone") == {}, 30)


@pytest.mark.timeout(180, func_only=True)
def test_a_snapshot_that_does_not_fit_is_told_and_the_last_one_stays(
    cluster: KubernetesCluster, namespace: str
) -> None:
    few = [mock("base"), route("base", ["base"], "base"), *caller("a", "sk-brought-PLANTED-fits")]
    cluster.apply(_in(namespace, *few))
    # Sixteen images of random text: more than a Secret takes, however well it is compressed.
    images = [secrets.token_urlsafe(49_000) for _ in range(16)]
    large = _in(namespace, mock("large", images=images))[0]
    slots = Slots(cluster, namespace)

    async def create() -> None:
        # kubectl would put it all into an annotation once more.
        client = await Cluster.connect(cluster.kubeconfig)
        try:
            await client.create(path("Provider", namespace), large)
        finally:
            await client.close()

    with running(cluster.kubeconfig, namespace):
        eventually(lambda: slots.snapshot().key_count() == 1)
        index = slots.index()
        asyncio.run(create())
        refused = until_condition(
            cluster, "provider", "large", namespace, "Programmed", "False", 15
        )
        assert refused["reason"] == "NotPublished"
        assert "last one that fitted stays" in refused["message"]
        assert slots.index() == index
        # What was live says so still; what is newer waits for the same reason.
        until_condition(cluster, "provider", "large", namespace, "Accepted", "True")
        cluster.apply(_in(namespace, route("late", ["late"], "base")))
        late = until_condition(cluster, "modelroute", "late", namespace, "Programmed", "False", 30)
        assert late["reason"] == "NotPublished"

        cluster.kubectl("delete", "provider", "large", "-n", namespace)
        eventually(lambda: f"{namespace}/late" in slots.snapshot().routes, 15)

        def cleared() -> bool:
            found = cluster.get("modelroute", "late", namespace)["status"]["conditions"]
            return any(it["reason"] == "NoGateways" for it in found)

        eventually(cleared)


@pytest.mark.timeout(180, func_only=True)
def test_an_api_server_that_refuses_every_third_write_loses_nothing(
    cluster: KubernetesCluster, namespace: str, tmp_path: Path
) -> None:
    config = accounts.operator(cluster, namespace, tmp_path)
    with faulty(config, tmp_path, 3) as api, running(api.kubeconfig, namespace):
        slots = Slots(cluster, namespace)
        items: list[Manifest] = []
        for number in range(20):
            items += [
                *openai_compatible(f"n-{number}", f"https://n{number}.example/v1"),
                route(f"n-{number}", [f"n/{number}"], f"n-{number}"),
                manifest("ApiKey", f"n-{number}", {}),
            ]
        # The Secret of the Provider is also the ApiKey's, which brings no key: one is added.
        cluster.apply(_in(namespace, *items))
        eventually(lambda: slots.snapshot().key_count() == 20, 60)
        assert len(slots.snapshot().routes) == 20

        def told() -> bool:
            kinds = "providers,modelroutes,apikeys"
            answer = cluster.kubectl("get", kinds, "-n", namespace, "-o", "json")
            return all(it.get("status") for it in json.loads(answer.stdout)["items"])

        eventually(told, 60)
        for number in range(20):
            planted.register(
                values(cluster.get("secret", f"n-{number}", namespace))["OPENAI_API_KEY"]
            )
        print(f"{api.refused} of the operator's writes were refused, and none was lost")
        assert api.refused > 20
