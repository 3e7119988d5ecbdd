"""Which gateways there are, and which snapshot each of them serves.

The gateways are the ready endpoints of one Service. Each is asked on its ops port for the digest
it serves. Published snapshots are numbered, so "is this object live on that gateway" is whether
the gateway's number is at least the one that brought the object.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import structlog

from tollhouse_operator.cluster import Cluster, path
from tollhouse_operator.watching import Watch

_log = structlog.get_logger(__name__)

STEADY_SECONDS = 30.0
"""How often every gateway is asked again when nothing was published."""
_CHASE_SECONDS = 10.0
"""How long gateways that are behind are asked in quick succession."""
_FIRST_PAUSE = 0.03
_LONGEST_PAUSE = 2.0
_PARALLEL = 32
_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_HISTORY = 1024
_MAX_ANSWER_BYTES = 64 * 1024
OPS_PORT = "ops"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway pod. ``identity`` is the pod's uid, or its address where there is no pod."""

    identity: str
    address: str
    port: int

    def url(self, where: str) -> str:
        """Of ``where``, a path such as ``/config``, on its ops port."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}{where}"


class _Config(msgspec.Struct, frozen=True):
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Census:
    """How many gateways are ready, and the number of the snapshot that each serves.

    A gateway that serves what was published before this operator started leading, or did not
    answer yet, counts as 0.
    """

    serving: tuple[int, ...]

    @property
    def total(self) -> int:
        return len(self.serving)

    @property
    def floor(self) -> int:
        """What every gateway has reached at least."""
        return min(self.serving, default=0)

    def live(self, number: int) -> int:
        """How many gateways serve this snapshot or a later one."""
        return sum(serving >= number for serving in self.serving)


class Fleet:
    """Follows the Service and asks its gateways. ``changed`` is called when the census differs."""

    def __init__(
        self, cluster: Cluster, service: tuple[str, str] | None, changed: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._service = service
        self._changed = changed
        self._slices: dict[str, list[Gateway]] = {}
        self._numbers: dict[str, int] = {}
        self._number = 0
        self._serving: dict[str, int] = {}
        self._wake = asyncio.Event()
        self.listed = service is None

    def published(self, digest: str) -> int:
        """A snapshot was put in force (again); returns its number, counted from 1."""
        if self._numbers.get(digest) != self._number or not self._number:
            self._number += 1
            self._numbers.pop(digest, None)
            self._numbers[digest] = self._number
            while len(self._numbers) > _HISTORY:
                del self._numbers[next(iter(self._numbers))]
            self._wake.set()
        return self._number

    def census(self) -> Census:
        return Census(tuple(self._serving.get(one.identity, 0) for one in self._gateways()))

    def gateways(self) -> list[Gateway]:
        """The ready gateways, those with the newest snapshot first."""
        return sorted(self._gateways(), key=lambda it: -self._serving.get(it.identity, 0))

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        if self._service is None:
            await asyncio.Event().wait()
            return
        namespace, name = self._service
        watch = Watch(
            self._cluster,
            path("EndpointSlice", namespace),
            labels=f"kubernetes.io/service-name={name}",
            listed=self._listed,
            changed=self._slice_changed,
        )
        connector = aiohttp.TCPConnector(limit=_PARALLEL, limit_per_host=1)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(watch.run())
            group.create_task(self._ask_forever(session))

    async def _ask_forever(self, session: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            await self._ask(session, self._gateways())
            chase_until = loop.time() + _CHASE_SECONDS
            pause = _FIRST_PAUSE
            while (behind := self._behind()) and loop.time() < chase_until:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_PAUSE)
                if self._wake.is_set():
                    self._wake.clear()
                    chase_until, pause = loop.time() + _CHASE_SECONDS, _FIRST_PAUSE
                await self._ask(session, behind)
            if behind:
                _log.warning("gateways are behind", behind=len(behind), number=self._number)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), STEADY_SECONDS)

    def _behind(self) -> list[Gateway]:
        return [
            one for one in self._gateways() if self._serving.get(one.identity, 0) < self._number
        ]

    async def _ask(self, session: aiohttp.ClientSession, gateways: Iterable[Gateway]) -> None:
        gate = asyncio.Semaphore(_PARALLEL)

        async def ask(gateway: Gateway) -> None:
            async with gate:
                digest = await _digest(session, gateway)
            # One that does not answer serves at least what it served before.
            number = self._numbers.get(digest, 0) if digest is not None else None
            if number is not None and self._serving.get(gateway.identity) != number:
                self._serving[gateway.identity] = number
                self._changed()

        await asyncio.gather(*(ask(gateway) for gateway in gateways))
        there = {gateway.identity for gateway in self._gateways()}
        for identity in self._serving.keys() - there:
            del self._serving[identity]

    def _gateways(self) -> list[Gateway]:
        """Each ready gateway once, also where it has an address of each family."""
        found: dict[str, Gateway] = {}
        for gateways in self._slices.values():
            for gateway in gateways:
                found.setdefault(gateway.identity, gateway)
        return list(found.values())

    def _listed(self, items: list[dict[str, Any]]) -> None:
        self._slices = {item["metadata"]["name"]: gateways_of(item) for item in items}
        self.listed = True
        self._wake.set()
        self._changed()

    def _slice_changed(self, event: str, found: dict[str, Any]) -> None:
        name = found["metadata"]["name"]
        if event == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = gateways_of(found)
        self._wake.set()
        self._changed()


def gateways_of(endpoint_slice: Mapping[str, Any]) -> list[Gateway]:
    """The ready gateways of an EndpointSlice that has a port called ``ops``."""
    ports = endpoint_slice.get("ports") or []
    port = next((one.get("port") for one in ports if one.get("name") == OPS_PORT), None)
    if port is None:
        return []
    return [
        Gateway(
            identity=(endpoint.get("targetRef") or {}).get("uid") or endpoint["addresses"][0],
            address=endpoint["addresses"][0],
            port=port,
        )
        for endpoint in endpoint_slice.get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is not False
    ]


async def _digest(session: aiohttp.ClientSession, gateway: Gateway) -> str | None:
    """The digest that a gateway serves, or None where it does not say so."""
    try:
        async with session.get(gateway.url("/config"), allow_redirects=False) as response:
            body = await response.content.read(_MAX_ANSWER_BYTES)
        if response.status != 200:
            return None
        return msgspec.json.decode(body, type=_Config).digest
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError):
        return None
