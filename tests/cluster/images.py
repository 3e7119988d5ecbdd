"""Images on a machine without a registry: a Debian base by debootstrap, builds by buildah.

With Docker nothing of this is needed: the Dockerfile's own base comes from a registry.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from machine import CACHE, HERE, QUIET, locked, need, say, sh

SUITE, PACKAGES, REVISION = "bookworm", ("python3-venv", "ca-certificates"), 1
BASE = f"localhost/tollhouse-base:{SUITE}-{REVISION}"
"""The base image's name. Raise REVISION when what is in it changes."""
ROOT = HERE.parents[1]
_IMAGES = CACHE / "images"
_CERTIFICATES = "/etc/ssl/certs"
_NEEDLESS = ("var/cache", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man",
             "usr/share/locale", "usr/share/info", "usr/share/lintian")  # fmt: skip


def base() -> str:
    """The name of a Debian image with Python: built once (about a minute), then cached.

    Raises MissingError where debootstrap or buildah is missing.
    """
    need("debootstrap", "buildah", "tar")
    with locked("images"):
        if subprocess.run(["buildah", "inspect", BASE], check=False, **QUIET).returncode:
            _import(_root())
    return BASE


def product(tag: str) -> None:
    """Build the repository's image by Docker where it answers, otherwise from the Debian base.

    The environment's BASE names another base image. Prints the image's size.
    """
    base_image = os.environ.get("BASE")
    if docker_answers():
        chosen = [f"--build-arg=BASE={base_image}"] if base_image else []
        sh("docker", "build", "--quiet", *chosen, "--tag", tag, ROOT, stdout=subprocess.DEVNULL)
        inspect = ("docker", "image", "inspect", "--format", "{{.Size}}", tag)
        size = int(sh(*inspect, stdout=subprocess.PIPE).stdout)
    else:
        build(tag, ROOT, arguments={"BASE": base_image or base()})
        size = _size(tag)
    print(f"{tag}: {size / 1e6:.0f} MB uncompressed")


def docker_answers() -> bool:
    return (
        bool(shutil.which("docker"))
        and not subprocess.run(["docker", "info"], check=False, timeout=10, **QUIET).returncode
    )


def build(
    tag: str, context: Path, file: Path | None = None, arguments: Mapping[str, str] | None = None
) -> str:
    """Build a Dockerfile with buildah, without pulling anything; returns the tag."""
    need("buildah")
    for_build = [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
    # chroot isolation works inside of a container too; the certificates are those that this
    # machine trusts, which may be more than the base image's.
    sh(
        *("buildah", "build", "--isolation", "chroot", "--network", "host", "--pull=never"),
        *("--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro", "--layers", *for_build),
        *("--tag", tag, "--file", file or context / "Dockerfile", context),
        stdout=subprocess.DEVNULL,
    )
    return tag


def archive(tag: str, path: Path) -> Path:
    """Write an image where ``cluster.py load`` can read it; returns the path."""
    path.unlink(missing_ok=True)
    sh("buildah", "push", "--quiet", tag, f"docker-archive:{path}:{tag}", **QUIET)
    return path


def _size(tag: str) -> int:
    """Bytes of an image, uncompressed."""
    text = sh("buildah", "images", "--json", tag, stdout=subprocess.PIPE).stdout
    number, unit = json.loads(text)[0]["size"].split()
    return round(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])


def _root() -> Path:
    """The tar of a minimal Debian; debootstrap runs when the cache has none."""
    tar = _IMAGES / f"debian-{SUITE}-{REVISION}.tar"
    if tar.exists():
        return tar
    say(f"making a Debian base image ({SUITE}), once: about a minute")
    _IMAGES.mkdir(parents=True, exist_ok=True)
    root = _IMAGES / "root.unfinished"
    shutil.rmtree(root, ignore_errors=True)
    sh(
        *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, root),
        stdout=subprocess.DEVNULL,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
    )
    for directory in _NEEDLESS:
        for path in (root / directory).glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    unfinished = tar.with_suffix(".unfinished")
    sh("tar", "--create", "--numeric-owner", f"--file={unfinished}", f"--directory={root}", ".")
    unfinished.rename(tar)
    shutil.rmtree(root)
    return tar


def _import(tar: Path) -> None:
    container = sh("buildah", "from", "scratch", stdout=subprocess.PIPE).stdout.strip()
    try:
        sh("buildah", "add", "--quiet", container, tar, "/", stdout=subprocess.DEVNULL)
        sh("buildah", "commit", "--quiet", container, BASE, stdout=subprocess.DEVNULL)
    finally:
        sh("buildah", "rm", container, stdout=subprocess.DEVNULL)
