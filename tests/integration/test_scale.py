"""Thousands of ApiKeys: what a change costs the operator, the API server and a gateway.

``TOLLHOUSE_TEST_SCALE`` is the number of ApiKeys; there are a tenth as many ModelRoutes and a
hundredth as many Providers. Figures are printed and times asserted loosely: the machine may be
busy. Processor time is printed beside them, since that does not depend on who else is at work.
"""

import asyncio
import os
import re
import statistics
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.test_fleet import Address, ask, launch_gateway, soon
from support import accounts
from support import gateway as g
from support import operator as o
from support.gateway import Gateway, Manifest
from support.kubernetes import KubernetesCluster
from tollhouse_operator.cluster import CallError, Cluster, backoff, path

KEYS = int(os.environ.get("TOLLHOUSE_TEST_SCALE", "1000"))
ROUTES = KEYS // 10
PROVIDERS = KEYS // 100
CHANGES = 60
_AT_ONCE = 24
_LABEL = {"tollhouse.dev/apikey": "true"}

pytestmark = pytest.mark.timeout(600, func_only=True)


def key_of(number: int) -> str:
    return f"sk-brought-PLANTED-scale-{number:06d}"


def objects(namespace: str) -> list[Manifest]:
    """Everything that there is at the start; Secrets as an operator has adopted them."""
    found: list[Manifest] = []
    for number in range(PROVIDERS):
        found += g.openai_compatible(f"p{number}", f"https://p{number}.example/v1")
    for number in range(ROUTES):
        found.append(g.route(f"r{number}", [f"vendor/model-{number}"], f"p{number % PROVIDERS}"))
    for number in range(KEYS):
        spec = {
            "owner": f"team-{number % 100}@example.com",
            "allowedModels": [f"vendor/model-{number % ROUTES}", "base"],
            "tags": {"team": f"team-{number % 100}"},
        }
        found += held(f"k{number}", key_of(number), **spec)
    return [{**it, "metadata": {**it["metadata"], "namespace": namespace}} for it in found]


def held(name: str, key: str, **spec: Any) -> list[Manifest]:
    api_key, secret = g.caller(name, key, **spec)
    secret["metadata"]["labels"] = _LABEL
    return [secret, api_key]


async def created(kubeconfig: Path, manifests: Sequence[Manifest]) -> None:
    """Create objects as fast as the API server takes them, in about this order."""
    client = await Cluster.connect(kubeconfig)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def create(manifest: Manifest) -> None:
        where = path(manifest["kind"], manifest["metadata"]["namespace"])
        async with gate:
            for attempt in range(8):
                try:
                    await client.create(where, manifest)
                    return
                except CallError as error:
                    if error.status == 409:
                        return
                    if not error.transient:
                        raise
                    await asyncio.sleep(error.retry_after or backoff(attempt))
            raise AssertionError(f"{where} was not created")

    try:
        await asyncio.gather(*(create(it) for it in manifests))
    finally:
        await client.close()


@dataclass
class Place:
    cluster: KubernetesCluster
    namespace: str
    operator_config: Path
    operator: o.Operator
    gateway: Gateway
    before: float
    """MiB of a gateway that has next to nothing to serve."""

    def apply(self, *manifests: Manifest) -> None:
        placed = [
            {**it, "metadata": {**it["metadata"], "namespace": self.namespace}} for it in manifests
        ]
        asyncio.run(created(self.cluster.kubeconfig, placed))

    def versions(self) -> dict[str, str]:
        """The resource version of every object that the operator could write to."""
        kinds = ("secrets", "providers", "modelroutes", "apikeys")
        found: dict[str, str] = {}
        for kind in kinds:
            answer = self.cluster.kubectl(
                "get", kind, "-n", self.namespace, "-o",
                "jsonpath={range .items[*]}{.metadata.name}={.metadata.resourceVersion} {end}",
            )  # fmt: skip
            for line in answer.stdout.split():
                name, _, version = line.partition("=")
                found[f"{kind}/{name}"] = version
        return found

    def writes(self) -> dict[str, float]:
        return writes(self.cluster)

    def unprogrammed(self) -> int:
        """How many ApiKeys do not say that they are live."""
        answer = self.cluster.kubectl(
            "get", "apikeys", "-n", self.namespace, "-o",
            'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Programmed")].status}/{end}',
        )  # fmt: skip
        return sum(status != "True" for status in answer.stdout.split("/")[:-1])

    def until_programmed(self, seconds: float) -> None:
        """Until every ApiKey says that it is live. Looking costs the API server, so not often."""
        until = time.monotonic() + seconds
        while self.unprogrammed():
            assert time.monotonic() < until, f"{self.unprogrammed()} ApiKeys are not live"
            time.sleep(1)

    def cpu(self) -> tuple[float, float]:
        """Seconds of processor time that the operator and the API server have used."""
        text = self.cluster.kubectl("get", "--raw", "/metrics").stdout
        server = re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)
        ticks = Path(f"/proc/{self.operator.process.pid}/stat").read_text().rpartition(")")[2]
        used = sum(map(int, ticks.split()[11:13])) / os.sysconf("SC_CLK_TCK")
        return used, float(server[1]) if server else 0.0


def writes(cluster: KubernetesCluster) -> dict[str, float]:
    """How often the API server was asked to write, by verb and resource, Leases aside."""
    text = cluster.kubectl("get", "--raw", "/metrics").stdout
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if labels["verb"] in ("POST", "PUT", "PATCH", "DELETE", "APPLY"):
            name = f"{labels['verb']} {labels['resource']}/{labels['subresource']}".rstrip("/")
            if labels["resource"] not in ("leases", "events", "tokenreviews"):
                found[name] = found.get(name, 0) + float(line.rpartition(" ")[2])
    return found


def memory(pid: int, field: str = "VmRSS") -> float:
    """MiB; ``VmHWM`` is the most there ever was."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def ready(gateway: Gateway, model: str, key: str) -> float:
    """MiB of a gateway that has answered."""
    soon(lambda: ask(gateway, model, key) == 200)
    return memory(gateway.process.pid)


@pytest.fixture(scope="module")
def place(cluster: KubernetesCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    namespace = f"scale-{uuid.uuid4().hex[:8]}"
    directory = tmp_path_factory.mktemp("accounts")
    cluster.kubectl("create", "namespace", namespace)
    operator_config = accounts.operator(cluster, namespace, directory)
    gateway_config = accounts.gateway(cluster, namespace, o.SNAPSHOT, directory, "list", "watch")
    few = [*held("base", g.KEY), g.mock("mock"), g.route("base", ["base"], "mock")]
    placed = [{**it, "metadata": {**it["metadata"], "namespace": namespace}} for it in few]
    asyncio.run(created(cluster.kubeconfig, placed))
    with o.running(operator_config, namespace, name="scale-first"):
        gateway = launch_gateway(gateway_config, namespace, "scale-empty")
        g.wait_until_ready(gateway)
        before = ready(gateway, "base", g.KEY)
        gateway.stop()

    begun = time.monotonic()
    many = objects(namespace)
    asyncio.run(created(cluster.kubeconfig, many))
    print(f"{len(many)} objects created in {time.monotonic() - begun:.0f} s")
    with ExitStack() as stack:
        begun = time.monotonic()
        operator = o.launch(operator_config, namespace, name="scale")
        stack.callback(operator.stop)
        operator.until("store is whole", 120)
        whole = time.monotonic() - begun
        operator.until("snapshot in force", 120)
        in_force = time.monotonic() - begun
        gateway = launch_gateway(gateway_config, namespace, "scale")
        stack.callback(gateway.stop)
        g.wait_until_ready(gateway, 60)
        cluster.apply(o.endpoint_slice(namespace, [Address(gateway)]))
        found = Place(cluster, namespace, operator_config, operator, gateway, before)
        began = time.monotonic()
        started, server_started = found.cpu()
        found.until_programmed(300)
        took = time.monotonic() - began
        used, server_used = found.cpu()
        total = KEYS + ROUTES + PROVIDERS
        print(
            f"{KEYS} ApiKeys, {ROUTES} ModelRoutes, {PROVIDERS} Providers: operator started to "
            f"store whole {whole:.1f} s, to snapshot in force {in_force:.1f} s; "
            f"statuses {total / took:.0f} a second; processor time of the operator "
            f"{started:.1f} s until then, {(used - started) / total * 1000:.2f} ms a status, and "
            f"of the API server {(server_used - server_started) / total * 1000:.2f} ms a status"
        )
        yield found
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_change_is_live_within_a_second_and_costs_two_secrets(place: Place) -> None:
    settled(place)
    before, (used, _), took = place.writes(), place.cpu(), []
    for number in range(CHANGES):
        key = key_of(900_000 + number)
        begun = time.monotonic()
        place.apply(*held(f"new-{number}", key))
        asked = time.monotonic()
        soon(lambda: ask(place.gateway, "base", key) == 200)  # noqa: B023  # called at once
        took.append((time.monotonic() - begun, time.monotonic() - asked))
    settled(place)
    after = place.writes()
    live = [seconds for _, seconds in took]
    p99 = statistics.quantiles(live, n=100)[-1]
    calls = {name: (after[name] - before.get(name, 0)) / CHANGES for name in sorted(after)}
    print(
        f"one more ApiKey at {KEYS}: created to live on the gateway p50 "
        f"{statistics.median(live) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms over {CHANGES}; "
        f"{(place.cpu()[0] - used) / CHANGES * 1000:.0f} ms of the operator's processor time each; "
        "writes for each, the test's own POSTs included: "
        + ", ".join(f"{count:.2f} {name}" for name, count in calls.items() if count >= 0.05)
    )
    assert statistics.median(live) < 1.5
    # The snapshot: a shard and the index; a freed slot is deleted. Statuses: one for the key.
    assert calls.get("PATCH apikeys/status", 0) <= 1.5
    assert calls.get("PUT secrets", 0) + calls.get("POST secrets", 0) - 1 <= 2.5


def settled(place: Place) -> None:
    """Wait until the operator has nothing left to write."""

    def quiet() -> bool:
        before = place.writes()
        time.sleep(2)
        return place.writes() == before

    o.eventually(quiet, 60)


def test_requests_wait_no_longer_while_the_configuration_changes(place: Place) -> None:
    """The slowest request of a second, in quiet and while a snapshot a quarter second comes."""

    def slowest(seconds: float) -> list[float]:
        worst, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            second, peak = time.monotonic() + 1, 0.0
            while time.monotonic() < second:
                begun = time.monotonic()
                assert ask(place.gateway, "base") == 200
                peak = max(peak, time.monotonic() - begun)
            worst.append(peak)
        return worst

    async def changing() -> list[float]:
        measuring = asyncio.create_task(asyncio.to_thread(slowest, 8))
        number = 0
        while not measuring.done():
            number += 1
            it = [
                {**one, "metadata": {**one["metadata"], "namespace": place.namespace}}
                for one in held(f"busy-{number}", key_of(800_000 + number))
            ]
            await created(place.cluster.kubeconfig, it)
            await asyncio.sleep(0.25)
        return await measuring

    quiet = slowest(8)
    reloads = place.gateway.text().count("configuration in force")
    busy = asyncio.run(changing())
    reloads = place.gateway.text().count("configuration in force") - reloads
    print(
        f"slowest request of a second at {KEYS} ApiKeys: quiet median "
        f"{statistics.median(quiet) * 1000:.0f} ms, max {max(quiet) * 1000:.0f} ms; under "
        f"{reloads} reloads median {statistics.median(busy) * 1000:.0f} ms, "
        f"max {max(busy) * 1000:.0f} ms"
    )
    assert reloads > 5
    assert statistics.median(busy) < statistics.median(quiet) + 0.1


def test_new_keys_are_made_quickly(place: Place) -> None:
    """ApiKeys without a Secret: the operator makes one for each."""
    count = max(100, KEYS // 20)
    names = [f"made-{number}" for number in range(count)]
    manifests = [g.manifest("ApiKey", name, {}, place.namespace) for name in names]
    used, server_used = place.cpu()
    begun = time.monotonic()
    asyncio.run(created(place.cluster.kubeconfig, manifests))
    applied = time.monotonic() - begun
    place.until_programmed(120)
    took = time.monotonic() - begun
    spent, server_spent = place.cpu()
    print(
        f"{count} ApiKeys without a Secret: created in {applied:.1f} s, each with a key and "
        f"Programmed after {took:.1f} s: {count / took:.0f} a second; processor time for each "
        f"{(spent - used) / count * 1000:.1f} ms of the operator and "
        f"{(server_spent - server_used) / count * 1000:.1f} ms of the API server"
    )


def test_memory(place: Place) -> None:
    gateway = ready(place.gateway, "base", g.KEY)
    grown = (gateway - place.before) * 10_000 / KEYS
    operator = place.operator.process.pid
    print(
        f"memory at {KEYS} ApiKeys: operator {memory(operator):.0f} MiB, at most "
        f"{memory(operator, 'VmHWM'):.0f} MiB; gateway {gateway:.0f} MiB, "
        f"{place.before:.0f} MiB without them: {grown:.0f} MiB for 10,000"
    )
    assert memory(operator, "VmHWM") < 400
    assert gateway - place.before < 60


def test_an_operator_that_starts_again_writes_nothing(place: Place) -> None:
    settled(place)
    # Slots that are free again are deleted some ten seconds later.
    time.sleep(12)
    before, counted = place.versions(), None
    place.operator.stop()
    begun = time.monotonic()
    again = o.launch(place.operator_config, place.namespace, name="scale-again")
    try:
        again.until("snapshot in force", 120)
        took = time.monotonic() - begun
        counted = place.writes()
        time.sleep(5)
        after, later = place.versions(), place.writes()
        written = again.events("snapshot in force")[0]["secrets"]
    finally:
        again.stop()
    print(
        f"operator started again at {KEYS} ApiKeys: in force after {took:.1f} s, "
        f"{written} Secrets written"
    )
    assert after == before
    assert {n: later[n] for n in later if "secrets" in n or "status" in n} == {
        n: counted[n] for n in counted if "secrets" in n or "status" in n
    }
