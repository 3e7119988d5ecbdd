"""The little of the Kubernetes API that a gateway needs: read one Secret, watch one Secret.

It asks for the least rights. Everything goes by name, so this Role is all there is to grant, with
the snapshot's slots spelt out::

    rules:
    - {apiGroups: [""], resources: [secrets], verbs: [get], resourceNames: [NAME-0, …, NAME-63]}
    - {apiGroups: [""], resources: [secrets], verbs: [list, watch], resourceNames: [NAME-0]}

``list`` is among them because a watch can only start exactly where a list ended. With
``resourceNames`` the API server allows it for nothing but ``fieldSelector=metadata.name=NAME-0``.

It will not write, and it knows no other resource.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from tollhouse import __version__
from tollhouse.errors import ClusterError
from tollhouse.kubeconfig import Access, find_access
from tollhouse.snapshot import Credential

WATCH_SECONDS = 60.0
"""How long one watch request lasts. Also how long an API server that hangs with its connection
open can go unnoticed; a dead peer is noticed by TCP keepalive, in 25 s."""
_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_WATCH_GRACE_SECONDS = 5.0
_STEADY_SECONDS = 1.0
"""A watch that ends sooner than this is not opened again without a pause."""
_AWAY_SECONDS = 1.0
_REFUSED_SECONDS = 5.0
"""The longest pauses between tries while nobody answers and while the answer is a refusal. One that
is away has no work from being called; once it is back, what changed is wanted at once."""
_CONNECTIONS = 16
_CLOSE_SECONDS = 0.05
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_REFUSAL_BYTES = 64 * 1024
_MAX_MESSAGE_CHARS = 500

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SecretData:
    """A Secret as it stood at ``resource_version``. It prints without its data."""

    name: str
    resource_version: str
    data: Mapping[str, bytes] = field(repr=False)


def backoff(failures: int, most: float) -> float:
    """Seconds to wait after so many failures in a row: from 0.1 doubling, up to half taken off."""
    return min(most, 0.1 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


class Cluster:
    """The API server. Made by ``connect``; every call raises ClusterError when it fails."""

    def __init__(self, access: Access, session: aiohttp.ClientSession, watch_seconds: float):
        self._access = access
        self._session = session
        self._watch_seconds = watch_seconds

    @staticmethod
    @contextlib.asynccontextmanager
    async def connect(
        kubeconfig: Path | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        watch_seconds: float = WATCH_SECONDS,
    ) -> "AsyncIterator[Cluster]":
        """A client that is closed at the end of the block; nothing is sent before the first call.

        Credentials come from ``kubeconfig``, else from the files of ``$KUBECONFIG``, else from the
        pod's service account, else from ``~/.kube/config``. Raises ConfigError.
        """
        access = await asyncio.to_thread(find_access, kubeconfig, environ)
        connector = aiohttp.TCPConnector(
            ssl=access.tls, limit=_CONNECTIONS, keepalive_timeout=60, socket_factory=_socket
        )
        headers = {
            "User-Agent": f"tollhouse-gateway/{__version__}",
            "Accept": "application/json",
            # Shards are compressed already; the API server can spare itself the work.
            "Accept-Encoding": "identity",
        }
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            yield Cluster(access, session, watch_seconds)
        # aiohttp does not wait until its TLS connections are gone, and a loop that ends before
        # that leaves them open.
        await asyncio.sleep(_CLOSE_SECONDS)

    async def secret(self, namespace: str, name: str) -> SecretData | None:
        """The Secret as it is now; None when there is none."""
        try:
            body = await self._get(self._url(namespace) / name, {})
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return _decode(body, _Secret).read()

    async def watch_secret(
        self,
        namespace: str,
        name: str,
        trouble: Callable[[ClusterError | None], None] = lambda _: None,
    ) -> AsyncGenerator[SecretData | None, None]:
        """First the state as it is, then every change, for ever; None while there is no Secret.

        Ends only by being closed (``contextlib.aclosing``). States come in the order in which the
        API server made them and none comes twice, though some may be passed over after an outage.
        ``trouble`` hears why the watch cannot be had, and None each time it stands.
        """
        version: str | None = None
        known: SecretData | None = None
        begun = False
        failures = refusals = 0
        while True:
            opened: float | None = None
            refused = False
            try:
                if version is None:
                    state, version = await self._list(namespace, name)
                    if not begun or not _same(state, known):
                        begun, known = True, state
                        yield state
                async with self._watch(namespace, name, version) as changes:
                    opened = monotonic()
                    trouble(None)
                    async for change in changes:
                        failures = refusals = 0
                        version = change.version
                        if not change.bookmark and not _same(change.state, known):
                            known = change.state
                            yield known
            except ClusterError as error:
                # Whatever went wrong and was missed, a fresh list is right, and it is small.
                version = None
                refused = error.status is not None
                if opened is None or failures:  # a watch that breaks is no trouble if it mends
                    trouble(error)
            if opened is not None and monotonic() - opened > _STEADY_SECONDS:
                failures = refusals = 0
                if version is not None:
                    continue
            if refused:
                await asyncio.sleep(backoff(refusals, _REFUSED_SECONDS))
                refusals += 1
            else:
                await asyncio.sleep(backoff(failures, _AWAY_SECONDS))
            failures += 1

    async def _list(self, namespace: str, name: str) -> tuple[SecretData | None, str]:
        body = await self._get(self._url(namespace), {"fieldSelector": f"metadata.name={name}"})
        found = _decode(body, _SecretList)
        state = found.items[0].read() if found.items else None
        return state, found.metadata.resource_version

    @contextlib.asynccontextmanager
    async def _watch(
        self, namespace: str, name: str, version: str
    ) -> AsyncIterator[AsyncIterator["_Change"]]:
        """Entered once the API server has agreed to the watch."""
        # Spread, so that gateways which started together do not come back together.
        seconds = self._watch_seconds * random.uniform(0.8, 1.0)
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        silence = self._watch_seconds + _WATCH_GRACE_SECONDS
        timeout = aiohttp.ClientTimeout(connect=_CONNECT_SECONDS, sock_read=silence)
        with self._as_cluster_errors():
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    response = await stack.enter_async_context(
                        self._request(self._url(namespace), query, timeout)
                    )
                    await _refuse(response)
                yield await stack.enter_async_context(
                    contextlib.aclosing(_changes(response.content))
                )

    async def _get(self, url: URL, query: Mapping[str, str]) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        with self._as_cluster_errors():
            async with self._request(url, query, timeout) as response:
                await _refuse(response)
                return await response.read()

    def _request(
        self, url: URL, query: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        token = self._access.token
        if self._access.token_file is not None:
            try:
                token = Credential(self._access.token_file.read_text().strip())
            except OSError as error:
                raise ClusterError("the token of the service account cannot be read") from error
        return self._session.get(
            url,
            params=query,
            headers={} if token is None else {"Authorization": f"Bearer {token.value}"},
            timeout=timeout,
            allow_redirects=False,
            server_hostname=self._access.server_name,
        )

    def _url(self, namespace: str) -> URL:
        return self._access.server / "api/v1/namespaces" / namespace / "secrets"

    @contextlib.contextmanager
    def _as_cluster_errors(self) -> Iterator[None]:
        """Maps what aiohttp and the socket raise, once; no address gets into a message."""
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            if self._access.ca_file is not None:
                with contextlib.suppress(OSError, ssl.SSLError):
                    self._access.tls.load_verify_locations(self._access.ca_file)
            raise ClusterError(
                "the Kubernetes API server's certificate is not one that the configured CA signed"
            ) from error
        except TimeoutError as error:
            raise ClusterError("the Kubernetes API server did not answer in time") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise ClusterError("the Kubernetes API server's name does not resolve") from error
        except aiohttp.ClientConnectorSSLError as error:
            raise ClusterError("the Kubernetes API server does not agree on TLS") from error
        except (aiohttp.ClientError, OSError) as error:
            number = getattr(error, "errno", None)
            cause = os.strerror(number) if number else "the connection broke"
            raise ClusterError(f"the Kubernetes API cannot be reached: {cause}") from error


# What the API server sends.


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    name: str = ""


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Meta
    data: dict[str, bytes] | None = None

    def read(self) -> SecretData:
        return SecretData(self.metadata.name, self.metadata.resource_version, self.data or {})


class _SecretList(msgspec.Struct, frozen=True):
    metadata: _Meta
    items: list[_Secret]


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    code: int | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    version: str
    state: SecretData | None = None
    bookmark: bool = False


async def _changes(content: aiohttp.StreamReader) -> AsyncGenerator[_Change, None]:
    """The events of one watch. Raises ClusterError, with status 410 for a version too old."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise ClusterError("the Kubernetes API sent an event larger than any Secret")
        for line in lines:
            event = _decode(line, _Event)
            if event.type == "ERROR":
                status = _decode(event.object, _Status)
                raise ClusterError(_cut(status.message), status.code)
            secret = _decode(event.object, _Secret)
            version = secret.metadata.resource_version
            if event.type == "BOOKMARK":
                yield _Change(version, bookmark=True)
            else:
                yield _Change(version, None if event.type == "DELETED" else secret.read())


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    body = await response.content.read(_MAX_REFUSAL_BYTES)
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except msgspec.MsgspecError:
        message = ""
    raise ClusterError(_cut(message or f"status {response.status}"), response.status)


def _decode(body: bytes | msgspec.Raw, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ClusterError(f"the Kubernetes API's answer does not decode: {error}") from error


def _cut(message: str) -> str:
    return f"the Kubernetes API says: {message[:_MAX_MESSAGE_CHARS]}"


def _same(one: SecretData | None, other: SecretData | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.resource_version == other.resource_version


def _socket(address: Any) -> socket.socket:
    """A socket that notices within 25 s that nobody is there any more, also when only listening."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 10),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 25_000),
    ):
        if hasattr(socket, option):  # which of them exist depends on the system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made
