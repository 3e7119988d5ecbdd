"""Counters in Valkey or Redis: one server, Sentinel or Cluster, by the URL.

All keys of an installation carry one hash tag. In a cluster they are so in one slot, which is what
lets one script ask all counters of a request in one step; several installations share a server
under different scopes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from redis import exceptions
from redis.asyncio import (
    BlockingConnectionPool,
    Redis,
    RedisCluster,
    Sentinel,
    SentinelConnectionPool,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tollhouse.errors import ConfigError, StoreError

SCRIPT = resources.files("tollhouse.store").joinpath("valkey.lua").read_text()

FORMS = (
    "redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss://… with TLS, redis+sentinel://HOST:PORT,…"
    "/MASTER, redis+cluster://HOST:PORT,… or unix:///PATH"
)
_CONNECTIONS = 16
_SECONDS = 5.0
"""For connecting and for one answer; whoever calls waits for less."""

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "it refused the user name or the password"),
    (exceptions.NoPermissionError, "its ACL does not let this user run scripts on these keys"),
    (exceptions.TimeoutError, "it was too slow"),
    (exceptions.BusyLoadingError, "it is still loading its data"),
    (exceptions.ReadOnlyError, "it is a replica that cannot be written"),
    (exceptions.OutOfMemoryError, "it has no memory left"),
    (exceptions.ConnectionError, "no connection"),
    (OSError, "no connection"),
)


class Valkey:
    """A backend of ``SharedStore``. The client must not repeat a command by itself."""

    def __init__(self, client: "Redis | RedisCluster", scope: str, script: str = SCRIPT) -> None:
        self._client = client
        self._prefix = f"{{tollhouse:{scope}}}:"
        self._script = script
        self._digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()

    async def call(self, process: str, names: Sequence[str], request: bytes) -> bytes:
        prefix = self._prefix
        keys = [f"{prefix}process:{process}", f"{prefix}processes"]
        for name in names:
            keys += (f"{prefix}{name}", f"{prefix}lease:{name}")
        run = self._client.execute_command
        try:
            try:
                reply = await run("EVALSHA", self._digest, len(keys), *keys, request)
            except exceptions.NoScriptError:
                # A server that has just started; it remembers the script from here on.
                reply = await run("EVAL", self._script, len(keys), *keys, request)
        except (exceptions.RedisError, OSError) as error:
            raise StoreError(_reason(error)) from None
        if not isinstance(reply, bytes):
            raise StoreError("it answered what no script of ours says")
        return reply

    async def close(self) -> None:
        await self._client.aclose()
        pool = getattr(self._client, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            for watcher in pool.sentinel_manager.sentinels:
                await watcher.aclose()


def _reason(error: Exception) -> str:
    """Why it failed, without addresses or credentials."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    word = str(error).split(" ", 1)[0]
    return f"it refused ({word})" if word.isupper() else f"it failed ({type(error).__name__})"


def connect(url: str, environ: Mapping[str, str]) -> "Redis | RedisCluster":
    """A client for this URL; it connects when it is first used.

    ``TOLLHOUSE_STORE_PASSWORD`` replaces the URL's password. Raises ConfigError, which never shows
    the URL: there may be a password in it.
    """
    try:
        # The scheme alone: a host may be called valkey too.
        parts = urlsplit(f"redis{url[6:]}" if url.startswith("valkey") else url)
        scheme, _, mode = parts.scheme.partition("+")
        known = scheme in {"redis", "rediss"} and mode in {"", "sentinel", "cluster"}
        if not known and parts.scheme != "unix":
            raise ValueError(parts.scheme)
        options = _options(parts, environ)
        if mode == "sentinel":
            return _sentinel(parts, options, tls=scheme == "rediss")
        if mode == "cluster":
            return _cluster(parts, options, tls=scheme == "rediss")
        pool = BlockingConnectionPool.from_url(
            parts.geturl(), max_connections=_CONNECTIONS, timeout=_SECONDS, **options
        )
        pool.connection_kwargs.update(_credentials(environ))
        return Redis.from_pool(pool)
    except (ValueError, exceptions.RedisError) as error:
        raise ConfigError(
            f"--store takes memory, {FORMS}; this URL cannot be used ({type(error).__name__})"
        ) from None


def _credentials(environ: Mapping[str, str]) -> dict[str, str]:
    password = environ.get("TOLLHOUSE_STORE_PASSWORD")
    return {"password": password} if password else {}


def _options(parts: SplitResult, environ: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": _SECONDS,
        "socket_connect_timeout": _SECONDS,
        "socket_keepalive": True,
        "protocol": 2,
    }
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    return options | {"retry": Retry(NoBackoff(), 0)} | _credentials(environ)


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    """``HOST:PORT,HOST:PORT`` of the URL; raises ValueError."""
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        found = urlsplit(f"//{one}")
        if not found.hostname:
            raise ValueError("no host")
        hosts.append((found.hostname, found.port or port))
    return hosts


def _tls(parts: SplitResult) -> dict[str, str]:
    """``ssl_…`` options from the query, as redis-py names them for a plain rediss:// URL."""
    pairs = (pair.partition("=") for pair in parts.query.split("&"))
    return {name: unquote(value) for name, _, value in pairs if name.startswith("ssl_")}


def _sentinel(parts: SplitResult, options: dict[str, Any], *, tls: bool) -> "Redis":
    master, _, database = parts.path.strip("/").partition("/")
    if not master:
        raise ValueError("no master")
    if tls:
        options |= {"ssl": True, **_tls(parts)}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # because the library has no types here
        _hosts(parts, 26379),
        sentinel_kwargs={k: v for k, v in options.items() if k not in {"username", "password"}},
    )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]  # because the library has no types here
        master, sentinel, db=int(database or 0), max_connections=_CONNECTIONS, **options
    )
    return Redis.from_pool(pool)


def _cluster(parts: SplitResult, options: dict[str, Any], *, tls: bool) -> "RedisCluster":
    if tls:
        options |= {"ssl": True, **_tls(parts)}
    # A redirection is followed by sending again, so one repetition has to be allowed; a batch that
    # came twice is noticed by the script.
    options["retry"] = Retry(NoBackoff(), 1)
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts, 6379)]
    return RedisCluster(startup_nodes=nodes, max_connections=_CONNECTIONS, **options)
