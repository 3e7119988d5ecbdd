"""Where a cluster's files are, and how its processes are started, watched and stopped.

Everything that one cluster owns lies in its run directory, so several may run side by side; what
is built lies in a cache that all of them share.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tollhouse"
CACHED_BINARIES = CACHE / "bin"
RUN = Path(
    os.environ.get("TOLLHOUSE_TESTCLUSTER_DIR")
    or Path(tempfile.gettempdir()) / f"tollhouse-testcluster-{os.getuid()}"
).resolve()
"""The run directory; TOLLHOUSE_TESTCLUSTER_DIR names another."""
BIN = RUN / "bin"
PKI = RUN / "pki"
KUBECONFIG = RUN / "admin.kubeconfig"
PIDS = RUN / "pids"
MARK = RUN / ".tollhouse-testcluster"
"""Only a directory that has this file is ever deleted."""
LOGS = (
    Path(os.environ["TOLLHOUSE_TEST_LOGS"]) / RUN.name
    if os.environ.get("TOLLHOUSE_TEST_LOGS")
    else RUN / "logs"
)
"""Below TOLLHOUSE_TEST_LOGS where that is set, so that logs outlive the cluster."""
NETNS = "tollhouse-test"
QUIET: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

MISSING = 3
"""The exit status that says: this machine lacks something a cluster needs."""


class ClusterError(Exception):
    """The cluster cannot be built, started or used; the message says what to look at."""


class MissingError(ClusterError):
    """The machine lacks something; the message says what to install."""


def sh(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises subprocess.CalledProcessError when it fails."""
    return subprocess.run([str(arg) for arg in args], check=True, text=True, **options)


def need(*commands: str) -> None:
    """Raises MissingError when a command is not on the PATH."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        raise MissingError(f"install {', '.join(missing)}: not found on the PATH")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_run_directory() -> None:
    RUN.mkdir(parents=True, exist_ok=True, mode=0o700)
    if RUN.stat().st_uid != os.getuid() or any(RUN.iterdir()):
        raise ClusterError(f"{RUN} is not an empty directory of this user")
    MARK.touch()
    for directory in (BIN, PKI, LOGS):
        directory.mkdir(parents=True, exist_ok=True)


def remove_run_directory() -> None:
    if MARK.exists():
        shutil.rmtree(RUN)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time, among all that use the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_ports(count: int) -> list[int]:
    """Loopback ports that nothing listens on, below those that outgoing connections take."""
    random, found = Random(), set[int]()
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.add(port)
        if len(found) == count:
            return list(found)
    raise ClusterError("no free ports on loopback")


def start(name: str, *args: object, inside: bool = False) -> None:
    """Start a component, its output in its log and its pid kept for ``stop``.

    ``inside``: in the node's network namespace.
    """
    program = BIN / name
    argv = [str(program) if program.exists() else name, *map(str, args)]
    if inside:
        # Not `ip netns exec`: that one hides the mounts of the cgroups.
        argv = ["nsenter", f"--net=/run/netns/{NETNS}", *argv]
    (RUN / f"{name}.argv").write_text(json.dumps(argv))
    _run(name, argv)


def _run(name: str, argv: Sequence[str]) -> None:
    # Whoever starts a component again may keep logs elsewhere than who started it first.
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=RUN,
            start_new_session=True,
        )
    with PIDS.open("a") as pids:
        pids.write(f"{process.pid} {_started(process.pid)} {name}\n")


def stop_one(name: str) -> None:
    """Stop one component as a crash does: it takes leave of nobody. Raises ClusterError when it
    does not run."""
    lines = [line.split() for line in PIDS.read_text().splitlines()] if PIDS.exists() else []
    ours = [int(pid) for pid, started, of in lines if of == name and _started(int(pid)) == started]
    if not ours:
        raise ClusterError(f"{name} does not run in {RUN}")
    _signal(ours, signal.SIGKILL)
    _stop(ours, 0)


def start_again(name: str) -> None:
    """Start a component as it was started before. Raises ClusterError when it never was."""
    recorded = RUN / f"{name}.argv"
    if not recorded.exists():
        raise ClusterError(f"{name} was never started in {RUN}")
    _run(name, json.loads(recorded.read_text()))


def stop() -> None:
    """Stop what ``start`` started, last first; SIGKILL for what has not gone after 2 s."""
    if not PIDS.exists():
        return
    lines = [line.split() for line in reversed(PIDS.read_text().splitlines())]
    _stop([int(pid) for pid, started, _ in lines if _started(int(pid)) == started], 2)


def _stop(ours: Sequence[int], patience: float) -> None:
    """SIGTERM, then SIGKILL for what has not gone after ``patience`` seconds."""
    _signal(ours, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while any(_alive(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal(ours, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in ours) and time.monotonic() < deadline:
        time.sleep(0.02)


def _signal(pids: Sequence[int], sign: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, sign)


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot: a pid alone may be another's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    return stat.rpartition(")")[2].split()[19]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait(what: str, probe: Callable[[], object], seconds: float = 60) -> None:
    """Until ``probe`` is true; it may fail meanwhile. Raises ClusterError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.CalledProcessError):
            if probe():
                return
        for line in PIDS.read_text().splitlines():
            pid, _, name = line.split()
            if not _alive(int(pid)):
                tail = (LOGS / f"{name}.log").read_text(errors="replace")[-2000:]
                raise ClusterError(f"{name} has ended, waiting for {what}:\n{tail}")
        time.sleep(0.1)
    raise ClusterError(f"{what} not ready after {seconds:g} s; see {LOGS}")


def kubectl(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return sh(BIN / "kubectl", "--kubeconfig", KUBECONFIG, *args, **options)
