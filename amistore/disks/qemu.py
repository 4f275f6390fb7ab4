"""A disk image that qemu reads for us, in a process of its own.

The image's header is judged first (`headers`), and qemu gets the descriptor that was judged: who swaps the
file's name swaps nothing. qemu-nbd listens on a socket in a private folder, which is gone once we are
connected. It takes one client, and ends by itself when that one leaves: also where this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from amistore import forks
from amistore.backends.extents import blocks_of
from amistore.disks.clusters import check_clusters
from amistore.disks.headers import Format, check_image, find_format
from amistore.disks.imagefile import LARGEST_DISK
from amistore.disks.nbdclient import NbdClient
from amistore.disks.rawdisk import SourceDisk
from amistore.errors import BackendError, InvalidRequestError
from amistore.text import printable
from amistore.units import BLOCK_SIZE, GIB, MIB
from amistore.wire import nbd

__all__ = ["QemuDisk", "open_image"]

_PROGRAM: Final = "qemu-nbd"
_SILENCE: Final = 120.0  # seconds without a byte of it; a slow disk of a busy host takes some
_PATIENCE: Final = 10.0  # seconds that it may take to end when it is asked to
_POLL: Final = 0.01  # seconds between two looks for its socket
# What hostile metadata may make qemu allocate and print; it needs 20 MiB and a line.
_LIMITS: Final = {
    resource.RLIMIT_DATA: GIB,
    resource.RLIMIT_FSIZE: MIB,
    resource.RLIMIT_CORE: 0,
}
_LAST_WORDS: Final = 1000  # bytes of its messages that are looked at


class QemuDisk:
    """A disk image's virtual disk, as qemu reads it.

    It may be read from several threads, which take turns, and only in the process that opened it.

    Args:
        image: the image's file, which may not change.
        connection: a connection to its server.
        server: the server.

    Attributes:
        size: the virtual disk's size in bytes, at least 1.

    Raises:
        BackendError: the server fails, or its disk is empty or larger than any volume.
    """

    def __init__(self, image: SourceDisk, connection: socket.socket, server: _Server) -> None:
        self._image = image
        self._server = server
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._failure: BackendError | None = None
        with self._request():
            self._client = NbdClient(connection)
        self.size = self._client.size
        if not 0 < self.size <= LARGEST_DISK:
            raise BackendError(f"{_PROGRAM} serves a disk of {self.size} bytes, of {LARGEST_DISK} at most")

    @property
    def state(self) -> tuple[int, ...]:
        """As of `SourceDisk`: of the image's file."""
        return self._image.state

    def blocks(self) -> Iterator[int]:
        """The indexes of the blocks that are no holes, ascending.

        A hole is what the image does not allocate, and reads as zeros. Images of fixed size have no holes,
        and for VHDX qemu knows none.

        Raises:
            BackendError: qemu cannot tell, or has failed.
            SourceChangedError: the image changed.
        """
        return blocks_of(self._extents())

    def read(self, index: int) -> bytes:
        """Read a block, filled up with zeros behind the disk's end; errors are those of `blocks`."""
        start = index * BLOCK_SIZE
        with self._request():
            content = self._client.read(start, min(BLOCK_SIZE, self.size - start))
        self.check()
        return content.ljust(BLOCK_SIZE, b"\0")

    def check(self) -> None:
        """Refuse an image that changed since it was opened.

        Raises:
            SourceChangedError: the file has another size or other times.
        """
        self._image.check()

    def _extents(self) -> Iterator[tuple[int, int]]:
        hole = nbd.STATE_HOLE | nbd.STATE_ZERO
        offset = 0
        while offset < self.size:
            with self._request():
                states = list(self._client.states(offset))
            self.check()
            for length, state in states:
                if state & hole != hole:
                    yield offset, offset + length
                offset += length

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        """One request's turn; after an error the connection may be in the middle of an answer."""
        forks.check_owner(self._process, "this disk image", "open it again in this process")
        with self._turn:
            if self._failure is not None:
                raise BackendError(self._failure.message)
            try:
                yield
            except BackendError as error:
                self._failure = error
                error.message = self._server.explained(error.message)
                raise
            except BaseException:  # an interrupt
                self._failure = BackendError("a request to qemu-nbd was interrupted: open the image again")
                raise


@contextlib.contextmanager
def open_image(path: Path, format: str) -> Iterator[QemuDisk]:
    """Open a disk image to read.

    Args:
        path: the image, a file.
        format: its format: ``"qcow2"``, ``"vmdk"``, ``"vhd"``, ``"vhdx"`` or ``"vdi"``.

    Raises:
        InvalidRequestError: the file is not one whole image of this format, or qemu-nbd is missing.
        SourceChangedError: the image changed.
        BackendError: qemu cannot read the image.
        OSError: the file cannot be opened.
    """
    found = find_format(format)
    # Without O_NONBLOCK the opening of a FIFO would wait for one who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequestError(f"{path} is not a file")
        image = SourceDisk(path, descriptor)
        check_clusters(check_image(path, descriptor, format), format)
        with _served(path, descriptor, found) as (server, connection):
            disk = QemuDisk(image, connection, server)
            image.check()  # before anything is read: the header that qemu read is the one that was judged
            yield disk
    finally:
        os.close(descriptor)


class _Server:
    """A running qemu-nbd."""

    def __init__(self, process: subprocess.Popen[bytes], messages: IO[bytes]) -> None:
        self._process = process
        self._messages = messages

    def has_ended(self, seconds: float) -> bool:
        """Whether it ends within a time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def explained(self, what: str) -> str:
        """An error's text, with the last line that it printed."""
        end = os.fstat(self._messages.fileno()).st_size
        words = os.pread(self._messages.fileno(), _LAST_WORDS, max(0, end - _LAST_WORDS))
        lines = words.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{what}; {_PROGRAM} says: {printable(last)}" if last else what

    def end(self) -> None:
        """Have it end, and wait for it."""
        self._process.terminate()
        try:
            if not self.has_ended(_PATIENCE):
                self._process.kill()
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._process.wait()


class _Connection(socket.socket):
    """A connection that a forked child lets go of: else the server would wait for the child, too."""

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        forks.register(self, socket.socket.close)


@contextlib.contextmanager
def _served(path: Path, descriptor: int, format: Format) -> Iterator[tuple[_Server, socket.socket]]:
    """A server of the image and a connection to it; both end with the block, but not in a forked child."""
    process = os.getpid()
    # Its messages go to a file, which never makes it wait for a reader.
    with tempfile.TemporaryFile() as messages, _Connection() as connection:
        connection.settimeout(_SILENCE)
        folder = tempfile.mkdtemp(prefix="amistore-")
        try:
            address = str(Path(folder, "nbd"))
            server = _Server(_start(path, descriptor, format, address, messages), messages)
            try:
                _connect(server, connection, address)
            except BaseException:
                server.end()
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            yield server, connection
        finally:
            if os.getpid() == process:
                connection.close()
                server.end()


def _start(
    path: Path, descriptor: int, format: Format, address: str, messages: IO[bytes]
) -> subprocess.Popen[bytes]:
    program = shutil.which(_PROGRAM)
    if program is None:
        source, target = shlex.quote(str(path)), shlex.quote(f"{path}.raw")
        raise InvalidRequestError(
            f"{_PROGRAM}, which reads {printable(str(path))}, is not installed: install the package "
            "qemu-utils, or make a raw disk of it elsewhere, with "
            f"`qemu-img convert -f {format.driver} -O raw {source} {target}`"
        )
    # No backing file, whatever the image says. The cache is the kernel's: the image's owner may have written
    # what is not on the disk yet.
    file = {"driver": "file", "filename": f"/dev/fd/{descriptor}", "read-only": True}
    image = {"driver": format.driver, "read-only": True, "backing": None, "file": file, **format.options}
    process = subprocess.Popen(  # noqa: S603 - no word of it is a user's
        [program, "--read-only", "--shared=1", f"--socket={address}", f"json:{json.dumps(image)}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=messages,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        pass_fds=[descriptor],
    )
    try:
        _limit(process.pid)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _limit(process: int) -> None:
    """Give a process at most these limits; the function is Linux's."""
    if sys.platform == "linux":
        for limit, most in _LIMITS.items():
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                known = [
                    value for value in resource.prlimit(process, limit) if value != resource.RLIM_INFINITY
                ]
                resource.prlimit(process, limit, (min([most, *known]), min([most, *known])))


def _connect(server: _Server, connection: socket.socket, address: str) -> None:
    """Connect once it listens; its socket appears before."""
    for _ in range(int(_SILENCE / _POLL)):
        try:
            connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            if server.has_ended(_POLL):
                raise BackendError(server.explained(f"{_PROGRAM} does not serve the image")) from None
        else:
            return
    raise BackendError(server.explained(f"{_PROGRAM} does not listen"))
