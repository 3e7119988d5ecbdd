"""Secrets that tests plant, so that ``tests/leaks.py`` can search every output for them.

A secret written into a test contains the word in ``MARK`` and needs nothing else. One that is made
while a test runs (a generated ApiKey, say) is registered: ``planted.register(key)``.
"""

import json
import os
from pathlib import Path

MARK = "PLANTED"
ROOT = Path(__file__).resolve().parents[2]
REGISTRY = ROOT / "build" / "planted" / "values"
"""One JSON string per line, outside of everything that is searched."""
MIN_LENGTH = 12
"""Characters. Anything shorter occurs in logs by chance."""


def log_directory() -> Path:
    """Where the processes that tests start write their logs; all of it is searched."""
    directory = Path(os.environ.get("TOLLHOUSE_TEST_LOGS") or ROOT / "build" / "logs")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def register(value: str, registry: Path = REGISTRY) -> str:
    """Remember a secret made at run time, and return it.

    Raises ValueError, without the value, when it is too short to be told from chance.
    """
    if len(value) < MIN_LENGTH:
        raise ValueError(f"a planted secret needs at least {MIN_LENGTH} characters")
    if MARK not in value:
        registry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(registry, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, (json.dumps(value) + "\n").encode())
        finally:
            os.close(file)
    return value


def registered(registry: Path = REGISTRY) -> tuple[str, ...]:
    """Every registered secret once, in the order of registration."""
    if not registry.exists():
        return ()
    return tuple(dict.fromkeys(json.loads(line) for line in registry.read_text().splitlines()))
