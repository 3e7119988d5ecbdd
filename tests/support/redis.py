"""A real Redis or Valkey server for tests, on a free port, which a test may stop and start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support import planted


class Server:
    """A server process. ``restart`` keeps port and data, as a pod with a volume would."""

    def __init__(self, program: str, directory: Path, *options: str, port: int = 0) -> None:
        self._program = program
        self._options = options
        self._directory = directory
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = planted.log_directory() / f"redis-{os.getpid()}-{self.port}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    self._program,
                    *("--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--dir", str(self._directory), "--save", ""),
                    *("--appendonly", "yes", "--appendfsync", "always"),
                    *self._options,
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1) as connection,
            ):
                connection.settimeout(1)
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
                if answer.startswith((b"+PONG", b"-NOAUTH", b"-DENIED")):
                    return
            if self._process.poll() is not None:
                raise AssertionError(f"{self._program} ended at once; see {log}")
            time.sleep(0.01)
        raise AssertionError(f"{self._program} does not answer; see {log}")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """Answer nothing, with every connection open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on, first with everything that was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def free_port() -> int:
    """A port that nobody has right now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def program() -> str | None:
    """The server's program on this machine."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextlib.contextmanager
def running(directory: Path, *options: str, port: int = 0) -> Iterator[Server]:
    """A server with these options, gone afterwards."""
    found = program()
    if found is None:
        raise AssertionError("tests need valkey-server or redis-server on the PATH")
    server = Server(found, directory, *options, port=port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def sentinel(config: Path) -> Iterator[int]:
    """A Sentinel with this configuration file, which it writes to; gives its port."""
    found = program()
    if found is None:
        raise AssertionError("tests need valkey-server or redis-server on the PATH")
    port = free_port()
    log = planted.log_directory() / f"sentinel-{os.getpid()}-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [found, str(config), "--sentinel", "--port", str(port), "--bind", "127.0.0.1"],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.wait(10)
