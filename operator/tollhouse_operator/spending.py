"""Keeps track of what was spent: asks the gateways, and lets statuses follow at a measured pace.

One gateway is asked where all of them count in one store, else each of them. What differs from the
statuses is handed out a few objects at a time, so that ten thousand keys that all spend do not
flood the API server: what somebody waits to hear goes first, then what has waited longest.
While the gateways cannot be asked, statuses stay as they are.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice

import aiohttp
import structlog

from tollhouse.resources import Resource, Resources
from tollhouse_operator import spend
from tollhouse_operator.fleet import Gateway
from tollhouse_operator.ops import Metrics
from tollhouse_operator.spend import Answer, Spent
from tollhouse_operator.store import Key, Store

_log = structlog.get_logger(__name__)

PER_SECOND = 100
"""The most objects whose statuses are written for what they spent, in a second."""
_TICK_SECONDS = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=10.0, sock_connect=2.0)
_MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""A hundred thousand budgets."""
_PARALLEL = 4
_ATTEMPTS = 3
"""Gateways that are tried in one round where one is enough."""
_NONE_SECONDS = 1.0
_BATCH = 200


class Unknown(Exception):
    """What was spent cannot be told for now; the message says why."""


class Spending:
    """``gateways`` are the ready ones, those with the newest snapshot first; ``changed`` is called
    for each object whose status should follow, at most ``PER_SECOND`` times a second; ``seconds``
    lie between two rounds."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        gateways: Callable[[], list[Gateway]],
        changed: Callable[[Key], None],
        seconds: float,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._gateways = gateways
        self._changed = changed
        self._seconds = seconds
        self._handed_out: dict[Key, Spent] = {}
        self._urgent: dict[Key, Spent] = {}
        self._waiting: dict[Key, Spent] = {}
        self._work = asyncio.Event()
        self._known = True

    def of(self, key: Key) -> Spent | None:
        """What a status may say of an object by now; None: leave it as it is."""
        return self._handed_out.get(key)

    async def run(self) -> None:
        """Never returns; ends by cancellation."""
        connector = aiohttp.TCPConnector(limit=_PARALLEL)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._ask_forever(session))
            group.create_task(self._hand_out_forever())

    async def _ask_forever(self, session: aiohttp.ClientSession) -> None:
        while True:
            gateways = self._gateways()
            if not gateways:
                await asyncio.sleep(_NONE_SECONDS)
                continue
            try:
                await self._compare(await _told(session, gateways))
                if not self._known:
                    _log.info("spend is known again")
                self._known = True
            except Unknown as error:
                self._metrics.spend_failures.inc()
                if self._known:
                    _log.warning("spend is not known: statuses stay as they are", error=str(error))
                self._known = False
            await asyncio.sleep(self._seconds)

    async def _compare(self, told: Mapping[Key, Spent]) -> None:
        """Queue what differs from the statuses that the store shows."""
        resources = self._store.resources()
        for number, (key, spent) in enumerate(told.items()):
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
            seen = self._store.seen(key)
            resource = _resource(resources, key)
            if seen is None or resource is None:
                continue
            said = spend.saying(resource, spent, seen.status, seen.generation)
            if said is None:
                continue
            differs = spend.difference(said, seen.status, seen.generation)
            if differs is None:
                self._urgent.pop(key, None)
                self._waiting.pop(key, None)
                self._handed_out[key] = spent
            elif key in self._urgent or (differs.urgent and self._handed_out.get(key) != spent):
                self._waiting.pop(key, None)
                self._urgent[key] = spent
            else:
                # What was handed out and is not written yet is so again, behind everything else.
                self._waiting[key] = spent
        for table in (self._handed_out, self._urgent, self._waiting):
            for key in table.keys() - told.keys():
                del table[key]
        self._metrics.spend_waiting.set(len(self._urgent) + len(self._waiting))
        self._work.set()

    async def _hand_out_forever(self) -> None:
        while True:
            while not (self._urgent or self._waiting):
                self._work.clear()
                await self._work.wait()
            room = max(1, round(PER_SECOND * _TICK_SECONDS))
            for table in (self._urgent, self._waiting):
                for key in list(islice(table, room)):
                    self._handed_out[key] = table.pop(key)
                    self._changed(key)
                    room -= 1
            self._metrics.spend_waiting.set(len(self._urgent) + len(self._waiting))
            await asyncio.sleep(_TICK_SECONDS)


def _resource(resources: Resources, key: Key) -> Resource | None:
    ref = (key[1] or "", key[2])
    if key[0] == "ApiKey":
        return resources.api_keys.get(ref)
    return resources.budgets.get(ref) if key[0] == "Budget" else None


async def _told(session: aiohttp.ClientSession, gateways: list[Gateway]) -> dict[Key, Spent]:
    """What was spent of every budget. Raises Unknown."""
    failure = Unknown("no gateway was asked")
    for number, gateway in enumerate(gateways[:_ATTEMPTS]):
        try:
            first = await _ask(session, gateway)
        except Unknown as error:
            failure = error
            continue
        if first.shared:
            return _reached([first])
        others = [it for it in gateways if it is not gateway]
        if number:
            # Each counts by itself, and one of them does not answer.
            raise failure
        return _reached([first, *await _ask_all(session, others)])
    raise failure


async def _ask_all(session: aiohttp.ClientSession, gateways: list[Gateway]) -> list[Answer]:
    gate = asyncio.Semaphore(_PARALLEL)

    async def ask(gateway: Gateway) -> Answer:
        async with gate:
            return await _ask(session, gateway)

    found = await asyncio.gather(*(ask(it) for it in gateways), return_exceptions=True)
    answers = []
    for it in found:
        if isinstance(it, BaseException):
            raise it
        answers.append(it)
    return answers


def _reached(answers: list[Answer]) -> dict[Key, Spent]:
    found = spend.together(answers)
    if not found and any(answer.budgets for answer in answers):
        raise Unknown("the gateways cannot reach their store")
    return found


async def _ask(session: aiohttp.ClientSession, gateway: Gateway) -> Answer:
    """Raises Unknown."""
    where = gateway.url("/spend")
    try:
        async with session.get(where, allow_redirects=False) as response:
            if response.status != 200:
                raise Unknown(f"{where} answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    raise Unknown(f"{where} answers with more than {_MAX_ANSWER_BYTES} bytes")
        return await asyncio.to_thread(spend.read, bytes(body))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unknown(f"{where}: {type(error).__name__}") from error
