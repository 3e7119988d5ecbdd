"""Settings of one operator process. Each is a flag of ``tollhouse-operator run``."""

from dataclasses import dataclass
from pathlib import Path

from tollhouse_operator.lease import LeaseSettings

ObjectName = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``namespaces`` empty means the whole cluster. ``base_url`` is what generated Secrets hold.
    ``spend_seconds`` lie between two looks at what was spent."""

    snapshot: ObjectName
    service: ObjectName | None
    base_url: str
    lease: LeaseSettings
    namespaces: tuple[str, ...] = ()
    kubeconfig: Path | None = None
    ops_host: str = "127.0.0.1"
    ops_port: int = 9091
    spend_seconds: float = 15.0
