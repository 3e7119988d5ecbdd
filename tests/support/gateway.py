"""A real gateway process for tests, and the folders that it serves."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
LOGS = Path(os.environ.get("TOLLHOUSE_TEST_LOGS", ROOT / "build" / "logs"))

KEY = "sk-th-PLANTED-a-caller-key-of-the-tests"
OTHER_KEY = "sk-th-PLANTED-another-caller-key-of-the-tests"
PROVIDER_KEY = "sk-provider-PLANTED-openai"

Manifest = dict[str, Any]


def manifest(kind: str, name: str, spec: Mapping[str, Any], namespace: str = "ai") -> Manifest:
    """One of our custom resources."""
    return {
        "apiVersion": "tollhouse.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }


def secret(name: str, data: Mapping[str, str], namespace: str = "ai") -> Manifest:
    """A core Secret with these values."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": dict(data),
    }


def caller(
    name: str = "caller", key: str = KEY, namespace: str = "ai", **spec: Any
) -> list[Manifest]:
    """An ApiKey and the Secret that holds its key."""
    return [
        manifest("ApiKey", name, spec, namespace),
        secret(name, {"OPENAI_API_KEY": key}, namespace),
    ]


def mock(name: str = "mock", **script: Any) -> Manifest:
    """A Mock provider with this script (``spec.mock``)."""
    return manifest("Provider", name, {"type": "Mock", "mock": script})


def openai_compatible(name: str, base_url: str, **spec: Any) -> list[Manifest]:
    """An OpenAI provider at this base URL, and its credential."""
    return [
        manifest(
            "Provider",
            name,
            {
                "type": "OpenAI",
                "baseURL": base_url,
                "credentials": {"secretRef": {"name": name, "key": "api-key"}},
                **spec,
            },
        ),
        secret(name, {"api-key": PROVIDER_KEY}),
    ]


def route(name: str, models: list[str], *targets: str | Mapping[str, Any], **spec: Any) -> Manifest:
    """A ModelRoute; a target is a provider's name or a whole target."""
    listed = [{"provider": {"name": t}} if isinstance(t, str) else dict(t) for t in targets]
    return manifest("ModelRoute", name, {"models": models, "targets": listed, **spec})


def write(directory: Path, *manifests: Manifest | list[Manifest], name: str = "all.yaml") -> Path:
    """Write the manifests into one file of the folder, in one atomic step."""
    flat: list[Manifest] = []
    for item in manifests:
        flat.extend(item if isinstance(item, list) else [item])
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f".{name}.new"
    fresh.write_text(yaml.safe_dump_all(flat, sort_keys=False))
    fresh.rename(directory / name)
    return directory / name


class Gateway:
    """A running ``tollhouse serve``; its output goes to a file under build/logs."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self.ops_port = 0
        self.ops_host = "127.0.0.1"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ops(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the second port."""
        connection = http.client.HTTPConnection(self.ops_host, self.ops_port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def config(self) -> dict[str, Any]:
        """What ``/config`` says."""
        body: dict[str, Any] = json.loads(self.ops("/config")[1])
        return body

    def wait_for_change(self, digest: str | None, seconds: float = 5.0) -> str:
        """Wait until another snapshot than this is in force; returns its digest."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = self.config()["digest"]
            if now is not None and now != digest:
                return str(now)
            time.sleep(0.005)
        raise AssertionError(f"no new configuration within {seconds} s; see {self.log}")

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM, then wait for the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise AssertionError(f"the gateway did not stop; see {self.log}") from None

    def text(self) -> str:
        """Everything that it has printed so far."""
        return self.log.read_text(errors="replace")


@contextmanager
def running(
    *arguments: str | Path,
    name: str = "gateway",
    environ: Mapping[str, str] | None = None,
    seconds: float = 20.0,
) -> Iterator[Gateway]:
    """``tollhouse serve`` with these arguments on free ports, ready to serve."""
    gateway = launch(*arguments, name=name, environ=environ)
    try:
        wait_until_ready(gateway, seconds)
        yield gateway
    finally:
        gateway.stop()


@contextmanager
def echoing(folder: Path, *models: str, flags: Sequence[str] = (), name: str) -> Iterator[Gateway]:
    """A gateway whose Mock provider ``echo`` answers each of these models, for the key ``KEY``."""
    routes = [route(f"echo-{number}", [model], "echo") for number, model in enumerate(models)]
    write(folder, caller(), mock("echo"), *routes)
    with running(folder, *flags, name=name) as gateway:
        yield gateway


def launch(
    *arguments: str | Path, name: str = "gateway", environ: Mapping[str, str] | None = None
) -> Gateway:
    """Start a gateway without waiting for it; whoever calls stops it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}-{os.getpid()}-{time.monotonic_ns()}.log"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "OTEL_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tollhouse",
                "serve",
                *map(str, arguments),
                "--port",
                "0",
                "--ops-port",
                "0",
            ],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=inherited
            # A test's gateway leaves nothing in anybody's home.
            | {"TOLLHOUSE_LOG_FORMAT": "json", "TOLLHOUSE_JOURNAL": "none"}
            | dict(environ or {}),
        )
    return Gateway(process, log)


_SERVES = re.compile(r"tollhouse serves https?://[^ ]+:(\d+)/v1")
_OPS = re.compile(r'"ops_port": (\d+)')


def wait_until_ready(gateway: Gateway, seconds: float = 20.0) -> None:
    """Wait for the line that says it serves."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = gateway.text()
        serves, ops = _SERVES.search(text), _OPS.search(text)
        if ops:
            gateway.ops_port = int(ops[1])
        if serves and ops:
            gateway.port = int(serves[1])
            return
        if gateway.process.poll() is not None:
            raise AssertionError(f"the gateway ended before it served; see {gateway.log}")
        time.sleep(0.01)
    raise AssertionError(f"the gateway was not ready after {seconds} s; see {gateway.log}")
