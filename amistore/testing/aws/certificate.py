"""A certificate for 127.0.0.1 that signed itself, made when it is needed by the openssl program."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
import weakref
from pathlib import Path

__all__ = ["Certificate", "make_certificate"]


class Certificate:
    """A certificate in a folder of its own, which goes with this object.

    Attributes:
        file: PEM, with the key; clients are to trust it.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="fake-aws-"))
        weakref.finalize(self, _remove, folder, os.getpid())
        self.file = make_certificate(folder)

    def context(self) -> ssl.SSLContext:
        """What a server speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        return context


def make_certificate(folder: Path) -> Path:
    """A PEM file with the certificate, which clients are to trust, and its key; valid for a day.

    Args:
        folder: where it is put.

    Raises:
        RuntimeError: there is no openssl program, or it fails.
    """
    program = shutil.which("openssl")
    if program is None:
        raise RuntimeError("TLS needs the openssl program, which makes the certificate: it is not there")
    file, key = folder / "certificate.pem", folder / "key.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    done = subprocess.run(  # noqa: S603 - no word of it is a user's
        [program, *words, *names, "-keyout", key, "-out", file], capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"openssl makes no certificate: {done.stderr.decode(errors='replace')}")
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


def _remove(folder: Path, process: int) -> None:
    if process == os.getpid():  # a forked child that ends by sys.exit finalizes its parent's objects, too
        shutil.rmtree(folder, ignore_errors=True)
