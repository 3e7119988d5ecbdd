"""Attempts at providers: in which order, for how long, and what ends them.

A call goes level by level. Each priority level gets one try and ``retries.attempts`` more, going
round its targets; then the next level has its turn. A stream commits at the first event that holds
a piece of the answer: until then a failure falls back as if nothing had happened, and after it the
caller has seen a beginning that no other provider can continue.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry.context import Context

from tollhouse import routing
from tollhouse.api.estimate import Estimate
from tollhouse.api.usage import Usage
from tollhouse.binary import Binary
from tollhouse.errors import (
    BrokenAnswer,
    ConnectError,
    Limited,
    NoTarget,
    Saturated,
    StatusError,
    UpstreamError,
    UpstreamTimeout,
)
from tollhouse.health import Health, blames_target
from tollhouse.providers import openai
from tollhouse.snapshot import Provider, Retries, Snapshot, Target
from tollhouse.stream import Stream, Watches
from tollhouse.telemetry import Metrics, Tracer
from tollhouse.transport import (
    MAX_ANSWER_BYTES,
    Answer,
    HTTPTransport,
    MockTransport,
    Outgoing,
    Patience,
    Transport,
    Upload,
)

T = TypeVar("T")

_ERROR_BYTES = 64 * 1024
_MISCONFIGURED = frozenset({401, 403, 404, 405})
"""What a provider says when our credential or its model's name is wrong, or when it does not serve
the endpoint: another may do."""
_TIMED = 4096
"""How many targets' first-byte times are kept."""
_MOST_BACKOFF = 10.0
"""Seconds. A provider that asks for a longer pause is passed over instead."""


Compose = Callable[[Provider, str], tuple[str, bytes | Upload]]
"""From a provider and its own name for the model to the URL and body to send to it."""


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask of whichever provider answers. ``headers`` are the caller's.

    ``operation`` is the word for it in spans: ``chat``, ``embeddings``.
    """

    operation: str
    resolution: routing.Resolution
    compose: Compose
    headers: Mapping[str, str] = field(repr=False)
    trace: Context | None
    started: float
    """When the request came in, on the clock of ``time.monotonic``: ``total`` counts from here."""
    enter: Callable[[Provider], Awaitable[None]] | None = None
    """Asked before each attempt, where a provider of the route has limits; raises Limited."""


@dataclass(slots=True)
class Trail:
    """What happened on the way: kept for headers, errors and telemetry, also when all failed.

    ``waited`` is the time spent waiting for providers, in seconds; ``charged`` says that the last
    one may charge for the request: it was sent, and no failure is known.
    """

    attempts: int = 0
    waited: float = 0.0
    provider: Provider | None = None
    target: Target | None = None
    model: str = ""
    usage: Usage | None = None
    failure: UpstreamError | None = None
    charged: bool = False


class _Attempt:
    """One request to one provider, from the first byte sent to the last byte received."""

    def __init__(
        self, upstream: "Upstream", call: Call, trail: Trail, target: Target, provider: Provider
    ) -> None:
        self.target = target
        self._upstream = upstream
        self._call = call
        self._trail = trail
        self._provider = provider
        self._begun = False
        self._ended = False
        self._patience = Patience(target.timeouts, call.started)

    async def run(self, finish: "Callable[[_Attempt, Answer], Awaitable[T]]") -> T:
        """Send, wait for the head, hand the answer to ``finish``. Raises UpstreamError."""
        call, trail, provider = self._call, self._trail, self._provider
        trail.provider, trail.target = provider, self.target
        self._upstream.enter(provider)
        trail.attempts += 1
        trail.model = model = routing.upstream_model(call.resolution, self.target)
        self._name = (provider.id, model)
        health = self._upstream.health
        self._probe = bool(health) and health.begin(self._name)
        self._span = self._upstream.tracer.attempt(
            call.trace,
            operation=call.operation,
            model=model,
            provider=provider.id,
            kind=provider.type,
            number=trail.attempts,
        )
        answer: Answer | None = None
        begun = time.monotonic()
        try:
            outgoing = self._outgoing(model)
            trail.charged = True
            transport = self._upstream.transport(provider)
            answer = await self._patience.first_byte(
                transport.send(provider, outgoing, self.target.timeouts.connect)
            )
            self._begun = True
            self._span.first_byte(answer.status)
            took = time.monotonic() - begun
            self._upstream.metrics.first_byte(provider.id).observe(took)
            self._upstream.note(self._name, took)
            if answer.status >= 300:
                raise await self._refusal(answer)
            finished = await finish(self, answer)
            if health and not self._ended:
                health.answers(self._name)
                self._probe = False
            return finished
        except UpstreamError as error:
            if answer is not None:
                answer.close()
            self.end(error.outcome, None, error)
            raise
        except BaseException:
            if answer is not None:
                answer.close()
            self.end("cancelled", None)
            raise
        finally:
            trail.waited += time.monotonic() - begun

    def end(self, outcome: str, usage: Usage | None, error: UpstreamError | None = None) -> None:
        """Close the books; ``outcome`` is ``ok``, ``cancelled`` or the word of the ``error``."""
        if self._ended:
            return
        self._ended = True
        self._patience.close()
        self._judge(outcome, error)
        self._upstream.leave(self._provider)
        self._upstream.metrics.attempts(self._provider.id, outcome).inc()
        if usage is not None:
            self._span.usage(
                usage.prompt_tokens,
                usage.completion_tokens,
                estimated=isinstance(usage, Estimate),
            )
        self._span.end(outcome)

    async def read(self, answer: Answer, limit: int) -> bytes:
        """The whole body. Raises BrokenAnswer beyond ``limit`` bytes, UpstreamTimeout on stalls."""
        pieces: list[bytes] = []
        size = 0
        while True:
            piece = await self._patience.chunk(answer)
            if not piece:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            size += len(piece)
            if size > limit:
                raise BrokenAnswer(f"the answer is larger than {limit} bytes")
            pieces.append(piece)

    async def whole(self, answer: Answer, read_usage: Callable[[bytes], Usage | None]) -> bytes:
        """Read the whole body and end the attempt. BrokenAnswer where ``read_usage`` refuses it."""
        body = await self.read(answer, MAX_ANSWER_BYTES)
        try:
            usage = self._trail.usage = read_usage(body)
        except ValueError as error:
            raise BrokenAnswer(str(error)) from None
        answer.close()
        self.end("ok", usage)
        return body

    async def begin(self, answer: Answer, watch: Watches) -> Stream:
        """The events from the first one with content on."""
        stream = Stream(answer, watch=watch.fresh(), patience=self._patience, ended=self.end)
        await self._patience.first_byte(stream.begin())
        return stream

    async def binary(self, answer: Answer) -> Binary:
        """The bytes from the first one on."""
        first = await self._patience.first_byte(answer.chunk())
        return Binary(answer, first, patience=self._patience, ended=self.end)

    def _judge(self, outcome: str, error: UpstreamError | None) -> None:
        """Tell what this end says of the target's health."""
        health = self._upstream.health
        attempts = self._trail.attempts
        if error is not None and blames_target(error, begun=self._begun, attempts=attempts):
            health.failed(self._name, self._provider, outcome)
        elif outcome == "ok" and health:
            health.succeeded(self._name)
        elif self._probe:
            health.release(self._name)

    def _outgoing(self, model: str) -> Outgoing:
        url, body = self._call.compose(self._provider, model)
        headers = openai.headers(self._provider)
        if isinstance(body, Upload):
            headers["Content-Type"] = body.content_type
            headers["Content-Length"] = str(body.length)
        self._span.propagate(self._call.headers, headers)
        return Outgoing(url=url, headers=headers, body=body)

    async def _refusal(self, answer: Answer) -> UpstreamError:
        if answer.status < 400:
            return BrokenAnswer(f"the provider answered with a redirect ({answer.status})")
        retry_after = _retry_after(answer.headers)
        try:
            body = await self.read(answer, _ERROR_BYTES)
        except UpstreamError:
            # The status says enough where its explanation does not arrive.
            body = b""
        return StatusError(answer.status, body, retry_after)


class Upstream:
    """Calls providers for one process; knows how many requests each one has right now."""

    def __init__(self, metrics: Metrics, tracer: Tracer) -> None:
        self.metrics = metrics
        self.tracer = tracer
        self._http = HTTPTransport()
        self._mock = MockTransport()
        self._active: dict[str, int] = {}
        self.health = Health(metrics)
        self.latencies: dict[tuple[str, str], float] = {}
        """Seconds to the first byte by (Provider id, upstream model): a moving average."""

    async def whole(
        self,
        snapshot: Snapshot,
        call: Call,
        trail: Trail,
        read_usage: Callable[[bytes], Usage | None],
    ) -> bytes:
        """The body of a whole answer, as the provider sent it.

        ``read_usage`` raises ValueError for a body that is no answer. Raises the last
        UpstreamError when every attempt failed; ``trail`` tells the way there.
        """

        async def read(attempt: _Attempt, answer: Answer) -> bytes:
            return await attempt.whole(answer, read_usage)

        return await self._first(snapshot, call, trail, read)

    async def stream(self, snapshot: Snapshot, call: Call, trail: Trail, watch: Watches) -> Stream:
        """A stream that has begun; the caller must ``close`` it.

        ``watch`` looks at the events as they pass. Raises the last UpstreamError when every
        attempt failed; ``trail`` tells the way there.
        """

        async def begin(attempt: _Attempt, answer: Answer) -> Stream:
            return await attempt.begin(answer, watch)

        return await self._first(snapshot, call, trail, begin)

    async def any(
        self,
        snapshot: Snapshot,
        call: Call,
        trail: Trail,
        *,
        read_usage: Callable[[bytes], Usage | None],
        watch: Watches,
    ) -> bytes | Stream | Binary:
        """What the provider's content type says: a whole JSON body, events, or any other bytes.

        The caller must ``close`` a Stream or a Binary. Raises the last UpstreamError when every
        attempt failed; ``trail`` tells the way there.
        """

        async def take(attempt: _Attempt, answer: Answer) -> bytes | Stream | Binary:
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind == "text/event-stream":
                return await attempt.begin(answer, watch)
            if kind == "application/json" or kind.endswith("+json"):
                return await attempt.whole(answer, read_usage)
            return await attempt.binary(answer)

        return await self._first(snapshot, call, trail, take)

    def transport(self, provider: Provider) -> Transport:
        """The seam for this type of provider."""
        return self._mock if provider.type == "Mock" else self._http

    async def keep(self, snapshot: Snapshot) -> None:
        """Close what no provider of this snapshot uses any more."""
        self.health.keep(snapshot.providers)
        providers = snapshot.providers.values()
        self._mock.keep(providers)
        await self._http.keep(providers)

    async def close(self) -> None:
        await self._http.close()

    async def _first(
        self,
        snapshot: Snapshot,
        call: Call,
        trail: Trail,
        finish: "Callable[[_Attempt, Answer], Awaitable[T]]",
    ) -> T:
        for target, provider, pause in self._plan(snapshot, call, trail):
            if pause:
                await asyncio.sleep(pause)
            attempt = _Attempt(self, call, trail, target, provider)
            try:
                if call.enter is not None:
                    await call.enter(provider)
                return await attempt.run(finish)
            except UpstreamError as error:
                trail.failure = error
                trail.charged = False
        raise trail.failure or NoTarget("no target of this route is in the snapshot")

    def _plan(
        self, snapshot: Snapshot, call: Call, trail: Trail
    ) -> Iterator[tuple[Target, Provider, float]]:
        """The attempts one after the other, each with the pause (seconds) before it.

        How the attempt before ended, in ``trail.failure``, decides whether there is another.
        """
        retries = call.resolution.route.retries
        levels = [
            [target for target in level if target.provider in snapshot.providers]
            for level in routing.order(call.resolution.route.targets, random.random)
        ]
        # With every target passed over, to refuse would make an outage of a bad minute for sure.
        some_well = any(self._well(call, level) for level in levels)
        for number, level in enumerate(levels):
            elsewhere = some_well and number < len(levels) - 1
            targets = level
            turns = 1 + max(retries.attempts, len(targets) - 1)
            previous: Target | None = None
            for turn in range(turns):
                if some_well and self.health:
                    targets = self._well(call, targets) or ([] if elsewhere else targets)
                if not targets:
                    break
                target = targets[turn % len(targets)]
                pause = _pause(retries, turn, trail.failure) if target is previous else 0.0
                if pause > _MOST_BACKOFF:
                    break
                yield target, snapshot.providers[target.provider], pause
                previous = target
                if trail.failure is None or not _may_go_on(trail.failure, retries):
                    return
                if _is_hopeless(trail.failure):
                    targets = [it for it in targets if it is not target]

    def _well(self, call: Call, targets: list[Target]) -> list[Target]:
        """Those of the targets that are not passed over now."""
        health = self.health
        if not health:
            return targets
        name = routing.upstream_model
        return [it for it in targets if health.takes((it.provider, name(call.resolution, it)))]

    def note(self, target: tuple[str, str], seconds: float) -> None:
        """Take one more first-byte time into a target's average; the last ten weigh most."""
        before = self.latencies.get(target)
        if before is None and len(self.latencies) >= _TIMED:
            # Callers of wildcard routes make models up.
            self.latencies.clear()
        self.latencies[target] = seconds if before is None else before + (seconds - before) / 5

    def enter(self, provider: Provider) -> None:
        """Count a request in. Raises Saturated when the provider has its ``maxConcurrent``."""
        active = self._active.get(provider.id, 0)
        if provider.max_concurrent is not None and active >= provider.max_concurrent:
            raise Saturated(f"{active} requests are with the provider already")
        self._active[provider.id] = active + 1

    def leave(self, provider: Provider) -> None:
        """Count a request out."""
        left = self._active[provider.id] - 1
        if left:
            self._active[provider.id] = left
        else:
            del self._active[provider.id]


def _may_go_on(error: UpstreamError, retries: Retries) -> bool:
    """Whether another attempt, here or elsewhere, can help and the route wants it."""
    on = retries.on
    if isinstance(error, Saturated | Limited):
        return True
    if isinstance(error, ConnectError | BrokenAnswer):
        return "Connect" in on
    if isinstance(error, UpstreamTimeout):
        return error.which != "total" and "Timeout" in on
    if isinstance(error, StatusError):
        status = error.status
        if status in _MISCONFIGURED:
            return True
        return (
            str(status) in on
            or (status == 408 and "Timeout" in on)
            or ((status >= 500 or status == 409) and "5xx" in on)
        )
    return False


def _is_hopeless(error: UpstreamError) -> bool:
    """Whether the same target would only say the same again."""
    return isinstance(error, Saturated | Limited) or (
        isinstance(error, StatusError) and error.status in _MISCONFIGURED
    )


def _pause(retries: Retries, turn: int, error: UpstreamError | None) -> float:
    """Seconds before the same target is tried again: exponential, with half of it random."""
    backoff: float = min(retries.backoff * 2 ** (turn - 1), _MOST_BACKOFF) * random.uniform(
        0.5, 1.0
    )
    asked = error.retry_after if isinstance(error, StatusError) else None
    return backoff if asked is None else max(backoff, asked)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """``retry-after-ms`` or ``Retry-After`` in seconds; the date form is not worth a clock."""
    for name, unit in (("retry-after-ms", 1000.0), ("Retry-After", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    return None
