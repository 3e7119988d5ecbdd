"""HTTP by hand over a socket, for what no client library would send."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.gateway import KEY

AUTH = f"Authorization: Bearer {KEY}\r\n".encode()


@dataclass(frozen=True)
class Answered:
    """One answer; names of headers in lower case."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The documented envelope's content."""
        assert self.headers["content-type"] == "application/json"
        decoded = json.loads(self.body)
        assert set(decoded) == {"error"}
        error: dict[str, Any] = decoded["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        return error


def chat(model: str = "mock/echo", text: str = "hi", **more: Any) -> bytes:
    """The body of a chat completion."""
    message = {"role": "user", "content": text}
    return json.dumps({"model": model, "messages": [message], **more}).encode()


def post(body: bytes, *headers: str, version: str = "1.1", length: int | None = None) -> bytes:
    """A whole chat request; ``length`` claims another size of the body than it has."""
    size = len(body) if length is None else length
    lines = "".join(f"{line}\r\n" for line in headers)
    return (
        (
            f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n"
            f"Content-Type: application/json\r\nContent-Length: {size}\r\n{lines}"
        ).encode()
        + AUTH
        + b"\r\n"
        + body
    )


@asynccontextmanager
async def connection(
    port: int, **more: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on loopback, closed at the end; that the other side reset it is no news."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24, **more)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                await writer.wait_closed()


async def exchange(port: int, *pieces: bytes, end: bool = False, seconds: float = 10) -> bytes:
    """Send the pieces as separate segments and read until the gateway closes.

    ``end`` closes the sending side after the last piece.
    """
    async with connection(port) as (reader, writer), asyncio.timeout(seconds):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        if end:
            writer.write_eof()
        return await reader.read(-1)


async def read_answer(reader: asyncio.StreamReader, seconds: float = 10) -> Answered:
    """The next answer on this connection; one without a length is read to the connection's end."""
    async with asyncio.timeout(seconds):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        version, status, _ = head[0].split(" ", 2)
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await _chunks(reader)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif int(status) < 200:
            body = b""
        else:
            body = await reader.read(-1)
    return Answered(version, int(status), headers, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while True:
        size = int(await reader.readline(), 16)
        pieces.append(await reader.readexactly(size))
        await reader.readline()
        if not size:
            return b"".join(pieces)


async def parse(received: bytes) -> list[Answered]:
    """All the answers in these bytes."""
    reader = asyncio.StreamReader(limit=2**24)
    reader.feed_data(received)
    reader.feed_eof()
    answers = []
    while not reader.at_eof():
        answers.append(await read_answer(reader))
    return answers
