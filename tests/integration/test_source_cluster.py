"""The cluster source against a real API server, with the rights of a gateway and no more."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from structlog.testing import capture_logs
from yarl import URL

from support import accounts
from support.kubernetes import KubernetesCluster
from support.line import Line
from support.snapshot_secrets import Publisher
from tollhouse import kube
from tollhouse.errors import ClusterError
from tollhouse.kube import Cluster, SecretData
from tollhouse.kubeconfig import find_access
from tollhouse.snapshot import (
    FORMAT,
    SHARD_KEY,
    SLOTS,
    Credential,
    Index,
    Key,
    Provider,
    Route,
    ShardRef,
    Snapshot,
    Target,
    digest_of,
    key_digest,
    shards,
    slot_name,
    whole_digest,
)
from tollhouse.source import Update
from tollhouse.source.secrets import SecretSource

NAME = "tollhouse-snapshot"


def _snapshot(number: int, keys: int = 40) -> Snapshot:
    """A configuration that says which one it is, by the model of its one route."""
    return Snapshot.of(
        [Provider("ai", "openai", "OpenAI", credential=Credential("sk-provider-PLANTED-1"))],
        [Route("ai", "r", ("m",), (Target("ai/openai", model=str(number)),))],
        {key_digest(f"sk-th-PLANTED-{i}"): Key("ai", f"key-{i}") for i in range(keys)},
    )


def _number(update: Update) -> int:
    return int(update.snapshot.routes["ai/r"].targets[0].model or "")


def _digest(snapshot: Snapshot) -> str:
    return whole_digest({name: digest_of(data) for name, data in shards(snapshot).items()})


@dataclass
class Following:
    """What a running source handed over and reported."""

    updates: list[tuple[float, Update]] = field(default_factory=list)
    reports: list[tuple[bool, str | None]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, update: Update) -> None:
        self.updates.append((time.monotonic(), update))
        self._changed.set()

    def report(self, synced: bool, problem: str | None) -> None:
        self.reports.append((synced, problem))
        self._changed.set()

    @property
    def numbers(self) -> list[int]:
        return [_number(update) for _, update in self.updates]

    @property
    def synced(self) -> bool:
        return bool(self.reports) and self.reports[-1][0]

    @property
    def problem(self) -> str:
        return (self.reports[-1][1] or "") if self.reports else ""

    async def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_number(self, number: int) -> None:
        await self.until(lambda: self.numbers[-1:] == [number] and self.synced)


@contextlib.asynccontextmanager
async def _following(client: Cluster, namespace: str) -> AsyncIterator[Following]:
    following = Following()
    source = SecretSource(namespace, NAME, client)
    task = asyncio.create_task(source.run(following.apply, following.report))
    try:
        yield following
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for _, problem in following.reports:
        assert "PLANTED" not in (problem or "")


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as logs:
        yield logs
    assert "PLANTED" not in repr(logs)


@pytest.fixture
def gateway_config(cluster: KubernetesCluster, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig with a service account's token: what a gateway pod has."""
    return accounts.gateway(cluster, namespace, NAME, tmp_path, "list", "watch")


@pytest.fixture
async def client(gateway_config: Path) -> AsyncIterator[Cluster]:
    async with Cluster.connect(gateway_config) as client:
        yield client


@pytest.fixture
async def publisher(cluster: KubernetesCluster, namespace: str) -> AsyncIterator[Publisher]:
    access = find_access(cluster.kubeconfig, {})
    headers = {} if access.token is None else {"Authorization": f"Bearer {access.token.value}"}
    connector = aiohttp.TCPConnector(ssl=access.tls)
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout
    ) as session:
        yield Publisher(session, access.server / "api/v1/namespaces" / namespace / "secrets", NAME)
    # aiohttp does not wait until its TLS connections are gone.
    await asyncio.sleep(0.05)


async def _refused(call: Awaitable[object]) -> bool:
    try:
        await call
    except ClusterError as error:
        return error.status == 403
    return False


async def _first(client: Cluster, namespace: str, name: str) -> SecretData | int | None:
    """The first state of a watch, or the status that refused it."""
    refusal: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def heard(error: ClusterError | None) -> None:
        if error is not None and not refusal.done():
            refusal.set_result(error.status)

    async with contextlib.aclosing(client.watch_secret(namespace, name, heard)) as states:
        state = asyncio.ensure_future(anext(states))
        either: set[asyncio.Future[Any]] = {state, refusal}
        await asyncio.wait(either, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if state.done():
            return state.result()
        state.cancel()
        await asyncio.wait({state})
        return refusal.result()


class TestRights:
    async def test_the_snapshot_by_name_and_nothing_else(
        self,
        cluster: KubernetesCluster,
        namespace: str,
        client: Cluster,
        gateway_config: Path,
        publisher: Publisher,
    ) -> None:
        await publisher.publish(_snapshot(1))
        cluster.kubectl(
            "create", "secret", "generic", "other", "--from-literal=a=PLANTED", "-n", namespace
        )
        assert isinstance(await _first(client, namespace, slot_name(NAME, 0)), SecretData)
        assert await client.secret(namespace, slot_name(NAME, 1)) is not None
        assert await client.secret(namespace, slot_name(NAME, SLOTS - 1)) is None

        assert await _refused(client.secret(namespace, "other"))
        assert await _refused(client.secret("kube-system", slot_name(NAME, 0)))
        assert await _first(client, namespace, "other") == 403
        assert await _first(client, namespace, slot_name(NAME, 1)) == 403
        kubeconfig = ("--kubeconfig", str(gateway_config), "-n", namespace)
        for forbidden in (
            ("get", "secrets"),
            ("get", "configmaps"),
            ("get", "serviceaccounts"),
            ("delete", "secret", slot_name(NAME, 0)),
            ("create", "secret", "generic", "new"),
            ("label", "secret", slot_name(NAME, 0), "a=b"),
        ):
            answer = cluster.kubectl(*forbidden, *kubeconfig, check=False)
            assert answer.returncode != 0, forbidden
            assert "forbidden" in answer.stderr.lower(), forbidden

    @pytest.mark.parametrize("verb", ["list", "watch"])
    async def test_neither_list_nor_watch_can_be_left_out(
        self, cluster: KubernetesCluster, namespace: str, tmp_path: Path, verb: str
    ) -> None:
        config = accounts.gateway(cluster, namespace, NAME, tmp_path, verb)
        async with (
            Cluster.connect(config) as client,
            _following(client, namespace) as following,
        ):
            await following.until(lambda: "forbidden" in following.problem)
            assert not following.synced


class TestFollowing:
    async def test_waits_for_the_first_snapshot_and_takes_it(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        async with _following(client, namespace) as following:
            await following.until(lambda: bool(following.reports))
            assert following.reports == [
                (
                    False,
                    f"no snapshot yet (Secret {namespace}/{NAME}-0): is the operator running?",
                )
            ]
            await publisher.publish(_snapshot(1))
            await following.until_number(1)
            assert following.updates[0][1] == Update(_snapshot(1), _digest(_snapshot(1)))

    async def test_a_change_is_in_force_at_once(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(0))
        taken: list[float] = []
        async with _following(client, namespace) as following:
            await following.until_number(0)
            for number in range(1, 31):
                index = await publisher.shards(_snapshot(number))
                begun = time.monotonic()
                await publisher.index(index)
                await following.until_number(number)
                taken.append(following.updates[-1][0] - begun)
            assert following.numbers == list(range(31))
            assert following.reports == [(True, None)]
        taken.sort()
        print(
            f"index written → snapshot in force: p50 {taken[15] * 1000:.0f} ms, "
            f"p95 {taken[28] * 1000:.0f} ms, most {taken[-1] * 1000:.0f} ms"
        )
        assert taken[28] < 1.0

    async def test_only_changed_shards_are_fetched(
        self, namespace: str, gateway_config: Path, publisher: Publisher
    ) -> None:
        class Counting(Cluster):
            fetched = 0

            async def secret(self, namespace: str, name: str) -> SecretData | None:
                Counting.fetched += 1
                return await super().secret(namespace, name)

        await publisher.publish(_snapshot(1))
        async with Cluster.connect(gateway_config) as client:
            client.__class__ = Counting
            async with _following(client, namespace) as following:
                await following.until_number(1)
                assert Counting.fetched == len(shards(_snapshot(1)))
                before = Counting.fetched
                await publisher.publish(_snapshot(2))
                await following.until_number(2)
                assert Counting.fetched == before + 1

    async def test_half_a_change_is_never_seen(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        async with _following(client, namespace) as following:
            await following.until_number(1)
            index = await publisher.shards(_snapshot(2, keys=80))
            await asyncio.sleep(0.5)
            assert following.numbers == [1]
            await publisher.index(index)
            await following.until_number(2)
            assert following.numbers == [1, 2]
            assert following.updates[-1][1].snapshot == _snapshot(2, keys=80)
            assert following.reports == [(True, None)]

    async def test_three_hundred_rapid_changes_end_with_the_last_and_in_order(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(0))
        async with _following(client, namespace) as following:
            await following.until_number(0)
            for number in range(1, 301):
                await publisher.publish(_snapshot(number))
            await following.until_number(300)
            assert following.numbers == sorted(set(following.numbers))
            assert following.updates[-1][1].digest == _digest(_snapshot(300))
            print(f"of 300 rapid changes, {len(following.numbers) - 1} were put into force")

    async def test_the_same_content_is_not_applied_again(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        async with _following(client, namespace) as following:
            await following.until_number(1)
            await publisher.delete(0)
            await following.until(lambda: "was deleted" in following.problem)
            await publisher.publish(_snapshot(1))
            await following.until(lambda: following.synced)
            assert following.numbers == [1]

    async def test_watches_that_expire_lose_nothing(
        self, namespace: str, gateway_config: Path, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(0))
        async with (
            Cluster.connect(gateway_config, watch_seconds=1) as client,
            _following(client, namespace) as following,
        ):
            await following.until_number(0)
            for number in range(1, 11):
                await asyncio.sleep(0.35)
                await publisher.publish(_snapshot(number))
                await following.until_number(number)
            assert following.reports == [(True, None)]


class TestBroken:
    async def test_a_broken_shard_keeps_the_last_good_and_is_named_until_it_heals(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        async with _following(client, namespace) as following:
            await following.until_number(1)
            good = await publisher.shards(_snapshot(2))
            garbage = b"no shard at all"
            refs = {**good.shards, "config-0": ShardRef(SLOTS - 1, digest_of(garbage))}
            await publisher.write(SLOTS - 1, {SHARD_KEY: garbage})
            digests = {name: ref.digest for name, ref in refs.items()}
            await publisher.index(Index(FORMAT, whole_digest(digests), refs))
            await following.until(lambda: digest_of(garbage) in following.problem)
            assert following.numbers == [1]
            await publisher.index(good)
            await following.until_number(2)

    async def test_a_shard_that_is_not_there_is_tried_again(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        index = await publisher.shards(_snapshot(1))
        name, ref = next(iter(index.shards.items()))
        await publisher.delete(ref.slot)
        await publisher.index(index)
        async with _following(client, namespace) as following:
            await following.until(lambda: ref.digest in following.problem)
            await publisher.write(ref.slot, {SHARD_KEY: shards(_snapshot(1))[name]})
            await following.until_number(1)

    async def test_a_newer_format_is_refused_with_what_to_do(
        self, namespace: str, client: Cluster, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        async with _following(client, namespace) as following:
            await following.until_number(1)
            await publisher.index(Index(FORMAT + 1, "0" * 64, {}))
            await following.until(lambda: "upgrade the gateways" in following.problem)
            assert following.numbers == [1]
            await publisher.publish(_snapshot(2))
            await following.until_number(2)


@pytest.fixture
async def line(gateway_config: Path) -> AsyncIterator[Line]:
    """The line that ``gateway_config`` goes over from now on."""
    config = yaml.safe_load(gateway_config.read_text())
    entry = config["clusters"][0]["cluster"]
    url = URL(entry["server"])
    assert url.host is not None
    assert url.port is not None
    async with Line(url.host, url.port) as line:
        entry["server"] = f"https://127.0.0.1:{line.port}"
        entry["tls-server-name"] = url.host
        gateway_config.write_text(yaml.safe_dump(config))
        yield line


class TestOutages:
    async def test_an_api_server_that_is_away_is_told_outlived_and_caught_up_with(
        self, namespace: str, gateway_config: Path, line: Line, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        async with (
            Cluster.connect(gateway_config) as client,
            _following(client, namespace) as following,
        ):
            await following.until_number(1)
            line.cut()
            await following.until(lambda: "not watched" in following.problem)
            for number in range(2, 6):
                await publisher.publish(_snapshot(number))
            line.mend()
            await following.until_number(5)
            assert following.numbers == [1, 5]

    async def test_lines_that_break_all_the_time_lose_nothing(
        self, namespace: str, gateway_config: Path, line: Line, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(0))
        async with (
            Cluster.connect(gateway_config) as client,
            _following(client, namespace) as following,
        ):
            await following.until_number(0)
            for number in range(1, 31):
                await publisher.publish(_snapshot(number))
                line.cut()
                await asyncio.sleep(0.02)
                line.mend()
                await asyncio.sleep(0.05)
            await following.until_number(30)
            assert following.numbers == sorted(set(following.numbers))

    async def test_a_line_that_goes_silent_is_noticed(
        self,
        namespace: str,
        gateway_config: Path,
        line: Line,
        publisher: Publisher,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(kube, "_WATCH_GRACE_SECONDS", 0.5)
        monkeypatch.setattr(kube, "_ANSWER_SECONDS", 1.0)
        await publisher.publish(_snapshot(1))
        async with (
            Cluster.connect(gateway_config, watch_seconds=1) as client,
            _following(client, namespace) as following,
        ):
            await following.until_number(1)
            line.freeze()
            await publisher.publish(_snapshot(2))
            await following.until(lambda: "in time" in following.problem)
            assert following.numbers == [1]
            line.mend()
            await following.until_number(2)

    async def test_an_expired_token_is_told_and_its_successor_taken(
        self, namespace: str, gateway_config: Path, publisher: Publisher
    ) -> None:
        await publisher.publish(_snapshot(1))
        token_file = gateway_config.parent / "gateway.token"
        valid = token_file.read_text()
        token_file.write_text("expired-PLANTED")
        async with (
            Cluster.connect(gateway_config) as client,
            _following(client, namespace) as following,
        ):
            await following.until(lambda: "Unauthorized" in following.problem)
            token_file.write_text(valid)
            await following.until_number(1)
