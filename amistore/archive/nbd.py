"""`NBDServer`: an archive's disks for qemu and other clients of NBD, read-only, on this machine.

A thread waits for clients, and one more serves each of them: `nbdsession.py`. All share the archive's cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from typing_extensions import Self

from amistore import forks
from amistore.archive.nbdexport import NBDExport
from amistore.archive.nbdsession import NBDSession
from amistore.archive.volumereader import VolumeReader
from amistore.backends import files
from amistore.backends.checks import check_path
from amistore.errors import AlreadyExistsError, InvalidRequestError, machine_limits
from amistore.pipeline.workers import worker_count
from amistore.text import printable
from amistore.units import counted

__all__ = ["NBDServer"]

_logger = logging.getLogger("amistore")

_HOST: Final = "127.0.0.1"
_MOST_CLIENTS: Final = 64
_MOST_ERRORS: Final = 64  # that are kept and logged
_PAUSE: Final = 1.0  # seconds, where the process has no descriptor left for a client


class NBDServer:
    """Serves disks by NBD while its ``with`` block runs. Several threads may use it.

    Whoever can connect reads the disks: the owner of the socket file, or on loopback each user of the
    machine. At most 64 clients are served at once; others are turned away.

    A forked child serves nothing, and its end leaves the parent's server as it is.

    Attributes:
        uris: the URI of each export by its name: devices, such as ``"/dev/xvda"``, and snapshot ids. They
            are known once the block is entered.
    """

    def __init__(
        self,
        volumes: Mapping[str, VolumeReader],
        *,
        path: str | os.PathLike[str] | None = None,
        port: int | None = None,
        workers: int | None = None,
    ) -> None:
        if path is not None and port is not None:
            raise InvalidRequestError("path= is for a Unix socket and port= for TCP: give one of them")
        if port is not None and (type(port) is not int or not 0 <= port < 2**16):
            raise InvalidRequestError(f"port must be a whole number from 0 to 65,535, not {port!r}")
        self._path = None if path is None else check_path(path, "path").absolute()
        self._port = port
        self._workers = worker_count(workers)
        self._exports = {name: NBDExport(volume, _description(volume)) for name, volume in volumes.items()}
        self.uris: Mapping[str, str] = MappingProxyType({})
        self._process = os.getpid()
        self._ending = contextlib.ExitStack()
        self._sockets: list[socket.socket] = []  # which wait for clients, and for the end
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._errors: dict[str, Exception] = {}
        forks.register(self, NBDServer._let_go)

    def __repr__(self) -> str:
        place = f"{_HOST}:{self._port}" if self._path is None else self._path
        return f"<NBDServer {printable(str(place))}: {counted(len(self.uris), 'export')}>"

    def uri(self, name: str = "") -> str:
        """The URI of an export.

        Args:
            name: the device's name, such as ``"/dev/xvda"``, or the snapshot's id; empty for the root
                device.

        Raises:
            InvalidRequestError: the server has no such export, or its ``with`` block is not entered.
        """
        if not self._sockets:
            raise InvalidRequestError("the server does not serve: enter its block, with ... as server")
        if name not in self._exports:
            raise InvalidRequestError(f"no export {name!r:.80}: there are {', '.join(self.uris) or 'none'}")
        place = quote(name.lstrip("/"))  # qemu takes slashes away there; NBDSession finds it without them
        if self._path is None:
            return f"nbd://{_HOST}:{self._port}/{place}"
        return f"nbd+unix:///{place}?socket={quote(str(self._path))}"

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The errors of the archive that clients met as EIO, each once; 64 at most."""
        with self._lock:
            return tuple(self._errors.values())

    def __enter__(self) -> Self:
        forks.check_owner(self._process, "this server")
        if self._sockets or self._ended.is_set():
            raise InvalidRequestError("a server serves once: make another one")
        with (
            forks.undoing(lambda _: self.close()),
            files.operation("serve", path=self._path or ""),
            machine_limits(),
        ):
            self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections and the server's threads; nothing in a forked child."""
        if os.getpid() == self._process:
            self._ended.set()
            self._ending.close()

    def _start(self) -> None:
        if self._port is not None:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._ending.callback(listener.close)
            listener.bind((_HOST, self._port))
            self._port = listener.getsockname()[1]
        else:
            if self._path is None:
                folder = tempfile.mkdtemp(prefix="amistore-")
                self._ending.callback(shutil.rmtree, folder, ignore_errors=True)
                self._path = Path(folder, "nbd")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._ending.callback(listener.close)
            self._bind(listener, self._path)
        listener.listen(_MOST_CLIENTS)
        listener.setblocking(False)  # a client may be gone before it is accepted
        waker, woken = socket.socketpair()
        self._sockets = [listener, waker, woken]
        self._ending.callback(woken.close)
        self._ending.callback(waker.close)
        self._ending.callback(self._end_clients)
        waiting = threading.Thread(target=self._wait, name="amistore-nbd", daemon=True)
        waiting.start()
        self._ending.callback(waiting.join)
        self._ending.callback(waker.shutdown, socket.SHUT_RDWR)
        self.uris = MappingProxyType({name: self.uri(name) for name in self._exports if name})

    def _bind(self, listener: socket.socket, path: Path) -> None:
        """Make the socket file, which nobody can connect to before `listen`."""
        try:
            listener.bind(str(path))
        except OSError as error:
            if os.path.lexists(path):
                raise AlreadyExistsError(f"{path} exists: give another path, or remove it first") from error
            if "too long" in str(error):  # CPython's words; the limit is sockaddr_un's
                raise InvalidRequestError(f"{path} is too long for a socket: give a shorter path") from error
            raise
        status = path.lstat()

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), status):
                    path.unlink()

        self._ending.callback(remove)
        path.chmod(0o600)

    def _let_go(self) -> None:
        """In a forked child: the parent serves on."""
        self._lock = threading.Lock()
        for each in (*self._sockets, *self._clients):
            each.close()
        self._clients = {}

    def _wait(self) -> None:
        """Begin to serve clients as they come, until the end."""
        listener, _, woken = self._sockets
        with forks.confined(), selectors.PollSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            ready.register(woken, selectors.EVENT_READ)
            while not any(key.fileobj is woken for key, _ in ready.select()):
                try:
                    self._begin(listener.accept()[0])
                except (BlockingIOError, ConnectionError):  # a client that is gone already
                    continue
                except (OSError, RuntimeError) as error:  # no descriptor or no thread left
                    self._report(error)
                    self._ended.wait(_PAUSE)

    def _begin(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack, self._lock:
            stack.callback(connection.close)
            if len(self._clients) >= _MOST_CLIENTS:
                return
            if connection.family == socket.AF_INET:
                # Else an answer's content would wait for the client's acknowledgement of its header, 40 ms in
                # Linux: a Debian booted in 102 s instead of some 20.
                with contextlib.suppress(OSError):  # the client is gone
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="amistore-nbd", daemon=True
            )
            thread.start()
            self._clients[connection] = thread
            stack.pop_all()

    def _serve(self, connection: socket.socket) -> None:
        with forks.confined():
            try:
                NBDSession(connection, self._exports, self._workers, self._report).run()
            except OSError as error:  # the client's fault, or its end
                _logger.debug("an NBD client's connection ended: %s", error)
            except Exception as error:
                self._report(error)
            finally:
                with self._lock:
                    self._clients.pop(connection, None)
                    connection.close()

    def _end_clients(self) -> None:
        with self._lock:
            threads = list(self._clients.values())
            for connection in self._clients:
                with contextlib.suppress(OSError):  # the client is gone
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _report(self, error: Exception) -> None:
        """Keep an error, and log it the first time."""
        text = str(error)
        with self._lock:
            if text in self._errors or len(self._errors) >= _MOST_ERRORS:
                return
            self._errors[text] = error.with_traceback(None)  # it would hold the blocks of its frames
        _logger.warning("NBD clients get an error: %s", printable(text))


def _description(volume: VolumeReader) -> str:
    name = printable(volume.container.name)
    return f"{volume.indexed.snapshot_id} of {name}"[:1000]
