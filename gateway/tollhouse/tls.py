"""TLS on the callers' port, following the files as they are renewed."""

import asyncio
import ssl
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from tollhouse.errors import ConfigError

log = structlog.get_logger()

_LOOK_SECONDS = 1.0
"""Reading two small files costs less than a watch that follows Kubernetes' symbolic links."""


class Certificate:
    """A server ``context`` for a certificate chain and its key (PEM files): TLS 1.2 or newer.

    While entered it looks at the files every second. Each renewed pair gets a context of its own,
    which new connections are handed to; a pair that does not load changes nothing, and
    connections that are open keep what they began with. Raises ConfigError when the files are
    unfit at the start.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen = self._content()
        self._task: asyncio.Task[None] | None = None
        try:
            self._newest = self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{cert} and {key} are not a certificate and its key ({error})"
            ) from None
        # Called for every handshake, whether or not the caller names a server.
        self.context.sni_callback = self._hand_over

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = await asyncio.to_thread(self._content)
            if now == self._seen:
                continue
            # Set before loading: what is written meanwhile differs from it and is loaded next.
            self._seen = now
            try:
                self._newest = await asyncio.to_thread(self._load)
            except (OSError, ssl.SSLError) as error:
                log.warning(
                    "the renewed certificate does not load, the last one stays", why=str(error)
                )
            else:
                log.info("the certificate was renewed")

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # An empty password refuses an encrypted key, which would be asked for on the terminal.
        context.load_cert_chain(self._cert, self._key, password="")
        return context

    def _content(self) -> tuple[bytes, ...]:
        try:
            return (self._cert.read_bytes(), self._key.read_bytes())
        except OSError:
            return ()

    def _hand_over(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        connection.context = self._newest
