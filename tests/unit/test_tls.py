"""What a certificate on the callers' port must be, and what is made of it."""

import ssl
from pathlib import Path

import pytest

from support import certificates
from tollhouse.errors import ConfigError
from tollhouse.tls import Certificate


def test_old_protocols_are_refused(tmp_path: Path) -> None:
    context = Certificate(*certificates.make(tmp_path, "first")).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.crt .* are not a certificate and its key"):
        Certificate(tmp_path / "no.crt", tmp_path / "no.key")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("sk-th-PLANTED-not-a-certificate")
    with pytest.raises(ConfigError, match="are not a certificate") as caught:
        Certificate(tmp_path / "x", tmp_path / "x")
    assert "PLANTED" not in str(caught.value)


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    cert, _ = certificates.make(tmp_path / "a", "first")
    _, key = certificates.make(tmp_path / "b", "second")
    with pytest.raises(ConfigError, match="are not a certificate and its key"):
        Certificate(cert, key)


def test_an_encrypted_key_is_not_asked_for_on_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are not a certificate and its key"):
        Certificate(*certificates.make(tmp_path, "first", encrypted=True))
