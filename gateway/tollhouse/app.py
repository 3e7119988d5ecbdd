"""The composition root: builds the parts of one gateway process and owns start, drain and stop."""

import asyncio
import contextlib
import os
import signal
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog

from tollhouse import __version__, ops, telemetry
from tollhouse.errors import ConfigError
from tollhouse.limits import Limits, ledger, plan
from tollhouse.proxy import Proxy
from tollhouse.routing import Table
from tollhouse.server import Server
from tollhouse.settings import MEMORY_STORE, Settings
from tollhouse.source import Source, Update
from tollhouse.store import open_store
from tollhouse.telemetry import Metrics, Tracer
from tollhouse.tls import Certificate
from tollhouse.upstream import Upstream

if TYPE_CHECKING:
    from tollhouse.limits.billing import Billing

log = structlog.get_logger()

_CLOSE_SECONDS = 5.0
_PARTING = 1.0
"""Seconds that the last words to callers may take who are cut off at the end of a drain."""


class App:
    """One gateway process. ``run`` returns when it has drained after SIGTERM or SIGINT.

    ``announce`` gets the line that says it serves. With ``report`` the process has no second port:
    whatever that would show is reported as it changes.
    """

    def __init__(
        self,
        settings: Settings,
        announce: Callable[[str], None],
        report: Callable[[ops.State], None] | None = None,
    ) -> None:
        self._settings = settings
        self._announce = announce
        self._tell = report
        self._metrics = Metrics()
        self._tracer = Tracer()
        self._upstream = Upstream(self._metrics, self._tracer)
        self._store = open_store(settings, self._metrics)
        self._limits = Limits(self._store, self._metrics)
        self._billing = self._open_billing()
        write: ledger.Write | None = ledger.to_log if settings.ledger == ledger.LOG else None
        if self._billing is not None:
            write = self._billing.write
        self._proxy = Proxy(
            settings, self._upstream, self._limits, self._metrics, self._tracer, write
        )
        self._configured = asyncio.Event()
        self._swapped = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._serving = False
        self._synced = False
        self._problem: str | None = None

    async def run(self) -> None:
        """Serve until told to stop. Raises ConfigError when there is nothing to serve by."""
        settings = self._settings
        self._tracer.start()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            source = await self._source(stack)
            self._handle_signals(source)
            if self._tell is None:
                await self._open_ops(stack)
            tasks = asyncio.TaskGroup()
            async with tasks:
                following = tasks.create_task(source.run(self._apply, self._report))
                housekeeping = tasks.create_task(self._housekeeping())
                counting = [tasks.create_task(self._store.run())]
                if self._billing is not None:
                    counting.append(tasks.create_task(self._billing.run()))
                try:
                    if await self._until_configured():
                        await self._serve(stack)
                finally:
                    following.cancel()
                    housekeeping.cancel()
                    for task in counting:
                        task.cancel()
        log.info("stopped", port=settings.port)

    async def _source(self, stack: AsyncExitStack) -> Source:
        settings = self._settings
        if settings.directory is not None:
            if not settings.directory.is_dir():
                raise ConfigError(f"{settings.directory} is not a folder")
            from tollhouse.source.folder import FolderSource

            return FolderSource(settings.directory, os.environ)
        if settings.snapshot is None:
            raise ConfigError("say where configuration comes from: a folder, or --snapshot")
        from tollhouse.kube import Cluster
        from tollhouse.source.secrets import SecretSource

        cluster = await stack.enter_async_context(Cluster.connect(settings.kubeconfig))
        return SecretSource(*settings.snapshot, cluster)

    async def _until_configured(self) -> bool:
        """Wait for the first configuration; False when told to stop before it came."""
        configured = asyncio.ensure_future(self._configured.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({configured, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return self._configured.is_set()
        finally:
            for task in (configured, stopped):
                task.cancel()

    async def _serve(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        tls: ssl.SSLContext | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            certificate = Certificate(settings.tls_cert, settings.tls_key)
            tls = certificate.context
            await stack.enter_async_context(certificate)
        server = Server(self._proxy.handle)
        listener = await _listen(
            server, settings.host, settings.port, tls, reuse_port=settings.workers > 1
        )
        port = listener.sockets[0].getsockname()[1]
        self._serving = True
        self._announce(ready_line(settings, port, self._state()))
        self._changed()
        await self._stop.wait()
        await self._drain(listener, server)

    async def _drain(self, listener: asyncio.Server, server: Server) -> None:
        """Not ready, then no new connections, then as long as it takes within the bound."""
        settings = self._settings
        self._proxy.draining = True
        self._changed()
        log.info("draining", delay=settings.drain_delay, timeout=settings.drain_timeout)
        await self._until_hurried(settings.drain_delay)
        listener.close()
        server.pre_shutdown()
        await self._until_quiet(server, settings.drain_timeout)
        if server.connections:
            log.warning(
                "connections were cut at the end of the drain", count=len(server.connections)
            )
            self._proxy.cut_short()
            self._hurry.clear()
            await self._until_quiet(server, _PARTING)
        await server.shutdown(0.1)

    async def _until_hurried(self, seconds: float) -> None:
        """Let so much time pass, or what there is of it before a second signal."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _until_quiet(self, server: Server, seconds: float) -> None:
        """Wait until no connection is left, for at most so long; a second signal ends it."""
        deadline = asyncio.get_running_loop().time() + seconds
        # A connection goes once its last answer is not only written but also taken.
        while server.connections and asyncio.get_running_loop().time() < deadline:
            if self._hurry.is_set():
                return
            await self._until_hurried(0.02)

    def _apply(self, update: Update) -> None:
        """Put a configuration in force: one reference changes, requests under way keep theirs."""
        self._proxy.table = Table(update.snapshot, update.digest)
        self._metrics.config_reloads.inc()
        self._configured.set()
        self._swapped.set()
        self._changed()
        log.info("configuration in force", digest=update.digest[:12], **self._counts())

    def _report(self, synced: bool, problem: str | None) -> None:
        self._synced = synced
        self._problem = problem
        self._metrics.config_synced.set(1 if synced else 0)
        self._changed()

    def _changed(self) -> None:
        if self._tell is not None:
            self._tell(self._state())

    async def _housekeeping(self) -> None:
        while True:
            await self._swapped.wait()
            self._swapped.clear()
            if self._proxy.table is not None:
                snapshot = self._proxy.table.snapshot
                await self._upstream.keep(snapshot)
                names = plan.names(snapshot)
                self._metrics.keep(snapshot.routes.keys() | snapshot.providers.keys() | names)

    def _handle_signals(self, source: Source) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        # A source that follows its changes by itself has nothing to reload, and goes on.
        loop.add_signal_handler(signal.SIGHUP, source.reload)

    def _terminate(self) -> None:
        """Begin to drain; told again, end what is under way at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _open_ops(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        port = await stack.enter_async_context(
            ops.serving(
                settings.ops_host,
                settings.ops_port,
                self._state,
                telemetry.exposition,
                spend=self._spend,
            )
        )
        log.info("started", version=__version__, ops_port=port)

    async def _close(self) -> None:
        async with asyncio.timeout(_CLOSE_SECONDS):
            if self._billing is not None:
                await self._billing.close()
            await self._store.close()
            await self._upstream.close()
            await asyncio.to_thread(self._tracer.stop)

    def _open_billing(self) -> "Billing | None":
        if self._settings.ledger != ledger.STREAM:
            return None
        # The client of a shared store takes a while to load, and most gateways do without.
        from tollhouse.limits.billing import Billing

        return Billing(self._settings, self._metrics)

    async def _spend(self) -> dict[str, Any]:
        table = self._proxy.table
        return {
            "store": "memory" if self._settings.store == MEMORY_STORE else "shared",
            "budgets": await self._limits.spend(table.snapshot) if table is not None else [],
        }

    def _counts(self) -> dict[str, int]:
        table = self._proxy.table
        if table is None:
            return {"routes": 0, "keys": 0}
        return {"routes": len(table.snapshot.routes), "keys": table.snapshot.key_count()}

    def _state(self) -> ops.State:
        table = self._proxy.table
        return ops.State(
            ready=self._serving and not self._proxy.draining,
            synced=self._synced,
            digest=table.digest if table is not None else None,
            problem=self._problem,
            **self._counts(),
        )


def ready_line(settings: Settings, port: int, state: ops.State) -> str:
    """What is printed when callers can be served on this port."""
    scheme = "http" if settings.tls_cert is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return (
        f"tollhouse serves {scheme}://{host}:{port}/v1 ({state.routes} routes, {state.keys} keys)"
    )


def run(
    main: Coroutine[Any, Any, None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Run to the end on a loop of its own. Raises ConfigError bare, whatever groups it was in."""
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main)
    except BaseExceptionGroup as group:
        error: BaseException | None = group.subgroup(ConfigError)
        if error is None:
            raise
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _listen(
    server: Server, host: str, port: int, tls: ssl.SSLContext | None, *, reuse_port: bool
) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(
            server, host, port, ssl=tls, backlog=1024, reuse_port=reuse_port or None
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
        ) from None
