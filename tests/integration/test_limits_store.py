"""The shared store against a real server: exact for many processes, and nothing is left behind."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from prometheus_client import CollectorRegistry

from support import counting_model as cm
from support import redis, store_process
from tollhouse.errors import ConfigError, StoreError
from tollhouse.store import Count, Kind
from tollhouse.store.shared import SharedStore
from tollhouse.store.valkey import SCRIPT, Valkey, connect
from tollhouse.telemetry import Metrics

PROCESS = Path(store_process.__file__)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Server]:
    with redis.running(tmp_path_factory.mktemp("redis"), "--appendfsync", "no") as found:
        yield found


@pytest.fixture
def scope() -> str:
    return uuid.uuid4().hex


@contextlib.contextmanager
def processes(
    number: int, url: str, scope: str, order: Mapping[str, Any]
) -> "Iterator[list[subprocess.Popen[str]]]":
    """So many processes that are ready to begin with this order."""
    started = [
        subprocess.Popen(
            [sys.executable, "-P", str(PROCESS), url, scope, json.dumps(dict(order))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(number)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def burst(url: str, scope: str, **order: Any) -> list[tuple[float, float]]:
    """When the requests that five processes let in began and ended."""
    with processes(5, url, scope, {"do": "burst", **order}) as started:
        lines = []
        for process in started:
            assert process.stdout is not None
            lines.append(process.stdout.readline())
        return [(a, b) for line in lines for a, b in json.loads(line)["stays"]]


def used(url: str, scope: str, *counts: Count) -> list[int]:
    async def main() -> list[int]:
        shared = store_process.store(url, scope, timeout=1.0)
        found = await shared.read(counts)
        await shared.close()
        assert found is not None
        return [state.used for state in found]

    return asyncio.run(main())


def keys(url: str, scope: str) -> dict[str, int]:
    """Every key of this scope, with its time to live in ms."""

    async def main() -> dict[str, int]:
        client = connect(url, {})
        try:
            names = [key async for key in client.scan_iter(match=f"*{scope}*")]
            return {name.decode(): await client.pttl(name) for name in names}
        finally:
            await client.aclose()

    return asyncio.run(main())


@given(moves=cm.steps)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_it_counts_as_the_plain_model_does(
    server: redis.Server, moves: list[tuple[str, object]]
) -> None:
    """With the server's clock in the test's hand: the script reads a key instead."""
    asyncio.run(_play(server.url, moves))


async def _play(url: str, moves: list[tuple[str, object]]) -> None:
    scope = uuid.uuid4().hex
    key = f"{{tollhouse:{scope}}}:clock"
    assert SCRIPT.count("redis.call('TIME')") == 1
    script = SCRIPT.replace("redis.call('TIME')", f"redis.call('LRANGE', '{key}', 0, 1)")
    client = connect(url, {})
    writer = connect(url, {})
    backend = Valkey(client, scope, script)

    class Clock(cm.Clock):
        """Tells the server whatever it is set to."""

    clock = Clock()

    class Told:
        """Passes calls on, after the server has heard what time it is."""

        async def call(self, process: str, names: Any, request: bytes) -> bytes:
            await writer.execute_command("DEL", key)
            seconds, ms = divmod(clock.now, 1000)
            await writer.execute_command("RPUSH", key, seconds, ms * 1000)
            return await backend.call(process, names, request)

        async def close(self) -> None:
            await writer.aclose()
            await backend.close()

    shared = SharedStore(Told(), Metrics(CollectorRegistry()), timeout=0.9, lease=30.0)
    granted = await cm.play(shared, cm.Model(clock, 30_000), moves, shared.flush)
    assert granted >= 0
    await shared.close()


@pytest.mark.parametrize("limit", [10, 100, 1000])
def test_five_processes_let_in_exactly_the_limit(
    server: redis.Server, scope: str, limit: int
) -> None:
    stays = burst(server.url, scope, limit=limit, callers=200, tries=2)
    print(f"limit {limit}: {len(stays)} of 2,000 let in")
    assert len(stays) == limit
    at_once = Count("at-once", Kind.CONCURRENT, 1, 0)
    assert used(server.url, scope, store_process.BUDGET, at_once) == [7 * limit, 0]


def test_requests_at_once_never_exceed_their_limit(server: redis.Server, scope: str) -> None:
    stays = burst(
        server.url, scope, limit=10**6, at_once=10, callers=20, tries=10, seconds=0.02, pause=0.02
    )
    edges = sorted([(a, 1) for a, _ in stays] + [(b, -1) for _, b in stays])
    most = max(itertools.accumulate(step for _, step in edges))
    print(f"{len(stays)} let in, {most} at once")
    assert 5 < most <= 10


def test_what_a_killed_process_held_is_back_after_the_lease(
    server: redis.Server, scope: str
) -> None:
    at_once = Count("at-once", Kind.CONCURRENT, 10**6, 0)
    order = {"do": "hold", "requests": 5, "lease": 2.0}
    with processes(1, server.url, scope, order) as [process]:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        # Renewed for as long as the process lives: longer than one lease.
        asyncio.run(asyncio.sleep(3.0))
        assert used(server.url, scope, at_once, store_process.BUDGET) == [5, 507]
        process.kill()
        process.wait(10)
        asyncio.run(asyncio.sleep(2.1))
        assert used(server.url, scope, at_once, store_process.BUDGET) == [0, 7]


def test_nothing_is_kept_for_ever(server: redis.Server, scope: str) -> None:
    burst(server.url, scope, limit=50, callers=10, tries=10)
    found = keys(server.url, scope)
    assert len(found) >= 3
    assert all(f"{{tollhouse:{scope}}}" in key for key in found)
    assert min(found.values()) > 0


async def test_one_round_trip_for_all_reservations_of_one_turn(
    server: redis.Server, scope: str
) -> None:
    shared = store_process.store(server.url, scope, timeout=0.9)
    client = connect(server.url, {})
    counts = [Count(f"c{n}", Kind.WINDOW, 1000, 1, span=60.0, settles=True) for n in range(6)]
    await shared.reserve(counts)
    await client.execute_command("CONFIG", "RESETSTAT")
    admissions = await asyncio.gather(*(shared.reserve(counts) for _ in range(100)))
    assert all(admission.granted for admission in admissions)
    stats = await client.execute_command("INFO", "commandstats")
    reserving = stats["cmdstat_evalsha"]["calls"]
    for admission in admissions[:40]:
        shared.settle(admission, [1] * 6)
    await shared.flush()
    stats = await client.execute_command("INFO", "commandstats")
    print(
        f"100 reservations of 6 counts: {reserving} trip(s); 40 settlements: "
        f"{stats['cmdstat_evalsha']['calls'] - reserving}"
    )
    assert reserving == 1
    assert stats["cmdstat_evalsha"]["calls"] - reserving == 1
    await client.aclose()
    await shared.close()


async def test_a_server_that_forgot_the_script_is_taught_it(
    server: redis.Server, scope: str
) -> None:
    shared = store_process.store(server.url, scope, timeout=0.9)
    client = connect(server.url, {})
    await client.execute_command("SCRIPT", "FLUSH")
    assert (await shared.reserve([store_process.BUDGET])).granted
    await client.aclose()
    await shared.close()


async def test_a_batch_that_comes_twice_counts_once(server: redis.Server, scope: str) -> None:
    """Both kinds of batch, as when an acknowledgement was lost."""
    client = connect(server.url, {})
    backend = Valkey(client, scope)

    class Twice:
        async def call(self, process: str, names: Any, request: bytes) -> bytes:
            first = await backend.call(process, names, request)
            await backend.call(process, names, request)
            return first

        async def close(self) -> None:
            await backend.close()

    shared = SharedStore(Twice(), Metrics(CollectorRegistry()), timeout=0.9, lease=30.0)
    requests = Count("requests", Kind.WINDOW, 10, 1, span=60.0)
    admission = await shared.reserve([requests, store_process.BUDGET])
    shared.settle(admission, [0, 7])
    await shared.flush()
    found = await shared.read([requests, store_process.BUDGET])
    assert found is not None
    assert [state.used for state in found] == [1, 7]
    await shared.close()


async def test_a_caller_who_leaves_while_asking_takes_nothing(
    server: redis.Server, scope: str
) -> None:
    shared = store_process.store(server.url, scope, timeout=0.9)
    requests = Count("requests", Kind.WINDOW, 100, 1, span=60.0)
    at_once = Count("at-once", Kind.CONCURRENT, 100, 1)
    counts = [requests, at_once, store_process.BUDGET]
    await shared.reserve([requests])
    stayed = 0
    for turns in range(12):
        asking = asyncio.create_task(shared.reserve(counts))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            shared.settle(await asking, [0, 0, 0])
            stayed += 1
    await asyncio.sleep(0.2)
    await shared.flush()
    found = await shared.read(counts)
    assert found is not None
    assert stayed < 12
    assert [state.used for state in found] == [1 + stayed, 0, 0]
    await shared.close()


PASSWORD = "PLANTED-password-of-the-counters"


class TestUrls:
    async def test_a_user_with_a_password(
        self, server: redis.Server, scope: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin = connect(server.url, {})
        rights = ["on", f">{PASSWORD}", "~{tollhouse:*", "+@scripting", "+@read", "+@write"]
        rights += ["+time", "+hello", "-@dangerous"]
        await admin.execute_command("ACL", "SETUSER", "tollhouse", *rights)
        url = f"redis://tollhouse@127.0.0.1:{server.port}/0"
        by_variable = connect(url, {"TOLLHOUSE_STORE_PASSWORD": PASSWORD})
        by_url = connect(url.replace("@", f":{PASSWORD}@"), {})
        for client in (by_variable, by_url):
            shared = SharedStore(
                Valkey(client, scope), Metrics(CollectorRegistry()), timeout=0.9, lease=30.0
            )
            assert (await shared.reserve([store_process.BUDGET])).granted
            assert shared._up
            await shared.close()
        with pytest.raises(StoreError, match="refused the user name or the password"):
            await Valkey(connect(url.replace("@", ":wrong@"), {}), scope).call("p", [], b"")
        await admin.execute_command("ACL", "DELUSER", "tollhouse")
        await admin.aclose()

    @pytest.mark.parametrize(
        "url",
        [
            f"http://u:{PASSWORD}@host",
            f"redis+sentinel://u:{PASSWORD}@host:1",
            f"redis://u:{PASSWORD}@host:port",
            f"redis+cluster://u:{PASSWORD}@",
            "memoryy",
        ],
        ids=["scheme", "no-master", "port", "no-host", "word"],
    )
    def test_an_unusable_one_is_refused_without_being_shown(self, url: str) -> None:
        with pytest.raises(ConfigError, match="--store takes memory") as raised:
            connect(url, {})
        assert "PLANTED" not in str(raised.value)
        assert raised.value.__cause__ is None

    async def test_tls(self, tmp_path: Path, scope: str) -> None:
        from support.certificates import make

        certificate, key = make(tmp_path, "counters")
        port = redis.free_port()
        options = ["--tls-port", str(port), "--tls-cert-file", str(certificate)]
        options += ["--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
        options += ["--tls-auth-clients", "no"]
        with redis.running(tmp_path, *options):
            url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}"
            shared = store_process.store(url, scope, timeout=0.9)
            assert (await shared.reserve([store_process.BUDGET])).granted
            assert shared._up
            await shared.close()
            untrusted = Valkey(connect(f"rediss://localhost:{port}/0", {}), scope)
            with pytest.raises(StoreError, match="no connection"):
                await untrusted.call("p", [], b"")
            await untrusted.close()

    async def test_a_cluster(self, tmp_path: Path, scope: str) -> None:
        # The bus's own default is the port and 10,000, which may be no port at all.
        bus = ("--cluster-port", str(redis.free_port()))
        with redis.running(tmp_path, "--cluster-enabled", "yes", *bus) as node:
            admin = connect(node.url, {})
            await admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            for _ in range(200):
                if (await admin.execute_command("CLUSTER INFO"))["cluster_state"] == "ok":
                    break
                await asyncio.sleep(0.05)
            await admin.aclose()
            url = f"redis+cluster://127.0.0.1:{node.port}"
            shared = store_process.store(url, scope, timeout=0.9)
            counts = [Count(f"c{n}", Kind.WINDOW, 10, 1, span=60.0) for n in range(8)]
            granted = [await shared.reserve(counts) for _ in range(11)]
            assert shared._up
            assert [admission.granted for admission in granted] == [True] * 10 + [False]
            await shared.close()

    async def test_sentinel(self, tmp_path: Path, scope: str) -> None:
        (tmp_path / "s").mkdir()
        with redis.running(tmp_path) as master:
            config = tmp_path / "s" / "sentinel.conf"
            config.write_text(f"sentinel monitor counters 127.0.0.1 {master.port} 1\n")
            with redis.sentinel(config) as port:
                url = f"redis+sentinel://127.0.0.1:{port}/counters"
                shared = store_process.store(url, scope, timeout=0.9)
                assert (await shared.reserve([store_process.BUDGET])).granted
                assert shared._up
                await shared.close()
