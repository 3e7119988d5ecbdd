"""What the chart renders, judged by Helm and by a real API server."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.kubernetes import CLUSTER, KubernetesCluster

sys.path.insert(0, str(CLUSTER.parent))
import binaries

CHART = Path(__file__).resolve().parents[2] / "charts" / "tollhouse"
FOREIGN = (
    ("sigs.k8s.io/gateway-api", "v1.4.0", "config/crd/standard/*httproutes.yaml"),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.70.0",
        "example/prometheus-operator-crd/*_{pod,service}monitors.yaml",
    ),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.70.0",
        "example/prometheus-operator-crd/*_prometheusrules.yaml",
    ),
)
"""Go module, version and the definitions in it of other people's kinds that the chart makes."""
EVERYTHING: dict[str, Any] = {
    "gateway": {
        "tlsSecretName": "tls",
        "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}],
        "extraArgs": ["--workers=2"],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "high",
    },
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "platform"},
    "autoscaling": {"enabled": True, "targetInFlight": 50},
    "valkey": {"enabled": True},
    "ingress": {"enabled": True, "className": "nginx", "hosts": [{"host": "llm.example.com"}]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
    "networkPolicy": {
        "callers": [{"namespaceSelector": {"matchLabels": {"llm": "yes"}}}],
        "egress": {"enabled": True, "gateways": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
    },
    "monitoring": {
        name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "dashboards", "rules")
    },
}
EXTERNAL = {"store": {"url": "rediss://counters:6380/0", "passwordSecretName": "counters"}}


@pytest.fixture(scope="module")
def helm() -> Path:
    return binaries.helm()


def render(helm: Path, namespace: str, values: dict[str, Any], *flags: str) -> str:
    """The manifests; raises AssertionError with what Helm says against the values."""
    done = subprocess.run(
        [
            *(helm, "template", "tollhouse", CHART, "-n", namespace, "-f", "-", "--skip-tests"),
            *("--kube-version", binaries.KUBERNETES, *flags),
        ],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> Iterator[dict[str, Any]]:
    yield from (found for found in yaml.safe_load_all(text) if found)


def one(text: str, kind: str, name: str) -> dict[str, Any]:
    [found] = [
        found
        for found in objects(text)
        if found["kind"] == kind and found["metadata"]["name"] == name
    ]
    return found


def test_helm_finds_nothing_to_complain_about(helm: Path) -> None:
    done = subprocess.run(
        [helm, "lint", "--strict", CHART], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "values",
    [{}, EVERYTHING, EXTERNAL, {"namespaces": ["HERE"]}, {"crds": {"install": False}}],
    ids=["as it is", "everything", "a store elsewhere", "namespaces", "without definitions"],
)
def test_an_api_server_takes_every_object_by_the_letter(
    cluster: KubernetesCluster, namespace: str, helm: Path, values: dict[str, Any]
) -> None:
    """Strictly: no unknown field, no wrong type, nothing against Pod Security ``restricted``."""
    install_foreign_kinds(cluster)
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted")
    here = json.loads(json.dumps(values).replace("HERE", namespace))
    rendered = render(helm, namespace, here)
    done = cluster.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts",
        "-n", namespace, "-f", "-", input=rendered,
    )  # fmt: skip
    assert "Warning" not in done.stderr
    assert len(done.stdout.splitlines()) == len(list(objects(rendered)))


def install_foreign_kinds(cluster: KubernetesCluster) -> None:
    for module, version, pattern in FOREIGN:
        directory = binaries.module(module, version)
        patterns = [pattern.replace("{pod,service}", word) for word in ("pod", "service")]
        for path in {path for each in patterns for path in directory.glob(each)}:
            cluster.kubectl("apply", "--server-side", "-f", str(path))
            cluster.kubectl("wait", "--for=condition=Established", "-f", str(path))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"gatewya": {}}, "gatewya"),
        ({"gateway": {"replicas": "two"}}, "replicas"),
        ({"gateway": {"deniedModelStatus": 404}}, "deniedModelStatus"),
        ({"store": {"url": "redis://user:PLANTED@host:6379"}}, "url"),
    ],
    ids=["an unknown value", "a wrong type", "a wrong choice", "a password in an address"],
)
def test_wrong_values_are_refused(helm: Path, values: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        render(helm, "ai", values)


def test_the_grace_period_is_longer_than_the_drain(helm: Path) -> None:
    for delay, timeout in ((5, 120), (30, 900)):
        values = {"gateway": {"drainDelaySeconds": delay, "drainTimeoutSeconds": timeout}}
        spec = one(render(helm, "ai", values), "Deployment", "tollhouse")["spec"]["template"][
            "spec"
        ]
        assert spec["terminationGracePeriodSeconds"] > delay + timeout + 15
        assert f"--drain-delay={delay}" in spec["containers"][0]["args"]


def test_the_store_is_told_only_where_there_is_one(helm: Path) -> None:
    def told(values: dict[str, Any]) -> dict[str, Any]:
        found = one(render(helm, "ai", values), "Deployment", "tollhouse")
        env = found["spec"]["template"]["spec"]["containers"][0]["env"]
        return {one["name"]: one for one in env if "STORE" in one["name"]}

    assert told({}) == {}
    own = told({"valkey": {"enabled": True}})
    assert own["TOLLHOUSE_STORE"]["value"] == "redis://tollhouse-valkey:6379/0"
    assert own["TOLLHOUSE_STORE_SCOPE"]["value"] == "ai/tollhouse"
    secret = own["TOLLHOUSE_STORE_PASSWORD"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": "tollhouse-valkey", "key": "password"}
    elsewhere = told(EXTERNAL)
    assert elsewhere["TOLLHOUSE_STORE"]["value"] == "rediss://counters:6380/0"
    assert elsewhere["TOLLHOUSE_STORE_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "counters"


def test_liveness_is_tied_to_the_process_alone(helm: Path) -> None:
    rendered = render(helm, "ai", {})
    for name in ("tollhouse", "tollhouse-operator"):
        [container] = one(rendered, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        paths = {
            probe: container[f"{probe}Probe"]["httpGet"]["path"]
            for probe in ("startup", "readiness", "liveness")
        }
        assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}


def test_with_a_list_of_namespaces_the_operator_has_rights_in_no_other(helm: Path) -> None:
    rendered = list(objects(render(helm, "ai", {"namespaces": ["shop", "ai"]})))
    everywhere = [found for found in rendered if found["kind"] == "ClusterRoleBinding"]
    assert [found["roleRef"]["name"] for found in everywhere] == ["ai-tollhouse-namespaces"]
    [role] = [
        found
        for found in rendered
        if found["kind"] == "ClusterRole" and found["metadata"]["name"] == "ai-tollhouse-namespaces"
    ]
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "verbs": ["list", "watch"],
            "resourceNames": ["shop", "ai"],
        }
    ]
    bound = {
        found["metadata"]["namespace"]
        for found in rendered
        if found["kind"] == "RoleBinding" and found["roleRef"]["name"] == "ai-tollhouse-resources"
    }
    assert bound == {"shop", "ai"}


def test_the_ledger_is_told_and_a_stream_wants_a_store(helm: Path) -> None:
    stream = {"gateway": {"ledger": "stream"}}
    with pytest.raises(AssertionError, match=r"valkey\.enabled or store\.url"):
        render(helm, "ai", stream)
    found = one(render(helm, "ai", stream | EXTERNAL), "Deployment", "tollhouse")
    assert "--ledger=stream" in found["spec"]["template"]["spec"]["containers"][0]["args"]


def test_dashboard_and_rules_ask_for_metrics_that_there_are() -> None:
    """Every name in them is one that a process exposes; the suffixes are the text format's."""
    documented = (CHART.parents[1] / "docs" / "operate.md").read_text()
    files = [*CHART.glob("files/dashboards/*.json"), *CHART.glob("files/rules/*.yaml")]
    assert len(files) == 2
    asked = {
        re.sub(r"_(total|bucket)$", "", name)
        for file in files
        for name in re.findall(r"tollhouse_[a-z_]+", file.read_text())
    }
    assert len(asked) > 10
    assert {name for name in asked if f"`{name}`" not in documented} == set()


def test_dashboards_and_rules_that_are_there_are_installed(helm: Path, tmp_path: Path) -> None:
    import shutil

    chart = tmp_path / "tollhouse"
    shutil.copytree(CHART, chart)
    (chart / "files/dashboards/overview.json").write_text('{"title": "{{not a template}}"}')
    rules = {"groups": [{"name": "tollhouse", "rules": [{"alert": "A", "expr": "up == 0"}]}]}
    (chart / "files/rules/alerts.yaml").write_text(yaml.safe_dump(rules))
    rendered = subprocess.run(
        [
            *(helm, "template", "tollhouse", chart, "--kube-version", binaries.KUBERNETES),
            *("--set", "monitoring.dashboards.enabled=true,monitoring.rules.enabled=true"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "overview.json" in one(rendered, "ConfigMap", "tollhouse-dashboards")["data"]
    spec = one(rendered, "PrometheusRule", "tollhouse")["spec"]
    assert "A" in [rule.get("alert") for group in spec["groups"] for rule in group["rules"]]
