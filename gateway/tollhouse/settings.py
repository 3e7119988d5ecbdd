"""Settings of one process: each a flag of ``tollhouse serve`` and a ``TOLLHOUSE_*`` variable."""

from dataclasses import dataclass, field
from pathlib import Path

MEMORY_STORE = "memory"
PARENT_STORE = "parent:"
"""Begins what a worker's ``store`` is while its parent counts; a socket's number follows."""
NO_JOURNAL = "none"
MAX_INFLIGHT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Exactly one of ``directory`` and ``snapshot`` says where configuration comes from.

    ``snapshot`` is (namespace, name). Sizes are in bytes and times in seconds;
    ``stream_keepalive`` 0 sends no comments. ``store`` can hold a password. ``journal`` is a file,
    NO_JOURNAL, or None for one below the user's state.
    """

    directory: Path | None = None
    snapshot: tuple[str, str] | None = None
    kubeconfig: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    ops_host: str = "127.0.0.1"
    ops_port: int = 9090
    ledger: str = "none"
    ledger_length: int = 1_000_000
    store: str = field(default=MEMORY_STORE, repr=False)
    store_scope: str = "default"
    store_timeout: float = 0.1
    lease: float = 30.0
    journal: str | None = None
    workers: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_body_bytes: int = 32 * 1024 * 1024
    max_inflight_bytes: int = MAX_INFLIGHT_BYTES
    body_timeout: float = 60.0
    stream_keepalive: float = 0.0
    denied_model_status: int = 403
    public_catalogue: bool = True
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    log_format: str = "auto"
    log_level: str = "info"
