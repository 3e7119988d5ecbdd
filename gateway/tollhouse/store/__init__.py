"""Counters for limits and budgets: the seam between what is allowed and where it is counted.

A request *reserves*: every counter that concerns it is asked in one step, and either all take their
amount or none does. What is only known at the end, tokens and money, is *settled* then: the
reservation goes, what was really used is counted. A reservation is a lease: while its process
lives it is renewed, and when the process dies it expires and is as if it had never been.

Amounts are whole numbers: requests, tokens, requests at once, or nano-USD (10⁻⁹ USD).
"""

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from tollhouse.settings import MEMORY_STORE, PARENT_STORE, Settings
from tollhouse.telemetry import Metrics


class Kind(Enum):
    """WINDOW: at most ``limit`` in any stretch of ``span`` seconds. PERIOD: at most ``limit``
    from ``since`` to ``until``. CONCURRENT: at most ``limit`` leases at once."""

    WINDOW = "window"
    PERIOD = "period"
    CONCURRENT = "concurrent"


class OnFailure(Enum):
    """What a counter does while it cannot be reached: let through, refuse, or let each process
    enforce its share of what was left when it was last seen."""

    ALLOW = "Allow"
    DENY = "Deny"
    LOCAL = "Local"


class Count(msgspec.Struct, frozen=True):
    """One counter, its limit, and the ``amount`` that a request takes of it.

    ``counter`` says who is counted, in at most 256 characters; the same text on every gateway is
    the same counter. ``span`` is in seconds, ``since`` and ``until`` in seconds since the Unix
    epoch. With ``settles`` the amount is a reservation until ``settle`` says what was used; without
    it is final once granted (requests), or held until ``settle`` (CONCURRENT). Without ``refuses``
    the limit only counts.
    """

    counter: str
    kind: Kind
    limit: int
    amount: int
    span: float = 0.0
    since: int = 0
    until: int = 0
    settles: bool = False
    refuses: bool = True
    on_failure: OnFailure = OnFailure.LOCAL


class State(msgspec.Struct, frozen=True):
    """A counter as it was left: ``used`` with everything that is reserved.

    ``resets`` is in how many seconds the amount that was asked for would fit, were nothing else
    taken meanwhile; where it fitted, in how many the counter is back at zero. For CONCURRENT nobody
    can know when requests end: it is 1 where there was no room and 0 where there was. An amount
    above the limit never fits; the whole window is told then.
    """

    used: int
    resets: float


class Admission(msgspec.Struct, frozen=True):
    """``states`` are in the order of the counts. ``refused`` are the indexes of those that had no
    room; ``unavailable`` of those that deny because the store is away. Granted: both empty.

    ``lease`` names what is held until it is settled; empty where nothing is.
    """

    counts: tuple[Count, ...]
    states: tuple[State, ...]
    refused: tuple[int, ...] = ()
    unavailable: tuple[int, ...] = ()
    lease: str = ""

    @property
    def granted(self) -> bool:
        return not self.refused and not self.unavailable


class Store(Protocol):
    """Where counters live. One per process; ``run`` is owned by the composition root."""

    async def reserve(self, counts: Sequence[Count]) -> Admission:
        """Take every amount or none, in one step. Never raises for a store that is away, and
        never waits longer than the store's timeout: each count's ``on_failure`` decides."""
        ...

    def settle(self, admission: Admission, amounts: Sequence[int]) -> None:
        """End a granted admission; ``amounts`` are what was really used, one for each count.

        Counts without ``settles`` ignore theirs. Returns at once; it is applied exactly once, soon,
        also when the store is away for a while. May be called once for an admission.
        """
        ...

    async def read(self, counts: Sequence[Count]) -> tuple[State, ...] | None:
        """The counters as they are, nothing taken; None when the store cannot be reached."""
        ...

    async def run(self) -> None:
        """Renew leases, send what was settled, notice a store that goes and returns; until
        cancelled."""
        ...

    async def close(self) -> None:
        """Send what is left to send, within a second or two, and let go."""
        ...


def open_store(
    settings: Settings, metrics: Metrics, environ: Mapping[str, str] | None = None
) -> Store:
    """The store that the settings name; the caller owns ``run`` and ``close``.

    ``environ`` may hold ``TOLLHOUSE_STORE_PASSWORD``. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    # Imported here, so that a process loads only the store that it has.
    if settings.store == MEMORY_STORE:
        from tollhouse.store.memory import MemoryStore
        from tollhouse.store.opening import open_journal

        metrics.store_up.set(1)  # for as long as the process is
        return MemoryStore(open_journal(settings))
    from tollhouse.store.shared import SharedStore

    if settings.store.startswith(PARENT_STORE):
        from tollhouse.store import served

        return SharedStore(
            served.Parent(served.inherited(settings.store)),
            metrics,
            timeout=served.TIMEOUT,
            lease=settings.lease,
        )
    from tollhouse.store.valkey import Valkey, connect

    return SharedStore(
        Valkey(connect(settings.store, environ), settings.store_scope),
        metrics,
        timeout=settings.store_timeout,
        lease=settings.lease,
    )
