"""Spend as ``kubectl`` shows it: a real operator asks real gateways, on a real API server.

``TOLLHOUSE_TEST_SPENDERS`` is the number of ApiKeys that all spend at once.
"""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from integration.test_fleet import Address, soon
from integration.test_scale import created, held, writes
from support import accounts, redis
from support import gateway as g
from support import operator as o
from support.faulty_api import faulty
from support.gateway import Gateway, Manifest
from support.kubernetes import KubernetesCluster

KEYS = int(os.environ.get("TOLLHOUSE_TEST_SPENDERS", "500"))
INTERVAL = 1.0
PER_SECOND = 100
PRICE = {"input": "0", "output": "5000"}
"""USD per million tokens: an answer of 20 tokens costs 0.10."""
CALL = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
SPENT = {("True", "BudgetSpent")}

pytestmark = pytest.mark.timeout(240, func_only=True)


@dataclass
class Place:
    """A namespace with gateways that count in ``store``; each test brings its operators."""

    cluster: KubernetesCluster
    namespace: str
    operator_config: Path
    gateway_config: Path

    @contextmanager
    def gateways(self, count: int, *flags: str) -> Iterator[list[Gateway]]:
        address = o.own_address()
        with ExitStack() as stack:
            found = []
            for _ in range(count):
                gateway = g.launch(
                    "--snapshot", f"{self.namespace}/{o.SNAPSHOT}",
                    "--kubeconfig", self.gateway_config,
                    "--ops-host", address, *flags, name="spend",
                )  # fmt: skip
                gateway.ops_host = address
                stack.callback(gateway.stop)
                found.append(gateway)
            for gateway in found:
                g.wait_until_ready(gateway, 40)
            self.cluster.apply(o.endpoint_slice(self.namespace, [Address(it) for it in found]))
            yield found

    @contextmanager
    def operator(self, name: str = "spend") -> Iterator[o.Operator]:
        flags = ("--spend-interval", str(INTERVAL), "--lease-seconds", "3")
        with o.running(self.operator_config, self.namespace, *flags, name=name) as operator:
            yield operator

    def apply(self, *items: Manifest | list[Manifest]) -> None:
        self.cluster.apply(self.placed(*items))

    def placed(self, *items: Manifest | list[Manifest]) -> list[Manifest]:
        flat: list[Manifest] = []
        for item in items:
            flat.extend(item if isinstance(item, list) else [item])
        return [{**m, "metadata": {**m["metadata"], "namespace": self.namespace}} for m in flat]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.cluster.get(kind, name, self.namespace)

    def spend(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(kind, name).get("status", {}).get("spend", {})
        return found

    def until_spent(self, kind: str, name: str, amount: str, seconds: float = 20) -> float:
        return soon(lambda: self.spend(kind, name).get("amount") == amount, seconds)

    def exhausted(self, kind: str, name: str) -> tuple[str, str] | None:
        found = o.condition(self.get(kind, name), "Exhausted")
        return (found["status"], found["reason"]) if found else None

    def events(self) -> list[str]:
        """``KIND NAME REASON: NOTE`` of every event about money."""
        answer = self.cluster.kubectl("get", "events", "-n", self.namespace, "-o", "json")
        return sorted(
            f"{it['involvedObject']['kind']} {it['involvedObject']['name']} "
            f"{it['reason']}: {it['message']}"
            for it in json.loads(answer.stdout)["items"]
            if it["reason"].startswith("Budget")
        )

    def versions(self) -> dict[str, str]:
        answer = self.cluster.kubectl(
            "get", "apikeys,budgets", "-n", self.namespace, "-o",
            "jsonpath={range .items[*]}{.kind}/{.metadata.name}={.metadata.resourceVersion} {end}",
        )  # fmt: skip
        return dict(line.split("=") for line in answer.stdout.split())

    def shown(self, kind: str) -> list[list[str]]:
        """The table that ``kubectl get`` prints, without its head."""
        answer = self.cluster.kubectl("get", kind, "-n", self.namespace)
        return [line.split() for line in answer.stdout.splitlines()[1:]]


@pytest.fixture
def place(cluster: KubernetesCluster, tmp_path: Path) -> Iterator[Place]:
    namespace = f"spend-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    found = Place(
        cluster,
        namespace,
        accounts.operator(cluster, namespace, tmp_path),
        accounts.gateway(cluster, namespace, o.SNAPSHOT, tmp_path, "list", "watch"),
    )
    target = {"provider": {"name": "mock"}, "pricing": PRICE}
    mock = g.mock("mock", usage={"promptTokens": 0, "completionTokens": 20})
    found.apply(mock, g.route("m", ["m"], target))
    yield found
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


async def call(calls: Sequence[tuple[Gateway, str]], at_once: int = 16) -> list[int]:
    """One completion of each gateway and key; the statuses."""
    gate = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def one(gateway: Gateway, key: str) -> int:
            head = {"Authorization": f"Bearer {key}"}
            url = f"{gateway.base_url}/chat/completions"
            async with gate, session.post(url, json=CALL, headers=head) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*(one(*it) for it in calls))


def spending(calls: Sequence[tuple[Gateway, str]]) -> None:
    assert set(asyncio.run(call(calls))) == {200}


def usable(gateways: Sequence[Gateway], key: str) -> None:
    """Wait until the key is known there; costs nothing."""

    def known(gateway: Gateway) -> bool:
        return asyncio.run(_models(gateway, key)) == 200

    soon(lambda: all(known(it) for it in gateways), 30)


async def _models(gateway: Gateway, key: str) -> int:
    head = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{gateway.base_url}/models", headers=head) as answer:
            await answer.read()
            return answer.status


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[str]:
    with redis.running(tmp_path, "--appendfsync", "no") as server:
        yield server.url


@pytest.mark.parametrize("store", ["memory", "shared"])
def test_spend_and_what_is_exhausted_are_told_once(
    place: Place, store: str, request: pytest.FixtureRequest
) -> None:
    flags = () if store == "memory" else ("--store", request.getfixturevalue("shared"))
    team = {"selector": {}, "amount": "1", "period": "Month", "warnAt": [50, 80]}
    one, two = "sk-brought-PLANTED-spender-one", "sk-brought-PLANTED-spender-two"
    with place.operator() as operator, place.gateways(2, *flags) as (first, second):
        place.apply(
            g.caller("one", one, budget={"amount": "0.40", "period": "Day"}),
            g.caller("two", two),
            g.manifest("Budget", "team", team),
        )
        usable([first, second], one)
        usable([first, second], two)
        place.until_spent("apikey", "one", "0.0000")
        assert place.exhausted("apikey", "one") == ("False", "WithinBudget")
        assert place.exhausted("apikey", "two") is None

        # Both gateways' spend counts, whether they count together or each by itself.
        spending([(first, one), (second, one), (second, one)])
        took = place.until_spent("apikey", "one", "0.3000")
        place.until_spent("budget", "team", "0.300")
        print(f"{store}: spent to shown in the status after {took:.1f} s, asked every {INTERVAL} s")
        assert place.exhausted("budget", "team") == ("False", "WithinBudget")
        found = place.spend("budget", "team")
        assert found["since"] < found["resets"]
        assert "warned" not in found

        spending([(first, one), (first, two)])
        place.until_spent("budget", "team", "0.500")
        place.until_spent("apikey", "one", "0.4000")
        assert place.exhausted("apikey", "one") == ("True", "BudgetSpent")
        assert place.exhausted("budget", "team") == ("False", "WithinBudget")
        assert place.spend("budget", "team")["warned"] == 50
        spending([(second, two)] * 5)
        place.until_spent("budget", "team", "1.000")
        assert place.exhausted("budget", "team") == ("True", "BudgetSpent")

        rows = {row[0]: row for row in place.shown("apikeys")}
        assert "0.4000" in rows["one"] and "0.40" in rows["one"]
        assert place.shown("budgets")[0][:5] == ["team", "1.000", "1", "Month", "True"]
        told = soon_events(place, 3)
        assert [it.partition(":")[0] for it in told] == [
            "ApiKey one BudgetSpent",
            "Budget team BudgetSpent",
            "Budget team BudgetThreshold",
        ]
        assert "50 % of 1 USD" in told[2]

        operator.stop()
        before = place.versions()
        with place.operator("spend-again") as again:
            again.until("snapshot in force")
            time.sleep(4 * INTERVAL)
            assert place.versions() == before
            assert place.events() == told

            # Without its budget a key shows none.
            place.apply(g.manifest("ApiKey", "one", {}))
            soon(lambda: not place.spend("apikey", "one"))
            assert place.exhausted("apikey", "one") is None


def soon_events(place: Place, count: int) -> list[str]:
    soon(lambda: len(place.events()) >= count)
    return place.events()


def test_gateways_that_cannot_be_asked_leave_statuses_as_they_are(place: Place) -> None:
    key = "sk-brought-PLANTED-spender-left"
    with place.operator() as operator:
        with place.gateways(1) as (gateway,):
            place.apply(g.caller("left", key, budget={"amount": "10"}))
            usable([gateway], key)
            spending([(gateway, key)])
            place.until_spent("apikey", "left", "0.10")
        before = place.versions()
        # The gateway is gone and its EndpointSlice is not.
        soon(lambda: bool(operator.events("spend is not known: statuses stay as they are")))
        time.sleep(4 * INTERVAL)
        assert place.spend("apikey", "left")["amount"] == "0.10"
        assert len(operator.events("spend is not known: statuses stay as they are")) == 1
        assert place.versions() == before
        with place.gateways(1) as (gateway,):
            place.cluster.kubectl(
                "delete", "endpointslice", "-n", place.namespace,
                "-l", f"kubernetes.io/service-name={o.SERVICE}",
            )  # fmt: skip
            place.cluster.apply(o.endpoint_slice(place.namespace, [Address(gateway)]))
            soon(lambda: bool(operator.events("spend is known again")))
            # It kept no journal, so its counters are those of a new gateway.
            place.until_spent("apikey", "left", "0.00")


def test_an_api_server_that_fails_now_and_then_hears_all_in_the_end(
    place: Place, tmp_path: Path
) -> None:
    names = [f"k{number}" for number in range(30)]
    keys = {name: f"sk-brought-PLANTED-spender-faulty-{name}" for name in names}
    with faulty(place.operator_config, tmp_path, 3) as api:
        place.operator_config = api.kubeconfig
        with place.operator("spend-faulty"), place.gateways(1) as (gateway,):
            place.apply(*(g.caller(it, keys[it], budget={"amount": "0.10"}) for it in names))
            for name in names:
                usable([gateway], keys[name])
            refused = api.refused
            spending([(gateway, key) for key in keys.values()])
            soon(lambda: shown(place) == {"0.1000": len(names)}, 60)
            soon(lambda: {place.exhausted("apikey", it) for it in names} == SPENT, 60)
            print(f"{api.refused - refused} writes of {len(names)} statuses and events refused")
            assert api.refused > refused
            before = place.versions()
            time.sleep(4 * INTERVAL)
            assert place.versions() == before
            told = place.events()
            assert len(set(told)) == len(told)


@pytest.mark.timeout(500, func_only=True)
def test_many_spenders_do_not_flood_the_api_server(place: Place) -> None:
    keys = [f"sk-brought-PLANTED-spender-{number:05d}" for number in range(KEYS)]
    begun = time.monotonic()
    manifests: list[Manifest] = []
    for number, key in enumerate(keys):
        manifests += held(f"k{number}", key, budget={"amount": "10", "period": "Month"})
    asyncio.run(created(place.cluster.kubeconfig, place.placed(manifests)))
    print(f"{KEYS} ApiKeys with budgets created in {time.monotonic() - begun:.0f} s")
    with place.operator("spend-many") as operator, place.gateways(1) as (gateway,):
        usable([gateway], keys[-1])
        begun = time.monotonic()
        soon(lambda: shown(place).get("0.00", 0) == KEYS, 180)
        print(f"every status tells of its budget after {time.monotonic() - begun:.0f} s")

        quiet = round_of(place, 4 * INTERVAL)
        begun = time.monotonic()
        spending([(gateway, key) for key in keys])
        spent_in = time.monotonic() - begun
        before, begun, used = writes(place.cluster), time.monotonic(), cpu(operator)
        soon(lambda: shown(place).get("0.10", 0) == KEYS, 180)
        took = time.monotonic() - begun
        every, used = difference(before, writes(place.cluster)), cpu(operator) - used
        again = round_of(place, 4 * INTERVAL)
        few = keys[: KEYS // 100]
        spending([(gateway, key) for key in few])
        soon(lambda: shown(place).get("0.20", 0) == len(few), 30)
        some = round_of(place, 0, since=again[1])
        print(
            f"{KEYS} ApiKeys that all spent (in {spent_in:.0f} s): shown {took:.0f} s later, "
            f"{used / KEYS * 1000:.1f} ms of the operator's processor time for each; "
            f"writes {every}; in {4 * INTERVAL:.0f} s where none spent {quiet[0]} and "
            f"{again[0]}; where {len(few)} spent {some[0]}"
        )
        assert quiet[0] == again[0] == {}
        # One write for each status, some of which came before the count began.
        assert set(every) == {"PATCH apikeys/status"}
        assert every["PATCH apikeys/status"] <= KEYS
        assert some[0] == {"PATCH apikeys/status": len(few)}
        assert (KEYS - PER_SECOND * spent_in) / PER_SECOND / 2 < took + spent_in


def cpu(operator: o.Operator) -> float:
    """Seconds of processor time that it has used."""
    ticks = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2]
    return sum(map(int, ticks.split()[11:13])) / os.sysconf("SC_CLK_TCK")


def shown(place: Place) -> dict[str, int]:
    """How many ApiKeys show each amount."""
    answer = place.cluster.kubectl(
        "get", "apikeys", "-n", place.namespace,
        "-o", "jsonpath={range .items[*]}{.status.spend.amount}/{end}",
    )  # fmt: skip
    time.sleep(0.5)  # looking costs the API server as much as a hundred writes
    amounts = answer.stdout.split("/")[:-1]
    return {it: amounts.count(it) for it in set(amounts)}


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {
        name: after[name] - before.get(name, 0)
        for name in after
        if after[name] != before.get(name, 0)
    }


def round_of(
    place: Place, seconds: float, since: dict[str, float] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """The writes in so many seconds, or since a count; and the count at their end."""
    before = writes(place.cluster) if since is None else since
    time.sleep(seconds)
    after = writes(place.cluster)
    return difference(before, after), after
