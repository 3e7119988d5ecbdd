"""Limits of a fleet: three gateways and the chart's Valkey count together, whatever befalls one."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import planted
from support.operator import eventually, until_condition, values
from support.pods import Pods
from support.release import VALKEY_VALUES, Release, caller, namespace_for, resource, slow_route

NAMESPACE = "limits"
CALLERS = Path(__file__).with_name("callers.py")
LIMIT, GATEWAYS = 50, 3


@pytest.fixture(scope="module")
def release(cluster: Pods) -> Iterator[Release]:
    namespace_for(cluster, NAMESPACE)
    found = Release(cluster, "tollhouse", NAMESPACE)
    found.apply_chart(*VALKEY_VALUES, f"gateway.replicas={GATEWAYS}", f"namespaces={{{NAMESPACE}}}")
    secret = values(cluster.api.get("secret", "tollhouse-valkey", NAMESPACE))
    planted.register(secret["password"])
    script = {"callers.py": CALLERS.read_text()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"}, "data": script}
    cluster.api.apply([config, *slow_route("stream", "60ms")], NAMESPACE)
    yield found
    found.keep_logs()
    found.helm("uninstall")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


class Callers:
    """A pod of 100 callers with a key of their own."""

    def __init__(self, release: Release, name: str, *arguments: str) -> None:
        self._release, self._name = release, name
        limits = [{"requests": LIMIT, "per": "Day"}]
        api = release.cluster.api
        api.apply(resource("ApiKey", name, {"limits": limits}), NAMESPACE)
        until_condition(api, "apikey", name, NAMESPACE, "Programmed", "True", 30)
        planted.register(values(api.get("secret", name, NAMESPACE))["OPENAI_API_KEY"])
        command = ["python3", "/load/callers.py", *arguments]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": caller(release.image(), command, name, "load"),
        }
        api.apply(pod, NAMESPACE)
        release.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s")

    def counts(self) -> dict[str, Any]:
        """What was answered so far, by status."""
        text = self._release.kubectl("logs", self._name, "--tail=1")
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def result(self) -> dict[str, int]:
        eventually(lambda: self.counts().get("done"), 60)
        counts = self.counts()
        del counts["done"]
        return counts


def served(release: Release) -> dict[str, int]:
    """Answers of status 200 by gateway pod."""
    found = {}
    for pod in release.pods_of("gateway"):
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9090/proxy/metrics"
        text = release.cluster.kubectl("get", "--raw", path).stdout
        counts = re.findall(r'(?m)^tollhouse_requests_total\{.*status="200".*\} (\S+)$', text)
        found[pod] = round(sum(map(float, counts)))
    return found


def test_three_gateways_let_exactly_fifty_through(release: Release) -> None:
    began = time.monotonic()
    counts = Callers(release, "at-once", "100", "3", "2").result()
    by_gateway = served(release)
    print(
        f"a limit of {LIMIT}, 100 callers in the cluster, {GATEWAYS} gateways: {counts} in "
        f"{time.monotonic() - began:.0f} s; let through by gateway: {[*by_gateway.values()]}"
    )
    assert counts == {"200": LIMIT, "429": 300 - LIMIT}
    assert len([one for one in by_gateway.values() if one]) == GATEWAYS


def test_a_gateway_that_is_deleted_in_mid_run_changes_nothing(release: Release) -> None:
    callers = Callers(release, "mid-run", "100", "3", "15")
    eventually(lambda: callers.counts().get("200", 0) >= 5, 30)
    before = callers.counts()
    gone = release.pods_of("gateway")[0]
    release.kubectl("delete", "pod", gone, "--wait=false")
    counts = callers.result()
    print(f"the same with a gateway deleted after {before.get('200')} were through: {counts}")
    assert before.get("200", 0) < LIMIT, "it was deleted too late"
    assert gone not in release.pods_of("gateway")
    assert counts == {"200": LIMIT, "429": 300 - LIMIT}
