"""Operators that come, go, and share the work: one writes, and none loses anything."""

import contextlib
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.gateway import Manifest, caller, manifest, mock, openai_compatible, route
from support.kubernetes import KubernetesCluster
from support.operator import (
    SNAPSHOT,
    FakeGateway,
    Operator,
    Slots,
    endpoint_slice,
    eventually,
    launch,
    own_address,
    running,
    until_condition,
    values,
)
from tollhouse.snapshot import key_digest
from tollhouse_operator.__main__ import cli

LEASE_SECONDS = 3


@pytest.fixture
def place(cluster: KubernetesCluster) -> Iterator[str]:
    name = f"replicas-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    cluster.apply(_in(name, mock("base"), route("base", ["base"], "base")))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _in(namespace: str, *manifests: Manifest) -> list[Manifest]:
    return [{**one, "metadata": {**one["metadata"], "namespace": namespace}} for one in manifests]


def _versions(cluster: KubernetesCluster, place: str) -> dict[str, str]:
    """The resource version of every object that the operator could write to."""
    kinds = "secrets,providers,modelroutes,apikeys,ratelimitpolicies,budgets"
    answer = cluster.kubectl("get", kinds, "-n", place, "-o", "json")
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in json.loads(answer.stdout)["items"]
    }


def _many(count: int) -> list[Manifest]:
    found: list[Manifest] = []
    for number in range(count):
        name = f"n-{number}"
        found += [
            *openai_compatible(name, f"https://{name}.example/v1"),
            route(name, [f"{name}/*"], name),
            manifest("ApiKey", name, {}),
        ]
    return found


def _holder(cluster: KubernetesCluster, place: str) -> str:
    lease = cluster.get("lease", f"{SNAPSHOT}-operator", place)
    return str(lease["spec"].get("holderIdentity") or "")


def _follower(cluster: KubernetesCluster, place: str, name: str) -> Operator:
    operator = launch(cluster.kubeconfig, place, "--lease-seconds", str(LEASE_SECONDS), name=name)
    operator.until("store is whole")
    return operator


class TestRestart:
    def test_nothing_changed_so_nothing_is_written(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        cluster.apply(_in(place, *_many(25)))
        slots = Slots(cluster, place)
        with running(cluster.kubeconfig, place):
            eventually(lambda: slots.snapshot().key_count() == 25, 15)
            for number in range(25):
                until_condition(cluster, "apikey", f"n-{number}", place, "ResolvedRefs", "True")
            # Slots that are free again are deleted some ten seconds later.
            eventually(lambda: len(slots.versions()) == len(slots.index().shards) + 1, 25)
        before = _versions(cluster, place)
        with running(cluster.kubeconfig, place):
            time.sleep(2)
        assert _versions(cluster, place) == before

    def test_what_was_deleted_meanwhile_is_gone_and_nothing_else(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        cluster.apply(_in(place, *_many(5)))
        slots = Slots(cluster, place)
        with running(cluster.kubeconfig, place):
            eventually(lambda: slots.snapshot().key_count() == 5, 10)
            secret = values(cluster.get("secret", "n-1", place))
        cluster.kubectl("delete", "apikey", "n-1", "-n", place)
        assert slots.snapshot().key_count() == 5
        with running(cluster.kubeconfig, place):
            eventually(lambda: slots.snapshot().key_count() == 4, 5)
        assert slots.snapshot().key(key_digest(secret["OPENAI_API_KEY"])) is None
        assert len(slots.snapshot().routes) == 6


class TestLeadership:
    def test_only_the_leader_writes_and_another_takes_over_when_it_is_killed(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        slots = Slots(cluster, place)
        with contextlib.ExitStack() as stack:
            first = _follower(cluster, place, "first")
            stack.callback(first.stop)
            first.until("snapshot in force")
            second = _follower(cluster, place, "second")
            stack.callback(second.stop)
            cluster.apply(_in(place, *caller("early", "sk-brought-PLANTED-early")))
            eventually(lambda: slots.snapshot().key(key_digest("sk-brought-PLANTED-early")))
            assert not second.events("leading")

            first.kill()
            second.until("snapshot in force", LEASE_SECONDS * 3)
            cluster.apply(_in(place, *caller("late", "sk-brought-PLANTED-late-key")))
            eventually(lambda: slots.snapshot().key(key_digest("sk-brought-PLANTED-late-key")))
            assert slots.snapshot().key(key_digest("sk-brought-PLANTED-early"))

    def test_a_leader_that_stops_hands_over_at_once(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        with contextlib.ExitStack() as stack:
            # A Lease that would be waited for much longer than this test does.
            first = launch(cluster.kubeconfig, place, "--lease-seconds", "60", name="first")
            stack.callback(first.stop)
            first.until("snapshot in force")
            second = launch(cluster.kubeconfig, place, "--lease-seconds", "60", name="second")
            stack.callback(second.stop)
            second.until("store is whole")
            assert first.stop() == 0
            second.until("leading", 3)

    def test_a_leader_that_was_suspended_does_not_write_when_it_wakes(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        slots = Slots(cluster, place)
        with contextlib.ExitStack() as stack:
            first = _follower(cluster, place, "first")
            stack.callback(first.stop)
            stack.callback(first.process.send_signal, signal.SIGCONT)
            first.until("snapshot in force")
            second = _follower(cluster, place, "second")
            stack.callback(second.stop)

            first.process.send_signal(signal.SIGSTOP)
            second.until("snapshot in force", LEASE_SECONDS * 3)
            holder = _holder(cluster, place)
            cluster.apply(_in(place, *caller("meanwhile", "sk-brought-PLANTED-meanwhile")))
            digest = key_digest("sk-brought-PLANTED-meanwhile")
            eventually(lambda: slots.snapshot().key(digest))
            before = _versions(cluster, place)
            first.process.send_signal(signal.SIGCONT)
            first.until("leadership lost")
            time.sleep(1)
            assert _holder(cluster, place) == holder
            assert slots.snapshot().key(digest)
            after = _versions(cluster, place)
            assert {name: after[name] for name in before if name in after} == before


class TestFleet:
    def test_programmed_is_what_every_gateway_says(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        slots = Slots(cluster, place)
        gateways = [FakeGateway(own_address()) for _ in range(2)]
        try:
            cluster.apply(endpoint_slice(place, gateways))
            with running(cluster.kubeconfig, place):
                pending = until_condition(
                    cluster, "modelroute", "base", place, "Programmed", "False"
                )
                assert (pending["reason"], pending["message"]) == (
                    "Pending",
                    "live on 0/2 gateways",
                )
                gateways[0].digest = slots.index().digest
                time.sleep(0.3)
                until_condition(cluster, "modelroute", "base", place, "Programmed", "False")
                gateways[1].digest = slots.index().digest
                live = until_condition(cluster, "modelroute", "base", place, "Programmed", "True")
                assert live["message"] == "live on 2/2 gateways"

                # One object changes: the others stay live while the gateways catch up.
                version = cluster.get("provider", "base", place)["metadata"]["resourceVersion"]
                cluster.apply(_in(place, route("base", ["base", "again"], "base")))
                until_condition(cluster, "modelroute", "base", place, "Programmed", "False")
                for gateway in gateways:
                    gateway.digest = slots.index().digest
                until_condition(cluster, "modelroute", "base", place, "Programmed", "True")
                untouched = cluster.get("provider", "base", place)["metadata"]["resourceVersion"]
                assert untouched == version
        finally:
            for gateway in gateways:
                gateway.close()


class TestWholeCluster:
    def test_a_namespaces_label_shares_a_route(
        self, cluster: KubernetesCluster, place: str
    ) -> None:
        selector = {"from": "Selector", "selector": {"matchLabels": {"llm": place}}}
        cluster.apply(_in(place, route("shared", [f"{place}/m"], "base", shareWith=selector)))
        slots = Slots(cluster, place)
        other = f"{place}-other"
        cluster.kubectl("create", "namespace", other)
        try:
            with running(cluster.kubeconfig, place, "--all-namespaces"):
                assert other not in (slots.snapshot().routes[f"{place}/shared"].shared_with or ())
                cluster.kubectl("label", "namespace", other, f"llm={place}")

                def shared() -> bool:
                    return other in (slots.snapshot().routes[f"{place}/shared"].shared_with or ())

                eventually(shared, 2)
                cluster.apply(_in(other, manifest("ApiKey", "guest", {})))
                eventually(lambda: _has_caller(slots, f"{other}/guest"))
        finally:
            cluster.kubectl("delete", "namespace", other, "--wait=false", check=False)


def _has_caller(slots: Slots, name: str) -> bool:
    return any(key.id == name for bucket in slots.snapshot().key_shards for key in bucket.values())


class TestStart:
    def test_a_cluster_without_the_crds_is_told_what_to_do(self, tmp_path: Path) -> None:
        class Empty(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # because the overridden method calls it so
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Empty)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        kubeconfig = tmp_path / "kubeconfig"
        address = f"http://127.0.0.1:{server.server_address[1]}"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": address}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )
        try:
            done = subprocess.run(
                [
                    sys.executable, "-m", "tollhouse_operator", "run",
                    "--snapshot", "a/b", "--service", "a/c", "--all-namespaces",
                    "--kubeconfig", str(kubeconfig), "--ops-port", "0",
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )  # fmt: skip
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)
        assert done.returncode == 1
        assert "kubectl apply -f crds/" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--snapshot", "a/b", "--service", "a/c"], "--all-namespaces"),
            (["--snapshot", "b", "--service", "a/c", "--all-namespaces"], "NAMESPACE/NAME"),
            (["--snapshot", "a/b", "--all-namespaces"], "--base-url"),
        ],
    )
    def test_flags_that_do_not_add_up_are_refused(self, arguments: list[str], said: str) -> None:
        done = CliRunner().invoke(cli, ["run", *arguments])
        assert done.exit_code == 2
        assert said in done.output
