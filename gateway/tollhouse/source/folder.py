"""Snapshots from a folder of YAML, compiled here and followed as people edit it."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from watchfiles import awatch

from tollhouse.compile import Finding, Reason, compile_snapshot
from tollhouse.errors import ConfigError
from tollhouse.folder import FolderReader, Loaded, find_files
from tollhouse.snapshot import digest_of, shards, whole_digest
from tollhouse.source import Apply, Report, Status, Update, stopped

log = structlog.get_logger()

_DEBOUNCE_MS = 50
_QUIET_MS = 20
_LOOK_SECONDS = 1.0
_WATCH_AGAIN_SECONDS = 30.0
_PROBLEMS_REPORTED = 5
"""More would make /config unreadable; the log has them all."""


class FolderSource:
    """Compiles the YAML of a folder and follows its edits.

    ``environ`` is where credentials come from that have no Secret in the folder. Reading and
    compiling happen in a thread.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._path = path
        self._reader = FolderReader(path, environ)
        self._wake = asyncio.Event()
        self._digest: str | None = None
        self._logged: frozenset[str] = frozenset()

    def reload(self) -> None:
        """Read the folder again now, whether or not anything seems to have changed."""
        self._wake.set()

    async def run(self, apply: Apply, report: Report) -> None:
        """Runs until it is cancelled."""
        status = Status(report)
        seen: object = None
        self._wake.set()
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                now = await asyncio.to_thread(_fingerprint, self._path)
                if not self._wake.is_set():
                    if now == seen:
                        continue
                    # Missed by the watch: what it watches is perhaps not what the path names now.
                    await stopped(watch)
                    watch = asyncio.create_task(self._watch())
                self._wake.clear()
                seen = now
                await self._load(apply, status)
        finally:
            await stopped(watch)

    async def _watch(self) -> None:
        """Wakes the loop soon after an edit. It may miss some: the loop looks for itself too."""
        told: str | None = None
        while True:
            try:
                async for _ in awatch(
                    self._path,
                    watch_filter=None,
                    debounce=_DEBOUNCE_MS,
                    step=_QUIET_MS,
                    rust_timeout=1000,
                ):
                    self._wake.set()
            except (OSError, RuntimeError) as error:
                # The limits of inotify, a file system without it, or a folder that is not there.
                if told != str(error):
                    told = str(error)
                    log.info("no notification of edits, looking every second", reason=told)
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    async def _load(self, apply: Apply, status: Status) -> None:
        try:
            folder = await asyncio.to_thread(_compile, self._reader)
            if folder.update.digest != self._digest:
                apply(folder.update)
                self._digest = folder.update.digest
        except (ConfigError, OSError) as error:
            status.say("content", str(error))
        except Exception as error:
            # A fault of ours ends neither the source nor what is being served.
            log.exception("the folder could not be loaded")
            status.say("content", f"internal error: {type(error).__name__}", logged=True)
        else:
            for text in folder.errors:
                if text not in self._logged:
                    log.error(text)
            for text in folder.warnings:
                if text not in self._logged:
                    log.warning(text)
            self._logged = frozenset(folder.errors + folder.warnings)
            status.say("content", _brief(folder.stale), logged=True)


@dataclass(frozen=True, slots=True)
class _CompiledFolder:
    """``stale`` are the errors for which something older, or nothing, is in force."""

    update: Update
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    stale: tuple[str, ...]


def _compile(reader: FolderReader) -> _CompiledFolder:
    loaded = reader.load()
    compiled = compile_snapshot(loaded.resources, datetime.now(UTC).date())
    digests = {name: digest_of(data) for name, data in shards(compiled.snapshot).items()}
    unread = [f"{problem.file}:{problem.line} {problem.message}" for problem in loaded.problems]
    invalid = [_line(loaded, it) for it in compiled.findings if it.reason is Reason.INVALID]
    errors = [
        _line(loaded, it)
        for it in compiled.findings
        if it.severity == "Error" and it.reason is not Reason.INVALID
    ]
    return _CompiledFolder(
        update=Update(compiled.snapshot, whole_digest(digests)),
        errors=(*unread, *invalid, *errors),
        warnings=tuple(_line(loaded, it) for it in compiled.findings if it.severity == "Warning"),
        stale=(*unread, *invalid),
    )


def _line(loaded: Loaded, finding: Finding) -> str:
    where = loaded.locate(finding)
    what = f"{finding.kind} {finding.namespace}/{finding.name}: {loaded.explain(finding)}"
    return f"{where[0]}:{where[1]} {what}" if where else what


def _brief(problems: tuple[str, ...]) -> str | None:
    more = len(problems) - _PROBLEMS_REPORTED
    shown = [*problems[:_PROBLEMS_REPORTED], *([f"and {more} more"] if more > 0 else [])]
    return "; ".join(shown) or None


def _fingerprint(path: Path) -> object:
    """Something that differs when a file did; links are followed to what they name."""
    found = []
    with contextlib.suppress(ConfigError):
        for name, file in find_files(path):
            with contextlib.suppress(OSError):
                stat = file.stat()
                found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found
