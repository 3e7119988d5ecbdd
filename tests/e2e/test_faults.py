"""Faults under load: what happens to a fleet while callers call, and that they notice nothing.

One pod calls 100 times a second for the whole module, a third of it streams of about a second,
without retrying anything. Each test is one fault: what was counted while it lasted is its figure.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import planted
from support.operator import eventually, until_condition, values
from support.pods import Pods
from support.release import Release, caller, namespace_for, resource, slow_route

RATE = 100
NAMESPACE = "faults"
LOAD = Path(__file__).with_name("load.py")
API_AWAY_SECONDS = 60
OPERATOR_AWAY_SECONDS = 120


@pytest.fixture(scope="module")
def release(cluster: Pods) -> Iterator[Release]:
    """A release of its own, three gateways, two Providers: one whole, one in slow pieces."""
    namespace_for(cluster, NAMESPACE)
    found = Release(cluster, "tollhouse", NAMESPACE)
    found.apply_chart("gateway.replicas=3", f"namespaces={{{NAMESPACE}}}")
    cluster.api.apply([*slow_route("whole", "0ms"), *slow_route("stream", "60ms")], NAMESPACE)
    cluster.api.apply(resource("ApiKey", "load", {"owner": "load"}), NAMESPACE)
    until_condition(cluster.api, "apikey", "load", NAMESPACE, "Programmed", "True", 30)
    planted.register(values(cluster.api.get("secret", "load", NAMESPACE))["OPENAI_API_KEY"])
    yield found
    found.keep_logs()
    found.helm("uninstall")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


class Load:
    """The callers' pod."""

    def __init__(self, release: Release) -> None:
        self._release = release

    def calls(self) -> bool:
        """Whether it has told of anything yet."""
        return bool(self._release.kubectl("logs", "load", "--tail=1"))

    def line(self) -> dict[str, Any]:
        """What it last told."""
        found: dict[str, Any] = json.loads(self._release.kubectl("logs", "load", "--tail=1"))
        return found

    def lines(self, since: float) -> list[dict[str, Any]]:
        text = self._release.kubectl("logs", "load", f"--since={round(time.time() - since) + 2}s")
        return [json.loads(line) for line in text.splitlines()]

    @contextlib.contextmanager
    def during(self, what: str, gateways: int) -> Iterator[None]:
        """Nothing fails from now until a while after the block; prints what was counted."""
        before = self.line()
        yield
        self._release.rolled_out("tollhouse")
        # What began within the block has ended: a stream takes a second, a drain a few.
        time.sleep(4)
        after = self.line()
        seconds = after["at"] - before["at"]
        counted = {
            name: after[name] - before[name] for name in ("whole", "streamed", "failed", "broken")
        }
        slowest = max(line["slowest"] for line in self.lines(before["at"]))
        rate = (counted["whole"] + counted["streamed"]) / seconds
        print(
            f"{what}: {seconds:.0f} s, {counted['whole']} whole and {counted['streamed']} "
            f"streamed at {rate:.0f} a second, {counted['failed']} failed, "
            f"{counted['broken']} broken; slowest whole answer {slowest * 1000:.0f} ms"
        )
        assert counted["failed"] == counted["broken"] == 0, after["problems"]
        assert rate > RATE / 2, "the callers hardly called"
        assert len(self._release.pods_of("gateway")) == gateways


@pytest.fixture(scope="module")
def load(release: Release) -> Iterator[Load]:
    script = {"load.py": LOAD.read_text()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load"}, "data": script}
    command = ["python3", "/load/load.py", str(RATE)]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "load"},
        "spec": caller(release.image(), command, "load", "load"),
    }
    release.cluster.api.apply([config, pod], NAMESPACE)
    release.kubectl("wait", "pod/load", "--for=condition=Ready", "--timeout=60s")
    found = Load(release)
    eventually(found.calls, 30)
    time.sleep(3)
    yield found
    (planted.log_directory() / "pod-load.log").write_text(release.kubectl("logs", "load"))
    release.kubectl("delete", "pod", "load", "--wait=false")


def test_a_rolling_restart_of_the_gateways(release: Release, load: Load) -> None:
    with load.during("rolling restart of three gateways", 3):
        release.kubectl("rollout", "restart", "deployment/tollhouse")
        release.rolled_out("tollhouse")


def test_a_rolling_restart_of_the_operator(release: Release, load: Load) -> None:
    with load.during("rolling restart of the operator", 3):
        release.kubectl("rollout", "restart", "deployment/tollhouse-operator")
        release.rolled_out("tollhouse-operator")


def test_a_pod_that_is_deleted_and_one_that_is_evicted(release: Release, load: Load) -> None:
    with load.during("a gateway deleted", 3):
        release.kubectl("delete", "pod", release.pods_of("gateway")[0], "--wait=false")
        time.sleep(2)
    with load.during("two gateways evicted, one refused at first", 3):
        first, second, *_ = release.pods_of("gateway")
        assert evict(release, first) == ""
        refusal = evict(release, second)
        assert "disruption budget" in refusal, refusal
        release.rolled_out("tollhouse")
        eventually(lambda: evict(release, second) == "", 60)


def evict(release: Release, pod: str) -> str:
    """What the API server says against it; nothing when it evicts the pod."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": NAMESPACE},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    done = release.cluster.kubectl(
        "create", "--raw", path, "-f", "-", input=json.dumps(eviction), check=False
    )
    return done.stderr if done.returncode else ""


def test_scaling_up_and_down(release: Release, load: Load) -> None:
    for replicas in (5, 3):
        with load.during(f"scaled to {replicas}", replicas):
            release.kubectl("scale", "deployment/tollhouse", f"--replicas={replicas}")


@pytest.mark.timeout(400, func_only=True)
def test_the_operator_is_away_while_the_fleet_grows(release: Release, load: Load) -> None:
    with load.during(f"no operator for {OPERATOR_AWAY_SECONDS} s, three gateways to five", 5):
        release.kubectl("scale", "deployment/tollhouse-operator", "--replicas=0")
        gone = time.monotonic()
        eventually(lambda: not release.pods_of("operator"), 60)
        release.kubectl("scale", "deployment/tollhouse", "--replicas=5")
        release.rolled_out("tollhouse")
        print(f"two more gateways ready without an operator in {time.monotonic() - gone:.1f} s")
        time.sleep(max(0.0, OPERATOR_AWAY_SECONDS - (time.monotonic() - gone)))
        release.kubectl("scale", "deployment/tollhouse-operator", "--replicas=2")
        release.rolled_out("tollhouse-operator")


@pytest.mark.timeout(300, func_only=True)
def test_the_api_server_is_away(release: Release, load: Load) -> None:
    cluster = release.cluster
    if cluster.of_kind:
        pytest.fail("kind's API server cannot be stopped from here")
    gateways = len(release.pods_of("gateway"))
    with load.during(f"no API server for {API_AWAY_SECONDS} s", gateways):
        cluster.component("stop", "kube-apiserver")
        time.sleep(API_AWAY_SECONDS)
        cluster.component("start", "kube-apiserver")
        eventually(
            lambda: cluster.kubectl("get", "--raw", "/readyz", check=False).stdout == "ok", 60
        )
        back = time.monotonic()
        patch = json.dumps({"spec": {"tags": {"after": "the outage"}}})
        eventually(lambda: not cluster.kubectl(
            "patch", "apikey", "load", "-n", NAMESPACE, "--type=merge", "-p", patch, check=False
        ).returncode, 20)  # fmt: skip
        until_condition(cluster.api, "apikey", "load", NAMESPACE, "Programmed", "True", 60)
        seconds = time.monotonic() - back
        print(f"API server back until a change was live on all gateways: {seconds:.1f} s")
        assert seconds < 5  # two at rest; the load of this test shares the machine's cores
