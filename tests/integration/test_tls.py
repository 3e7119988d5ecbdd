"""TLS on the callers' port of a real gateway, while the files change under it."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import certificates, raw
from support import gateway as g
from support.gateway import Gateway

NOTICED = 5.0
"""Seconds. The gateway looks every second; a busy machine takes longer."""


@contextmanager
def serving(
    tmp_path: Path, cert: Path, key: Path, *arguments: str, name: str = "tls"
) -> Iterator[Gateway]:
    folder = tmp_path / "config"
    g.write(folder, g.caller(), g.mock("echo"), g.route("echo", ["mock/echo"], "echo"))
    with g.running(
        folder, "--tls-cert", cert, "--tls-key", key, *arguments, name=name, seconds=60
    ) as running:
        yield running
    assert "PLANTED" not in running.text()
    assert "Traceback" not in running.text()


def trusting(*certs: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for cert in certs:
        context.load_verify_locations(cert)
    return context


def seen(gateway: Gateway) -> bytes:
    """The certificate that a new connection is shown (DER)."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


async def becomes(gateway: Gateway, cert: bytes) -> None:
    deadline = time.monotonic() + NOTICED
    while await asyncio.to_thread(seen, gateway) != cert:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def replace(old: Path, new: Path) -> None:
    """Rename over, after a copy, as tools that renew do."""
    beside = old.with_suffix(".new")
    beside.write_bytes(new.read_bytes())
    beside.rename(old)


async def test_callers_are_served_over_tls(tmp_path: Path) -> None:
    cert, key = certificates.make(tmp_path / "first", "first")
    with serving(tmp_path, cert, key) as gateway:
        assert "tollhouse serves https://127.0.0.1:" in gateway.text()
        context = trusting(cert)
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with raw.connection(gateway.port, ssl=context) as (reader, writer):
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200
            wrapped = writer.get_extra_info("ssl_object")
            assert wrapped.selected_alpn_protocol() == "http/1.1"
            assert wrapped.version() == "TLSv1.3"
            writer.write(raw.post(raw.chat(stream=True), "Connection: close"))
            assert b"[DONE]" in (await raw.read_answer(reader)).body


async def test_old_protocols_plain_http_and_noise_harm_nobody(tmp_path: Path) -> None:
    cert, key = certificates.make(tmp_path / "first", "first")
    with serving(tmp_path, cert, key) as gateway:
        old = trusting(cert)
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with raw.connection(gateway.port, ssl=old):
                pass
        assert await raw.exchange(gateway.port, raw.post(raw.chat())) == b""
        assert b"HTTP/" not in await raw.exchange(gateway.port, b"\x16\x03\x01" + b"\xff" * 100)
        async with raw.connection(gateway.port, ssl=trusting(cert)) as (reader, writer):
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200


async def test_renewed_files_are_followed(tmp_path: Path) -> None:
    cert, key = certificates.make(tmp_path / "live", "first")
    second = certificates.make(tmp_path / "second", "second")
    with serving(tmp_path, cert, key) as gateway:
        context = trusting(cert)
        async with raw.connection(gateway.port, ssl=context) as (reader, writer):
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200
            replace(cert, second[0])
            await asyncio.sleep(1.5)  # between the two files the pair does not fit
            assert await asyncio.to_thread(seen, gateway) != der(second[0])
            replace(key, second[1])
            await becomes(gateway, der(second[0]))
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200
        async with raw.connection(gateway.port, ssl=trusting(second[0])) as (reader, writer):
            writer.write(raw.post(raw.chat()))
            assert (await raw.read_answer(reader)).status == 200
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_a_secret_that_kubernetes_swaps(tmp_path: Path) -> None:
    first = certificates.make(tmp_path / "mount" / "..2026_01", "first")
    second = certificates.make(tmp_path / "mount" / "..2026_02", "second")
    mount = tmp_path / "mount"
    (mount / "..data").symlink_to("..2026_01")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(Path("..data") / name)
    with serving(tmp_path, mount / "tls.crt", mount / "tls.key") as gateway:
        assert await asyncio.to_thread(seen, gateway) == der(first[0])
        (mount / "..data_tmp").symlink_to("..2026_02")
        (mount / "..data_tmp").rename(mount / "..data")
        await becomes(gateway, der(second[0]))


@pytest.mark.parametrize("how", ["garbage", "empty", "gone"])
async def test_a_bad_renewal_keeps_the_last_good_one(tmp_path: Path, how: str) -> None:
    cert, key = certificates.make(tmp_path / "live", "first")
    second = certificates.make(tmp_path / "second", "second")
    first = der(cert)
    with serving(tmp_path, cert, key) as gateway:
        if how == "gone":
            cert.unlink()
            key.unlink()
        else:
            key.write_text("sk-provider-PLANTED-no-key" if how == "garbage" else "")
        await asyncio.sleep(2.5)
        assert await asyncio.to_thread(seen, gateway) == first
        assert gateway.text().count("does not load") == 1
        replace(key, second[1])
        replace(cert, second[0])
        await becomes(gateway, der(second[0]))


async def test_every_worker_follows(tmp_path: Path) -> None:
    cert, key = certificates.make(tmp_path / "live", "first")
    second = certificates.make(tmp_path / "second", "second")
    with serving(tmp_path, cert, key, "--workers", "2", name="tls-workers") as gateway:
        replace(key, second[1])
        replace(cert, second[0])
        await asyncio.sleep(NOTICED)
        shown = {await asyncio.to_thread(seen, gateway) for _ in range(20)}
        assert shown == {der(second[0])}


def test_unfit_files_are_said_at_the_start(tmp_path: Path) -> None:
    cert, _ = certificates.make(tmp_path / "a", "first")
    _, key = certificates.make(tmp_path / "b", "second")
    folder = tmp_path / "config"
    g.write(folder, g.caller(), g.mock("echo"), g.route("echo", ["mock/echo"], "echo"))
    for workers in ("1", "2"):
        gateway = g.launch(
            folder, "--tls-cert", cert, "--tls-key", key, "--workers", workers, name="tls-unfit"
        )
        assert gateway.process.wait(90) == 2
        last = gateway.text().strip().splitlines()[-1]
        assert last.startswith("tollhouse: ")
        assert "are not a certificate and its key" in last
        assert gateway.text().count("are not a certificate") == 1
        assert "Traceback" not in gateway.text()
