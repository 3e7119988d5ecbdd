"""The cluster source against a real API server, with the rights of a gateway and no more."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import yaml
from structlog.testing import capture_logs
from yarl import URL

from support.kubernetes import KubernetesCluster
from tollhouse import kube
from tollhouse.errors import ClusterError
from tollhouse.kube import Cluster, SecretData
from tollhouse.kubeconfig import find_access
from tollhouse.snapshot import (
    FORMAT,
    INDEX_KEY,
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
    encode_index,
    key_digest,
    shards,
    slot_name,
    whole_digest,
)
from tollhouse.source import SecretSource, Update

NAME = "tollhouse-snapshot"
ACCOUNT = "gateway"


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


def _role(*verbs_of_the_index: str) -> list[dict[str, Any]]:
    """The Role that kube.py documents, and its binding."""
    slots = [slot_name(NAME, slot) for slot in range(SLOTS)]
    meta = {"name": ACCOUNT}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"],
                 "resourceNames": slots},
                {"apiGroups": [""], "resources": ["secrets"], "verbs": list(verbs_of_the_index),
                 "resourceNames": slots[:1]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT}],
        },
    ]  # fmt: skip


class Publisher:
    """Writes Secrets as the operator does: changed shards beside the old ones, the index last."""

    def __init__(self, session: aiohttp.ClientSession, url: URL) -> None:
        self._session = session
        self._url = url
        self._exists: set[str] = set()
        self._placed: dict[str, ShardRef] = {}

    async def write(self, slot: int, data: dict[str, bytes]) -> None:
        name = slot_name(NAME, slot)
        body = {
            "metadata": {"name": name},
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }
        if name in self._exists:
            answer = await self._session.put(self._url / name, json=body)
        else:
            answer = await self._session.post(self._url, json=body)
        assert answer.ok, answer.status
        answer.release()
        self._exists.add(name)

    async def delete(self, slot: int) -> None:
        name = slot_name(NAME, slot)
        (await self._session.delete(self._url / name)).release()
        self._exists.discard(name)

    async def shards(self, snapshot: Snapshot) -> Index:
        """Writes the changed shards and returns the index, which is not written yet."""
        encoded = shards(snapshot)
        digests = {name: digest_of(data) for name, data in encoded.items()}
        taken = {ref.slot for ref in self._placed.values()}
        placed: dict[str, ShardRef] = {}
        for name, digest in digests.items():
            known = self._placed.get(name)
            if known is not None and known.digest == digest:
                placed[name] = known
                continue
            slot = next(number for number in range(1, SLOTS) if number not in taken)
            taken.add(slot)
            placed[name] = ShardRef(slot, digest)
            await self.write(slot, {SHARD_KEY: encoded[name]})
        self._placed = placed
        return Index(FORMAT, whole_digest(digests), placed)

    async def index(self, index: Index) -> None:
        await self.write(0, {INDEX_KEY: encode_index(index)})

    async def publish(self, snapshot: Snapshot) -> None:
        await self.index(await self.shards(snapshot))


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
    return _account(cluster, namespace, tmp_path, "list", "watch")


def _account(cluster: KubernetesCluster, namespace: str, directory: Path, *verbs: str) -> Path:
    role = json.dumps({"apiVersion": "v1", "kind": "List", "items": _role(*verbs)})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=role)
    token = cluster.kubectl("create", "token", ACCOUNT, "-n", namespace).stdout.strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    (directory / "token").write_text(token)
    config["users"] = [{"name": user["name"], "user": {"tokenFile": "token"}}
                       for user in config["users"]]  # fmt: skip
    path = directory / "gateway.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    for _ in range(50):  # the authorizer learns of a new Role a moment later
        answer = cluster.kubectl(
            "auth", "can-i", "get", f"secret/{slot_name(NAME, 1)}", "-n", namespace,
            f"--as=system:serviceaccount:{namespace}:{ACCOUNT}", check=False,
        )  # fmt: skip
        if answer.stdout.strip() == "yes":
            return path
        time.sleep(0.1)
    raise AssertionError("the Role did not come into force")


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
        yield Publisher(session, access.server / "api/v1/namespaces" / namespace / "secrets")


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
        config = _account(cluster, namespace, tmp_path, verb)
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


class Line:
    """A TCP line to the API server that can be cut or frozen."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.refusing = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop()

    def cut(self) -> None:
        self.refusing = True
        self._drop()

    def freeze(self) -> None:
        """Connections stay open and nothing goes through any more; new ones hang too."""
        self._open.clear()

    def mend(self) -> None:
        """New connections work; what was frozen stays lost."""
        self.refusing = False
        if not self._open.is_set():
            self._drop()
            self._open.set()

    def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        if self.refusing:
            writer.transport.abort()
            return
        await self._open.wait()
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers.add(far_writer)
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


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
        token_file = gateway_config.parent / "token"
        valid = token_file.read_text()
        token_file.write_text("expired-PLANTED")
        async with (
            Cluster.connect(gateway_config) as client,
            _following(client, namespace) as following,
        ):
            await following.until(lambda: "Unauthorized" in following.problem)
            token_file.write_text(valid)
            await following.until_number(1)
