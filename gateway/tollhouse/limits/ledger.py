"""The usage ledger: one event for each request that reached a provider, for whoever bills.

An event names the ApiKey, and never holds a key, a prompt or an answer.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import structlog

from tollhouse.api import cost
from tollhouse.api.estimate import Estimate
from tollhouse.api.usage import Usage
from tollhouse.snapshot import Key, Provider

log = structlog.get_logger()

NONE, LOG, STREAM = "none", "log", "stream"
"""Where events go: nowhere, among the log lines as the event ``usage``, or to ``billing``."""

Write = Callable[[Mapping[str, Any]], None]


def event(
    *,
    request_id: str,
    caller: Key,
    route: str,
    provider: Provider | None,
    model: str,
    status: int,
    code: str,
    seconds: float,
    usage: Usage | None,
    spent: Decimal | None,
    estimated: bool,
) -> dict[str, Any]:
    """One settled request. ``model`` is the provider's own name for it; ``spent`` in USD becomes a
    decimal string, null where nobody knows; ``estimated`` where no provider counted the tokens."""
    return {
        "request_id": request_id,
        "key": caller.id,
        "owner": caller.owner,
        "tags": caller.tags,
        "route": route,
        "provider": provider.id if provider is not None else None,
        "model": model,
        "status": status,
        "code": code,
        "latency_ms": round(seconds * 1000, 1),
        "input_tokens": usage.prompt_tokens if usage is not None else None,
        "output_tokens": usage.completion_tokens if usage is not None else None,
        "cached_tokens": usage.cached_tokens if usage is not None else None,
        "reasoning_tokens": usage.reasoning_tokens if usage is not None else None,
        "cost_usd": cost.text(spent) if spent is not None else None,
        "estimated": estimated or isinstance(usage, Estimate),
    }


def to_log(entry: Mapping[str, Any]) -> None:
    """Write an event among the log lines."""
    log.info("usage", **entry)
