"""The client for the Kubernetes API: finding credentials, and a watch that outlives everything.

What a real API server does on demand is tested with one, in tests/integration. Here a scripted
server does what a real one does rarely: it forgets versions, hangs, hangs up.
"""

import asyncio
import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tollhouse import kube
from tollhouse.errors import ClusterError, ConfigError
from tollhouse.kube import Cluster, SecretData
from tollhouse.kubeconfig import find_access

TOKEN = "token-PLANTED-0001"
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


# Certificates


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a directory, made with the openssl command."""

    directory: Path

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    def issue(self, name: str) -> tuple[Path, Path]:
        key, crt = self.directory / f"{name}.key", self.directory / f"{name}.crt"
        csr = self.directory / f"{name}.csr"
        _openssl("req", *_EC, "-keyout", key, "-out", csr, "-subj", f"/CN={name}")
        names = self.directory / f"{name}.ext"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        authority = ("-CA", self.ca, "-CAkey", self.directory / "ca.key", "-CAcreateserial")
        _openssl("x509", "-req", "-in", csr, *authority, "-out", crt, "-extfile", names)
        return crt, key


def _openssl(*args: object) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=30)


def _authority(directory: Path) -> Authority:
    directory.mkdir()
    key, crt = directory / "ca.key", directory / "ca.crt"
    _openssl("req", "-x509", *_EC, "-keyout", key, "-out", crt, "-subj", "/CN=test-ca")
    return Authority(directory)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return _authority(tmp_path_factory.mktemp("pki") / "one")


# A scripted API server

Step = dict[str, Any] | float | str
"""An event to send, seconds to wait, "end" (of the watch) or "cut" (the line breaks)."""


@dataclass
class Script:
    """What the server answers, in order; the last answer of each kind is repeated."""

    lists: list[Any] = field(default_factory=list)
    watches: list[list[Step] | int] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.tokens.append(request.headers.get("Authorization"))
        if "watch" not in request.query:
            self.seen.append(("list", request.query.get("fieldSelector", "")))
            answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            if isinstance(answer, int):
                return _status(answer)
            return web.json_response(answer)
        self.seen.append(("watch", request.query["resourceVersion"]))
        steps = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
        if isinstance(steps, int):
            return _status(steps)
        response = web.StreamResponse()
        await response.prepare(request)
        for step in steps:
            if isinstance(step, dict):
                await response.write(json.dumps(step).encode() + b"\n")
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step == "cut":
                await response.write(b'{"type": "MODIFIED", "obj')
                assert request.transport is not None
                request.transport.abort()
        return response


def _status(code: int) -> web.Response:
    return web.json_response(
        {"kind": "Status", "code": code, "message": f"no: {code}"}, status=code
    )


def _secret(version: int, value: str = "v") -> dict[str, Any]:
    data = {"index": base64.b64encode(value.encode()).decode()}
    return {"metadata": {"name": "snap-0", "resourceVersion": str(version)}, "data": data}


def _listed(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items)}


def _event(kind: str, version: int) -> dict[str, Any]:
    return {"type": kind, "object": _secret(version)}


@contextlib.asynccontextmanager
async def _serving(
    handler: Callable[[web.Request], Any], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _open_key_files() -> list[str]:
    """What this process holds open of the unnamed files that keys pass through, on Linux."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if "memfd:tollhouse" in link]


def _kubeconfig(path: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


class TestInThePod:
    @pytest.fixture
    def account(self, tmp_path: Path, authority: Authority) -> Path:
        (tmp_path / "token").write_text(TOKEN + "\n")
        (tmp_path / "ca.crt").write_text(authority.ca.read_text())
        return tmp_path

    @pytest.mark.parametrize(
        ("host", "port", "url"),
        [
            ("10.96.0.1", "443", "https://10.96.0.1"),
            ("10.96.0.1", "6443", "https://10.96.0.1:6443"),
            ("fd00:10:96::1", "443", "https://[fd00:10:96::1]"),
        ],
    )
    def test_the_server_is_where_the_environment_says(
        self, account: Path, host: str, port: str, url: str
    ) -> None:
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        access = find_access(None, environ, account)
        assert str(access.server).rstrip("/") == url
        assert access.tls.verify_mode == ssl.CERT_REQUIRED

    def test_a_pod_without_a_token_is_told_what_to_set(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="automountServiceAccountToken"):
            find_access(None, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, tmp_path)

    def test_nothing_at_all_is_told_what_there_could_be(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--kubeconfig or KUBECONFIG"):
            find_access(None, {"HOME": str(tmp_path)}, tmp_path)


class TestKubeconfig:
    def test_a_token_file_beside_it(self, tmp_path: Path) -> None:
        config = _kubeconfig(tmp_path / "config", "https://api:6443", {"tokenFile": "tok"})
        assert find_access(config, {}).token_file == tmp_path / "tok"

    def test_several_files_are_merged_and_the_first_wins(self, tmp_path: Path) -> None:
        first = tmp_path / "first"
        first.write_text(yaml.safe_dump({"users": [{"name": "u", "user": {"token": TOKEN}}]}))
        second = _kubeconfig(tmp_path / "second", "https://api:6443", {"token": "other"})
        access = find_access(
            None, {"KUBECONFIG": f"{first}{os.pathsep}{tmp_path / 'gone'}{os.pathsep}{second}"}
        )
        assert access.token is not None
        assert access.token.value == TOKEN
        assert access.server.host == "api"

    @pytest.mark.parametrize(
        ("user", "word"),
        [
            ({"exec": {"command": "aws"}}, "an exec plug-in"),
            ({"auth-provider": {"name": "gcp"}}, "auth-provider"),
            ({"username": "admin", "password": "PLANTED-password"}, "username"),
            ({"token": TOKEN, "as": "root"}, "impersonation"),
        ],
    )
    def test_what_is_not_supported_is_refused_with_what_to_use(
        self, tmp_path: Path, user: dict[str, Any], word: str
    ) -> None:
        config = _kubeconfig(tmp_path / "config", "https://api:6443", user)
        with pytest.raises(ConfigError, match=word) as raised:
            find_access(config, {})
        assert "use a token" in str(raised.value)

    @pytest.mark.parametrize(
        "content",
        [
            f"users:\n- name: u\n  user: {{token: {TOKEN}\n",
            f"users: [{{name: u, user: {{token: [{TOKEN}]}}}}]\ncurrent-context: x\n",
            f"- {TOKEN}\n",
            f"current-context: {{a: 1}}\ntoken: {TOKEN}\n",
        ],
    )
    def test_a_broken_one_is_refused_without_showing_a_credential(
        self, tmp_path: Path, content: str
    ) -> None:
        config = tmp_path / "config"
        config.write_text(content)
        with pytest.raises(ConfigError) as raised:
            find_access(config, {})
        assert "config" in str(raised.value)
        assert "PLANTED" not in str(raised.value)

    def test_a_wrong_type_is_named_without_its_value(self, tmp_path: Path) -> None:
        config = _kubeconfig(tmp_path / "config", "https://api:6443", {"token": [TOKEN]})
        with pytest.raises(ConfigError, match=r'user "u".*str.*token') as raised:
            find_access(config, {})
        assert "PLANTED" not in str(raised.value)
        assert "PLANTED" not in repr(raised.value.__cause__)

    def test_a_certificate_that_does_not_load(self, tmp_path: Path) -> None:
        data = base64.b64encode(b"PLANTED").decode()
        user = {"client-certificate-data": data, "client-key-data": data}
        config = _kubeconfig(tmp_path / "config", "https://api:6443", user)
        with pytest.raises(ConfigError, match="client certificate or its key"):
            find_access(config, {})
        config = _kubeconfig(
            tmp_path / "config", "https://api", {}, **{"certificate-authority-data": data}
        )
        with pytest.raises(ConfigError, match="CA certificate does not load"):
            find_access(config, {})


class TestTls:
    async def test_client_certificates_from_data_leave_no_file(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.ca)
        server.load_cert_chain(*authority.issue("server"))
        server.verify_mode = ssl.CERT_REQUIRED
        crt, key = authority.issue("alice")

        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            subject = request.transport.get_extra_info("peercert")["subject"]
            return web.json_response(_secret(1, dict(subject[0])["commonName"]))

        def encoded(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        async with _serving(answer, server) as url:
            config = _kubeconfig(
                tmp_path / "config",
                url,
                {"client-certificate-data": encoded(crt), "client-key-data": encoded(key)},
                **{"certificate-authority-data": encoded(authority.ca)},
            )
            before = set(tmp_path.iterdir())
            async with Cluster.connect(config) as cluster:
                found = await cluster.secret("ns", "s")
                assert found is not None
                assert found.data["index"] == b"alice"
                assert not _open_key_files()
            assert set(tmp_path.iterdir()) == before

    async def test_a_rotated_ca_is_followed(self, tmp_path: Path, authority: Authority) -> None:
        other = _authority(tmp_path / "other")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*other.issue("server"))
        ca = tmp_path / "ca.crt"
        ca.write_text(authority.ca.read_text())
        script = Script(lists=[_secret(1)])
        async with _serving(script.answer, tls) as url:
            config = _kubeconfig(
                tmp_path / "config", url, {"token": TOKEN}, **{"certificate-authority": "ca.crt"}
            )
            async with Cluster.connect(config) as cluster:
                with pytest.raises(ClusterError, match="configured CA"):
                    await cluster.secret("ns", "s")
                assert script.tokens == []
                ca.write_text(other.ca.read_text())
                with pytest.raises(ClusterError, match="configured CA"):
                    await cluster.secret("ns", "s")
                assert await cluster.secret("ns", "s") is not None


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def cluster(script: Script, tmp_path: Path) -> AsyncIterator[Cluster]:
    (tmp_path / "token").write_text(TOKEN)
    async with _serving(script.answer) as url:
        config = _kubeconfig(tmp_path / "config", url, {"tokenFile": "token"})
        async with Cluster.connect(config, watch_seconds=5) as cluster:
            yield cluster


class TestReading:
    async def test_absent_is_none_and_refused_is_an_error(
        self, script: Script, cluster: Cluster
    ) -> None:
        script.lists = [404, 403]
        assert await cluster.secret("ns", "s") is None
        with pytest.raises(ClusterError, match="no: 403") as raised:
            await cluster.secret("ns", "s")
        assert raised.value.status == 403

    async def test_the_token_is_read_again(
        self, script: Script, cluster: Cluster, tmp_path: Path
    ) -> None:
        script.lists = [_secret(1)]
        await cluster.secret("ns", "s")
        (tmp_path / "token").write_text("rotated-PLANTED")
        await cluster.secret("ns", "s")
        assert script.tokens == [f"Bearer {TOKEN}", "Bearer rotated-PLANTED"]

    async def test_data_does_not_print(self, script: Script, cluster: Cluster) -> None:
        script.lists = [_secret(1, "PLANTED")]
        found = await cluster.secret("ns", "s")
        assert found is not None
        assert found.data["index"] == b"PLANTED"
        assert "PLANTED" not in repr(found)

    async def test_an_answer_that_is_no_secret(self, script: Script, cluster: Cluster) -> None:
        script.lists = [{"hello": 1}]
        with pytest.raises(ClusterError, match="does not decode"):
            await cluster.secret("ns", "s")

    async def test_nobody_there(self, tmp_path: Path) -> None:
        config = _kubeconfig(tmp_path / "config", "http://127.0.0.1:1", {"token": TOKEN})
        async with Cluster.connect(config) as cluster:
            with pytest.raises(ClusterError, match="cannot be reached") as raised:
                await cluster.secret("ns", "s")
        assert "127.0.0.1" not in str(raised.value)


@contextlib.asynccontextmanager
async def _watching(
    cluster: Cluster, trouble: Callable[[ClusterError | None], None] = lambda _: None
) -> AsyncIterator[Callable[[], Any]]:
    async with contextlib.aclosing(cluster.watch_secret("ns", "snap-0", trouble)) as states:

        async def following() -> str | None:
            async with asyncio.timeout(10):
                state: SecretData | None = await anext(states)
                return None if state is None else state.resource_version

        yield following


class TestWatching:
    async def test_starts_where_the_list_ended_and_resumes_from_the_last_bookmark(
        self, script: Script, cluster: Cluster
    ) -> None:
        script.lists = [_listed(10, _secret(3))]
        bookmark = _event("BOOKMARK", 20)
        script.watches = [[_event("MODIFIED", 11), bookmark, 1.1, "end"], [_event("MODIFIED", 21)]]
        async with _watching(cluster) as following:
            assert [await following() for _ in range(3)] == ["3", "11", "21"]
        assert script.seen[:3] == [
            ("list", "metadata.name=snap-0"),
            ("watch", "10"),
            ("watch", "20"),
        ]

    async def test_no_secret_then_one_then_none_then_another(
        self, script: Script, cluster: Cluster
    ) -> None:
        script.lists = [_listed(10)]
        script.watches = [[_event("ADDED", 11), _event("DELETED", 12), _event("ADDED", 13), 5.0]]
        async with _watching(cluster) as following:
            assert [await following() for _ in range(4)] == [None, "11", None, "13"]

    @pytest.mark.parametrize(
        "forgotten",
        [410, [{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "old"}}]],
    )
    async def test_a_version_too_old_is_read_anew_and_nothing_comes_twice(
        self, script: Script, cluster: Cluster, forgotten: int | list[Step]
    ) -> None:
        script.lists = [_listed(10, _secret(3)), _listed(30, _secret(3)), _listed(40, _secret(35))]
        script.watches = [forgotten, forgotten, [5.0]]
        async with _watching(cluster) as following:
            assert [await following() for _ in range(2)] == ["3", "35"]

    async def test_a_line_that_breaks_within_an_event(
        self, script: Script, cluster: Cluster
    ) -> None:
        troubles: list[str] = []
        script.lists = [_listed(10, _secret(3)), _listed(12, _secret(12))]
        script.watches = [[_event("MODIFIED", 11), "cut"], [_event("MODIFIED", 13), 5.0]]
        async with _watching(cluster, lambda e: troubles.append(str(e))) as following:
            assert [await following() for _ in range(4)] == ["3", "11", "12", "13"]
        assert set(troubles) == {"None"}, "a break that mends at once is no trouble"

    async def test_refusals_are_told_and_outlived(self, script: Script, cluster: Cluster) -> None:
        troubles: list[ClusterError | int | None] = []
        script.lists = [401, 500, _listed(10, _secret(3))]
        script.watches = [403, [_event("MODIFIED", 11), 5.0]]
        async with _watching(cluster, lambda e: troubles.append(e and e.status)) as following:
            assert [await following() for _ in range(2)] == ["3", "11"]
        assert troubles == [401, 500, 403, None]

    async def test_a_line_that_goes_silent_is_left(
        self, script: Script, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "_watch_seconds", 0.2)
        monkeypatch.setattr(kube, "_WATCH_GRACE_SECONDS", 0.1)
        script.lists = [_listed(10, _secret(3)), _listed(12, _secret(12))]
        script.watches = [[30.0]]
        async with _watching(cluster) as following:
            assert [await following() for _ in range(2)] == ["3", "12"]

    async def test_a_server_that_ends_every_watch_is_not_hammered(
        self, script: Script, cluster: Cluster
    ) -> None:
        script.lists = [_listed(10, _secret(3))]
        script.watches = [["end"]]
        async with _watching(cluster) as following:
            assert await following() == "3"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await following()
        assert len(script.seen) < 10
