"""A Kubernetes that runs pods, the images under test in it, and Helm: what ``tests/e2e`` needs.

In this order: the node that ``cluster.py up --node`` started, where TOLLHOUSE_TEST_KUBECONFIG names
its kubeconfig; kind where Docker answers; a node of ``tests/cluster``, which needs root.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import planted
from support.kubernetes import (
    CLUSTER,
    KubernetesCluster,
    NoClusterError,
    built,
    kind_can_be_had,
    running_cluster,
)
from support.kubernetes import kind as kind_cluster

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tollhouse"
PRODUCT, CLIENT = "localhost/tollhouse:e2e", "localhost/tollhouse-client:e2e"
"""The image under test, and it with the OpenAI SDK on top."""
VALKEY = "localhost/tollhouse-valkey:e2e"
"""A server for counters, which is Debian's Redis."""
BUILD_SECONDS = 1200.0
HELM_SECONDS = 180.0

sys.path.insert(0, str(CLUSTER.parent))
import binaries  # noqa: E402  # because the path above leads there
import images  # noqa: E402  # because the path above leads there
import machine  # noqa: E402  # because the path above leads there


class Pods:
    """A cluster with a node: kubectl, Helm, and the images loaded into it."""

    def __init__(self, api: KubernetesCluster, *, of_kind: bool) -> None:
        self.api = api
        self.of_kind = of_kind
        self.kubectl = api.kubectl

    @property
    def environ(self) -> Mapping[str, str]:
        """An environment in which ``kubectl`` and ``helm`` mean this cluster."""
        programs = [str(Path(self.api.program).parent), str(machine.CACHED_BINARIES)]
        search = os.pathsep.join([*programs, os.environ["PATH"]])
        return os.environ | {"KUBECONFIG": str(self.api.kubeconfig), "PATH": search}

    def helm(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run Helm, output captured. Raises AssertionError with what it said when it fails."""
        done = subprocess.run(
            [str(binaries.HELM_PROGRAM), *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=HELM_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"helm {arguments[0]} failed: {done.stderr.strip()}")
        return done

    def load(self, tag: str) -> None:
        """Put an image that was built here onto the node."""
        if self.of_kind:
            name = self.api.kubectl("config", "current-context").stdout.strip()
            _sh("kind", "load", "docker-image", tag, "--name", name.removeprefix("kind-"))
            return
        with tempfile.TemporaryDirectory() as directory:
            archive = images.archive(tag, Path(directory) / "image.tar")
            _sh(sys.executable, str(CLUSTER), "load", str(archive), environ=self._own())

    def component(self, action: str, name: str) -> None:
        """``stop`` or ``start`` a component of the control plane. Not with kind."""
        _sh(sys.executable, str(CLUSTER), action, name, environ=self._own())

    def json(self, *arguments: str) -> dict[str, Any]:
        """What kubectl answers with ``-o json``."""
        found: dict[str, Any] = json.loads(self.kubectl(*arguments, "-o", "json").stdout)
        return found

    def _own(self) -> Mapping[str, str]:
        return os.environ | {
            "TOLLHOUSE_TESTCLUSTER_DIR": str(self.api.kubeconfig.parent),
            "TOLLHOUSE_TEST_LOGS": str(planted.log_directory()),
        }


@contextlib.contextmanager
def running() -> Iterator[Pods]:
    """A fresh cluster with both images in it. Raises NoClusterError where there can be none."""
    named = Path(os.environ.get("TOLLHOUSE_TEST_KUBECONFIG", "/nowhere"))
    ours = (named.parent / "containerd.sock").exists()
    of_kind = not ours and kind_can_be_had()
    if not of_kind and os.getuid() != 0:
        raise NoClusterError("pods need root, or kind and Docker")
    try:
        tags = _images()
        binaries.build(node=True)
    except machine.MissingError as error:
        raise NoClusterError(str(error)) from None
    with running_cluster() if ours else kind_cluster() if of_kind else built("--node") as api:
        pods = Pods(api, of_kind=of_kind)
        for tag in tags:
            pods.load(tag)
        yield pods


def _images() -> tuple[str, ...]:
    _sh(sys.executable, str(CLUSTER), "image", PRODUCT)
    recipes = ROOT / "tests" / "e2e"
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        (context / "requirements.txt").write_text(_locked("openai"))
        _build(CLIENT, context, recipes / "client" / "Dockerfile", {"PRODUCT": PRODUCT})
        base = {} if images.docker_answers() else {"BASE": images.base()}
        _build(VALKEY, context, recipes / "valkey" / "Dockerfile", base)
    return PRODUCT, CLIENT, VALKEY


def _build(tag: str, context: Path, recipe: Path, arguments: Mapping[str, str]) -> None:
    if not images.docker_answers():
        images.build(tag, context, recipe, arguments)
        return
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    _sh("docker", "build", "--quiet", *given, "--tag", tag, "--file", str(recipe), str(context))


def _locked(project: str) -> str:
    """The part of the development lock, with hashes, that one project and what it needs is."""
    blocks = re.split(
        r"^(?=[a-z0-9])", (ROOT / "requirements-dev.lock").read_text(), flags=re.MULTILINE
    )
    lock = {block.partition("==")[0]: block for block in blocks if "==" in block}
    wanted, found = [project], dict[str, str]()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found or name not in lock:
            continue
        found[name] = lock[name]
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return "".join(found.values())


def _sh(*arguments: str, environ: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        arguments, env=environ, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode == machine.MISSING:
        raise machine.MissingError(done.stderr.strip())
    if done.returncode:
        raise AssertionError(f"{' '.join(arguments[:3])} failed: {done.stderr.strip()[-4000:]}")
