"""Which journal a process keeps, and what happens where it cannot."""

import os
from pathlib import Path

import structlog

from tollhouse.errors import ConfigError
from tollhouse.settings import NO_JOURNAL, Settings
from tollhouse.store.journal import Journal

log = structlog.get_logger()


def open_journal(settings: Settings) -> Journal | None:
    """The journal of these settings, or None.

    One that was asked for and cannot be used is a ConfigError. The default one is done without,
    with a warning: two gateways may serve one folder, and a pod may have no disk. That of several
    workers is their parent's.
    """
    if settings.journal == NO_JOURNAL:
        return None
    if settings.journal is not None:
        return Journal(Path(settings.journal))
    if settings.snapshot is not None:
        served = "/".join(settings.snapshot)
    else:
        served = str((settings.directory or Path()).resolve())
    try:
        return Journal(default_path(served))
    except ConfigError as error:
        log.warning("spend is kept in memory only: a restart forgets it", why=str(error))
        return None


def default_path(served: str) -> Path:
    """Where the journal lives when nobody says: by what is served, below the user's state."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base else Path.home() / ".local" / "state"
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in served).strip("_")
    return state / "tollhouse" / f"{safe[-180:] or 'root'}.sqlite"
