"""Keys that gateways must take before anybody can read them.

A new key is published first and written into its Secret second: whoever reads it there finds every
gateway ready for it. An operator that dies in between leaves a digest whose key nobody ever saw,
and the next rebuild drops it.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from tollhouse.compile import PREVIOUS_DIGESTS
from tollhouse.resources import Ref, Resources
from tollhouse_operator.fleet import Census

_log = structlog.get_logger(__name__)

WAIT_SECONDS = 5.0
"""A gateway that does not move holds a rotation up for no longer than this."""
_VALID = timedelta(minutes=10)


class Announcements:
    """``rebuild`` asks for one; ``census`` is the fleet's, None while it is not known."""

    def __init__(self, rebuild: Callable[[], None], census: Callable[[], Census | None]) -> None:
        self._rebuild = rebuild
        self._census = census
        self._coming: dict[Ref, tuple[str, str]] = {}
        self._numbers: dict[str, int] = {}
        self._moved = asyncio.Event()

    def joined(self, resources: Resources) -> tuple[Resources, frozenset[str]]:
        """The resources as if the keys to come were valid already, and those keys' digests.

        For a while only: each stands among the older keys of its Secret.
        """
        secrets = dict(resources.secrets)
        joined: set[str] = set()
        for ref, (digest, until) in self._coming.items():
            secret = secrets.get(ref)
            if secret is None:
                continue
            try:
                listed = list(json.loads(secret.annotations.get(PREVIOUS_DIGESTS) or "[]"))
            except (ValueError, TypeError, RecursionError):
                listed = []
            listed.append({"digest": digest, "validUntil": until})
            annotations = {**secret.annotations, PREVIOUS_DIGESTS: json.dumps(listed)}
            secrets[ref] = replace(secret, annotations=annotations)
            joined.add(digest)
        if not joined:
            return resources, frozenset()
        return replace(resources, secrets=secrets), frozenset(joined)

    def published(self, number: int, digests: frozenset[str]) -> None:
        """The snapshot of this number holds these keys."""
        for digest, _ in self._coming.values():
            if digest in digests:
                self._numbers.setdefault(digest, number)
        self._moved.set()

    def fleet_changed(self) -> None:
        self._moved.set()

    async def until_live(self, secret: Ref, digest: str) -> None:
        """Until every gateway takes the key with this digest, or WAIT_SECONDS have passed.

        Call ``done`` for the Secret afterwards.
        """
        self._coming[secret] = digest, (datetime.now(UTC) + _VALID).isoformat()
        self._rebuild()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not self._live(digest):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            _log.warning("a new key is not on every gateway yet", secret="/".join(secret))

    def done(self, secret: Ref) -> None:
        """The key is in its Secret, or will not be."""
        coming = self._coming.pop(secret, None)
        if coming is not None:
            self._numbers.pop(coming[0], None)

    def _live(self, digest: str) -> bool:
        number, census = self._numbers.get(digest), self._census()
        return number is not None and census is not None and census.live(number) == census.total
