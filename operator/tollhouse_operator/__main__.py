"""The operator's command line."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, cast

import kopf
import structlog
import typer
import uvloop
from aiohttp import web
from kubernetes.aio.config import ConfigException

from tollhouse.errors import ConfigError
from tollhouse.telemetry import configure_logging
from tollhouse_operator import handlers, ops
from tollhouse_operator.cluster import CallError, Cluster
from tollhouse_operator.control import Control
from tollhouse_operator.lease import LeaseSettings
from tollhouse_operator.settings import ObjectName, Settings

_log = structlog.get_logger(__name__)

_CRDS = "/apis/tollhouse.dev/v1alpha1"
_START_SECONDS = 30.0

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@cli.callback()
def tollhouse_operator() -> None:
    """Turns Tollhouse's custom resources into what the gateways serve."""


@cli.command()
def run(
    snapshot: Annotated[
        str,
        typer.Option(
            metavar="NAMESPACE/NAME",
            envvar="TOLLHOUSE_SNAPSHOT",
            help="Where the gateways read the snapshot: Secrets NAME-0 … NAME-63.",
        ),
    ],
    service: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/NAME",
            envvar="TOLLHOUSE_SERVICE",
            help="The gateways' Service; its port named ops says which snapshot is live.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            envvar="TOLLHOUSE_BASE_URL",
            help="OPENAI_BASE_URL of generated Secrets. Default: port 8080 of the Service.",
        ),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            envvar="TOLLHOUSE_NAMESPACES", help="Serve this namespace only; may be repeated."
        ),
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Serve the whole cluster.")
    ] = False,
    lease: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/NAME",
            envvar="TOLLHOUSE_LEASE",
            help="The Lease that elects a leader. Default: the snapshot's name with -operator.",
        ),
    ] = None,
    lease_seconds: Annotated[
        float,
        typer.Option(min=2, envvar="TOLLHOUSE_LEASE_SECONDS", help="How long a Lease holds."),
    ] = 15.0,
    spend_interval: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=3600,
            envvar="TOLLHOUSE_SPEND_INTERVAL",
            help="Seconds between two looks at what was spent, for the statuses.",
        ),
    ] = 15.0,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(help="Default: the pod's service account, then KUBECONFIG."),
    ] = None,
    ops_host: Annotated[str, typer.Option(envvar="TOLLHOUSE_OPS_HOST")] = "127.0.0.1",
    ops_port: Annotated[
        int, typer.Option(envvar="TOLLHOUSE_OPS_PORT", help="Probes and metrics.")
    ] = 9091,
    log_format: Annotated[
        str, typer.Option(envvar="TOLLHOUSE_LOG_FORMAT", help="json, console or auto.")
    ] = "json",
    log_level: Annotated[str, typer.Option(envvar="TOLLHOUSE_LOG_LEVEL")] = "info",
) -> None:
    """Run the operator until SIGTERM."""
    if bool(namespace) == all_namespaces:
        raise typer.BadParameter("give --namespace (once or more) or --all-namespaces")
    stored = _object_name("--snapshot", snapshot)
    gateways = _object_name("--service", service) if service else None
    elected = _object_name("--lease", lease) if lease else (stored[0], f"{stored[1]}-operator")
    settings = Settings(
        snapshot=stored,
        service=gateways,
        base_url=base_url or _in_cluster_url(gateways),
        lease=LeaseSettings(*elected, _identity(), lease_seconds),
        namespaces=tuple(namespace or ()),
        kubeconfig=kubeconfig,
        ops_host=ops_host,
        ops_port=ops_port,
        spend_seconds=spend_interval,
    )
    configure_logging(log_format, log_level)
    _quieten_kopf()
    try:
        uvloop.run(_serve(settings))
    except ConfigError as error:
        print(f"tollhouse-operator: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except Exception:  # noqa: BLE001  # because it is the last frame: told in one line, without local variables
        _log.critical("operator failed", exc_info=True)
        raise typer.Exit(1) from None


async def _serve(settings: Settings) -> None:
    """Raises ConfigError when the operator cannot start."""
    try:
        cluster = await Cluster.connect(settings.kubeconfig)
    except ConfigException as error:
        raise ConfigError(
            f"no way to the API server: {error}. Run inside a pod, set KUBECONFIG or give "
            "--kubeconfig"
        ) from None
    try:
        await _prepared(cluster)
        metrics = ops.Metrics()
        control = Control(cluster, settings, metrics)
        async with _second_port(settings, control, metrics):
            await _run(cluster, control, settings)
    finally:
        await cluster.close()


async def _prepared(cluster: Cluster) -> None:
    """Wait for the API server and see that it knows our kinds. Raises ConfigError."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while True:
        try:
            if await cluster.get(_CRDS) is None:
                raise ConfigError(
                    "the cluster does not know Tollhouse's resources: kubectl apply -f crds/"
                )
            return
        except CallError as error:
            if not error.transient and error.status not in (401, 403):
                raise ConfigError(f"the API server refuses us: {error}") from None
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(f"no answer from the API server: {error}") from None
            _log.warning("waiting for the API server", error=str(error))
            await asyncio.sleep(1)


async def _run(cluster: Cluster, control: Control, settings: Settings) -> None:
    """Until a signal, or until one of the two halves ends, which is an error."""
    loop = asyncio.get_running_loop()
    stop, stop_kopf, kopf_ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
    watching = asyncio.create_task(
        kopf.operator(
            registry=handlers.registry(
                control.store,
                control.audit.relisted,
                cluster.credentials,
                whole_cluster=not settings.namespaces,
            ),
            settings=handlers.settings(),
            standalone=True,
            # Left to itself kopf asks for the user's name, which a pod's user often lacks.
            identity=cast(Any, settings.lease.identity),
            clusterwide=not settings.namespaces,
            namespaces=settings.namespaces,
            stop_flag=stop_kopf,
            ready_flag=kopf_ready,
        )
    )
    controlling = asyncio.create_task(control.run())
    stopping = asyncio.create_task(stop.wait())
    watched = asyncio.create_task(kopf_ready.wait())
    await asyncio.wait({watching, watched}, return_when=asyncio.FIRST_COMPLETED)
    watched.cancel()
    # kopf has set handlers of its own by now. Ours: the Lease is released before watches stop.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("operator started", identity=settings.lease.identity)
    await asyncio.wait({watching, controlling, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("operator stops")
    controlling.cancel()
    await asyncio.wait({controlling})
    stop_kopf.set()
    await asyncio.wait({watching})
    stopping.cancel()
    for half in (controlling, watching):
        if not half.cancelled() and (error := half.exception()) is not None:
            raise error
    if not stop.is_set():
        raise ConfigError("the watches ended by themselves")


@contextlib.asynccontextmanager
async def _second_port(
    settings: Settings, control: Control, metrics: ops.Metrics
) -> AsyncIterator[None]:
    runner = web.AppRunner(ops.application(metrics, lambda: control.audit.whole))
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.ops_host, settings.ops_port).start()
        yield
    finally:
        await runner.cleanup()


def _object_name(flag: str, given: str) -> ObjectName:
    namespace, slash, name = given.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise typer.BadParameter(f"{flag} must be NAMESPACE/NAME")
    return namespace, name


def _in_cluster_url(service: ObjectName | None) -> str:
    if service is None:
        raise typer.BadParameter("give --service or --base-url")
    namespace, name = service
    return f"http://{name}.{namespace}.svc:8080/v1"


def _identity() -> str:
    """This process, and no other: the pod's name and something random."""
    return f"{os.environ.get('HOSTNAME') or socket.gethostname()}-{secrets.token_hex(4)}"


def _quieten_kopf() -> None:
    """Not a line for every event, and never an object's content."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
