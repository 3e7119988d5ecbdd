"""A real operator process for tests, and what it leaves in the cluster as tests want to read it."""

import base64
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from support import planted
from support.kubernetes import KubernetesCluster
from tollhouse.snapshot import (
    INDEX_KEY,
    SHARD_KEY,
    Assembler,
    Index,
    Snapshot,
    decode_index,
    slot_name,
)

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = "snap"
SERVICE = "tollhouse"
BASE_URL = "http://tollhouse.test.svc:8080/v1"

_T = TypeVar("_T")


class Operator:
    """A running ``tollhouse-operator run``; its output goes to a log file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        """Everything that it has logged so far."""
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines with this event."""
        lines = (line for line in self.text().splitlines() if line.startswith("{"))
        return [found for line in lines if (found := json.loads(line)).get("event") == name]

    def until(self, name: str, seconds: float = 15.0) -> None:
        """Wait for a log line with this event."""

        def logged() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the operator ended; see {self.log}")
            return bool(self.events(name))

        eventually(logged, seconds)

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM, then wait for the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the operator did not stop; see {self.log}") from None

    def kill(self) -> None:
        """SIGKILL: it gets no chance to release anything."""
        self.process.kill()
        self.process.wait(5)


def launch(kubeconfig: Path, namespace: str, *arguments: str, name: str = "operator") -> Operator:
    """Start an operator whose snapshot is in ``namespace``; whoever calls stops it.

    It serves that namespace unless the arguments say otherwise.
    """
    log = planted.log_directory() / f"{name}-{os.getpid()}-{time.monotonic_ns()}.log"
    scope = () if "--all-namespaces" in arguments else ("--namespace", namespace)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TOLLHOUSE_", "KUBE"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tollhouse_operator", "run",
                "--snapshot", f"{namespace}/{SNAPSHOT}",
                "--service", f"{namespace}/{SERVICE}",
                "--base-url", BASE_URL,
                "--kubeconfig", str(kubeconfig),
                "--ops-port", "0",
                *scope,
                *arguments,
            ],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=inherited,
        )  # fmt: skip
    return Operator(process, log)


@contextmanager
def running(
    kubeconfig: Path, namespace: str, *arguments: str, name: str = "operator"
) -> Iterator[Operator]:
    """An operator that leads and has published."""
    operator = launch(kubeconfig, namespace, *arguments, name=name)
    try:
        operator.until("snapshot in force", 60)
        yield operator
    finally:
        operator.stop()


def eventually(look: Callable[[], _T | None], seconds: float = 5.0) -> _T:
    """What ``look`` returns once that is true; its own AssertionError or a new one if never."""
    deadline = time.monotonic() + seconds
    while True:
        failure: AssertionError | None = None
        try:
            if found := look():
                return found
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure or AssertionError(f"not so within {seconds} s")
        time.sleep(0.02)


def condition(found: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A condition of an object; empty where it has none of this type."""
    conditions = found.get("status", {}).get("conditions", [])
    return next((dict(one) for one in conditions if one["type"] == kind), {})


def until_condition(
    cluster: KubernetesCluster,
    kind: str,
    name: str,
    namespace: str,
    type_: str,
    status: str,
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Wait until a condition has this status for the object's newest generation."""

    def so() -> dict[str, Any] | None:
        found = cluster.get(kind, name, namespace)
        one = condition(found, type_)
        current = one.get("observedGeneration") == found["metadata"]["generation"]
        return one if current and one.get("status") == status else None

    return eventually(so, seconds)


def values(secret: Mapping[str, Any]) -> dict[str, str]:
    """A Secret's values in clear."""
    return {
        name: base64.b64decode(value).decode() for name, value in secret.get("data", {}).items()
    }


class Slots:
    """The snapshot's Secrets, read as a gateway reads them."""

    def __init__(self, cluster: KubernetesCluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def secrets(self) -> dict[str, dict[str, Any]]:
        """Every slot that exists, by its Secret's name."""
        answer = self._cluster.kubectl(
            "get", "secrets", "-n", self._namespace, "-o", "json",
            "-l", f"tollhouse.dev/snapshot={SNAPSHOT}",
        )  # fmt: skip
        return {item["metadata"]["name"]: item for item in json.loads(answer.stdout)["items"]}

    def versions(self) -> dict[str, str]:
        """The resource version of every slot."""
        return {
            name: secret["metadata"]["resourceVersion"] for name, secret in self.secrets().items()
        }

    def index(self) -> Index:
        return _index(self.secrets())

    def snapshot(self) -> Snapshot:
        """What a gateway that starts now would serve."""
        secrets = self.secrets()
        index = _index(secrets)
        fetched = {
            name: _bytes(secrets[slot_name(SNAPSHOT, ref.slot)], SHARD_KEY)
            for name, ref in index.shards.items()
        }
        return Assembler().assemble(index, fetched)


def _index(secrets: Mapping[str, Mapping[str, Any]]) -> Index:
    name = slot_name(SNAPSHOT, 0)
    assert name in secrets, "there is no index yet"
    return decode_index(_bytes(secrets[name], INDEX_KEY))


def _bytes(secret: Mapping[str, Any], key: str) -> bytes:
    return base64.b64decode(secret["data"][key])


class FakeGateway:
    """The ops port of a gateway, on an address that EndpointSlices accept. It serves ``digest``."""

    def __init__(self, address: str) -> None:
        gateway = self
        self.digest = ""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"digest": gateway.digest, "synced": True}).encode()
                self.send_response(200 if self.path == "/config" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # because the overridden method calls it so
                pass

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.address = address
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def own_address() -> str:
    """An address of this machine that is not loopback. Skips where there is none, fails in CI."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the route
            address: str = probe.getsockname()[0]
    except OSError:
        address = "127.0.0.1"
    if address.startswith("127."):
        if os.environ.get("CI"):
            pytest.fail("this machine has no address but loopback")
        pytest.skip("this machine has no address but loopback, which EndpointSlices refuse")
    return address


class Listener(Protocol):
    """Anything with an ops port at an address."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...


def endpoint_slice(namespace: str, gateways: Sequence[Listener]) -> list[dict[str, Any]]:
    """The gateways' Service and its EndpointSlices, one for each gateway's own port."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": namespace},
        "spec": {"ports": [{"name": "ops", "port": 9090}]},
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{SERVICE}-{gateway.port}",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": SERVICE},
            },
            "addressType": "IPv4",
            "ports": [{"name": "ops", "port": gateway.port, "protocol": "TCP"}],
            "endpoints": [
                {
                    "addresses": [gateway.address],
                    "conditions": {"ready": True},
                    "targetRef": {"kind": "Pod", "name": "p", "uid": str(gateway.port)},
                }
            ],
        }
        for gateway in gateways
    ]
    return [service, *slices]
