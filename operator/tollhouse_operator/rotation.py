"""When an ApiKey's key is to be replaced, and by which write. Pure: the clock is the caller's.

What a rotation must remember stands in annotations of the Secret and is written together with the
new key, so that an operator that dies in between has either done all of it or nothing:

- ``tollhouse.dev/key-life``: JSON, since when the key that the Secret holds is there, when we last
  replaced one, and which value of ``tollhouse.dev/rotate`` that answered;
- ``tollhouse.dev/previous-digests``: the keys that were replaced and still work.

A key that somebody else wrote into the Secret begins a life of its own: it counts from when we
first saw it.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tollhouse.compile import KEY_NAME, PREVIOUS_DIGESTS
from tollhouse.resources import ApiKey, SecretObject, seconds
from tollhouse.snapshot import key_digest

ROTATE = "tollhouse.dev/rotate"
"""The annotation of an ApiKey that asks for a new key: each new value asks once."""
LIFE = "tollhouse.dev/key-life"
OVERLAP_SECONDS = 24 * 3600.0
"""How long a replaced key works where ``spec.rotation`` does not say; the CRD's default too."""
PRUNE_SECONDS = 60.0
"""How long after its end an older key is still listed: gateways' clocks may be behind ours, and a
caller that comes late hears that its key was rotated, not that nobody knows it."""
MOST_PREVIOUS = 8
"""How many older keys may work at once; one more rotation ends the oldest early."""
_LONGEST_VALUE = 256
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Life:
    """The life of the key with this digest (SHA-256, hex). Instants in seconds since the epoch.

    ``rotated`` is when we last replaced a key, ``asked`` the value of ``tollhouse.dev/rotate`` that
    was there when the key was made, adopted or last replaced.
    """

    digest: str
    since: float
    rotated: float | None = None
    asked: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a Secret says about its key. ``previous``: digests and until when they are valid."""

    digest: str
    life: Life | None
    previous: tuple[tuple[str, float], ...]

    @property
    def known(self) -> bool:
        """Whether the life told is that of the key that is there."""
        return self.life is not None and self.life.digest == self.digest


def state_of(secret: SecretObject) -> State | None:
    """None where the Secret holds no key."""
    value = secret.data.get(KEY_NAME)
    return _state(value.value, secret.annotations) if value is not None and value.value else None


def state_of_manifest(found: Mapping[str, Any]) -> State | None:
    """The same, from a Secret as the API server sends it."""
    try:
        value = base64.b64decode((found.get("data") or {}).get(KEY_NAME, "")).decode()
    except (binascii.Error, ValueError):
        return None
    return _state(value, found["metadata"].get("annotations") or {}) if value else None


def due(api_key: ApiKey, state: State) -> float:
    """When there is something to do about the key, in seconds since the epoch.

    0: at once. NEVER: only once the ApiKey or the Secret changes.
    """
    if _asked(api_key) not in (None, state.life.asked if state.life else None):
        return 0.0
    times = [until + PRUNE_SECONDS for _, until in state.previous]
    if api_key.spec.rotation is not None:
        times.append(_end(api_key, state) if state.known else 0.0)
    return min(times, default=NEVER)


def rotates(api_key: ApiKey, state: State, now: float) -> bool:
    """Whether what is due by ``now`` is a new key, rather than notes about the one there is."""
    if _asked(api_key) not in (None, state.life.asked if state.life else None):
        return True
    return api_key.spec.rotation is not None and state.known and _end(api_key, state) <= now


def change(
    api_key: ApiKey, found: Mapping[str, Any], state: State, new_key: str | None, now: float
) -> dict[str, Any]:
    """The merge patch that does what is due, for exactly the version of the Secret in ``found``.

    ``new_key`` replaces the key that is there, which works on for the overlap; None leaves it.
    """
    previous = {digest: until for digest, until in state.previous if until + PRUNE_SECONDS > now}
    since = state.life.since if state.life is not None and state.known else now
    rotated = state.life.rotated if state.life is not None else None
    data: dict[str, str] = {}
    digest = state.digest
    if new_key is not None:
        overlap = overlap_of(api_key)
        if overlap:
            previous[digest] = max(previous.get(digest, 0.0), now + overlap)
        digest, since, rotated = key_digest(new_key), now, now
        previous.pop(digest, None)
        data[KEY_NAME] = base64.b64encode(new_key.encode()).decode()
    newest = sorted(previous.items(), key=lambda item: item[1])[-MOST_PREVIOUS:]
    asked = _asked(api_key)
    if asked is None and state.life is not None:
        asked = state.life.asked
    listed = [{"digest": one, "validUntil": instant(until)} for one, until in newest]
    annotations = {
        LIFE: _encoded(Life(digest, since, rotated, asked)),
        PREVIOUS_DIGESTS: json.dumps(listed) if listed else None,
    }
    version = found["metadata"]["resourceVersion"]
    made: dict[str, Any] = {"metadata": {"resourceVersion": version, "annotations": annotations}}
    return made | ({"data": data} if data else {})


def beginning(api_key: ApiKey, key: str, now: float) -> dict[str, str]:
    """The annotations of a Secret whose key was just made or adopted."""
    return {LIFE: _encoded(Life(key_digest(key.strip()), now, None, _asked(api_key)))}


def times(api_key: ApiKey, state: State) -> tuple[str | None, str | None]:
    """When we last replaced the key, and when we shall again, for the status; None for never."""
    rotated = state.life.rotated if state.life is not None else None
    planned = api_key.spec.rotation is not None and state.known
    return (
        _second(rotated) if rotated is not None else None,
        _second(_end(api_key, state)) if planned else None,
    )


def overlap_of(api_key: ApiKey) -> float:
    """How long a key that is replaced now works on, in seconds."""
    rotation = api_key.spec.rotation
    return OVERLAP_SECONDS if rotation is None else seconds(rotation.overlap)


def instant(at: float) -> str:
    """Seconds since the epoch as RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _second(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _end(api_key: ApiKey, state: State) -> float:
    """When the key has the age at which it is replaced."""
    if state.life is None or api_key.spec.rotation is None:
        return NEVER
    return state.life.since + seconds(api_key.spec.rotation.every)


def _asked(api_key: ApiKey) -> str | None:
    value = api_key.metadata.annotations.get(ROTATE)
    return value[:_LONGEST_VALUE] if value else None


def _state(value: str, annotations: Mapping[str, str]) -> State:
    return State(
        digest=key_digest(value.strip()),
        life=_life(annotations.get(LIFE)),
        previous=_previous(annotations.get(PREVIOUS_DIGESTS)),
    )


def _life(text: str | None) -> Life | None:
    """None also for what cannot be read: the key then begins anew."""
    try:
        told = json.loads(text or "")
        rotated, asked = told.get("rotated"), told.get("asked")
        return Life(
            digest=str(told["digest"]),
            since=_read(told["since"]),
            rotated=_read(rotated) if rotated is not None else None,
            asked=str(asked) if asked is not None else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _previous(text: str | None) -> tuple[tuple[str, float], ...]:
    try:
        return tuple((str(it["digest"]), _read(it["validUntil"])) for it in json.loads(text or ""))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _read(text: str) -> float:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("no time zone")
    return at.timestamp()


def _encoded(life: Life) -> str:
    told: dict[str, str | None] = {
        "digest": life.digest,
        "since": instant(life.since),
        "rotated": instant(life.rotated) if life.rotated is not None else None,
        "asked": life.asked,
    }
    return json.dumps({name: value for name, value in told.items() if value is not None})
