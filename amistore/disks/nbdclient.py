"""A client of a disk's NBD server: reads, and asks what is allocated.

It trusts the server with nothing: each number that it says is compared with what was asked for. The numbers
and structs are in `wire.nbd`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from amistore.errors import BackendError
from amistore.units import GIB, MIB
from amistore.wire import nbd

__all__ = ["NbdClient"]

_ASKED_STATES: Final = GIB  # bytes of a disk whose states are asked for at once
_LARGEST_OPTION: Final = 64 << 10  # bytes of an answer before the disk is read; texts have 4,096 at most
_MOST_OPTIONS: Final = 64  # answers to one option
_LARGEST_STATES: Final = MIB + 4  # bytes; qemu says 1 MiB of states at most (nbd/server.c)
_LARGEST_ERROR: Final = 6 + 4096 + 8  # bytes: the number, the text's length and the text, an offset


class NbdClient:
    """A disk that a server reads for this client, one request at a time.

    Who calls it from several threads gives each its turn. After an error of the connection or of the
    protocol it is of no use.

    Args:
        connection: the connected socket, with its time limit; its owner closes it.

    Attributes:
        size: the disk's size in bytes.

    Raises:
        BackendError: the server lacks what is needed (structured replies, base:allocation), says what the
            protocol forbids, or nothing in time.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._cookie = 0
        self._greet()
        self._option(nbd.Option.STRUCTURED_REPLY, b"", _nothing)
        self._context = self._agree_on_states()
        self.size = self._go()

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes of the disk, at least 1, from an offset.

        Raises:
            BackendError: the server cannot read them, or the connection is of no use any more.
        """
        content: list[bytes] = []

        def take(chunk: int, size: int) -> None:
            if content:
                raise _unexpected(f"a second chunk ({chunk})")
            if chunk == nbd.Chunk.OFFSET_DATA and size == 8 + length:
                found = struct.unpack(">Q", self._receive(8))
                content.append(self._receive(length))
            elif chunk == nbd.Chunk.OFFSET_HOLE and size == 12:
                *found_at, hole = struct.unpack(">QI", self._receive(12))
                found = tuple(found_at)
                content.append(bytes(length if hole == length else 0))
            else:
                raise _unexpected(f"chunk {chunk} of {size} bytes")
            if found != (offset,) or len(content[0]) != length:
                raise _unexpected("data of another place")

        self._command(nbd.Command.READ, nbd.COMMAND_DF, offset, length, take)
        if not content:
            raise _unexpected("no data")
        return content[0]

    def states(self, offset: int) -> Iterator[tuple[int, int]]:
        """What is said of the disk from an offset on: pairs of a length in bytes and flags, in their order.

        Only the first part of the disk is said, at least 1 byte of it; flags are `nbd.STATE_HOLE` and
        `nbd.STATE_ZERO`.

        Raises:
            BackendError: as with `read`.
        """
        length = min(_ASKED_STATES, self.size - offset)
        extents: list[bytes] = []

        def take(chunk: int, size: int) -> None:
            if (
                chunk != nbd.Chunk.BLOCK_STATUS
                or extents
                or size > _LARGEST_STATES
                or size % 8 != 4
                or size < 12
            ):
                raise _unexpected(f"chunk {chunk} of {size} bytes")
            context, *_ = struct.unpack(">I", self._receive(4))
            if context != self._context:
                raise _unexpected(f"the states of context {context}")
            extents.append(self._receive(size - 4))

        self._command(nbd.Command.BLOCK_STATUS, 0, offset, length, take)
        if not extents:
            raise _unexpected("no states")
        for size, state in nbd.EXTENT.iter_unpack(extents[0]):
            if not size or length <= 0:
                raise _unexpected("states of nothing")
            yield (
                min(size, self.size - offset),
                state,
            )  # the last one may reach further than what was asked for
            offset += size
            length -= size

    def close(self) -> None:
        """Tell the server that this was all; it may be gone already."""
        self._send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.DISC, 0, 0, 0))

    def _greet(self) -> None:
        magic, option, flags = self._unpack(nbd.GREETING)
        wanted = nbd.HANDSHAKE_FIXED | nbd.HANDSHAKE_NO_ZEROES
        if (magic, option) != (nbd.INIT_MAGIC, nbd.OPTION_MAGIC) or flags & wanted != wanted:
            raise _unexpected("another greeting")
        self._send(nbd.CLIENT_FLAGS.pack(wanted))

    def _agree_on_states(self) -> int:
        """The number that the server gives to the context of what is allocated."""
        numbers: list[int] = []

        def take(reply: int, content: bytes) -> None:
            if reply != nbd.Reply.META_CONTEXT or len(content) < 4 or content[4:] != nbd.ALLOCATION.encode():
                raise _unexpected(f"answer {reply} about states")
            numbers.append(int.from_bytes(content[:4], "big"))

        name = nbd.ALLOCATION.encode()
        query = struct.pack(f">III{len(name)}s", 0, 1, len(name), name)  # of the export without a name
        self._option(nbd.Option.SET_META_CONTEXT, query, take)
        if len(numbers) != 1:
            raise _unexpected(f"{len(numbers)} contexts of states")
        return numbers[0]

    def _go(self) -> int:
        """Begin to read: the disk's size."""
        exports: list[tuple[int, int]] = []

        def take(reply: int, content: bytes) -> None:
            if reply != nbd.Reply.INFO or len(content) < 2:
                raise _unexpected(f"answer {reply} about the disk")
            if int.from_bytes(content[:2], "big") == nbd.Info.EXPORT:
                if len(content) != 2 + nbd.EXPORT.size:
                    raise _unexpected("another form of the disk's size")
                exports.append(nbd.EXPORT.unpack_from(content, 2))

        self._option(nbd.Option.GO, struct.pack(">IH", 0, 0), take)
        if len(exports) != 1 or not exports[0][1] & nbd.FLAG_SEND_DF:
            raise _unexpected(f"{len(exports)} disks, or one whose data comes in fragments")
        return exports[0][0]

    def _option(self, option: nbd.Option, content: bytes, take: Callable[[int, bytes], None]) -> None:
        """Ask for an option; `take` gets each answer, with its content, before the last."""
        self._send(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(content)) + content)
        for _ in range(_MOST_OPTIONS):
            magic, about, reply, length = self._unpack(nbd.OPTION_REPLY)
            if magic != nbd.OPTION_REPLY_MAGIC or about != option or length > _LARGEST_OPTION:
                raise _unexpected(f"answer {reply} of {length} bytes to option {about}")
            answer = self._receive(length)
            if reply == nbd.Reply.ACK:
                return
            if reply & nbd.REPLY_ERROR:
                raise BackendError(f"the NBD server refuses {option.name} ({reply:#x}): {_text(answer)}")
            take(reply, answer)
        raise _unexpected(f"no end of answers to {option.name}")

    def _command(
        self, command: nbd.Command, flags: int, offset: int, length: int, take: Callable[[int, int], None]
    ) -> None:
        """Ask for a part of the disk; `take` gets each chunk's type and size, and receives its content."""
        self._cookie += 1
        self._send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, length))
        error = None
        for _ in range(3):  # content, an error, the end
            magic, done, chunk, cookie, size = self._unpack(nbd.STRUCTURED_REPLY)
            if magic != nbd.STRUCTURED_REPLY_MAGIC or cookie != self._cookie:
                raise _unexpected("an answer to another request")
            if chunk in (nbd.Chunk.ERROR, nbd.Chunk.ERROR_OFFSET):
                error = self._error(size)
            elif chunk != nbd.Chunk.NONE or size:
                take(chunk, size)
            if done & nbd.STRUCTURED_DONE:
                break
        else:
            raise _unexpected(f"no end of the answer to {command.name}")
        if error is not None:
            raise BackendError(f"the NBD server cannot {command.name} {length} bytes at {offset}: {error}")

    def _error(self, size: int) -> str:
        if not 6 <= size <= _LARGEST_ERROR:
            raise _unexpected(f"an error of {size} bytes")
        number, length = struct.unpack(">IH", self._receive(6))
        return f"error {number} {_text(self._receive(size - 6)[:length])}".strip()

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._receive(form.size))

    def _send(self, content: bytes) -> None:
        try:
            self._connection.sendall(content)
        except OSError as error:
            raise BackendError(f"the NBD server takes no request: {error}") from error

    def _receive(self, length: int) -> bytes:
        content = bytearray(length)
        view = memoryview(content)
        while view:
            try:
                received = self._connection.recv_into(view)
            except OSError as error:
                raise BackendError(f"the NBD server does not answer: {error}") from error
            if not received:
                raise BackendError("the NBD server has ended the connection")
            view = view[received:]
        return bytes(content)


def _nothing(reply: int, _: bytes) -> None:
    raise _unexpected(f"answer {reply}")


def _unexpected(what: str) -> BackendError:
    return BackendError(f"the NBD server breaks the protocol: it said {what}")


def _text(content: bytes) -> str:
    return content[:300].decode(errors="replace")
