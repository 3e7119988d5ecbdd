"""Where the Kubernetes API server is and how to prove who we are: a kubeconfig, or a pod's files.

Tokens and client certificates are understood. Plug-ins that a kubeconfig names are not run.
"""

import contextlib
import os
import ssl
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from yarl import URL

from tollhouse.errors import ConfigError
from tollhouse.snapshot import Credential

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to prove who we are.

    Files are read again for each request: bound tokens rotate hourly. ``ca_file`` is only for
    following a rotated CA; ``tls`` has its first content already.
    """

    server: URL
    tls: ssl.SSLContext
    token: Credential | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    server_name: str | None = None


def find_access(
    kubeconfig: Path | None,
    environ: Mapping[str, str],
    service_account: Path = SERVICE_ACCOUNT,
) -> Access:
    """See ``Cluster.connect`` for the order. Raises ConfigError, which never shows a credential."""
    if kubeconfig is not None:
        return _from_kubeconfig([kubeconfig])
    listed = [Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if listed:
        return _from_kubeconfig([path for path in listed if path.exists()] or listed)
    if "KUBERNETES_SERVICE_HOST" in environ:
        return _from_service_account(environ, service_account)
    home = Path(environ.get("HOME", "~")).expanduser() / ".kube" / "config"
    if home.exists():
        return _from_kubeconfig([home])
    raise ConfigError(
        "no Kubernetes credentials: run inside a pod with a service account, "
        "or name a file with --kubeconfig or KUBECONFIG"
    )


def _from_service_account(environ: Mapping[str, str], directory: Path) -> Access:
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    token_file, ca_file = directory / "token", directory / "ca.crt"
    for needed in (token_file, ca_file):
        if not needed.is_file():
            raise ConfigError(
                f"{needed} is not there: set automountServiceAccountToken to true for this pod"
            )
    return Access(
        server=_server(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"),
        tls=_tls(ca_file.read_text(), str(ca_file)),
        token_file=token_file,
        ca_file=ca_file,
    )


class _ClusterEntry(msgspec.Struct, frozen=True, rename="kebab"):
    server: str
    certificate_authority: str | None = None
    certificate_authority_data: bytes | None = None
    insecure_skip_tls_verify: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _User(msgspec.Struct, frozen=True, rename="kebab"):
    client_certificate: str | None = None
    client_certificate_data: bytes | None = None
    client_key: str | None = None
    client_key_data: bytes | None = None
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")
    exec: Any = None
    auth_provider: Any = None
    username: str | None = None
    impersonate: Any = msgspec.field(default=None, name="as")

    def __repr__(self) -> str:
        return "_User(redacted)"


class _Context(msgspec.Struct, frozen=True):
    cluster: str
    user: str


class _Entries:
    """The entries of several files, merged as kubectl does it: the first that has one wins."""

    def __init__(self, paths: list[Path]) -> None:
        self._origin = paths[0]
        self._found: dict[tuple[str, str], tuple[Path, Any]] = {}
        self.current = ""
        for path in paths:
            content = _read_kubeconfig(path)
            self.current = self.current or str(content.get("current-context") or "")
            for key in ("cluster", "user", "context"):
                items = content.get(f"{key}s")
                for item in items if isinstance(items, list) else ():
                    if isinstance(item, dict) and "name" in item:
                        entry = (path, item.get(key) or {})
                        self._found.setdefault((key, str(item["name"])), entry)
        if not self.current:
            raise ConfigError(
                f"{self._origin} has no current-context: kubectl config use-context NAME"
            )

    def entry(self, key: str, name: str, kind: type[_T]) -> tuple[Path, _T]:
        """The directory that the entry's paths are relative to, and the entry."""
        if (key, name) not in self._found:
            raise ConfigError(
                f'{self._origin} has no {key} "{name}" (current-context is "{self.current}")'
            )
        path, found = self._found[key, name]
        try:
            return path.parent, msgspec.convert(found, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f'{path}: {key} "{name}": {error}') from None


def _from_kubeconfig(paths: list[Path]) -> Access:
    entries = _Entries(paths)
    _, context = entries.entry("context", entries.current, _Context)
    beside_cluster, cluster = entries.entry("cluster", context.cluster, _ClusterEntry)
    beside_user, user = entries.entry("user", context.user, _User)
    _refuse_unsupported(context, cluster, user)
    ca_file, ca = None, None
    if cluster.certificate_authority_data is not None:
        ca = cluster.certificate_authority_data.decode(errors="replace")
    elif cluster.certificate_authority is not None:
        ca_file = beside_cluster / cluster.certificate_authority
        ca = _read(ca_file)
    tls = _tls(ca, f'cluster "{context.cluster}"', verify=not cluster.insecure_skip_tls_verify)
    _add_client_certificate(tls, beside_user, user, f'user "{context.user}"')
    return Access(
        server=_server(cluster.server),
        tls=tls,
        token=Credential(user.token) if user.token else None,
        token_file=beside_user / user.token_file if user.token_file and not user.token else None,
        ca_file=ca_file,
        server_name=cluster.tls_server_name,
    )


def _refuse_unsupported(context: _Context, cluster: _ClusterEntry, user: _User) -> None:
    if cluster.proxy_url is not None:
        raise ConfigError(f'cluster "{context.cluster}": proxy-url is not supported')
    for setting, name in (
        (user.exec, "an exec plug-in"),
        (user.auth_provider, "an auth-provider"),
        (user.username, "a username and password"),
        (user.impersonate, "impersonation (as)"),
    ):
        if setting is not None:
            raise ConfigError(
                f'user "{context.user}" relies on an {name}, which Tollhouse does not run: use a '
                "token, a client certificate, or run in the cluster with a service account"
            )


def _read_kubeconfig(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read(path))
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the file, which holds credentials.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line} is not YAML") from None
    except yaml.YAMLError:
        raise ConfigError(f"{path} is not YAML") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a kubeconfig")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{path} cannot be read: {reason}") from error


def _server(address: str) -> URL:
    try:
        url = URL(address.rstrip("/"))
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("the Kubernetes API server's address is not an http or https URL")
    return url


def _tls(ca: str | None, source: str, *, verify: bool = True) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{source}: the CA certificate does not load") from error
    # Python 3.13 turned this on; CAs that older cluster installers made do not pass it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _add_client_certificate(tls: ssl.SSLContext, directory: Path, user: _User, source: str) -> None:
    with contextlib.ExitStack() as stack:

        def path(data: bytes | None, file: str | None) -> Path | None:
            if data is not None:
                return stack.enter_context(_unnamed_file(data))
            return directory / file if file is not None else None

        certificate = path(user.client_certificate_data, user.client_certificate)
        if certificate is None:
            return
        try:
            key = path(user.client_key_data, user.client_key)
            # Without a password callback OpenSSL would ask for one on the terminal.
            tls.load_cert_chain(certificate, key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{source}: the client certificate or its key does not load"
            ) from error


@contextlib.contextmanager
def _unnamed_file(data: bytes) -> Iterator[Path]:
    """A path to the data for OpenSSL, which reads keys from files only.

    The file has no name in any directory and goes with its descriptor; on Linux it is in memory.
    """
    with contextlib.ExitStack() as stack:
        if sys.platform == "linux":
            descriptor = os.memfd_create("tollhouse", os.MFD_CLOEXEC)
            file = stack.enter_context(os.fdopen(descriptor, "w+b"))
        else:
            file = stack.enter_context(tempfile.TemporaryFile())
        file.write(data)
        file.flush()
        file.seek(0)
        yield Path(f"/dev/fd/{file.fileno()}")
