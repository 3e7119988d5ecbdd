"""Certificates for tests, made by the openssl command."""

import shutil
import subprocess
from pathlib import Path

import pytest

PASSWORD = "PLANTED-a-password-of-a-key"


def make(directory: Path, name: str, *, encrypted: bool = False) -> tuple[Path, Path]:
    """A self-signed certificate for localhost with this common name, and its key, as PEM files.

    Skips the test where there is no openssl command.
    """
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make certificates with")
    directory.mkdir(parents=True, exist_ok=True)
    cert, key = directory / "tls.crt", directory / "tls.key"
    protection = ["-passout", f"pass:{PASSWORD}"] if encrypted else ["-noenc"]
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *protection,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key
