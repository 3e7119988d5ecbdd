"""Keys: how they are made, and from a presented key to its caller.

A key of ours is ``sk-th-``, 43 base62 characters that hold 256 random bits, and 6 that hold the
CRC-32 of what stands before them, so that a scanner can spot a key and a typo is told from a
revoked one. Any other string of 16 characters or more can be adopted as a key.
"""

import secrets
import zlib
from collections.abc import Mapping

from tollhouse.errors import RequestError
from tollhouse.snapshot import Key, Snapshot, key_digest

PREFIX = "sk-th-"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARS = 43
_CHECKSUM_CHARS = 6
_LONGEST_KEY = 512


def new_key() -> str:
    """A fresh key: 256 random bits and a checksum, 55 characters in all."""
    body = PREFIX + _base62(secrets.randbits(256), _RANDOM_CHARS)
    return body + _checksum(body)


def looks_like_ours(key: str) -> bool:
    """Whether the key has the form of one that we made, right or mistyped."""
    return key.startswith(PREFIX)


def checksum_holds(key: str) -> bool:
    """Whether a key of our form is one that we could have made: False means mistyped."""
    body, checksum = key[:-_CHECKSUM_CHARS], key[-_CHECKSUM_CHARS:]
    whole = len(PREFIX) + _RANDOM_CHARS + _CHECKSUM_CHARS
    return looks_like_ours(key) and len(key) == whole and _checksum(body) == checksum


def identify(headers: Mapping[str, str], snapshot: Snapshot, now: float) -> Key:
    """The caller that these request headers name; ``now`` in seconds since the epoch.

    Reads ``Authorization: Bearer``, ``x-api-key`` (Anthropic's SDKs) or ``api-key`` (Azure's).
    Every presented key costs the same hash and look-up, and nothing is compared byte by byte.
    Raises RequestError with a 401 code.
    """
    presented = _presented(headers)
    caller = snapshot.key(key_digest(presented))
    if caller is None:
        if looks_like_ours(presented) and not checksum_holds(presented):
            raise RequestError(
                "malformed_api_key",
                "This API key is mistyped or cut short: its checksum does not hold. "
                "Copy the whole key again.",
            )
        raise RequestError(
            "invalid_api_key",
            "No caller has this API key. It may have been revoked or rotated: read the current one "
            "from the Secret of your ApiKey.",
        )
    if caller.disabled:
        raise RequestError(
            "disabled_api_key",
            f"The ApiKey {caller.id} is disabled. Ask its owner to set spec.disabled to false.",
        )
    if caller.expires_at is not None and now >= caller.expires_at:
        raise RequestError(
            "expired_api_key",
            f"The ApiKey {caller.id} has expired. Ask its owner to move spec.expiresAt.",
        )
    if caller.valid_until is not None and now >= caller.valid_until:
        raise RequestError(
            "expired_api_key",
            f"The ApiKey {caller.id} was rotated and this older key is no longer accepted. "
            "Read the current one from its Secret.",
        )
    return caller


def _presented(headers: Mapping[str, str]) -> str:
    authorization = headers.get("Authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise RequestError(
                "malformed_api_key", "Send the API key as `Authorization: Bearer <key>`."
            )
    else:
        key = (headers.get("x-api-key") or headers.get("api-key") or "").strip()
    if not key:
        raise RequestError("missing_api_key", "Send an API key as `Authorization: Bearer <key>`.")
    if len(key) > _LONGEST_KEY or not key.isascii():
        raise RequestError(
            "malformed_api_key",
            "This is not an API key. Send one as `Authorization: Bearer <key>`.",
        )
    return key


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
