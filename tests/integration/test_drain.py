"""SIGTERM, twice or too long: what a gateway says to those it cannot serve to the end."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from support import gateway as g
from support import raw
from support.eventually import eventually
from support.gateway import Gateway


@asynccontextmanager
async def draining(folder: Path, *arguments: str) -> AsyncIterator[Gateway]:
    """A gateway whose ``slow/stream`` and ``slow/whole`` take a minute."""
    g.write(
        folder,
        g.caller(),
        g.mock("slow", reply="Text", text="first " + "more " * 60, chunkDelay="1s"),
        g.mock("late", firstByteDelay="60s"),
        g.mock("quick"),
        g.route("stream", ["slow/stream"], "slow"),
        g.route("whole", ["slow/whole"], "late"),
        g.route("quick", ["quick"], "quick"),
    )
    gateway = g.launch(folder, *arguments, name="drain")
    try:
        await asyncio.to_thread(g.wait_until_ready, gateway)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait(5)


async def begin_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(raw.post(raw.chat("slow/stream", stream=True)))
    async with asyncio.timeout(30):
        await reader.readuntil(b"first")


async def begin_whole(gateway: Gateway, writer: asyncio.StreamWriter) -> None:
    writer.write(raw.post(raw.chat("slow/whole")))
    await eventually(lambda: "in_flight_requests 1.0" in gateway.ops("/metrics")[1], 30)


class TestWhatIsCut:
    @pytest.mark.parametrize("how", ["second-signal", "end-of-the-bound"])
    async def test_a_stream_ends_with_an_error_event(self, tmp_path: Path, how: str) -> None:
        timeout = "60" if how == "second-signal" else "1"
        async with draining(tmp_path, "--drain-timeout", timeout) as gateway:
            async with raw.connection(gateway.port) as (reader, writer):
                await begin_stream(reader, writer)
                begun = time.monotonic()
                gateway.process.send_signal(signal.SIGTERM)
                if how == "second-signal":
                    await asyncio.sleep(0.3)
                    gateway.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(30):
                    rest = await reader.read()
                took = time.monotonic() - begun
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        # The last chunk of the transfer encoding came too: nobody takes this for a reset.
        assert rest.endswith(b"\r\n0\r\n\r\n")
        event = next(line for line in rest.split(b"\n") if line.startswith(b'data: {"error"'))
        error = json.loads(event.removeprefix(b"data: "))["error"]
        assert (error["type"], error["code"]) == ("provider_error", "draining")
        assert b"[DONE]" not in rest
        # The answer itself would have taken a minute.
        assert took < 30

    async def test_a_whole_answer_that_has_not_begun_is_a_503(self, tmp_path: Path) -> None:
        async with draining(tmp_path, "--drain-timeout", "1") as gateway:
            async with raw.connection(gateway.port) as (reader, writer):
                await begin_whole(gateway, writer)
                gateway.process.send_signal(signal.SIGTERM)
                answer = await raw.read_answer(reader, 30)
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert answer.headers["retry-after"] == "1"
        assert "Traceback" not in gateway.text()

    async def test_who_reads_nothing_does_not_hold_it_up(self, tmp_path: Path) -> None:
        async with draining(tmp_path, "--drain-timeout", "1") as gateway:
            async with raw.connection(gateway.port) as (reader, writer):
                await begin_stream(reader, writer)
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                begun = time.monotonic()
                gateway.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(gateway.process.wait, 30) == 0
                assert time.monotonic() - begun < 30

    async def test_workers_do_the_same(self, tmp_path: Path) -> None:
        async with draining(tmp_path, "--workers", "2", "--drain-timeout", "60") as gateway:
            async with raw.connection(gateway.port) as (reader, writer):
                await begin_stream(reader, writer)
                for _ in range(2):
                    gateway.process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.5)
                async with asyncio.timeout(30):
                    rest = await reader.read()
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
        assert b'"code":"draining"' in rest and b"[DONE]" not in rest


class TestTheDelay:
    async def test_it_is_not_ready_at_once_and_serves_on(self, tmp_path: Path) -> None:
        async with draining(tmp_path, "--drain-delay", "6") as gateway:
            gateway.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            await eventually(lambda: gateway.ops("/readyz")[0] == 503, 30)
            assert gateway.ops("/livez")[0] == 200
            while time.monotonic() - begun < 2:
                async with raw.connection(gateway.port) as (reader, writer):
                    writer.write(raw.post(raw.chat("quick")))
                    assert (await raw.read_answer(reader)).status == 200
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0
            with pytest.raises(ConnectionRefusedError):
                async with raw.connection(gateway.port):
                    pass

    async def test_a_second_signal_does_not_wait_for_it(self, tmp_path: Path) -> None:
        async with draining(tmp_path, "--drain-delay", "60") as gateway:
            gateway.process.send_signal(signal.SIGTERM)
            await eventually(lambda: gateway.ops("/readyz")[0] == 503, 30)
            gateway.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(gateway.process.wait, 30) == 0


async def test_it_is_alive_and_not_ready_before_it_has_a_configuration(tmp_path: Path) -> None:
    cluster = {"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [cluster],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "users": [{"name": "x", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    gateway = g.launch("--snapshot", "ai/none", "--kubeconfig", path, name="unconfigured")
    try:
        await eventually(lambda: '"ops_port"' in gateway.text(), 30)
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(g.wait_until_ready, gateway, 1)
        assert gateway.ops("/livez")[0] == 200
        assert gateway.ops("/readyz")[0] == 503
        assert "serves" not in gateway.text()
    finally:
        assert await asyncio.to_thread(gateway.stop) == 0
