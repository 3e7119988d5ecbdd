"""Outlier ejection: targets that keep failing are passed over for a while.

Passive, and known to one process alone: what requests meet is all that is looked at. A target is a
provider's model. After ``consecutiveFailures`` in a row it is passed over for ``cooldown``; then
one request, the probe, goes to it, and decides.

A failure is what the target would do to other requests too: no connection, a timeout, an answer
that breaks off, 408, any 5xx, and 401, by which it refuses the gateway's own credential. Any other
4xx is about the request or, at 429, about its rate: it says nothing of the target's health, and
counts neither as failure nor as success.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from tollhouse.errors import (
    BrokenAnswer,
    ConnectError,
    StatusError,
    UpstreamError,
    UpstreamTimeout,
)
from tollhouse.snapshot import Provider
from tollhouse.telemetry import Metrics

log = structlog.get_logger()

_MOST = 4096
"""How many failing targets are kept in mind: callers of wildcard routes make models up."""
_LONGEST_MODEL = 200
"""Characters of a model's name in a log line."""

Name = tuple[str, str]
"""A target: the Provider's id, and its own name for the model."""


@dataclass(slots=True)
class _Trouble:
    """A target that has failed since it last answered. ``until`` None: it is not passed over."""

    provider: Provider
    failures: int = 0
    until: float | None = None
    probed: bool = False


class Health:
    """Which targets are passed over now. False while none has failed since it last answered."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._troubled: dict[Name, _Trouble] = {}

    def __bool__(self) -> bool:
        return bool(self._troubled)

    def takes(self, target: Name) -> bool:
        """Whether a request may go there: it is not passed over, or its probe is due."""
        trouble = self._troubled.get(target)
        if trouble is None or trouble.until is None:
            return True
        return not trouble.probed and time.monotonic() >= trouble.until

    def begin(self, target: Name) -> bool:
        """Note that a request goes there; True when it is the probe, which ``release`` gives up."""
        trouble = self._troubled.get(target)
        if trouble is None or trouble.until is None or not self.takes(target):
            return False
        trouble.probed = True
        return True

    def release(self, target: Name) -> None:
        """The probe ended without a verdict: the next request is one."""
        trouble = self._troubled.get(target)
        if trouble is not None:
            trouble.probed = False

    def answers(self, target: Name) -> None:
        """An answer has begun: enough for a probe, and no whole success yet."""
        trouble = self._troubled.get(target)
        if trouble is not None and trouble.until is not None:
            # Should this answer break off after all, that is one failure too many again.
            trouble.failures = trouble.provider.health.consecutive_failures - 1
            self._readmit(target, trouble)

    def succeeded(self, target: Name) -> None:
        """A whole answer came."""
        trouble = self._troubled.pop(target, None)
        if trouble is not None and trouble.until is not None:
            self._readmit(target, trouble)

    def failed(self, target: Name, provider: Provider, why: str) -> None:
        """A request failed for a reason that counts; ``why`` is the word for it."""
        trouble = self._troubled.get(target)
        if trouble is None:
            if len(self._troubled) >= _MOST:
                self._forget(next(iter(self._troubled)))
            trouble = self._troubled[target] = _Trouble(provider)
        trouble.failures += 1
        if trouble.until is not None and not trouble.probed:
            # A request that was under way when others failed, or had nowhere else to go.
            return
        if trouble.until is not None or trouble.failures >= provider.health.consecutive_failures:
            if trouble.until is None:
                self._metrics.passed_over(provider.id).inc()
            trouble.until = time.monotonic() + provider.health.cooldown
            trouble.probed = False
            log.warning(
                "target passed over",
                provider=provider.id,
                model=target[1][:_LONGEST_MODEL],
                failures=trouble.failures,
                last=why,
                cooldown=provider.health.cooldown,
            )

    def keep(self, providers: Mapping[str, Provider]) -> None:
        """Forget the targets of providers that are gone or were changed: those start afresh."""
        for target, trouble in list(self._troubled.items()):
            if providers.get(target[0]) != trouble.provider:
                self._forget(target)

    def _forget(self, target: Name) -> None:
        trouble = self._troubled.pop(target)
        if trouble.until is not None:
            self._metrics.passed_over(target[0]).dec()

    def _readmit(self, target: Name, trouble: _Trouble) -> None:
        trouble.until = None
        trouble.probed = False
        self._metrics.passed_over(target[0]).dec()
        log.info("target in use again", provider=target[0], model=target[1][:_LONGEST_MODEL])


def blames_target(error: UpstreamError, *, begun: bool, attempts: int) -> bool:
    """Whether this failure says that the target is unwell.

    ``begun``: an answer's head came. Running out of the request's total time is the target's doing
    only when it never began to answer and no attempt before it had spent that time.
    """
    if isinstance(error, UpstreamTimeout):
        return error.which != "total" or (not begun and attempts == 1)
    if isinstance(error, StatusError):
        return error.status >= 500 or error.status in (401, 408)
    return isinstance(error, ConnectError | BrokenAnswer)
