"""A real HTTP upstream for tests: an aiohttp server that answers by a function and remembers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[["Received", web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Received:
    """One request as it arrived. ``gone`` is set when the gateway hung up before the end."""

    path: str
    headers: dict[str, str]
    body: bytes
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


class Upstream:
    """What arrived, and where to send to. ``answer`` may be replaced at any time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.base_url = ""
        self.active = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.path, dict(request.headers), await request.read())
        self.received.append(received)
        self.active += 1
        try:
            return await self.answer(received, request)
        except (asyncio.CancelledError, ConnectionError):
            received.gone.set()
            raise
        finally:
            self.active -= 1


@asynccontextmanager
async def serving(answer: Answer, port: int = 0) -> AsyncIterator[Upstream]:
    """An upstream on loopback that answers every request by ``answer``."""
    upstream = Upstream(answer)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        upstream.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield upstream
    finally:
        await runner.cleanup()


def completion(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A whole answer as OpenAI sends it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        **more,
    }


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """One stream event as OpenAI sends it."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "upstream-model",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def always(status: int = 200, **more: Any) -> Answer:
    """The same whole answer to everything."""

    async def answer(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(**more), status=status)

    return answer


def failing(status: int, message: str = "no", **headers: str) -> Answer:
    """The same error to everything, in OpenAI's shape."""

    async def answer(received: Received, request: web.Request) -> web.StreamResponse:
        body = {"error": {"message": message, "type": "x", "param": None, "code": None}}
        return web.json_response(body, status=status, headers=headers)

    return answer


def streaming(*pieces: bytes | float, cut: bool = False) -> Answer:
    """These bytes as a stream, numbers being pauses in seconds; ``cut`` breaks the connection."""

    async def answer(received: Received, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
            else:
                await asyncio.sleep(piece)
        if cut and request.transport is not None:
            request.transport.abort()
        return response

    return answer
