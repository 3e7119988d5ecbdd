"""Several workers behind one port: real processes, killed, reloaded and drained."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import gateway as g
from support import raw
from support.gateway import Gateway

WORKERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return configure(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway keeps its temporary files."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def gateway(folder: Path, scratch: Path) -> Iterator[Gateway]:
    with running(folder, scratch) as gateway:
        yield gateway
        workers = children(gateway)
    assert gateway.process.returncode == 0
    assert not any(alive(worker) for worker in workers)
    assert list(scratch.iterdir()) == []
    assert "Traceback" not in gateway.text()


def configure(folder: Path, *names: str) -> Path:
    g.write(
        folder,
        g.caller(),
        g.mock("echo"),
        g.mock("slow", firstByteDelay="1500ms"),
        g.route("echo", ["mock/echo"], "echo"),
        g.route("slow", ["mock/slow"], "slow"),
        *(g.route(name, [f"mock/{name}"], "echo") for name in names),
    )
    return folder


def running(
    folder: Path, scratch: Path, *arguments: str, name: str = "workers"
) -> "contextlib.AbstractContextManager[Gateway]":
    return g.running(
        folder, "--workers", str(WORKERS), *arguments,
        name=name, environ={"TMPDIR": str(scratch)}, seconds=90,
    )  # fmt: skip


@contextlib.contextmanager
def launched(folder: Path, scratch: Path, name: str) -> Iterator[Gateway]:
    """One that the test ends by itself; killed where the test fails."""
    gateway = g.launch(
        folder, "--workers", str(WORKERS), name=name, environ={"TMPDIR": str(scratch)}
    )
    try:
        yield gateway
    finally:
        gateway.process.kill()
        gateway.process.wait(5)


def children(gateway: Gateway) -> list[int]:
    """Process ids of the workers."""
    pid = gateway.process.pid
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ask(gateway: Gateway, model: str = "mock/echo") -> int:
    """One request on a connection of its own; its status."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            raw.chat(model),
            {"Authorization": f"Bearer {g.KEY}", "Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def wait_for(gateway: Gateway, path: str, status: int, seconds: float = 60) -> str:
    deadline = time.monotonic() + seconds
    while True:
        answered, body = gateway.ops(path)
        if answered == status:
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.01)


def answered(gateway: Gateway) -> float:
    """What the counter of good answers says, all routes together."""
    return sum(
        float(line.split()[-1])
        for line in gateway.ops("/metrics")[1].splitlines()
        if line.startswith("tollhouse_requests_total{") and 'status="200"' in line
    )


def test_it_says_once_that_it_serves(gateway: Gateway) -> None:
    lines = [line for line in gateway.text().splitlines() if "tollhouse serves" in line]
    assert lines == [f"tollhouse serves http://127.0.0.1:{gateway.port}/v1 (2 routes, 1 keys)"]
    assert gateway.port != 0
    assert len(children(gateway)) == WORKERS


def test_the_second_port_answers_for_all(gateway: Gateway) -> None:
    assert gateway.ops("/livez") == (200, "ok\n")
    assert gateway.ops("/readyz") == (200, "ok\n")
    config = gateway.config()
    assert config["synced"] is True
    assert config["problem"] is None
    assert len(config["digest"]) == 64
    assert (config["routes"], config["keys"]) == (2, 1)


def test_metrics_are_sums_over_the_workers(gateway: Gateway) -> None:
    before = answered(gateway)
    assert Counter(ask(gateway) for _ in range(60)) == {200: 60}
    assert answered(gateway) == before + 60
    _, text = gateway.ops("/metrics")
    assert "\ntollhouse_config_synced 1.0\n" in text
    assert "\ntollhouse_in_flight_requests 0.0\n" in text
    assert f"\ntollhouse_config_reloads_total {WORKERS}.0\n" in text
    assert "pid=" not in text


def test_every_worker_takes_connections(gateway: Gateway) -> None:
    """The kernel spreads them; that all share one queue is not promised, that all get some is."""
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        time.sleep(0.3)
        held = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in children(gateway)]
    time.sleep(0.3)
    idle = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in children(gateway)]
    assert all(more > less for more, less in zip(held, idle, strict=True))


def test_a_saved_folder_reaches_every_worker(gateway: Gateway, folder: Path) -> None:
    before = gateway.config()["digest"]
    configure(folder, "added")
    try:
        gateway.wait_for_change(before, 10)
        assert {ask(gateway, "mock/added") for _ in range(30)} == {200}
        assert gateway.config()["routes"] == 3
    finally:
        again = gateway.config()["digest"]
        configure(folder)
        gateway.wait_for_change(again, 10)
    assert gateway.config()["digest"] == before


def test_a_reload_signal_reaches_every_worker(gateway: Gateway) -> None:
    for _ in range(5):
        gateway.process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    assert gateway.ops("/readyz") == (200, "ok\n")
    assert {ask(gateway) for _ in range(30)} == {200}


def test_a_worker_that_dies_is_replaced(gateway: Gateway, scratch: Path) -> None:
    before, total = children(gateway), answered(gateway)
    files = sorted(path.name for path in scratch.glob("*/*"))
    os.kill(before[0], signal.SIGKILL)
    body = wait_for(gateway, "/readyz", 503)
    assert body == "not ready: 2 of 3 workers are ready\n"
    assert gateway.config()["digest"] is None
    assert {ask(gateway) for _ in range(20)} == {200}
    wait_for(gateway, "/readyz", 200)
    after = children(gateway)
    assert len(after) == WORKERS
    assert before[0] not in after
    assert {ask(gateway) for _ in range(30)} == {200}
    assert answered(gateway) == total + 50
    assert sorted(path.name for path in scratch.glob("*/*")) == files
    assert gateway.text().count("tollhouse serves") == 1


def test_a_worker_told_to_stop_by_somebody_else_is_replaced(gateway: Gateway) -> None:
    before = children(gateway)
    os.kill(before[0], signal.SIGTERM)
    wait_for(gateway, "/readyz", 503)
    wait_for(gateway, "/readyz", 200)
    assert before[0] not in children(gateway)
    assert len(children(gateway)) == WORKERS


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_port_is_not_shared_with_another_gateway(
    gateway: Gateway, folder: Path, workers: str
) -> None:
    log = g.LOGS / f"workers-second-{workers}-{os.getpid()}.log"
    port = str(gateway.port)
    with log.open("wb") as output:
        second = subprocess.run(
            [
                sys.executable, "-m", "tollhouse", "serve", folder,
                "--workers", workers, "--port", port, "--ops-port", "0",
            ],
            stdout=output, stderr=output, timeout=60, check=False,
        )  # fmt: skip
    assert second.returncode == 2
    last = log.read_text().strip().splitlines()[-1]
    assert last.startswith(f"tollhouse: cannot listen on 127.0.0.1:{port} ")
    assert last.endswith("choose another --port")


async def test_a_drain_answers_what_was_asked(folder: Path, scratch: Path) -> None:
    with running(folder, scratch, name="workers-drain") as gateway:
        workers = children(gateway)

        async def slow() -> raw.Answered:
            async with raw.connection(gateway.port) as (reader, writer):
                writer.write(raw.post(raw.chat("mock/slow")))
                return await raw.read_answer(reader)

        asked = [asyncio.create_task(slow()) for _ in range(12)]
        await asyncio.sleep(0.5)
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert gateway.ops("/readyz")[0] == 503
        with pytest.raises(ConnectionRefusedError):
            await raw.exchange(gateway.port)
        assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
        assert await asyncio.to_thread(gateway.process.wait, 5) == 0
        assert not any(alive(worker) for worker in workers)


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0], ids=["at-once", "early", "importing"])
def test_a_stop_during_the_start_leaves_nothing(folder: Path, tmp_path: Path, after: float) -> None:
    with launched(folder, tmp_path, "workers-early") as gateway:
        deadline = time.monotonic() + 60
        while '"event": "started"' not in gateway.text() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(after)
        workers = children(gateway)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(30) == 0
        assert not any(alive(worker) for worker in workers)
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in gateway.text()


def test_workers_do_not_outlive_a_killed_parent(folder: Path, tmp_path: Path) -> None:
    with launched(folder, tmp_path, "workers-orphans") as gateway:
        g.wait_until_ready(gateway, 90)
        workers = children(gateway)
        gateway.process.kill()
        gateway.process.wait(5)
        deadline = time.monotonic() + 20
        while any(alive(worker) for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in gateway.text()


def test_workers_that_cannot_serve_end_it(tmp_path: Path) -> None:
    with launched(tmp_path / "nowhere", tmp_path, "workers-refused") as gateway:
        assert gateway.process.wait(90) == 2
        lines = [line for line in gateway.text().splitlines() if "is not a folder" in line]
        assert len(lines) == 1
        assert lines[0].startswith("tollhouse: ")
        assert "Traceback" not in gateway.text()


def test_logs_say_which_worker(gateway: Gateway) -> None:
    said = [json.loads(line) for line in gateway.text().splitlines() if line.startswith("{")]
    forced = [line for line in said if line["event"] == "configuration in force"]
    assert {line["worker"] for line in forced} == set(range(WORKERS))
