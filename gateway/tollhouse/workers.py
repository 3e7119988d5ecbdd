"""Several worker processes behind one port: started, watched, replaced and drained by a parent.

The parent serves no caller. It holds the port without listening, so that the kernel spreads
connections over the workers, answers the second port for all of them, and counts for them where
counters live in memory. Workers are fresh interpreters, not forks. Each one reads its orders from
standard input, which stays open for as long as the parent lives, and writes one line of JSON to
standard output whenever its state changes.
"""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from tollhouse import __version__, app, ops, telemetry
from tollhouse.errors import ConfigError
from tollhouse.settings import MEMORY_STORE, Settings
from tollhouse.store import served
from tollhouse.store.memory import MemoryStore
from tollhouse.store.opening import open_journal

log = structlog.get_logger()

_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker that died is replaced, the more so the more often in a row."""
_SOUND_SECONDS = 60.0
"""A worker that lived this long is no part of a row."""
_GRACE_SECONDS = 15.0
"""What a worker may take to end, beyond the time that it was given to drain."""
_LONGEST_PROBLEM = 600
"""Characters. A report stays below 4,096 bytes, which a pipe takes whole or not at all."""
_TELL_AGAIN_SECONDS = 0.5


class Orders(msgspec.Struct, frozen=True):
    """What a worker is told: its ``number``, where metrics are shared, and what to serve."""

    number: int
    metrics: str
    settings: Settings


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says: its state, or the ConfigError for which it cannot serve."""

    state: ops.State | None = None
    failure: str | None = None


def _path(kind: type, value: Any) -> Any:
    return kind(value)


_encoder = msgspec.json.Encoder(enc_hook=str)
_orders = msgspec.json.Decoder(Orders, dec_hook=_path)
_reports = msgspec.json.Decoder(Report)


class Supervisor:
    """The parent of ``settings.workers`` processes. ``run`` returns when all of them have ended.

    ``announce`` gets one line, when all of them serve for the first time.
    """

    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._announced = False
        self._port = 0
        self._metrics = Path()
        self._counting: served.Served | None = None
        self._states: dict[int, ops.State] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop. Raises ConfigError when the workers cannot begin to."""
        settings = self._settings
        with contextlib.ExitStack() as stack:
            self._port = stack.enter_context(_reserved(settings.host, settings.port))
            self._metrics = Path(stack.enter_context(_scratch()))
            async with (
                _counted(settings) as self._counting,
                ops.serving(
                    settings.ops_host,
                    settings.ops_port,
                    self._state,
                    lambda: telemetry.shared_exposition(self._metrics),
                ) as ops_port,
            ):
                log.info(
                    "started", version=__version__, ops_port=ops_port, workers=settings.workers
                )
                self._handle_signals()
                async with asyncio.TaskGroup() as tasks:
                    for number in range(settings.workers):
                        tasks.create_task(self._keep(number))
        log.info("stopped", port=self._port)

    async def _keep(self, number: int) -> None:
        """Have a worker with this number at all times, until told to stop."""
        deaths = 0
        while not self._stop.is_set():
            begun = time.monotonic()
            status, failure = await self._life(number)
            if self._stop.is_set():
                return
            if failure is not None and not self._announced:
                raise ConfigError(failure)
            deaths = 1 if time.monotonic() - begun > _SOUND_SECONDS else deaths + 1
            pause = _PAUSES[min(deaths, len(_PAUSES)) - 1]
            log.error("a worker ended", worker=number, status=status, why=failure, next_in=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _life(self, number: int) -> tuple[int, str | None]:
        """One worker from start to end: its exit status, and why it could not serve."""
        settings = dataclasses.replace(self._settings, port=self._port)
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as starting:
            inherited: tuple[int, ...] = ()
            if self._counting is not None:
                ours, theirs = await self._counting.connect()
                stack.callback(ours.abort)
                # Once it is started the worker alone has its end, so that it closes when it dies.
                starting.enter_context(theirs)
                settings = dataclasses.replace(settings, store=served.address(theirs))
                inherited = (theirs.fileno(),)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "tollhouse",
                "worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=inherited,
                # A terminal's Ctrl-C reaches the parent alone, which then tells the workers.
                process_group=0,
            )
            self._processes[number] = process
            starting.close()
            try:
                if self._stop.is_set():
                    process.terminate()
                failure = await self._converse(number, process, settings)
                return await process.wait(), failure
            finally:
                await _end(process)
                del self._processes[number]
                self._states.pop(number, None)
                telemetry.forget_gauges(self._metrics, number)

    async def _converse(
        self, number: int, process: asyncio.subprocess.Process, settings: Settings
    ) -> str | None:
        """Give a worker its orders, then take its reports until it has no more."""
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a worker was started without pipes")
        with contextlib.suppress(ConnectionError):  # it died at once, and its status says so
            stdin.write(_encoder.encode(Orders(number, str(self._metrics), settings)) + b"\n")
            await stdin.drain()
        failure = None
        while line := await stdout.readline():
            report = _reports.decode(line)
            if report.state is None:
                failure = report.failure
                continue
            self._states[number] = report.state
            state = self._state()
            if state.ready and not self._announced:
                self._announced = True
                self._announce(app.ready_line(self._settings, self._port, state))
        return failure

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._drain)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _drain(self) -> None:
        if self._stop.is_set():
            # Asked again: each worker ends what it has under way.
            self._signal(self._processes, signal.SIGTERM)
            return
        settings = self._settings
        self._stop.set()
        self._signal(self._processes, signal.SIGTERM)
        asyncio.get_running_loop().call_later(
            settings.drain_delay + settings.drain_timeout + _GRACE_SECONDS,
            lambda: self._signal(self._processes, signal.SIGKILL),
        )

    def _reload(self) -> None:
        # A worker that has reported nothing yet reads everything afresh anyway, and would be
        # killed by a signal that it does not handle yet.
        self._signal(self._states, signal.SIGHUP)

    def _signal(self, workers: Iterable[int], number: signal.Signals) -> None:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                self._processes[worker].send_signal(number)

    def _state(self) -> ops.State:
        """What all workers say together: ready and in sync when each one is, and on one digest."""
        states = tuple(self._states.values())
        ready = sum(state.ready for state in states)
        every = len(states) == self._settings.workers
        digests = {state.digest for state in states}
        agreed = digests.pop() if every and len(digests) == 1 else None
        problem = next((state.problem for state in states if state.problem), None)
        if problem is None and ready < self._settings.workers:
            problem = f"{ready} of {self._settings.workers} workers are ready"
        return ops.State(
            ready=ready == self._settings.workers and not self._stop.is_set(),
            synced=agreed is not None and all(state.synced for state in states),
            digest=agreed,
            routes=min((state.routes for state in states), default=0),
            keys=min((state.keys for state in states), default=0),
            problem=problem,
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no process behind, whatever cut its supervision short."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
            return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@contextlib.asynccontextmanager
async def _counted(settings: Settings) -> AsyncIterator[served.Served | None]:
    """The counters of all workers, where the parent has them. Raises ConfigError."""
    if settings.store != MEMORY_STORE:
        yield None
        return
    store = MemoryStore(open_journal(settings))
    try:
        async with asyncio.TaskGroup() as tasks:
            counting = tasks.create_task(store.run())
            try:
                yield served.Served(store)
            finally:
                counting.cancel()
    finally:
        await store.close()


@contextlib.contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Hold this port on every address of the host, for workers to listen on; 0 takes a free one.

    Raises ConfigError when somebody else has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, address in dict.fromkeys((info[0], info[4]) for info in found):
                wanted = (address[0], port or address[1], *address[2:])
                # Sharing is asked for last: another gateway that shares would not be noticed.
                _bound(family, wanted, share=False).close()
                held = stack.enter_context(_bound(family, wanted, share=True))
                port = held.getsockname()[1]
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
            ) from None
        yield port


def _bound(family: int, address: tuple[Any, ...], *, share: bool) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        held.bind(address)
    except OSError:
        held.close()
        raise
    return held


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="tollhouse-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(
            f"several workers need a folder for temporary files ({error.strerror}): "
            "set TMPDIR to one that can be written to"
        ) from None


def work() -> int:
    """One worker, from its orders on standard input to its end. Gives the exit status."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    orders = _orders.decode(line)
    settings = orders.settings
    # Whatever a library prints must not end up between reports.
    reporter = _Reporter(os.dup(1))
    os.dup2(2, 1)
    threading.Thread(target=_follow_parent, args=(orders,), daemon=True).start()
    telemetry.configure_logging(settings.log_format, settings.log_level)
    structlog.contextvars.bind_contextvars(worker=orders.number)
    telemetry.share_metrics(Path(orders.metrics), orders.number)

    async def main() -> None:
        await app.App(settings, lambda _: None, reporter.tell).run()

    try:
        app.run(main(), uvloop.new_event_loop)
    except ConfigError as error:
        reporter.fail(str(error))
        return 2
    return 0


def _follow_parent(orders: Orders) -> None:
    """Drain when the parent has died, which closes standard input, and end in any case.

    In a thread, so that not even a loop that hangs leaves an orphan.
    """
    while os.read(0, 1024):
        pass
    shutil.rmtree(orders.metrics, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    settings = orders.settings
    time.sleep(settings.drain_delay + settings.drain_timeout + _GRACE_SECONDS)
    os._exit(1)


class _Reporter:
    """Tells the parent the newest state without ever waiting for it."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._again: asyncio.TimerHandle | None = None

    def tell(self, state: ops.State) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if state.problem is not None:
            state = dataclasses.replace(state, problem=state.problem[:_LONGEST_PROBLEM])
        try:
            self._write(Report(state=state))
        except BlockingIOError:
            self._again = asyncio.get_running_loop().call_later(
                _TELL_AGAIN_SECONDS, self.tell, state
            )

    def fail(self, message: str) -> None:
        with contextlib.suppress(BlockingIOError):
            self._write(Report(failure=message[:_LONGEST_PROBLEM]))

    def _write(self, report: Report) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent has died; see _follow_parent
            os.write(self._pipe, _encoder.encode(report) + b"\n")
