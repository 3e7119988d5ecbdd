"""Where snapshots come from: a folder of YAML, or Secrets in the cluster.

Both sources work alike. They hand over whole snapshots, each only when it differs from the one
before, never an older one after a newer. Whatever goes wrong, the last good snapshot stays in
force, what is wrong is logged once and reported, and the source tries again by itself.

``folder`` and ``secrets`` are imported where they are used: a gateway in a cluster has no need of
the resource models, which are a good part of a process's memory and of its time to start.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from tollhouse.snapshot import Snapshot

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Update:
    """A snapshot to serve from now on; ``digest`` names its content, whatever it came from."""

    snapshot: Snapshot
    digest: str


Apply = Callable[[Update], None]
"""Puts a snapshot into force, or raises ConfigError and leaves the one before in force."""

Report = Callable[[bool, str | None], None]
"""Called on change only, with whether what is in force is what the source says, and if not, why.
The source has logged it already."""


class Source(Protocol):
    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled. ``apply`` and ``report`` are called on the event loop."""

    def reload(self) -> None:
        """Look again now, whether or not anything seems to have changed."""


class Status:
    """What a source says about itself: it reports and logs every change of it once.

    Being in sync has parts: every one of them must be free of problems.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._parts: dict[str, str | None] = {}
        self._said: str | None = "nothing yet"

    def say(self, part: str, problem: str | None, *, logged: bool = False) -> None:
        """``problem`` None: this part is well. ``logged``: the details are in the log already."""
        self._parts[part] = problem
        now = "; ".join(text for text in self._parts.values() if text) or None
        if now == self._said or (now is None and "content" not in self._parts):
            return
        if now is None:
            log.info("configuration in sync")
        elif not logged:
            log.warning("configuration out of sync, what was good before stays", problem=now)
        self._said = now
        self._report(now is None, now)


async def stopped(task: "asyncio.Task[None]") -> None:
    """Cancels and waits until the task is gone, whatever it ended with."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
