"""Keys that are replaced while callers use them: a real operator, real gateways, a real API server.

Every caller watches its Secret and uses what it reads there at once, as hastily as no pod does.
"""

import asyncio
import contextlib
import http.client
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from support import accounts, planted
from support import gateway as g
from support import operator as o
from support.eventually import eventually
from support.gateway import Gateway, Manifest
from support.kubernetes import KubernetesCluster
from tollhouse.kube import Cluster

LEASE_SECONDS = 3
OVERLAP_SECONDS = 8
LIFE = "tollhouse.dev/key-life"
PREVIOUS = "tollhouse.dev/previous-digests"


@dataclass
class Place:
    cluster: KubernetesCluster
    namespace: str
    operator_config: Path
    gateways: list[Gateway]

    def apply(self, *manifests: Manifest) -> None:
        self.cluster.apply(
            [{**m, "metadata": {**m["metadata"], "namespace": self.namespace}} for m in manifests]
        )

    def rotate(self, name: str, value: str) -> None:
        self.cluster.kubectl(
            "annotate", "apikey", name, "-n", self.namespace, "--overwrite",
            f"tollhouse.dev/rotate={value}",
        )  # fmt: skip

    def key(self, name: str) -> str:
        """The key in a Secret, once there is one."""

        def read() -> str:
            found = self.cluster.kubectl(
                "get", "secret", name, "-n", self.namespace, "-o", "json", check=False
            )
            return "" if found.returncode else o.values(json.loads(found.stdout))["OPENAI_API_KEY"]

        return planted.register(o.eventually(read, 15))

    def annotate_secret(self, name: str, key: str, value: object) -> None:
        change = {"metadata": {"annotations": {key: json.dumps(value)}}}
        self.cluster.kubectl(
            "patch", "secret", name, "-n", self.namespace, "--type=merge", "-p", json.dumps(change)
        )

    def annotation(self, name: str, key: str) -> str | None:
        found = self.cluster.get("secret", name, self.namespace)["metadata"]
        value: str | None = (found.get("annotations") or {}).get(key)
        return value

    def operator(self, name: str) -> o.Operator:
        return o.launch(
            self.operator_config, self.namespace, "--lease-seconds", str(LEASE_SECONDS), name=name
        )


@pytest.fixture(scope="module")
def place(cluster: KubernetesCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A namespace with two gateways; each test brings its operators."""
    namespace = f"rotation-{uuid.uuid4().hex[:8]}"
    directory = tmp_path_factory.mktemp("accounts")
    cluster.kubectl("create", "namespace", namespace)
    operator_config = accounts.operator(cluster, namespace, directory)
    gateway_config = accounts.gateway(cluster, namespace, o.SNAPSHOT, directory, "list", "watch")
    address = o.own_address()
    with ExitStack() as stack:
        with o.running(operator_config, namespace):
            gateways = []
            for _ in range(2):
                gateway = g.launch(
                    "--snapshot", f"{namespace}/{o.SNAPSHOT}", "--kubeconfig", gateway_config,
                    "--ops-host", address, name="rotation",
                )  # fmt: skip
                gateway.ops_host = address
                stack.callback(gateway.stop)
                gateways.append(gateway)
            for gateway in gateways:
                g.wait_until_ready(gateway)
            cluster.apply(o.endpoint_slice(namespace, [_Ops(gateway) for gateway in gateways]))
            found = Place(cluster, namespace, operator_config, gateways)
            found.apply(g.mock("mock"), g.route("base", ["base"], "mock"))
            o.until_condition(cluster, "modelroute", "base", namespace, "Programmed", "True", 30)
        yield found
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


class _Ops:
    def __init__(self, gateway: Gateway) -> None:
        self.address = gateway.ops_host
        self.port = gateway.ops_port


@dataclass
class Load:
    """What callers of one ApiKey met: the keys in the order in which the Secret showed them, and
    for each request the key's number, when it was sent (monotonic, seconds) and its status."""

    keys: list[str] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    answers: list[tuple[int, float, int]] = field(default_factory=list)

    def statuses(self, number: int, until: float = float("inf")) -> set[int]:
        """What requests with this key, sent before ``until``, were answered with."""
        return {status for which, sent, status in self.answers if which == number and sent < until}


@contextlib.asynccontextmanager
async def calling(place: Place, name: str) -> AsyncIterator[Load]:
    """Callers with every key that the Secret ever showed, on each gateway, all the time."""
    load = Load()

    async def call(session: aiohttp.ClientSession, gateway: Gateway, number: int) -> None:
        url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {load.keys[number]}"}
        while True:
            sent = time.monotonic()
            async with session.post(url, json=body, headers=headers) as answer:
                await answer.read()
            load.answers.append((number, sent, answer.status))
            await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        tasks: list[asyncio.Task[None]] = []

        async def follow() -> None:
            async with (
                Cluster.connect(place.cluster.kubeconfig) as api,
                contextlib.aclosing(api.watch_secret(place.namespace, name)) as states,
            ):
                async for state in states:
                    key = state.data["OPENAI_API_KEY"].decode() if state else ""
                    if not key or key in load.keys:
                        continue
                    load.keys.append(planted.register(key))
                    load.seen.append(time.monotonic())
                    for gateway in place.gateways:
                        tasks.append(
                            asyncio.create_task(call(session, gateway, len(load.keys) - 1))
                        )

        tasks.append(asyncio.create_task(follow()))
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [it for it in ended if not isinstance(it, asyncio.CancelledError)] == []


@pytest.mark.timeout(300, func_only=True)
async def test_no_caller_is_refused_within_the_overlap_though_the_operator_is_killed_in_between(
    place: Place,
) -> None:
    rotation = {"every": "720h", "overlap": f"{OVERLAP_SECONDS}s"}
    place.apply(g.manifest("ApiKey", "busy", {"rotation": rotation}))
    rotations = 4
    with ExitStack() as stack:
        operator = place.operator("rotating-0")
        stack.callback(operator.stop)
        await asyncio.to_thread(operator.until, "snapshot in force", 60)
        await asyncio.to_thread(place.key, "busy")
        async with calling(place, "busy") as load:
            # The very first key was made and read before any gateway had it.
            await eventually(lambda: [it for _, _, it in load.answers[-4:]] == [200] * 4, 15)
            load.answers.clear()
            for number in range(1, rotations + 1):
                follower = place.operator(f"rotating-{number}")
                stack.callback(follower.stop)
                await asyncio.to_thread(follower.until, "store is whole", 60)
                await asyncio.to_thread(place.rotate, "busy", f"turn-{number}")
                # At a different moment each time: before, within and after the rotation.
                await asyncio.sleep(0.15 * (number - 1))
                operator.kill()
                operator = follower
                await eventually(lambda: len(load.keys) == number + 1, 60)  # noqa: B023  # because it is called before the loop goes on
            last = load.seen[-1]
            await asyncio.sleep(OVERLAP_SECONDS + 1)
            end = time.monotonic()
            await asyncio.sleep(1)
        # One key for each wish, and the restarts asked for none.
        assert len(load.keys) == rotations + 1
        for number in range(rotations):
            assert load.statuses(number, load.seen[number + 1] + OVERLAP_SECONDS - 1) == {200}
            late = {it for which, at, it in load.answers if which == number and at >= end}
            assert late == {401}, number
        assert load.statuses(rotations) == {200}
        hasty = next(at for which, at, _ in load.answers if which == rotations) - last
        print(
            f"{rotations} rotations, the leading operator killed in each: "
            f"{len(load.answers)} requests, none refused within the overlap; the newest key was "
            f"used {hasty * 1000:.0f} ms after its Secret showed it"
        )

        def told() -> bool:
            status = place.cluster.get("apikey", "busy", place.namespace).get("status", {})
            prefixes = status.get("prefix") == load.keys[-1][:10]
            return bool(prefixes and status.get("lastRotated") and status.get("nextRotation"))

        await eventually(told, 15)
        events = place.cluster.kubectl(
            "get", "events.events.k8s.io", "-n", place.namespace, "-o", "json"
        )
        rotated = [it for it in json.loads(events.stdout)["items"] if it["reason"] == "Rotated"]
        assert rotated
        assert {it["regarding"]["name"] for it in rotated} == {"busy"}


@pytest.fixture(scope="module")
def operator(place: Place) -> Iterator[o.Operator]:
    """One for all tests but the first, which brings its own."""
    with o.running(place.operator_config, place.namespace, name="rotation") as started:
        yield started


class TestOneOperator:
    def test_a_key_past_its_age_is_replaced_and_the_status_says_when_next(
        self, place: Place, operator: o.Operator
    ) -> None:
        place.apply(g.manifest("ApiKey", "aged", {"rotation": {"every": "24h"}}))
        before = place.key("aged")
        life = json.loads(place.annotation("aged", LIFE) or "")
        place.annotate_secret("aged", LIFE, {**life, "since": "2024-01-01T00:00:00Z"})
        o.eventually(lambda: place.key("aged") != before, 15)

        def told() -> bool:
            status = place.cluster.get("apikey", "aged", place.namespace)["status"]
            last, following = status.get("lastRotated"), status.get("nextRotation")
            if not (last and following):
                return False
            gap = datetime.fromisoformat(following) - datetime.fromisoformat(last)
            return gap == timedelta(hours=24)

        o.eventually(told, 10)

    def test_keys_whose_overlap_is_over_are_taken_off_the_list(
        self, place: Place, operator: o.Operator
    ) -> None:
        place.apply(g.manifest("ApiKey", "pruned", {}))
        place.key("pruned")
        ended = {"digest": "ab" * 32, "validUntil": "2024-01-01T00:00:00Z"}
        place.annotate_secret("pruned", PREVIOUS, [ended])
        o.eventually(lambda: place.annotation("pruned", PREVIOUS) is None, 15)

    def test_a_deleted_secret_is_a_new_key_and_the_end_of_the_old_one(
        self, place: Place, operator: o.Operator
    ) -> None:
        place.apply(g.manifest("ApiKey", "leaked", {}))
        before = place.key("leaked")
        o.eventually(lambda: _statuses(place, before) == {200}, 10)
        place.cluster.kubectl("delete", "secret", "leaked", "-n", place.namespace)
        o.eventually(lambda: _statuses(place, before) == {401}, 5)
        after = place.key("leaked")
        assert after != before
        o.eventually(lambda: _statuses(place, after) == {200}, 5)

    def test_an_adopted_key_is_replaced_in_its_secret_when_asked_and_only_then(
        self, place: Place, operator: o.Operator
    ) -> None:
        theirs = "sk-brought-PLANTED-to-be-rotated"
        place.apply(*g.caller("adopted", theirs))
        o.eventually(lambda: place.annotation("adopted", LIFE), 10)
        assert place.key("adopted") == theirs
        place.rotate("adopted", "now")
        o.eventually(lambda: place.key("adopted") != theirs, 10)
        secret = place.cluster.get("secret", "adopted", place.namespace)
        assert "ownerReferences" not in secret["metadata"]

    def test_two_api_keys_of_one_secret_do_not_rotate_it_in_turns(
        self, place: Place, operator: o.Operator
    ) -> None:
        shared = {"secretName": "shared"}
        place.apply(g.manifest("ApiKey", "shared-a", shared))
        first = place.key("shared")
        place.apply(g.manifest("ApiKey", "shared-b", shared))
        place.rotate("shared-b", "theirs")
        place.rotate("shared-a", "mine")
        o.eventually(lambda: place.key("shared") != first, 10)
        second = place.key("shared")
        time.sleep(6)
        assert place.key("shared") == second

    def test_a_secret_that_cannot_be_changed_is_told_of(
        self, place: Place, operator: o.Operator
    ) -> None:
        sealed = g.secret("sealed", {"OPENAI_API_KEY": "sk-brought-PLANTED-in-a-sealed-secret"})
        place.apply(g.manifest("ApiKey", "sealed", {}), {**sealed, "immutable": True})
        o.eventually(lambda: place.cluster.get("apikey", "sealed", place.namespace).get("status"))
        place.rotate("sealed", "now")

        def warned() -> bool:
            answer = place.cluster.kubectl(
                "get", "events.events.k8s.io", "-n", place.namespace, "-o", "json"
            )
            return any(
                (it["type"], it["reason"], it["regarding"]["name"])
                == ("Warning", "RotationFailed", "sealed")
                for it in json.loads(answer.stdout)["items"]
            )

        o.eventually(warned, 15)

    def test_a_key_that_expires_is_refused_from_that_second_on(
        self, place: Place, operator: o.Operator
    ) -> None:
        key = "sk-brought-PLANTED-that-expires"
        end = datetime.now(UTC) + timedelta(seconds=4)
        at = end.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        place.apply(*g.caller("expiring", key, expiresAt=at))
        o.eventually(lambda: _statuses(place, key) == {200}, 3)
        o.eventually(lambda: _statuses(place, key) == {401}, 5)
        late = (datetime.now(UTC) - end).total_seconds()
        print(f"refused {late * 1000:.0f} ms after spec.expiresAt on both gateways")
        assert late >= 0
        ready = o.until_condition(
            place.cluster, "apikey", "expiring", place.namespace, "Ready", "False", 10
        )
        assert ready["reason"] == "Expired"


def _statuses(place: Place, key: str) -> set[int]:
    """What one request with this key comes to on each gateway."""
    found = set()
    for gateway in place.gateways:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            found.add(answer.status)
        finally:
            connection.close()
    return found
