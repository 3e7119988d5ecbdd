"""The store of many processes, whichever server holds it.

The reservations that one turn of the event loop asks for are one batch, sent in one trip. What is
settled is queued and sent in order. Each batch has a number, and the server remembers what it did
with it: a settlement that is sent again is not applied again, and a reservation whose answer was
lost is looked up once the server is back, then charged or taken back. Before that look-up the
server is told to ignore whatever of ours still lies in its buffers.

No request waits for longer than ``timeout``. After an error, or several timeouts in a row, the
store counts as away: no request waits at all until a probe has found it again.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import structlog

from tollhouse.errors import StoreError
from tollhouse.store import Admission, Count, OnFailure, State, outbox, wire
from tollhouse.store.counting import holds
from tollhouse.store.outbox import Outbox
from tollhouse.store.standin import StandIn
from tollhouse.telemetry import Metrics

log = structlog.get_logger()

_MOST_REQUESTS = 128
"""In one batch, so that the server is not blocked for longer than some milliseconds."""
_MOST_FLYING = 4
"""Batches that wait for their answers at once; further requests gather in the next ones."""
_MOST_TIMEOUTS = 3
_UNREAD_SECONDS = 0.05
"""For reading an answer that came while this process was busy with something else."""
_CALL_SECONDS = 1.0
"""After which an answer is lost, though no request waits for it any more."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_BEATS_PER_LEASE = 3
_CLOSE_SECONDS = 2.0
_MOST_BATCHES_ON_RETURN = 1000


class _Asked:
    """One request in a batch. ``decision`` is what was decided, at the moment ``at`` (monotonic
    seconds), without waiting any longer; ``when`` is when the server took it, in its own ms."""

    __slots__ = ("at", "counts", "decision", "future", "lease", "when")

    def __init__(
        self, counts: tuple[Count, ...], lease: str, future: "asyncio.Future[Admission]"
    ) -> None:
        self.counts = counts
        self.lease = lease
        self.future = future
        self.decision: Admission | None = None
        self.at = 0.0
        self.when = 0


class _Batch:
    """Requests that are asked together."""

    __slots__ = ("asked", "generation", "number", "patient", "resolved", "timer")

    def __init__(self) -> None:
        self.asked: list[_Asked] = []
        self.timer: asyncio.TimerHandle | None = None
        self.patient = True
        self.number = 0
        self.generation = 0
        self.resolved = False


class SharedStore:
    """A ``Store`` behind a backend. ``timeout`` and ``lease`` are in seconds."""

    def __init__(
        self, backend: wire.Backend, metrics: Metrics, *, timeout: float, lease: float
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._timeout = timeout
        self._call_seconds = max(_CALL_SECONDS, timeout)
        self._lease = lease
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._up = True
        self._since = time.monotonic()
        self._down = asyncio.Event()
        self._generation = 1
        self._timeouts = 0
        self._processes = 1
        self._waiting: deque[_Batch] = deque()
        self._flying: dict[int, _Batch] = {}
        self._calling = 0
        self._done: list[int] = []
        self._held: dict[str, tuple[tuple[Count, ...], float]] = {}
        self._outbox = Outbox()
        self._something = asyncio.Event()
        self._undelivered: tuple[int, list[outbox.Change]] | None = None
        self._applied = itertools.count(1)
        self._delivering = asyncio.Lock()
        self._standin = StandIn(lease, time.monotonic)
        self._tasks: set[asyncio.Task[Any]] = set()
        metrics.store_up.set(1)

    # What requests call.

    async def reserve(self, counts: Sequence[Count]) -> Admission:
        counts = tuple(counts)
        if not counts:
            return Admission((), ())
        lease = f"{self._process}-{next(self._numbers)}"
        if not self._up:
            admission = self._decide(counts, lease)
            if admission.granted:
                self._tell(outbox.charged(counts, time.monotonic()))
            return admission
        loop = asyncio.get_running_loop()
        if not self._waiting or len(self._waiting[-1].asked) >= _MOST_REQUESTS:
            batch = _Batch()
            batch.timer = loop.call_later(self._timeout, self._late, batch)
            self._waiting.append(batch)
            loop.call_soon(self._flush)
        asked = _Asked(counts, lease, loop.create_future())
        self._waiting[-1].asked.append(asked)
        try:
            return await asked.future
        except asyncio.CancelledError:
            # An answer may have come in the turn in which the caller left.
            if asked.future.done() and not asked.future.cancelled():
                self._withdraw(asked.future.result(), asked.when)
            raise

    def settle(self, admission: Admission, amounts: Sequence[int]) -> None:
        if not admission.lease:
            return
        self._held.pop(admission.lease, None)
        self._standin.settle(admission.lease, amounts)
        now = time.monotonic()
        self._tell(outbox.settled(admission.counts, admission.lease, amounts, now))

    async def read(self, counts: Sequence[Count]) -> tuple[State, ...] | None:
        if not self._up or not counts:
            return () if self._up else None
        batch = wire.Counters()
        for count in counts:
            # Each has a place of its own in the answer, though a counter may be asked for twice.
            batch.names.append(wire.name(count))
            batch.kinds.append(wire.counter(count))
        wanted = [(count.amount, count.limit, count.refuses) for count in counts]
        try:
            async with asyncio.timeout(self._timeout):
                [flat] = await self._call(batch, "read", wanted)
        except (StoreError, TimeoutError):
            return None
        return _states(flat)

    # Batches of reservations.

    def _flush(self) -> None:
        while self._waiting and self._calling < _MOST_FLYING and self._up:
            batch = self._waiting.popleft()
            batch.asked = [asked for asked in batch.asked if not asked.future.cancelled()]
            if not batch.asked:
                self._stop_timer(batch)
                continue
            self._calling += 1
            task = asyncio.create_task(self._send(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: _Batch) -> None:
        batch.number = next(self._numbers)
        batch.generation = self._generation
        self._flying[batch.number] = batch
        done, self._done = self._done, []
        counters = wire.Counters()
        requests: list[list[Any]] = []
        for asked in batch.asked:
            request: list[Any] = [asked.lease]
            for count in asked.counts:
                number = counters.number(wire.name(count), wire.counter(count))
                request.append((number, count.amount, count.limit, count.refuses, holds(count)))
            requests.append(request)
        try:
            answers, when = await self._call(
                counters, "reserve", batch.generation, batch.number, done, requests
            )
        except StoreError as error:
            # Whether it was applied is asked when the store is back; see _return.
            if not batch.resolved:
                self._lost(error)
        else:
            self._answer(batch, answers, when)
        finally:
            self._stop_timer(batch)
            # Whatever happened: with the timer gone, nobody else would answer.
            self._decide_all(batch, sent=True)
            self._calling -= 1
            self._flush()

    def _answer(self, batch: _Batch, answers: list[list[Any]], when: int) -> None:
        if batch.resolved:
            return
        del self._flying[batch.number]
        batch.resolved = True
        self._done.append(batch.number)
        now = time.monotonic()
        learn = self._standin.learn
        for asked, (refused, *flat) in zip(batch.asked, answers, strict=True):
            asked.when = when
            if asked.decision is not None or asked.future.cancelled():
                self._resolve(asked, applied=not refused)
                continue
            states = _states(flat)
            for count, state in zip(asked.counts, states, strict=True):
                learn(wire.name(count), state.used, now)
            lease = ""
            if not refused and any(map(holds, asked.counts)):
                lease = asked.lease
                self._held[lease] = (asked.counts, now)
            asked.future.set_result(Admission(asked.counts, states, tuple(refused), (), lease))
        if batch.timer is not None:
            self._timeouts = 0

    def _late(self, batch: _Batch) -> None:
        """No request of this batch waits any longer."""
        loop = asyncio.get_running_loop()
        if batch.patient and batch.timer is not None:
            batch.patient = False
            if loop.time() - batch.timer.when() > _UNREAD_SECONDS:
                # It is this process that was late, and the answer may lie there unread.
                batch.timer = loop.call_later(_UNREAD_SECONDS, self._late, batch)
                return
        batch.timer = None
        if batch in self._waiting:
            self._waiting.remove(batch)
            self._decide_all(batch, sent=False)
        else:
            self._decide_all(batch, sent=True)
        self._timeouts += 1
        if self._timeouts >= _MOST_TIMEOUTS:
            self._lost(StoreError(f"no answer within {self._timeout * 1000:g} ms"))

    def _decide_all(self, batch: _Batch, *, sent: bool) -> None:
        for asked in batch.asked:
            if asked.future.done():
                continue
            asked.decision = self._decide(asked.counts, asked.lease)
            asked.at = time.monotonic()
            if not sent and asked.decision.granted:
                self._tell(outbox.charged(asked.counts, asked.at))
            asked.future.set_result(asked.decision)

    def _resolve(self, asked: _Asked, *, applied: bool) -> None:
        """It is known now whether the server took what was decided here without it."""
        granted = asked.decision is not None and asked.decision.granted
        now = time.monotonic()
        if granted and not applied:
            self._tell(outbox.charged(asked.counts, asked.at))
        elif applied and not granted:
            self._tell(outbox.taken_back(asked.counts, asked.when))
        if asked.lease in self._held:
            self._tell(outbox.renewed(asked.counts, asked.lease, now))
        elif applied:
            self._tell(outbox.released(asked.counts, asked.lease, now))

    def _withdraw(self, admission: Admission, when: int) -> None:
        """Nobody is there any more for whom this was granted."""
        if admission.granted:
            self._tell(outbox.taken_back(admission.counts, when))
            self.settle(admission, [0] * len(admission.counts))

    def _decide(self, counts: tuple[Count, ...], lease: str) -> Admission:
        """What each count's ``on_failure`` says."""
        if not any(map(holds, counts)):
            lease = ""
        states, refused, unavailable = self._standin.decide(counts, lease, self._processes)
        for mode in OnFailure:
            found = sum(count.on_failure is mode for count in counts)
            if found:
                self._metrics.store_decisions(mode.value).inc(found)
        if refused or unavailable:
            lease = ""
        elif lease:
            self._held[lease] = (counts, time.monotonic())
        return Admission(counts, states, refused, unavailable, lease)

    @staticmethod
    def _stop_timer(batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()

    # Changes.

    def _tell(self, changes: list[outbox.Change]) -> None:
        if changes:
            self._outbox.add(changes)
            self._something.set()

    async def _deliver(self) -> None:
        """Send one batch of changes. Raises StoreError; the batch is then the first to go next."""
        async with self._delivering:
            if self._undelivered is None:
                if not self._outbox:
                    return
                self._undelivered = (next(self._applied), self._outbox.take())
            number, changes = self._undelivered
            now = time.monotonic()
            counters = wire.Counters()
            told = [
                (
                    counters.number(change.name, change.kind),
                    change.member,
                    change.held,
                    change.charge,
                    max(0, int((now - change.at) * 1000)),
                    change.renews,
                    change.when,
                )
                for change in changes
            ]
            await self._call(counters, "apply", number, told)
            self._undelivered = None

    async def flush(self) -> None:
        """Tell the server all that it is still to be told. Raises StoreError."""
        while self._outbox or self._undelivered is not None:
            await self._deliver()

    # The server, there and away.

    async def _call(self, counters: wire.Counters, command: str, *arguments: Any) -> list[Any]:
        request = wire.encode(
            (command, self._process, int(self._lease * 1000), counters.kinds, *arguments)
        )
        begun = time.monotonic()
        # A task of its own: a cancellation that a client library loses must not be ours, and a
        # command that is under way is not cut off in the middle of its answer.
        call = asyncio.create_task(self._backend.call(self._process, counters.names, request))
        self._tasks.add(call)
        call.add_done_callback(self._tasks.discard)
        await asyncio.wait((call,), timeout=self._call_seconds)
        self._metrics.store_seconds.observe(time.monotonic() - begun)
        if not call.done():
            call.cancel()
            raise StoreError(f"no answer within {self._call_seconds:g} s")
        reply = call.result()
        return wire.decode(reply)

    def _lost(self, error: StoreError) -> None:
        """The store is away from now on."""
        if not self._up:
            return
        self._up = False
        self._since = time.monotonic()
        self._standin.begin()
        self._metrics.store_up.set(0)
        log.error("the store is away: each limit's onStoreFailure decides", why=str(error))
        while self._waiting:
            batch = self._waiting.popleft()
            self._stop_timer(batch)
            self._decide_all(batch, sent=False)
        for batch in self._flying.values():
            self._decide_all(batch, sent=True)
        self._down.set()

    async def _return(self) -> None:
        """Bring the server up to date, then ask it again. Raises StoreError when it is away."""
        self._generation += 1
        counters = wire.Counters()
        [results] = await self._call(counters, "fence", self._generation)
        granted = {number: (marks, when) for number, marks, when in results}
        for number, batch in list(self._flying.items()):
            if batch.generation >= self._generation:
                continue
            del self._flying[number]
            batch.resolved = True
            marks, when = granted.get(number, ("0" * len(batch.asked), 0))
            for asked, mark in zip(batch.asked, marks, strict=True):
                asked.when = when
                self._resolve(asked, applied=mark == "1")
        # Only now: had this answer been lost, the next one would have had to say it all again.
        self._done = list(granted)
        await self._beat()
        await self._renew(0.0)
        for _ in range(_MOST_BATCHES_ON_RETURN):
            if not self._outbox and self._undelivered is None:
                break
            await self._deliver()
        self._up = True
        self._timeouts = 0
        self._down.clear()
        self._something.set()
        self._metrics.store_up.set(1)
        log.info("the store is back", away_seconds=round(time.monotonic() - self._since, 1))

    async def _beat(self, *, lives: bool = True) -> None:
        [processes] = await self._call(wire.Counters(), "beat", lives)
        self._processes = max(1, processes)

    async def _renew(self, age: float) -> None:
        """Say that the requests of this age, in seconds, are still under way."""
        now = time.monotonic()
        for lease in tuple(self._held):
            counts, since = self._held.get(lease, ((), now))
            if now - since >= age:
                self._tell(outbox.renewed(counts, lease, now))
            if len(self._outbox) > outbox.MOST_CHANGES // 2:
                await self._deliver()

    # What run owns.

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_delivering())
            tasks.create_task(self._keep_beating())
            tasks.create_task(self._keep_returning())

    async def _keep_delivering(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while self._up and (self._outbox or self._undelivered is not None):
                try:
                    await self._deliver()
                except StoreError as error:
                    self._lost(error)

    async def _keep_beating(self) -> None:
        pause = self._lease / _BEATS_PER_LEASE
        while True:
            if self._up:
                try:
                    await self._beat()
                    await self._renew(pause / 2)
                except StoreError as error:
                    self._lost(error)
            await asyncio.sleep(pause)

    async def _keep_returning(self) -> None:
        while True:
            await self._down.wait()
            for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
                try:
                    await self._return()
                except StoreError:
                    await asyncio.sleep(pause)
                else:
                    break

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if not self._up:
                    await self._return()
                await self.flush()
                await self._beat(lives=False)
        unsent = len(self._outbox)
        if unsent:
            log.error("the store is away; what it was not told is lost", changes=unsent)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._backend.close()


def _states(flat: Sequence[int]) -> tuple[State, ...]:
    """``used`` and ``resets`` in ms, by twos."""
    return tuple(State(int(flat[at]), flat[at + 1] / 1000) for at in range(0, len(flat), 2))
