"""The command line: serve, check, explain, import, crds, openapi."""

import asyncio
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from tollhouse import __version__
from tollhouse.errors import ConfigError
from tollhouse.settings import MAX_INFLIGHT_BYTES, MEMORY_STORE, Settings

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A Kubernetes-native LLM gateway.",
)


_STORE_URL = re.compile(r"(redis|valkey)s?(\+(sentinel|cluster))?://|unix://")


def _fail(message: str) -> typer.Exit:
    typer.echo(f"tollhouse: {message}", err=True)
    return typer.Exit(2)


@cli.command()
def serve(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", envvar="TOLLHOUSE_DIR", help="A folder of resources."),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(
            envvar="TOLLHOUSE_SNAPSHOT",
            metavar="NAMESPACE/NAME",
            help="Instead of a folder: the snapshot that an operator keeps in the cluster.",
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            envvar="TOLLHOUSE_KUBECONFIG",
            help="For --snapshot outside of the cluster. [default: in-cluster, else KUBECONFIG]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(envvar="TOLLHOUSE_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TOLLHOUSE_PORT", help="0: any free port.")] = 8080,
    ops_host: Annotated[
        str | None,
        typer.Option(envvar="TOLLHOUSE_OPS_HOST", help="[default: the same as --host]"),
    ] = None,
    ops_port: Annotated[
        int, typer.Option(envvar="TOLLHOUSE_OPS_PORT", help="Probes, metrics, /config.")
    ] = 9090,
    store: Annotated[
        str,
        typer.Option(
            envvar="TOLLHOUSE_STORE",
            help="Where counters live: memory, or a redis:// URL (rediss, +sentinel, +cluster).",
        ),
    ] = MEMORY_STORE,
    ledger: Annotated[
        str,
        typer.Option(
            envvar="TOLLHOUSE_LEDGER",
            help="An event for each request that was sent: log (among the log lines), "
            "stream (in the --store's server), or none.",
        ),
    ] = "none",
    ledger_length: Annotated[
        int,
        typer.Option(
            envvar="TOLLHOUSE_LEDGER_LENGTH",
            min=1,
            help="About how many events the stream keeps; the oldest go first.",
        ),
    ] = 1_000_000,
    store_scope: Annotated[
        str,
        typer.Option(
            envvar="TOLLHOUSE_STORE_SCOPE",
            help="Gateways that count together share it; installations on one server differ.",
        ),
    ] = "default",
    store_timeout: Annotated[
        float,
        typer.Option(
            envvar="TOLLHOUSE_STORE_TIMEOUT",
            min=0.001,
            max=1.0,
            help="Seconds that a request waits for the store at most.",
        ),
    ] = 0.1,
    lease: Annotated[
        float,
        typer.Option(
            envvar="TOLLHOUSE_LEASE",
            min=1.0,
            help="Seconds until what a process that died had reserved is free again.",
        ),
    ] = 30.0,
    journal: Annotated[
        str | None,
        typer.Option(
            envvar="TOLLHOUSE_JOURNAL",
            metavar="FILE",
            help="Keeps the memory store's spend; none: do without. [default: below the user's "
            "state, by what is served]",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(envvar="TOLLHOUSE_WORKERS", min=1, max=64)] = 1,
    tls_cert: Annotated[Path | None, typer.Option(envvar="TOLLHOUSE_TLS_CERT")] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="TOLLHOUSE_TLS_KEY")] = None,
    max_body_bytes: Annotated[int, typer.Option(envvar="TOLLHOUSE_MAX_BODY_BYTES", min=1024)] = 32
    * 1024
    * 1024,
    max_inflight_bytes: Annotated[
        int | None,
        typer.Option(
            envvar="TOLLHOUSE_MAX_INFLIGHT_BYTES",
            min=1024,
            help="How much of all requests' bodies one process holds; beyond it they get a 503. "
            "[default: 256 MiB, and never less than --max-body-bytes]",
        ),
    ] = None,
    stream_keepalive: Annotated[
        float,
        typer.Option(
            envvar="TOLLHOUSE_STREAM_KEEPALIVE",
            min=0.0,
            help="Seconds of silence after which a stream gets a comment; 0: never.",
        ),
    ] = 0.0,
    denied_model_status: Annotated[
        int,
        typer.Option(
            envvar="TOLLHOUSE_DENIED_MODEL_STATUS",
            help="403, or 400 for clients that expect it, when a key may not use a model.",
        ),
    ] = 403,
    public_catalogue: Annotated[
        bool,
        typer.Option(
            envvar="TOLLHOUSE_PUBLIC_CATALOGUE",
            help="Whether GET /api/models shows anybody the models shared with every namespace.",
        ),
    ] = True,
    drain_delay: Annotated[
        float,
        typer.Option(
            envvar="TOLLHOUSE_DRAIN_DELAY",
            help="Seconds between not being ready and closing the port.",
        ),
    ] = 0.0,
    drain_timeout: Annotated[
        float,
        typer.Option(
            envvar="TOLLHOUSE_DRAIN_TIMEOUT",
            help="Seconds that requests under way may take to finish.",
        ),
    ] = 30.0,
    log_format: Annotated[
        str, typer.Option(envvar="TOLLHOUSE_LOG_FORMAT", help="auto, json or console.")
    ] = "auto",
    log_level: Annotated[str, typer.Option(envvar="TOLLHOUSE_LOG_LEVEL")] = "info",
) -> None:
    """Serve callers by the resources in DIR, or by a snapshot in the cluster."""
    if (directory is None) == (snapshot is None):
        raise _fail("give either a folder, or --snapshot NAMESPACE/NAME")
    where: tuple[str, str] | None = None
    if snapshot is not None:
        namespace, slash, name = snapshot.partition("/")
        if not (namespace and slash and name):
            raise _fail(f"--snapshot takes NAMESPACE/NAME, not {snapshot!r}")
        where = (namespace, name)
    if (tls_cert is None) != (tls_key is None):
        raise _fail("--tls-cert and --tls-key go together")
    if denied_model_status not in (400, 403):
        raise _fail("--denied-model-status is 403 or 400")
    if ledger not in ("none", "log", "stream"):
        raise _fail("--ledger is log, stream or none")
    if ledger == "stream" and store == MEMORY_STORE:
        raise _fail("--ledger stream needs a server to write to: --store redis://…")
    if store != MEMORY_STORE and not _STORE_URL.match(store):
        raise _fail("--store takes memory, or a redis://, rediss:// or unix:// URL")
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,128}", store_scope):
        raise _fail("--store-scope takes up to 128 letters, digits and any of . _ - /")
    if max_inflight_bytes is None:
        max_inflight_bytes = max(MAX_INFLIGHT_BYTES, max_body_bytes)
    elif max_inflight_bytes < max_body_bytes:
        raise _fail("--max-inflight-bytes is at least --max-body-bytes")
    settings = Settings(
        directory=directory,
        snapshot=where,
        kubeconfig=kubeconfig,
        host=host,
        port=port,
        ops_host=host if ops_host is None else ops_host,
        ops_port=ops_port,
        store=store,
        ledger=ledger,
        ledger_length=ledger_length,
        store_scope=store_scope,
        store_timeout=store_timeout,
        lease=lease,
        journal=journal,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        max_body_bytes=max_body_bytes,
        max_inflight_bytes=max_inflight_bytes,
        stream_keepalive=stream_keepalive,
        denied_model_status=denied_model_status,
        public_catalogue=public_catalogue,
        drain_delay=drain_delay,
        drain_timeout=drain_timeout,
        log_format=log_format,
        log_level=log_level,
    )
    _run(settings)


def _run(settings: Settings) -> None:
    # The parts are imported here so that the other commands start at once.
    import uvloop

    from tollhouse import app, workers
    from tollhouse.telemetry import configure_logging

    configure_logging(settings.log_format, settings.log_level)

    async def main() -> None:
        if settings.workers > 1:
            await workers.Supervisor(settings, typer.echo).run()
        else:
            await app.App(settings, typer.echo).run()

    # Only asyncio's own loop starts processes with every option that the supervisor needs.
    loop_factory = asyncio.new_event_loop if settings.workers > 1 else uvloop.new_event_loop
    try:
        app.run(main(), loop_factory)
    except ConfigError as error:
        raise _fail(str(error)) from None


@cli.command(hidden=True)
def worker() -> None:
    """One of the processes behind ``serve --workers``; told what to do on standard input."""
    from tollhouse import workers

    raise typer.Exit(workers.work())


@cli.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of resources.")],
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Say what is wrong with a folder of resources. Exit status 1 when there are errors."""
    from rich.console import Console

    from tollhouse import check as checking

    try:
        report = checking.check(directory, os.environ)
    except ConfigError as error:
        raise _fail(str(error)) from None
    if output == "json":
        typer.echo(report.to_json())
    else:
        checking.render(report, Console())
    raise typer.Exit(report.exit_code)


@cli.command()
def explain(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A folder of resources.")
    ] = None,
    in_cluster: Annotated[
        bool, typer.Option("--cluster", help="Instead of a folder: what kubectl can see.")
    ] = False,
    context: Annotated[
        str | None, typer.Option(help="The kubeconfig's context; implies --cluster.")
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option("-n", "--namespace", help="Look at this namespace only; may be repeated."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAMESPACE/NAME", help="Whose request: an ApiKey.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="VAR", help="Or the variable that holds its key.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="What it asks for.")] = None,
    file: Annotated[Path | None, typer.Option(help="The chat completion's body, as JSON.")] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
) -> None:
    """Say which key, route, targets, limits and budgets a request would meet, and why. Exit status
    1 when it would be refused."""
    from rich.console import Console

    from tollhouse import explain as explaining
    from tollhouse.kubectl import Kubectl
    from tollhouse.snapshot import Credential

    if (directory is None) == (context is None and not in_cluster):
        raise _fail("give either a folder, or --cluster or --context")
    if (key is None) == (key_env is None):
        raise _fail("say whose request it is: --key NAMESPACE/NAME, or --key-env VAR")
    presented = Credential(os.environ.get(key_env, "").strip()) if key_env is not None else None
    if presented is not None and not presented.value:
        raise _fail(f"the variable {key_env} is empty")
    try:
        if directory is not None:
            view = explaining.of_folder(directory, os.environ)
        else:
            view = explaining.of_cluster(
                Kubectl(context, namespace or ()), keys=presented is not None
            )
        found = explaining.explain(
            view,
            api_key=key,
            presented=presented,
            model=model,
            body=file.read_bytes() if file is not None else None,
        )
    except OSError as error:
        raise _fail(f"{error.filename} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise _fail(str(error)) from None
    if output == "json":
        typer.echo(found.to_json())
    else:
        explaining.render(found, Console())
    raise typer.Exit(found.exit_code)


importing = typer.Typer(no_args_is_help=True, help="Turn another gateway's configuration around.")
cli.add_typer(importing, name="import")


@importing.callback()
def _importing() -> None:
    """Write custom resources from another gateway's configuration."""


@importing.command()
def litellm(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="LiteLLM's config.yaml.")],
    namespace: Annotated[str, typer.Option("-n", "--namespace")] = "default",
    out: Annotated[
        Path | None, typer.Option(help="A folder for the files. [default: print them]")
    ] = None,
    with_secrets: Annotated[
        bool,
        typer.Option(
            "--with-secrets",
            help="Put keys that the file holds into secrets.yaml, which only you can read.",
        ),
    ] = False,
) -> None:
    """Custom resources from LiteLLM's config.yaml, and what has no equivalent (on stderr)."""
    from tollhouse import importing as imports
    from tollhouse.importing.litellm import litellm as read

    if with_secrets and out is None:
        raise _fail("--with-secrets writes a file: give a folder with --out")
    try:
        found = read(config.read_text(encoding="utf-8"), namespace)
        if out is not None:
            for path in imports.write(found, out, with_secrets=with_secrets):
                typer.echo(path)
    except OSError as error:
        raise _fail(f"{config} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _fail(f"{config} is not UTF-8 text") from None
    except ConfigError as error:
        raise _fail(str(error)) from None
    if out is None:
        typer.echo(found.to_yaml(), nl=False)
    for remark in found.remarks:
        typer.echo(remark, err=True)


@cli.command()
def crds(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write the YAML files.")
    ] = Path("crds"),
) -> None:
    """Write the CustomResourceDefinitions."""
    from tollhouse import crds as definitions

    definitions.write(directory)


@cli.command()
def openapi(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write it. [default: print]")
    ] = None,
) -> None:
    """Write the OpenAPI document of the callers' port."""
    from tollhouse.api import openapi as documents

    encoded = documents.encode()
    if file is None:
        typer.echo(encoded.decode(), nl=False)
    else:
        file.write_bytes(encoded)


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"tollhouse {__version__}")


def main() -> None:
    """The ``tollhouse`` command."""
    cli(prog_name="tollhouse")


if __name__ == "__main__":
    main()
