"""What a caller is told when every attempt failed. Pure."""

from typing import Any

from tollhouse.errors import (
    Limited,
    NoTarget,
    RequestError,
    Saturated,
    StatusError,
    UpstreamError,
    UpstreamTimeout,
)
from tollhouse.providers import openai
from tollhouse.snapshot import Provider, Route

_LONGEST_MESSAGE = 2000
_REJECTIONS = frozenset({400, 413, 422})
"""The provider blames the request itself, and so do we: its words go through."""
_RETRY_SOON = {"retry-after": "1"}


def answer_for(
    error: UpstreamError, route: Route, provider: Provider | None, attempts: int
) -> RequestError:
    """The answer for the last ``error`` of a request; ``provider`` is the one that caused it."""
    if isinstance(error, Limited):
        return error.refusal
    if provider is None or isinstance(error, NoTarget):
        return RequestError(
            "no_healthy_target",
            f"The route {route.id} has no target that can be called now. "
            "Ask its owner to look at the conditions of the ModelRoute.",
            headers=_RETRY_SOON,
        )
    metadata: dict[str, Any] = {"provider": provider.name, "attempts": attempts}
    if isinstance(error, Saturated):
        return RequestError(
            "overloaded",
            "Every provider of this model has as many requests as it may have. Try again shortly.",
            metadata=metadata,
            headers=_RETRY_SOON,
        )
    if isinstance(error, UpstreamTimeout):
        return RequestError(
            "timeout",
            f"The provider {provider.name} took longer than the {_LIMITS[error.which]} timeout "
            f"of {error.seconds:g} s. Try again, or ask for a longer timeout on the route.",
            metadata={**metadata, "timeout": _LIMITS[error.which], "seconds": error.seconds},
        )
    if isinstance(error, StatusError):
        return _for_status(error, provider, metadata)
    if error.outcome == "broken":
        return RequestError(
            "invalid_provider_response",
            f"The provider {provider.name} did not send a whole answer: {error}. Try again.",
            metadata=metadata,
        )
    return RequestError(
        "provider_error",
        f"The provider {provider.name} could not be reached: {error}. Try again.",
        metadata=metadata,
    )


def broken_stream(error: UpstreamError, provider: Provider | None) -> RequestError:
    """How a stream that the caller has seen the beginning of ends."""
    name = provider.name if provider is not None else "unknown"
    metadata: dict[str, Any] = {"provider": name}
    if isinstance(error, UpstreamTimeout):
        limit = _LIMITS[error.which]
        return RequestError(
            "timeout",
            f"The stream was cut by the {limit} timeout of {error.seconds:g} s.",
            metadata={**metadata, "timeout": limit, "seconds": error.seconds},
        )
    if isinstance(error, StatusError) and provider is not None:
        message = _clean(str(openai.error_of(error.body).get("message", "")), provider)
        if message:
            metadata["message"] = message
    return RequestError(
        "provider_error",
        f"The provider {name} broke off in the middle of the answer. "
        "What arrived is incomplete; send the request again.",
        metadata=metadata,
    )


_LIMITS = {"first_byte": "firstByte", "idle": "idle", "total": "total"}


def _for_status(error: StatusError, provider: Provider, metadata: dict[str, Any]) -> RequestError:
    metadata["status"] = error.status
    if error.status in (401, 403):
        # Its words may quote the credential.
        return RequestError(
            "provider_auth_error",
            f"The provider {provider.name} refused the credential that the gateway has for it. "
            "Ask the owner of the Provider to check its Secret.",
            metadata=metadata,
        )
    theirs = openai.error_of(error.body)
    message = _clean(str(theirs.get("message", "")), provider)
    if message:
        metadata["message"] = message
    if error.status in _REJECTIONS:
        code, param = theirs.get("code"), theirs.get("param")
        return RequestError(
            "context_length_exceeded" if code == "context_length_exceeded" else "provider_rejected",
            message or f"The provider {provider.name} refused the request.",
            param=param if isinstance(param, str) else None,
            metadata=metadata,
            status=error.status,
        )
    if error.status in (404, 405):
        return RequestError(
            "provider_error",
            f"The provider {provider.name} answered with status {error.status}: it does not serve "
            "this endpoint, or has no model of that name. Ask the owner of the ModelRoute.",
            metadata=metadata,
        )
    if error.status == 429:
        wait = 1.0 if error.retry_after is None else error.retry_after
        return RequestError(
            "provider_rate_limit",
            f"The provider {provider.name} limits the rate of requests. Try again later.",
            metadata=metadata,
            headers={"retry-after": str(max(1, round(wait)))},
        )
    return RequestError(
        "provider_error",
        f"The provider {provider.name} answered with status {error.status}. Try again.",
        metadata=metadata,
    )


def _clean(message: str, provider: Provider) -> str:
    if provider.credential is not None:
        message = message.replace(provider.credential.value, "[redacted]")
    return message[:_LONGEST_MESSAGE]
