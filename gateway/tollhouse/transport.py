"""The narrow seam to providers: one request out, one answer in.

``HTTPTransport`` speaks HTTP through aiohttp; ``MockTransport`` plays a script inside the process.
Whoever calls them sees only ``Transport`` and ``Answer``, and only errors of our own tree.
"""

import asyncio
import functools
import hashlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import aiohttp

from tollhouse.errors import BrokenAnswer, ConnectError, UpstreamError, UpstreamTimeout
from tollhouse.providers import mock, mock_endpoints
from tollhouse.snapshot import Provider, Timeouts
from tollhouse.waiting import Watchdog

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""A whole answer larger than this is refused; images and audio come in base64."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is not in memory: ``length`` bytes, which ``pieces`` gives from the beginning.

    Every attempt at a provider calls ``pieces`` anew.
    """

    content_type: str
    length: int
    pieces: Callable[[], AsyncIterator[bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request to a provider. ``headers`` hold its credential and are never printed.

    An ``Upload`` brings its own ``Content-Type`` and ``Content-Length`` into them.
    """

    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes | Upload = field(repr=False)
    method: str = "POST"


class Answer(Protocol):
    """An answer whose head has arrived. ``close`` is called exactly once, whatever happened."""

    status: int
    headers: Mapping[str, str]

    @property
    def waits(self) -> bool:
        """Whether ``chunk`` may have to wait: False once all of the body is here."""
        ...

    async def chunk(self) -> bytes:
        """The next piece of the body as it arrives, b"" at its end.

        Raises BrokenAnswer when it ends early.
        """
        ...

    def close(self) -> None:
        """Give the connection back when the body was read to its end; cut it otherwise."""
        ...


class Transport(Protocol):
    async def send(self, provider: Provider, outgoing: Outgoing, connect: float) -> Answer:
        """Send and wait for the answer's head; ``connect`` bounds the connection's set-up, seconds.

        Raises ConnectError when no byte of an answer came, BrokenAnswer when it is not HTTP.
        Waiting longer than that is for the caller to bound, by cancelling.
        """
        ...


class Patience:
    """How long one attempt waits for its provider: each wait within its own time and the total's.

    ``started`` is when the request came in, on the clock of ``time.monotonic``.
    """

    __slots__ = ("_deadline", "_timeouts", "_watchdog")

    def __init__(self, timeouts: Timeouts, started: float) -> None:
        self._timeouts = timeouts
        self._deadline = started + timeouts.total
        self._watchdog = Watchdog()

    async def first_byte(self, awaitable: Awaitable[T]) -> T:
        """What this comes to within the ``firstByte`` timeout. Raises UpstreamTimeout."""
        return await self._within("first_byte", self._timeouts.first_byte, awaitable)

    async def chunk(self, answer: Answer) -> bytes:
        """The answer's next piece, b"" at its end, within the ``idle`` timeout.

        Raises UpstreamTimeout, or BrokenAnswer when the answer ends early.
        """
        if not answer.waits:
            return await answer.chunk()
        return await self._within("idle", self._timeouts.idle, answer.chunk())

    async def briefly(self, seconds: float, awaitable: Awaitable[T]) -> T:
        """What this comes to within so many seconds. Raises UpstreamTimeout."""
        return await self._within("idle", seconds, awaitable)

    def close(self) -> None:
        """Called once nothing is waited for any more."""
        self._watchdog.close()

    async def _within(self, which: str, seconds: float, awaitable: Awaitable[T]) -> T:
        left = self._deadline - time.monotonic()
        try:
            return await self._watchdog.within(min(seconds, left), awaitable)
        except TimeoutError:
            raise (
                UpstreamTimeout(which, seconds)
                if seconds < left
                else UpstreamTimeout("total", self._timeouts.total)
            ) from None


class _Pool:
    """The connections that share one set of trusted authorities."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.active = 0


class HTTPTransport:
    """HTTP/1.1 with pooled connections; one pool for each set of trusted authorities."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._retired: set[_Pool] = set()
        # Reading proxy variables costs as much as a request, so only where there are some.
        self._proxied = any(
            os.environ.get(name) or os.environ.get(name.lower())
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        )

    async def send(self, provider: Provider, outgoing: Outgoing, connect: float) -> Answer:
        pool = self._pool(provider)
        pool.active += 1
        body = outgoing.body
        try:
            response = await pool.session.request(
                outgoing.method,
                outgoing.url,
                data=body if isinstance(body, bytes) else body.pieces(),
                headers=outgoing.headers,
                timeout=_connect_within(connect),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _mapped(error) from None
        finally:
            pool.active -= 1
        return _HTTPAnswer(response, pool)

    async def keep(self, providers: Collection[Provider]) -> None:
        """Retire the pools that none of these providers uses; each closes once it is idle."""
        used = {_authorities(provider) for provider in providers}
        self._retired |= {self._pools.pop(name) for name in set(self._pools) - used}
        for pool in [pool for pool in self._retired if not pool.active]:
            self._retired.discard(pool)
            await pool.session.close()

    async def close(self) -> None:
        for pool in (*self._pools.values(), *self._retired):
            await pool.session.close()
        self._pools.clear()
        self._retired.clear()

    def _pool(self, provider: Provider) -> _Pool:
        name = _authorities(provider)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = _Pool(self._session(provider))
        return pool

    def _session(self, provider: Provider) -> aiohttp.ClientSession:
        tls: ssl.SSLContext | bool = True
        if provider.ca_pem is not None:
            tls = ssl.create_default_context(cadata=provider.ca_pem)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=tls, keepalive_timeout=30, ttl_dns_cache=10
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "tollhouse"},
            trust_env=self._proxied,
            # An idle provider is cut by the route's own timeouts, not by the client's.
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=2**18,
        )


class _HTTPAnswer:
    __slots__ = ("_pool", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, pool: _Pool) -> None:
        self._response = response
        self._pool = pool
        pool.active += 1
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def waits(self) -> bool:
        return not self._response.content.is_eof()

    async def chunk(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenAnswer(f"the answer ended early: {_words(error)}") from None

    def close(self) -> None:
        self._pool.active -= 1
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()


class MockTransport:
    """Plays the scripts of Mock providers, with their delays and failures."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    async def send(self, provider: Provider, outgoing: Outgoing, connect: float) -> Answer:
        if provider.mock is None:
            raise ConnectError("the provider is not a Mock")
        number = self._counts[provider.id] = self._counts.get(provider.id, 0) + 1
        body = outgoing.body
        if isinstance(body, Upload):
            digest = hashlib.sha256()
            async for piece in body.pieces():
                digest.update(piece)
            # A mock's answer to a form depends on nothing but which form it was.
            body = digest.digest()
        script = mock_endpoints.script(provider.mock, outgoing.url, body, number)
        if script.first_byte_delay:
            await asyncio.sleep(script.first_byte_delay)
        if script.status is None:
            raise ConnectError("no connection: the mock provider was told to disconnect")
        return _MockAnswer(script, script.status)

    def keep(self, providers: Collection[Provider]) -> None:
        """Forget the counts of providers that are gone."""
        known = {provider.id for provider in providers}
        for name in set(self._counts) - known:
            del self._counts[name]


class _MockAnswer:
    __slots__ = ("_played", "_script", "headers", "status")

    def __init__(self, script: mock.Script, status: int) -> None:
        self._script = script
        self._played = 0
        self.status = status
        self.headers: Mapping[str, str] = {"Content-Type": script.content_type}

    @property
    def waits(self) -> bool:
        return True

    async def chunk(self) -> bytes:
        script, number = self._script, self._played
        if number < len(script.pieces):
            self._played += 1
            if number and script.chunk_delay:
                await asyncio.sleep(script.chunk_delay)
            return script.pieces[number]
        if script.disconnect:
            raise BrokenAnswer("the answer ended early: the mock provider was told to disconnect")
        return b""

    def close(self) -> None:
        return None


@functools.lru_cache(maxsize=64)
def _connect_within(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds)


def _authorities(provider: Provider) -> str:
    """A name for whom the provider's TLS certificate is checked against."""
    if provider.ca_pem is None:
        return ""
    return hashlib.sha256(provider.ca_pem.encode()).hexdigest()


def _mapped(error: Exception) -> UpstreamError:
    """The error of our own tree for what aiohttp raised before an answer's head."""
    # A pooled connection that the provider closed under us looks the same as none.
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return ConnectError(f"no connection: {_words(error)}")
    if isinstance(error, aiohttp.InvalidURL):
        return ConnectError("the provider's baseURL is not a URL that can be called")
    return BrokenAnswer(f"the answer is not HTTP: {_words(error)}")


def _words(error: BaseException) -> str:
    """What happened, in words that hold no address: aiohttp's own texts name host and port."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return "its TLS certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name does not resolve"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the provider hung up"
    if isinstance(error, TimeoutError):
        return "the connect timeout passed"
    if isinstance(error, aiohttp.ClientConnectorError):
        return os.strerror(error.errno).lower() if error.errno else "connecting failed"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    return type(error).__name__
