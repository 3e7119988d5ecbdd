"""Everything that can go wrong, once.

::

    TollhouseError
    ├── ConfigError              a folder, flag or file cannot be used as configuration
    │   └── SnapshotError        bytes that should be a snapshot are not
    ├── ClusterError             the Kubernetes API refused, failed or could not be reached
    ├── StoreError               the counters' store refused, failed or could not be reached
    ├── RequestError             answered to the caller, by a code from the table below
    └── UpstreamError            one attempt at a provider failed
        ├── ConnectError         no connection: DNS, refused, TLS, or the connect timeout
        ├── UpstreamTimeout      connected, then too slow: first byte, idle or total
        ├── StatusError          answered with an error status
        ├── BrokenAnswer         the answer ended early or is not what the protocol says
        ├── Saturated            ``maxConcurrent`` requests are with this provider already
        ├── Limited              a limit on this provider refuses the request
        └── NoTarget             the route has no target that could be tried

Exceptions of libraries are mapped to these once, where they enter: aiohttp's in ``transport`` and
``kube``, msgspec's in ``api``, ``kube`` and ``snapshot``, redis-py's and SQLite's in ``store``. No
message holds a credential or an internal address.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class TollhouseError(Exception):
    """The root of the tree."""


class ConfigError(TollhouseError):
    """Configuration that cannot be used; the message says where and what to do."""


class SnapshotError(ConfigError):
    """Bytes that should be a snapshot or an index are not; the message names the digest."""


class ClusterError(TollhouseError):
    """The Kubernetes API refused (``status`` is then its HTTP status), failed or is away."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoreError(TollhouseError):
    """The counters' store refused, failed, was too slow or is away."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: what a code means on the wire.

    ``retryable`` tells SDKs through ``x-should-retry``; None leaves the decision to them.
    """

    status: int
    type: str
    retryable: bool | None = None


_BAD = Kind(400, "invalid_request_error", False)
_AUTH = Kind(401, "auth_error", False)
_DENIED = Kind(403, "forbidden", False)
_LIMIT = Kind(429, "rate_limit_exceeded")
_UPSTREAM = Kind(502, "provider_error")
_UNAVAILABLE = Kind(503, "provider_error")

KINDS: Mapping[str, Kind] = {
    "invalid_json": _BAD,
    "invalid_value": _BAD,
    "invalid_http": _BAD,
    "missing_field": _BAD,
    "unsupported_parameter": _BAD,
    "context_length_exceeded": _BAD,
    "missing_api_key": _AUTH,
    "malformed_api_key": _AUTH,
    "invalid_api_key": _AUTH,
    "expired_api_key": _AUTH,
    "disabled_api_key": _AUTH,
    "model_not_allowed": _DENIED,
    "not_free": _DENIED,
    "model_not_found": Kind(404, "invalid_request_error", False),
    "not_found": Kind(404, "invalid_request_error", False),
    "method_not_allowed": Kind(405, "invalid_request_error", False),
    "request_timeout": Kind(408, "invalid_request_error"),
    "request_too_large": Kind(413, "invalid_request_error", False),
    "unsupported_media_type": Kind(415, "invalid_request_error", False),
    "requests_limit": _LIMIT,
    "tokens_limit": _LIMIT,
    "concurrency_limit": _LIMIT,
    "budget_exceeded": Kind(429, "rate_limit_exceeded", False),
    "limits_unavailable": Kind(503, "internal_error"),
    "provider_rate_limit": _LIMIT,
    "internal_error": Kind(500, "internal_error"),
    "provider_error": _UPSTREAM,
    "provider_auth_error": Kind(502, "provider_error", False),
    "invalid_provider_response": _UPSTREAM,
    "provider_rejected": Kind(400, "invalid_request_error", False),
    "no_healthy_target": _UNAVAILABLE,
    "overloaded": _UNAVAILABLE,
    "draining": _UNAVAILABLE,
    "timeout": Kind(504, "provider_error"),
}
"""The one table from code to status, type and whether to try again."""


class RequestError(TollhouseError):
    """An answer to the caller.

    ``code`` is a key of ``KINDS``; ``message`` says what to do next; ``param`` names the field;
    ``metadata`` is shown beside the message; ``headers`` are added to the answer; ``status``
    replaces the table's where a provider's own status is passed on.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.metadata = metadata or {}
        self.headers = headers or {}
        self.kind = KINDS[code]
        self.status = self.kind.status if status is None else status


class UpstreamError(TollhouseError):
    """One attempt failed. ``outcome`` is the word for it in spans and metrics."""

    outcome = "error"


class ConnectError(UpstreamError):
    outcome = "connect"


class UpstreamTimeout(UpstreamError):
    """``which`` is first_byte, idle or total; ``seconds`` is how long was waited."""

    outcome = "timeout"

    def __init__(self, which: str, seconds: float) -> None:
        super().__init__(f"{which} timeout after {seconds:g} s")
        self.which = which
        self.seconds = seconds


class StatusError(UpstreamError):
    """The provider answered with ``status`` and these ``body`` bytes (cut at 64 KiB).

    ``retry_after`` is in seconds, where the provider said so.
    """

    outcome = "status"

    def __init__(self, status: int, body: bytes, retry_after: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after


class BrokenAnswer(UpstreamError):
    outcome = "broken"


class Saturated(UpstreamError):
    outcome = "saturated"


class Limited(UpstreamError):
    """``refusal`` is what the caller is told when no other target is left."""

    outcome = "limited"

    def __init__(self, refusal: RequestError) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class NoTarget(UpstreamError):
    outcome = "no_target"
