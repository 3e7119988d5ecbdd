"""What callers may use: limits and budgets, as a snapshot holds them.

Seconds, and whole nano-USD (10⁻⁹ USD).
"""

import msgspec


class Limit(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most ``amount`` of what ``counts`` names, in any ``window`` of seconds.

    ``counts`` is requests, tokens, input_tokens, output_tokens, or concurrent, which has no window.
    ``name`` is unique on its ApiKey or policy. ``models`` None: requests for every model count.
    ``scope`` says whose counter it is: Shared (all targets of the policy), Each (the ApiKey's) or
    User (that of the request's ``user``, for each ApiKey).
    """

    name: str
    counts: str
    amount: int
    window: float = 0.0
    scope: str = "Each"
    models: tuple[str, ...] | None = None


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits for all that refer to it. ``on_store_failure`` is Allow, Deny or Local."""

    namespace: str
    name: str
    limits: tuple[Limit, ...]
    on_store_failure: str = "Local"

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"


class Allowance(msgspec.Struct, frozen=True, omit_defaults=True):
    """Money for each calendar ``period`` (Day, Week, Month, or Total: one that never ends) of an
    IANA time zone; ``amount`` in nano-USD."""

    amount: int
    period: str = "Month"
    time_zone: str = "UTC"


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """Money for all keys that refer to it. ``warn_at`` are percentages; without ``rejects``
    spending goes on beyond the allowance."""

    namespace: str
    name: str
    allowance: Allowance
    warn_at: tuple[int, ...] = ()
    rejects: bool = True

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"
