"""`NBDSession`: one client of the NBD server, from the first byte to the last. `nbd.py` has the server.

The client's words are a stranger's. Until it has chosen an export it has half a minute and 64 KiB of
options; no length that it names is allocated before it is compared with a limit. Whatever it does wrong ends
its own connection at most.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from amistore.archive.nbdexport import NBDExport
from amistore.archive.volumefile import VolumeFile
from amistore.errors import ArchiveError
from amistore.units import BLOCK_SIZE, KIB, MIB
from amistore.wire import nbd
from amistore.wire.nbd import Chunk, Command, Errno, Info, Option, Reply

__all__ = ["NEGOTIATION_SECONDS", "NBDSession"]

NEGOTIATION_SECONDS: Final = 30.0
"""How long a client may take until it has chosen an export."""

_MOST_OPTIONS: Final = 64 * KIB  # bytes that it may say until then
_MOST_READ: Final = 32 * MIB  # bytes of a request (doc/proto.md, "Block sizes")
_MOST_EXTENTS: Final = 1024  # of an answer; a client asks on from its end
_CONTEXT: Final = 1  # the number that we give base:allocation
_WRITES: Final = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES})


@attrs.frozen
class _Request:
    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class NBDSession:
    """One client's connection. Its thread answers one request after the other.

    Args:
        connection: the connection, which the caller closes.
        exports: the exports by their names.
        workers: the number of threads that read ahead for the client; None for the number of CPUs.
        report: a function that is called with each error of the archive.
    """

    def __init__(
        self,
        connection: socket.socket,
        exports: Mapping[str, NBDExport],
        workers: int | None,
        report: Callable[[Exception], None],
    ) -> None:
        self._connection = connection
        self._exports = exports
        self._workers = workers
        self._report = report
        self._deadline: float | None = time.monotonic() + NEGOTIATION_SECONDS
        self._structured = False
        self._context: NBDExport | None = None  # the export whose base:allocation was chosen
        self._zeroes = True

    def run(self) -> None:
        """Serve the client until it leaves.

        Raises:
            OSError: the client broke the connection or the protocol, or took too long.
        """
        export = self._negotiate()
        if export is None:
            return
        self._deadline = None
        self._connection.settimeout(None)
        with contextlib.closing(VolumeFile(export.volume, workers=self._workers)) as disk:
            serving = _Serving(self, export, disk)
            while serving.answer():
                pass

    @property
    def structured(self) -> bool:
        """Whether structured replies were agreed on."""
        return self._structured

    def has_context(self, export: NBDExport) -> bool:
        """Whether base:allocation was chosen for an export."""
        return self._context is export

    def report(self, error: Exception) -> None:
        """Tell the server of an error of the archive."""
        self._report(error)

    def receive(self, size: int) -> bytes:
        """The next `size` bytes; the caller limits it."""
        content = bytearray(size)
        view = memoryview(content)
        while view:
            self._limit()
            count = self._connection.recv_into(view)
            if not count:
                raise ConnectionAbortedError("the client left")
            view = view[count:]
        return bytes(content)

    def send(self, *pieces: bytes | bytearray) -> None:
        """Send all bytes."""
        for piece in pieces:
            self._limit()
            self._connection.sendall(piece)

    def _limit(self) -> None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the client took too long to choose an export")
            self._connection.settimeout(left)

    def _negotiate(self) -> NBDExport | None:
        """The export that the client chooses; None where it leaves."""
        fixed, no_zeroes = nbd.HANDSHAKE_FIXED, nbd.HANDSHAKE_NO_ZEROES
        self.send(nbd.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, fixed | no_zeroes))
        (flags,) = nbd.CLIENT_FLAGS.unpack(self.receive(nbd.CLIENT_FLAGS.size))
        if flags & ~(fixed | no_zeroes):
            raise ConnectionAbortedError("unknown handshake flags")
        self._zeroes = not flags & no_zeroes
        left = _MOST_OPTIONS
        while True:
            magic, option, length = nbd.OPTION.unpack(self.receive(nbd.OPTION.size))
            left -= nbd.OPTION.size + length
            if magic != nbd.OPTION_MAGIC or left < 0:
                raise ConnectionAbortedError("no option, or too long a one")
            data = self.receive(length)
            if option == Option.ABORT:
                self._reply(option, Reply.ACK)
                return None
            if option == Option.EXPORT_NAME:
                return self._old_choice(data)
            try:
                chosen = self._option(option, data)
            except ValueError:
                self._reply(option, Reply.ERR_INVALID)
                continue
            if chosen is not None:
                return chosen

    def _reply(self, option: int, reply: Reply, data: bytes = b"") -> None:
        self.send(nbd.option_reply(option, reply, data))

    def _find(self, name: str) -> NBDExport | None:
        """An export; qemu takes the slashes away that a name in a URI begins with."""
        return self._exports.get(name) or self._exports.get(f"/{name}")

    def _old_choice(self, data: bytes) -> NBDExport:
        """EXPORT_NAME, which knows no error but the connection's end."""
        export = self._find(data.decode(errors="replace"))
        if export is None:
            raise ConnectionAbortedError("no such export")
        self.send(nbd.EXPORT.pack(export.size, self._flags()), bytes(124) if self._zeroes else b"")
        return export

    def _flags(self) -> int:
        flags = nbd.FLAG_PRESENT | nbd.FLAG_READ_ONLY | nbd.FLAG_MULTI | nbd.FLAG_SEND_CACHE
        return flags | nbd.FLAG_SEND_DF if self._structured else flags

    def _option(self, option: int, data: bytes) -> NBDExport | None:
        """Answer an option; the export that GO has chosen.

        Raises:
            ValueError: its data are malformed.
        """
        if option in (Option.GO, Option.INFO):
            return self._describe(option, data)
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._choose_contexts(option, data)
        elif option == Option.LIST:
            _refuse_data(data)
            for name, export in self._exports.items():
                if name:
                    self._reply(option, Reply.SERVER, nbd.string(name) + export.description.encode())
            self._reply(option, Reply.ACK)
        elif option == Option.STRUCTURED_REPLY:
            _refuse_data(data)
            self._structured = True
            self._reply(option, Reply.ACK)
        else:
            self._reply(option, Reply.ERR_UNSUP)
        return None

    def _describe(self, option: int, data: bytes) -> NBDExport | None:
        name, wanted = nbd.parse_export(data)
        export = self._find(name)
        if export is None:
            self._reply(option, Reply.ERR_UNKNOWN)
            return None
        fields = nbd.EXPORT.pack(export.size, self._flags())
        self._reply(option, Reply.INFO, struct.pack(">H", Info.EXPORT) + fields)
        if Info.NAME in wanted:
            self._reply(option, Reply.INFO, struct.pack(">H", Info.NAME) + name.encode())
        if Info.DESCRIPTION in wanted:
            text = export.description.encode()
            self._reply(option, Reply.INFO, struct.pack(">H", Info.DESCRIPTION) + text)
        if Info.BLOCK_SIZE in wanted:
            sizes = struct.pack(">HIII", Info.BLOCK_SIZE, 1, BLOCK_SIZE, _MOST_READ)
            self._reply(option, Reply.INFO, sizes)
        self._reply(option, Reply.ACK)
        return export if option == Option.GO else None

    def _choose_contexts(self, option: int, data: bytes) -> None:
        if not self._structured:
            raise ValueError("block status needs structured replies")
        name, queries = nbd.parse_contexts(data)
        export = self._find(name)
        if export is None:
            self._reply(option, Reply.ERR_UNKNOWN)
            return
        listing = option == Option.LIST_META_CONTEXT
        found = nbd.ALLOCATION in queries or (listing and (not queries or "base:" in queries))
        if not listing:
            self._context = export if found else None
        if found:
            number = 0 if listing else _CONTEXT
            self._reply(option, Reply.META_CONTEXT, number.to_bytes(4, "big") + nbd.ALLOCATION.encode())
        self._reply(option, Reply.ACK)


def _refuse_data(data: bytes) -> None:
    if data:
        raise ValueError("the option has no data")


@attrs.frozen
class _Serving:
    """The answers to the requests of a client that has chosen an export."""

    session: NBDSession
    export: NBDExport
    disk: VolumeFile

    def answer(self) -> bool:
        """Answer the next request; False where the client leaves."""
        magic, *fields = nbd.REQUEST.unpack(self.session.receive(nbd.REQUEST.size))
        request = _Request(*fields)
        if magic != nbd.REQUEST_MAGIC:
            raise ConnectionAbortedError("no request")
        if request.command == Command.DISC:
            return False
        if request.command == Command.WRITE:
            self._skip(request.length)
        wrong = self._wrong(request)
        if wrong is not None:
            self._fail(request, *wrong)
        elif request.command == Command.CACHE:
            self.session.send(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie))
        elif request.command == Command.BLOCK_STATUS:
            self._status(request)
        elif self.session.structured and not request.flags & nbd.COMMAND_DF:
            self._read(request)
        else:
            self._read_whole(request)
        return True

    def _skip(self, length: int) -> None:
        """Take what a refused write would have written."""
        if length > _MOST_READ:
            raise ConnectionAbortedError("too long a write")
        for start in range(0, length, BLOCK_SIZE):
            self.session.receive(min(BLOCK_SIZE, length - start))

    def _wrong(self, request: _Request) -> tuple[Errno, str] | None:
        """Why a request is refused, if it is."""
        flags = {
            Command.READ: nbd.COMMAND_DF if self.session.structured else 0,
            Command.BLOCK_STATUS: nbd.COMMAND_ONE,
            Command.CACHE: 0,
        }
        if request.command in _WRITES:
            return Errno.EPERM, "an archive is read-only"
        if request.command not in flags:
            return Errno.EINVAL, "unknown command"
        if request.flags & ~flags[Command(request.command)]:
            return Errno.EINVAL, "unknown flags"
        if not request.length or request.offset + request.length > self.export.size:
            return Errno.EINVAL, f"the disk has {self.export.size} bytes"
        if request.command == Command.READ and request.length > _MOST_READ:
            error = Errno.EOVERFLOW if request.flags & nbd.COMMAND_DF else Errno.EINVAL
            return error, f"a request reads {_MOST_READ} bytes at most"
        if request.command == Command.BLOCK_STATUS and not self.session.has_context(self.export):
            return Errno.EINVAL, f"{nbd.ALLOCATION} was not chosen"
        return None

    def _fail(self, request: _Request, error: Errno, text: str, offset: int | None = None) -> None:
        if self.session.structured:
            self.session.send(nbd.error_chunk(request.cookie, error, text, offset))
        else:
            self.session.send(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, request.cookie))

    def _fail_reading(self, request: _Request, error: Exception) -> None:
        """Answer that the archive failed."""
        self.session.report(error)
        offset = request.offset
        if isinstance(error, ArchiveError) and error.block_index is not None:
            offset = max(offset, error.block_index * BLOCK_SIZE)
        offset = min(offset, request.offset + request.length - 1)
        self._fail(request, Errno.EIO, str(error), offset if request.command == Command.READ else None)

    def _read(self, request: _Request) -> None:
        cookie = request.cookie
        pieces = self.export.read(self.disk, request.offset, request.length)
        while True:
            try:
                piece = next(pieces, None)
            except Exception as error:  # whatever fails, it is this request that does
                self._fail_reading(request, error)
                return
            if piece is None:
                self.session.send(nbd.chunk(cookie, Chunk.NONE, done=True))
                return
            if piece.content is None:
                fields = struct.pack(">QI", piece.offset, piece.length)
                self.session.send(nbd.chunk(cookie, Chunk.OFFSET_HOLE, fields))
            else:
                fields = piece.offset.to_bytes(8, "big")
                head = nbd.chunk(cookie, Chunk.OFFSET_DATA, fields, follows=piece.length)
                self.session.send(head, piece.content)

    def _read_whole(self, request: _Request) -> None:
        """Answer a read by one piece, whose first word already says whether it has succeeded."""
        try:
            content = bytearray(request.length)
            for piece in self.export.read(self.disk, request.offset, request.length):
                if piece.content is not None:
                    start = piece.offset - request.offset
                    content[start : start + piece.length] = piece.content
        except Exception as error:  # as above
            self._fail_reading(request, error)
            return
        if self.session.structured:
            fields = request.offset.to_bytes(8, "big")
            length = request.length
            head = nbd.chunk(request.cookie, Chunk.OFFSET_DATA, fields, follows=length, done=True)
        else:
            head = nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request.cookie)
        self.session.send(head, content)

    def _status(self, request: _Request) -> None:
        most = 1 if request.flags & nbd.COMMAND_ONE else _MOST_EXTENTS
        try:
            extents = list(itertools.islice(self.export.extents(request.offset, request.length), most))
        except Exception as error:  # as above
            self._fail_reading(request, error)
            return
        fields = b"".join([_CONTEXT.to_bytes(4, "big"), *(nbd.EXTENT.pack(*each) for each in extents)])
        self.session.send(nbd.chunk(request.cookie, Chunk.BLOCK_STATUS, fields, done=True))
