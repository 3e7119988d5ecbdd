"""A Kubernetes for tests: the one named, kind's, or one that ``tests/cluster`` builds.

In this order: TOLLHOUSE_TEST_KUBECONFIG, kind where Docker answers, the built API server.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import planted

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "tests" / "cluster" / "cluster.py"
BUILD_SECONDS = 1800
START_SECONDS = 180
KUBECTL_SECONDS = 60
_LACKING = 3
"""The status with which ``cluster.py`` says that the machine lacks something."""

Manifest = Mapping[str, Any]


class NoClusterError(Exception):
    """This machine cannot run a Kubernetes; the message says what it lacks."""


@dataclass(frozen=True)
class KubernetesCluster:
    """An API server, by the kubeconfig of its administrator and a kubectl that fits it."""

    kubeconfig: Path
    program: str

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 - the word that subprocess.run has for it
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, output captured.

        Raises AssertionError with what kubectl said when it fails, unless ``check`` is False.
        """
        done = subprocess.run(
            [self.program, *args],
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
            input=input,
            capture_output=True,
            text=True,
            timeout=KUBECTL_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {args[0]} failed: {done.stderr.strip()}")
        return done

    def apply(
        self,
        manifests: Manifest | Sequence[Manifest],
        namespace: str | None = None,
        *,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Apply one manifest or several, in ``namespace`` where they name none."""
        items = [manifests] if isinstance(manifests, Mapping) else list(manifests)
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        where = ("-n", namespace) if namespace else ()
        return self.kubectl("apply", *where, "-f", "-", input=text, check=check)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """An object as the API server has it."""
        answer = self.kubectl("get", kind, name, "-n", namespace, "-o", "json")
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def install_crds(self) -> None:
        """Apply ``crds/`` and wait until the API server serves them."""
        directory = str(ROOT / "crds")
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", directory)
        self.kubectl("wait", "--for=condition=Established", "-f", directory, "--timeout=30s")


@contextlib.contextmanager
def running_cluster() -> Iterator[KubernetesCluster]:
    """A cluster, for as long as the context lasts. Raises NoClusterError when there can be none."""
    named = os.environ.get("TOLLHOUSE_TEST_KUBECONFIG")
    if named:
        # One of ours has the kubectl that fits it beside it.
        own = Path(named).parent / "bin" / "kubectl"
        yield KubernetesCluster(Path(named), str(own) if own.exists() else _kubectl())
    elif kind_can_be_had():
        with kind() as cluster:
            yield cluster
    else:
        with built() as cluster:
            yield cluster


@contextlib.contextmanager
def kind() -> Iterator[KubernetesCluster]:
    """A cluster of kind's, which runs pods."""
    name = f"tollhouse-test-{os.getpid()}"
    with tempfile.TemporaryDirectory() as directory:
        kubeconfig = Path(directory) / "kubeconfig"
        target = ("--name", name, "--kubeconfig", str(kubeconfig))
        try:
            _run("kind", "create", "cluster", "--wait", "120s", *target, timeout=600)
            yield KubernetesCluster(kubeconfig, _kubectl())
        finally:
            _run("kind", "delete", "cluster", *target, timeout=120)


@contextlib.contextmanager
def built(*flags: str) -> Iterator[KubernetesCluster]:
    """A cluster that ``tests/cluster`` builds; ``--node`` among the flags: one that runs pods."""
    _sweep()
    with contextlib.ExitStack() as stack:
        run = Path(tempfile.gettempdir()) / f"{_prefix()}{os.getpid()}"
        environ = os.environ | {
            "TOLLHOUSE_TESTCLUSTER_DIR": str(run),
            "TOLLHOUSE_TEST_LOGS": str(planted.log_directory()),
        }
        _cluster(("build", *flags), environ, BUILD_SECONDS)
        stack.callback(_cluster, ("down",), environ, START_SECONDS)
        _cluster(("up", *flags), environ, START_SECONDS)
        yield KubernetesCluster(run / "admin.kubeconfig", str(run / "bin" / "kubectl"))


def _prefix() -> str:
    return f"tollhouse-testcluster-{os.getuid()}-"


def _sweep() -> None:
    """Stop the clusters of test runs that were killed before they could."""
    for run in Path(tempfile.gettempdir()).glob(f"{_prefix()}[0-9]*"):
        owner = run.name.removeprefix(_prefix())
        if owner.isdecimal() and not _alive(int(owner)):
            environ = os.environ | {"TOLLHOUSE_TESTCLUSTER_DIR": str(run)}
            _cluster(("down",), environ, START_SECONDS)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _cluster(command: Sequence[str], environ: Mapping[str, str], timeout: float) -> None:
    done = _run(sys.executable, str(CLUSTER), *command, environ=environ, timeout=timeout)
    if done.returncode == _LACKING:
        raise NoClusterError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"cluster.py {command[0]} failed: {done.stderr.strip()[-4000:]}")


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise NoClusterError("install kubectl: not found on the PATH")
    return found


def kind_can_be_had() -> bool:
    """Whether kind is installed and Docker answers."""
    if shutil.which("kind") is None or shutil.which("docker") is None:
        return False
    try:
        return _run("docker", "info", timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _run(
    *args: str, timeout: float, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, env=environ, capture_output=True, text=True, timeout=timeout, check=False
    )
