"""How long a caller may take: for a head, between requests, and to read its answer."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import pytest
import uvloop
from aiohttp import web

from support import raw
from tollhouse import server


@contextmanager
def listening(delay: float = 0, size: int = 2) -> Iterator[int]:
    """The callers' port alone, answering everything after ``delay`` seconds with ``size`` bytes.

    It has a thread, for a loop of the kind that the gateway runs on.
    """
    ports: Queue[int] = Queue()
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(delay)
        return web.Response(body=b"x" * size)

    async def serve() -> None:
        calls = server.Server(handle)
        listener = await asyncio.get_running_loop().create_server(calls, "127.0.0.1", 0)
        ports.put(listener.sockets[0].getsockname()[1])
        await stop.wait()
        listener.close()
        await calls.shutdown(0.1)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ports.get(timeout=5)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)


class TestTimeBounds:
    """With the constants made short, and so with the callers' port in this process."""

    async def test_a_head_that_comes_drop_by_drop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_HEAD_SECONDS", 0.5)
        with listening() as port:
            async with raw.connection(port) as (reader, writer):
                begun = time.monotonic()
                writer.write(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(4):
                    writer.write(b"y")
                    await asyncio.sleep(0.1)
                answer = await raw.read_answer(reader)
                assert (answer.status, answer.error["code"]) == (408, "request_timeout")
                assert await reader.read() == b""
                assert 0.4 < time.monotonic() - begun < 2

    async def test_a_second_head_that_comes_drop_by_drop(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "_HEAD_SECONDS", 0.5)
        with listening() as port:
            async with raw.connection(port) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await raw.read_answer(reader)).status == 200
                await asyncio.sleep(0.7)
                writer.write(b"GET / HT")
                assert (await raw.read_answer(reader)).status == 408

    async def test_a_slow_answer_is_not_a_slow_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_HEAD_SECONDS", 0.3)
        with listening(delay=0.6) as port:
            async with raw.connection(port) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\n")
                await asyncio.sleep(0.1)
                writer.write(b"Host: x\r\n\r\nGET /")
                await asyncio.sleep(0.1)
                writer.write(b" HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await raw.read_answer(reader)).status == 200
                assert (await raw.read_answer(reader)).status == 200

    async def test_a_connection_that_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_KEEP_ALIVE", 0.5)
        with listening() as port:
            begun = time.monotonic()
            assert await raw.exchange(port) == b""
            assert 0.4 < time.monotonic() - begun < 2
            async with raw.connection(port) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await raw.read_answer(reader)).status == 200
                async with asyncio.timeout(2):
                    assert await reader.read() == b""

    async def test_an_answer_that_nobody_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_STALL_SECONDS", 0.5)
        with listening(size=50_000_000) as port:
            async with raw.connection(port) as (reader, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.sleep(1.5)
                writer.transport.resume_reading()  # type: ignore[attr-defined]  # because its type says only BaseTransport
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await raw.read_answer(reader)

    async def test_an_answer_that_is_taken_slowly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "_STALL_SECONDS", 0.5)
        loop = asyncio.get_running_loop()
        with listening(size=30_000_000) as port, socket.socket() as slow:
            slow.setblocking(False)
            await loop.sock_connect(slow, ("127.0.0.1", port))
            await loop.sock_sendall(slow, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = 0
            while received < 30_000_000:
                piece = await loop.sock_recv(slow, 2_000_000)
                assert piece, f"cut after {received} bytes"
                received += len(piece)
                await asyncio.sleep(0.1)
