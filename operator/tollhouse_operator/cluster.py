"""The API server: plain manifests in and out, every call bounded in time.

``kubernetes.aio`` brings authentication and the connection pool; its generated models are passed
by, because the operator works on manifests as the API server sends them. Exceptions of the client
and of aiohttp become CallError here and nowhere else, and no message holds a Secret's content.
"""

import random
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import msgspec
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from tollhouse.errors import ClusterError, TollhouseError

Manifest = Mapping[str, Any]

CALL_SECONDS = 4.0
"""Bounds one call. Shorter than the time between a leader's last write and a successor's first."""
LIST_SECONDS = 60.0
WATCH_SECONDS = 300
"""How long the API server keeps one watch open before it is renewed."""
SILENCE_SECONDS = 90.0
"""The API server sends a bookmark every minute: a watch silent for longer is dead."""
_CONNECT_SECONDS = 3.0
_MERGE_PATCH = "application/merge-patch+json"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_OURS = "apis/tollhouse.dev/v1alpha1"
_PLURALS: Mapping[str, tuple[str, str]] = {
    "Provider": (_OURS, "providers"),
    "ModelRoute": (_OURS, "modelroutes"),
    "ApiKey": (_OURS, "apikeys"),
    "RateLimitPolicy": (_OURS, "ratelimitpolicies"),
    "Budget": (_OURS, "budgets"),
    "Secret": ("api/v1", "secrets"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Service": ("api/v1", "services"),
    "Namespace": ("api/v1", "namespaces"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "Event": ("apis/events.k8s.io/v1", "events"),
}


class CallError(ClusterError):
    """One call failed.

    ``status`` is the HTTP status, or None without an answer. ``reason`` is the API's own word for
    it (``Conflict``, ``NotFound``). ``retry_after`` is in seconds, where the API server said so.
    """

    def __init__(
        self, call: str, status: int | None, reason: str, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{call}: {reason}" + (f" ({status})" if status else ""), status)
        self.reason = reason
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status is None or self.status == 429 or self.status >= 500


class NotLeading(TollhouseError):
    """A write was held back because this replica is no longer sure to be the leader."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list call found and the resource version to watch onwards from."""

    items: list[dict[str, Any]]
    version: str


class Identity(msgspec.Struct, frozen=True, rename="camel"):
    """Which object, and which version of it, a metadata-only list names."""

    name: str
    uid: str
    resource_version: str
    namespace: str = ""


class _Item(msgspec.Struct, frozen=True):
    metadata: Identity


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _Identities(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[_Item] | None


def path(kind: str, namespace: str | None = None, name: str | None = None, *, sub: str = "") -> str:
    """The URL path of an object, of a namespace's collection, or of the whole cluster's."""
    prefix, plural = _PLURALS[kind]
    parts = [prefix]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(plural)
    if name is not None:
        parts.append(name)
    if sub:
        parts.append(sub)
    return "/" + "/".join(parts)


def plural(kind: str) -> str:
    """The kind's name in URLs."""
    return _PLURALS[kind][1]


def backoff(attempt: int, *, first: float = 0.2, most: float = 10.0) -> float:
    """Seconds to wait after failed attempt ``attempt`` (from 0), doubled each time, with jitter."""
    ceiling = min(most, first * 2.0 ** min(attempt, 30))
    return ceiling * random.uniform(0.5, 1.0)


class Cluster:
    """A connection to the API server. Close it when done."""

    def __init__(
        self,
        client: ApiClient,
        may_write: Callable[[], bool] = lambda: True,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._client = client
        self._may_write = may_write
        self._call_seconds = call_seconds

    @staticmethod
    async def connect(kubeconfig: Path | None = None) -> "Cluster":
        """The cluster of ``kubeconfig``, or else the one we run in, or else ``KUBECONFIG``'s.

        Raises ConfigException when there is none of these.
        """
        # Unlimited connections: every watch holds one for as long as it lives.
        configuration = Configuration(connection_pool_maxsize=0)
        if kubeconfig is not None:
            await kubernetes_config.load_kube_config(str(kubeconfig), None, configuration)
        else:
            try:
                kubernetes_config.load_incluster_config(configuration)
            except ConfigException:
                await kubernetes_config.load_kube_config(None, None, configuration)
        return Cluster(ApiClient(configuration))

    def fenced(self, may_write: Callable[[], bool], call_seconds: float) -> "Cluster":
        """The same connection, whose writes raise NotLeading once ``may_write`` says no, and whose
        calls are bounded by so many seconds."""
        return Cluster(self._client, may_write, call_seconds)

    async def close(self) -> None:
        await self._client.close()

    async def credentials(self) -> kopf.ConnectionInfo:
        """The same way in, for kopf."""
        configuration: Any = self._client.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        scheme, _, token = (header or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            ca_data=configuration.ca_cert_data,
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            proxy_url=configuration.proxy,
        )

    async def get(self, where: str) -> dict[str, Any] | None:
        """The object there, or None. Raises CallError."""
        try:
            return _manifest(await self._call("GET", where))
        except CallError as error:
            if error.status == 404:
                return None
            raise

    async def listing(self, where: str, *, labels: str = "", fields: str = "") -> Listing:
        """Whole objects that match the selectors. Raises CallError."""
        body = await self._call("GET", where, _selectors(labels, fields), seconds=LIST_SECONDS)
        found = _manifest(body)
        return Listing(found.get("items") or [], found["metadata"]["resourceVersion"])

    async def identities(self, where: str, *, labels: str = "") -> tuple[list[Identity], str]:
        """Only who is there, at which version, and the list's own version. Raises CallError."""
        body = await self._call(
            "GET", where, _selectors(labels, ""), accept=_METADATA_LIST, seconds=LIST_SECONDS
        )
        found = msgspec.json.decode(body, type=_Identities)
        return [item.metadata for item in found.items or ()], found.metadata.resource_version

    async def create(self, where: str, manifest: Manifest) -> dict[str, Any]:
        """Raises CallError (409 where the object exists) and NotLeading."""
        return _manifest(await self._write("POST", where, manifest))

    async def replace(self, where: str, manifest: Manifest) -> dict[str, Any]:
        """Raises CallError (409 where ``resourceVersion`` is no longer right), NotLeading."""
        return _manifest(await self._write("PUT", where, manifest))

    async def patch(self, where: str, change: Manifest) -> dict[str, Any]:
        """A merge patch. Raises CallError (409 where a uid or version in it is not the
        object's) and NotLeading."""
        return _manifest(await self._write("PATCH", where, change, content_type=_MERGE_PATCH))

    async def delete(self, where: str, *, version: str) -> None:
        """Delete the object at exactly this version. Raises CallError and NotLeading."""
        await self._write("DELETE", where, {"preconditions": {"resourceVersion": version}})

    async def watch(
        self, where: str, version: str, *, labels: str = "", fields: str = ""
    ) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Changes since ``version`` as (type, object), bookmarks too; ends when the API server
        ends it. Raises CallError; 410 means that ``version`` is too old to go on from."""
        query = {
            **_selectors(labels, fields),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS + random.randrange(60)),
        }
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        try:
            response = await self._send("GET", where, query, timeout=timeout)
            async with response:
                if response.status >= 400:
                    raise _error("GET", where, response, await response.read())
                async for line in response.content:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise CallError(
                            f"watch {where}", status.get("code"), status.get("reason", "Error")
                        )
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise CallError(f"watch {where}", None, type(error).__name__) from error

    async def _write(
        self, method: str, where: str, body: Manifest, content_type: str = "application/json"
    ) -> bytes:
        if not self._may_write():
            raise NotLeading(f"{method} {where} was held back: another replica may be leading")
        return await self._call(method, where, body=body, content_type=content_type)

    async def _call(
        self,
        method: str,
        where: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Manifest | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
        seconds: float | None = None,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(
            total=seconds or self._call_seconds, sock_connect=_CONNECT_SECONDS
        )
        try:
            response = await self._send(
                method, where, query, body=body, accept=accept, content_type=content_type,
                timeout=timeout,
            )  # fmt: skip
            async with response:
                answer = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CallError(f"{method} {where}", None, type(error).__name__) from error
        if response.status >= 400:
            raise _error(method, where, response, answer)
        return answer

    async def _send(
        self,
        method: str,
        where: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Manifest | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        _, url, headers, _, _ = await self._client.param_serialize(
            method,
            where,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        answer: Any = await self._client.call_api(
            method, url, headers, body=body, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        return response


def _manifest(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {
        name: value
        for name, value in (("labelSelector", labels), ("fieldSelector", fields))
        if value
    }


def _error(method: str, where: str, response: aiohttp.ClientResponse, body: bytes) -> CallError:
    # Only the typed reason, never the message: that can quote what was sent.
    try:
        reason = str(_manifest(body).get("reason") or response.reason)
    except msgspec.DecodeError:
        reason = str(response.reason)
    seconds = response.headers.get("Retry-After", "")
    return CallError(
        f"{method} {where}", response.status, reason, float(seconds) if seconds.isdigit() else None
    )
