"""What callers do to their connections, by hand over real sockets."""

import asyncio
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from support import gateway as g
from support import raw
from support import upstream as u
from support.gateway import Gateway

SECRET = "sk-th-PLANTED-in-the-wrong-place"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = CHAT + raw.AUTH + b"Transfer-Encoding: chunked\r\n\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def upstream_port() -> int:
    return free_port()


def folder(path: Path, upstream_port: int) -> Path:
    g.write(
        path,
        g.caller(),
        g.mock("echo"),
        g.mock("slow", firstByteDelay="300ms"),
        g.openai_compatible("real", f"http://127.0.0.1:{upstream_port}/v1"),
        g.route("echo", ["mock/echo"], "echo"),
        g.route("slow", ["mock/slow"], "slow"),
        g.route("real", ["real/model"], "real", retries={"attempts": 0}),
    )
    return path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream_port: int) -> Iterator[Gateway]:
    directory = folder(tmp_path_factory.mktemp("config"), upstream_port)
    with g.running(directory, "--log-level", "debug", name="connections") as running:
        yield running
    assert "PLANTED" not in running.text()
    assert "Traceback" not in running.text()


class TestWhatIsNotHTTP:
    @pytest.mark.parametrize(
        "sent",
        [
            f"hello {SECRET}\r\n\r\n".encode(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 200,
            f"GET /v1/models HTTP/1.1\r\nno colon {SECRET}\r\n\r\n".encode(),
            f"GET /v1/models HTTP/1.1\r\nX: {SECRET}\0\r\n\r\n".encode(),
            f"GET /v1/models HTTP/1.1\r\nX : {SECRET}\r\n\r\n".encode(),
            f"GET /{SECRET * 400} HTTP/1.1\r\n\r\n".encode(),
            f"GET /v1/models HTTP/1.1\r\nX: {SECRET * 1000}\r\n\r\n".encode(),
            b"GET /v1/models HTTP/1.1\r\n" + b"X: y\r\n" * 300 + b"\r\n",
            b"GET /v1/models HTTP/11\r\nHost: x\r\n\r\n",
        ],
        ids=[
            "words",
            "tls-hello",
            "no-colon",
            "nul",
            "space-before-colon",
            "long-line",
            "long-header",
            "many-headers",
            "version",
        ],
    )
    async def test_gets_the_envelope_and_the_end(self, gateway: Gateway, sent: bytes) -> None:
        (answer,) = await raw.parse(await raw.exchange(gateway.port, sent))
        assert answer.status == 400
        assert answer.error["code"] == "invalid_http"
        assert b"PLANTED" not in answer.body

    @pytest.mark.parametrize(
        "framing",
        [
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Content-Length: 5, 6\r\n",
            b"Content-Length: +5\r\n",
            b"Content-Length: -5\r\n",
            b"Content-Length: 0x5\r\n",
            b"Transfer-Encoding: chunked, identity\r\n",
            b"Transfer-Encoding: gzip\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ],
    )
    async def test_a_body_of_two_lengths_is_no_second_request(
        self, gateway: Gateway, framing: bytes
    ) -> None:
        smuggled = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n" + raw.AUTH + b"\r\n"
        received = await raw.exchange(gateway.port, CHAT + raw.AUTH + framing + b"\r\n" + smuggled)
        (answer,) = await raw.parse(received)
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")

    @pytest.mark.parametrize("pause", [False, True], ids=["at-once", "after-the-head"])
    async def test_chunks_that_are_none(self, gateway: Gateway, pause: bool) -> None:
        bad = f"5\r\nhello\r\nZZ {SECRET}\r\n".encode()
        sent = (CHUNKED, bad) if pause else (CHUNKED + bad,)
        begun = time.monotonic()
        (answer,) = await raw.parse(await raw.exchange(gateway.port, *sent))
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        assert time.monotonic() - begun < 2

    async def test_others_are_served_meanwhile(self, gateway: Gateway) -> None:
        garbage = [raw.exchange(gateway.port, SECRET.encode() + b"\r\n\r\n") for _ in range(50)]
        good = [
            raw.exchange(gateway.port, raw.post(raw.chat(), "Connection: close")) for _ in range(50)
        ]
        received = await asyncio.gather(*garbage, *good)
        assert [(await raw.parse(r))[0].status for r in received] == [400] * 50 + [200] * 50


class TestABodyThatEndsEarly:
    @pytest.mark.parametrize(
        "sent",
        [
            (raw.post(b"{", length=100),),
            (raw.post(b"", length=100), b'{"model'),
            (CHUNKED, b"5\r\nhello\r\n"),
            (CHUNKED, b"5\r\nhel"),
        ],
        ids=["length", "length-later", "chunked", "within-a-chunk"],
    )
    async def test_is_answered_at_once(self, gateway: Gateway, sent: tuple[bytes, ...]) -> None:
        begun = time.monotonic()
        (answer,) = await raw.parse(await raw.exchange(gateway.port, *sent, end=True))
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        assert time.monotonic() - begun < 2

    async def test_is_answered_also_when_the_request_was_refused_already(
        self, gateway: Gateway
    ) -> None:
        head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        begun = time.monotonic()
        (answer,) = await raw.parse(await raw.exchange(gateway.port, head, b"half", end=True))
        assert answer.error["code"] == "not_found"
        assert time.monotonic() - begun < 2

    async def test_a_reset_is_no_news(self, gateway: Gateway) -> None:
        async with raw.connection(gateway.port) as (_, writer):
            writer.write(raw.post(b"{", length=100))
            await writer.drain()
            reset(writer)
            (answer,) = await raw.parse(
                await raw.exchange(gateway.port, raw.post(raw.chat(), "Connection: close"))
            )
            assert answer.status == 200


class TestSeveralRequestsOnOneConnection:
    async def test_pipelined_ones_are_answered_in_order(self, gateway: Gateway) -> None:
        slow = raw.post(raw.chat("mock/slow", "first"))
        quick = [raw.post(raw.chat(text=f"number {i}")) for i in range(100)]
        last = raw.post(raw.chat(text="last"), "Connection: close")
        received = await raw.exchange(gateway.port, b"".join((slow, *quick, last)))
        answers = await raw.parse(received)
        texts = [answer.body.decode() for answer in answers]
        for text, said in zip(
            texts, ["first", *(f"number {i}" for i in range(100)), "last"], strict=True
        ):
            assert f'"{said}"' in text

    async def test_a_request_in_single_bytes(self, gateway: Gateway) -> None:
        async with raw.connection(gateway.port) as (reader, writer):
            for byte in raw.post(raw.chat()):
                writer.write(bytes((byte,)))
                await writer.drain()
            assert (await raw.read_answer(reader)).status == 200

    async def test_the_connection_closes_where_the_caller_says_so(self, gateway: Gateway) -> None:
        received = await raw.exchange(gateway.port, raw.post(raw.chat(), "Connection: close"))
        (answer,) = await raw.parse(received)
        assert answer.headers["connection"] == "close"


class TestExpect100:
    async def test_a_large_body_waits_for_leave(self, gateway: Gateway) -> None:
        body = raw.chat(text="x" * 2_000_000)
        async with raw.connection(gateway.port) as (reader, writer):
            writer.write(raw.post(b"", "Expect: 100-continue", length=len(body)))
            assert (await raw.read_answer(reader)).status == 100
            writer.write(body)
            await writer.drain()
            answer = await raw.read_answer(reader)
            assert answer.status == 200
            assert b"x" * 2_000_000 in answer.body
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200

    async def test_a_refused_request_gets_no_leave(self, gateway: Gateway) -> None:
        async with raw.connection(gateway.port) as (reader, writer):
            writer.write(raw.post(b"", "Expect: 100-continue", length=2**40))
            answer = await raw.read_answer(reader)
            assert (answer.status, answer.error["code"]) == (413, "request_too_large")


class TestHTTP10:
    async def test_a_whole_answer(self, gateway: Gateway) -> None:
        received = await raw.exchange(gateway.port, raw.post(raw.chat(), version="1.0"))
        (answer,) = await raw.parse(received)
        assert answer.status == 200
        assert answer.headers.get("connection") != "keep-alive"

    async def test_keep_alive_where_it_is_asked_for(self, gateway: Gateway) -> None:
        async with raw.connection(gateway.port) as (reader, writer):
            for _ in range(2):
                writer.write(raw.post(raw.chat(), "Connection: keep-alive", version="1.0"))
                assert (await raw.read_answer(reader)).headers["connection"] == "keep-alive"

    @pytest.mark.parametrize("header", ["Connection: keep-alive", "X: y"])
    async def test_a_stream_ends_with_the_connection(self, gateway: Gateway, header: str) -> None:
        request = raw.post(raw.chat(stream=True), header, version="1.0")
        (answer,) = await raw.parse(await raw.exchange(gateway.port, request))
        assert "transfer-encoding" not in answer.headers
        assert answer.body.startswith(b"data: {")
        assert answer.body.endswith(b"data: [DONE]\n\n")


class TestACallerThatGoesAway:
    @pytest.mark.parametrize("how", ["close", "reset", "half-close"])
    @pytest.mark.parametrize("stage", ["before-the-head", "whole", "in-mid-stream"])
    async def test_cancels_the_upstream_within_a_second(
        self, gateway: Gateway, upstream_port: int, stage: str, how: str
    ) -> None:
        async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            if stage != "before-the-head":
                await response.prepare(request)
            await asyncio.sleep(0.2 if stage == "in-mid-stream" else 30)
            while True:
                await response.write(u.chunk({"content": "more"}))
                await asyncio.sleep(0.1)

        async with u.serving(answer, upstream_port) as upstream:
            async with raw.connection(gateway.port) as (reader, writer):
                writer.write(raw.post(raw.chat("real/model", stream=stage == "in-mid-stream")))
                await eventually(lambda: bool(upstream.received))
                if stage == "in-mid-stream":
                    async with asyncio.timeout(5):
                        await reader.readuntil(b"more")
                else:
                    await asyncio.sleep(0.2)
                if how == "reset":
                    reset(writer)
                if how == "half-close":
                    writer.write_eof()
                else:
                    writer.close()
                async with asyncio.timeout(1):
                    await upstream.received[0].gone.wait()
                await eventually(lambda: in_flight(gateway) == 0)

    async def test_who_never_reads_is_dropped_too(
        self, gateway: Gateway, upstream_port: int
    ) -> None:
        async with u.serving(endless, upstream_port) as upstream:
            async with raw.connection(gateway.port) as (_, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                writer.write(raw.post(raw.chat("real/model", stream=True)))
                await eventually(lambda: bool(upstream.received))
                await asyncio.sleep(1.5)
                writer.write_eof()
                async with asyncio.timeout(1):
                    await upstream.received[0].gone.wait()


class TestASlowReader:
    async def test_does_not_fill_the_gateways_memory(
        self, gateway: Gateway, upstream_port: int
    ) -> None:
        megabyte = u.chunk({"content": "x" * 2**20})
        sent = 0

        async def answer(received: u.Received, request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for _ in range(200):
                await response.write(megabyte)
                sent += 1
            await response.write(u.chunk({}, "stop") + u.DONE)
            return response

        async with u.serving(answer, upstream_port):
            before = resident(gateway)
            async with raw.connection(gateway.port) as (reader, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                writer.write(raw.post(raw.chat("real/model", stream=True)))
                peak = 0
                for _ in range(30):
                    await asyncio.sleep(0.1)
                    peak = max(peak, resident(gateway))
                print(f"{sent} MB sent, resident {before} -> {peak} MiB")
                assert sent < 100
                assert peak - before < 50
                writer.transport.resume_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                received = 0
                async with asyncio.timeout(30):
                    while piece := await reader.read(2**20):
                        received += len(piece)
                        tail = piece[-100:]
                        if b"[DONE]" in tail:
                            break
                assert received > 200 * 2**20


class TestADrain:
    async def test_lets_a_body_arrive_and_an_answer_be_taken(
        self, tmp_path: Path, upstream_port: int
    ) -> None:
        request = raw.post(raw.chat(text="x" * 10_000_000))
        with g.running(folder(tmp_path, upstream_port), name="drain") as gateway:
            async with (
                raw.connection(gateway.port) as (reader, writer),
                raw.connection(gateway.port) as (idle, _),
            ):
                writer.write(request[:5_000_000])
                await writer.drain()
                await eventually(lambda: in_flight(gateway) == 1)
                gateway.process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(5):
                    assert await idle.read() == b""
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                writer.write(request[5_000_000:])
                await writer.drain()
                await asyncio.sleep(1)
                assert gateway.process.poll() is None
                writer.transport.resume_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                answer = await raw.read_answer(reader)
                assert answer.status == 200
                assert b"x" * 10_000_000 in answer.body
                assert await asyncio.to_thread(gateway.process.wait, 5) == 0


async def endless(received: u.Received, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(u.chunk({"content": "x" * 10_000}))


def reset(writer: asyncio.StreamWriter) -> None:
    """Make the close that follows a reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def eventually(holds: Callable[[], bool], seconds: float = 3) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def in_flight(gateway: Gateway) -> float:
    for line in gateway.ops("/metrics")[1].splitlines():
        if line.startswith("tollhouse_in_flight_requests "):
            return float(line.split()[1])
    raise AssertionError("the gauge is not there")


def resident(gateway: Gateway) -> int:
    """MiB of memory that the gateway's process has."""
    for line in Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmRSS")
