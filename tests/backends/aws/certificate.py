"""A self-signed certificate for 127.0.0.1, made when it is needed by the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificate(folder: Path) -> Path:
    """A PEM file with the key and the certificate, valid for a day."""
    file = folder / "certificate.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", *words, *names, "-keyout", file, "-out", folder / "public.pem"],
        check=True,
        capture_output=True,
    )
    file.write_bytes(file.read_bytes() + (folder / "public.pem").read_bytes())
    return file
