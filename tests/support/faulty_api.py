"""An API server that fails now and then: a proxy before a real one."""

import asyncio
import contextlib
import itertools
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

_HOP_BY_HOP = frozenset({"transfer-encoding", "connection", "content-length", "content-encoding"})
_FAULTS: tuple[tuple[int, str, dict[str, str]], ...] = (
    (429, "TooManyRequests", {"Retry-After": "1"}),
    (500, "InternalError", {}),
    (503, "ServiceUnavailable", {}),
    (409, "Conflict", {}),
)


class FaultyApi:
    """Refuses every ``nth`` write with a 429, 500, 503 or 409 in turn; ``refused`` counts them.

    ``kubeconfig`` is one with which to reach it, as the account of the one that it was made from.
    """

    def __init__(self, kubeconfig: Path, directory: Path, nth: int) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self._server: str = config["clusters"][0]["cluster"]["server"]
        self._config = config
        self.kubeconfig = directory / "faulty.kubeconfig"
        self.refused = 0
        self._nth = nth
        self._writes = itertools.count(1)
        self._faults = itertools.cycle(_FAULTS)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
        finally:
            # The watches of an operator that is gone by now.
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def _run(self) -> None:
        # Both ends are this machine.
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        connector = aiohttp.TCPConnector(ssl=unchecked, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            app = web.Application(client_max_size=4 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            self._config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
            self.kubeconfig.write_text(yaml.safe_dump(self._config))
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
        await asyncio.sleep(0.1)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        write = request.method != "GET" and "/leases" not in request.path
        if write and next(self._writes) % self._nth == 0:
            self.refused += 1
            status, reason, headers = next(self._faults)
            body = {"kind": "Status", "status": "Failure", "reason": reason, "code": status}
            return web.json_response(body, status=status, headers=headers)
        kept = {k: v for k, v in request.headers.items() if k.lower() not in ("host", *_HOP_BY_HOP)}
        async with self._session.request(
            request.method,
            f"{self._server}{request.path_qs}",
            headers=kept,
            data=await request.read() or None,
            skip_auto_headers=("Content-Type",),
        ) as answer:
            given = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=given)
            # An operator that stops leaves its watches.
            with contextlib.suppress(ConnectionError):
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def faulty(kubeconfig: Path, directory: Path, nth: int) -> Iterator[FaultyApi]:
    """One that runs for as long as the context lasts."""
    api = FaultyApi(kubeconfig, directory, nth)
    api.start()
    try:
        yield api
    finally:
        api.close()
