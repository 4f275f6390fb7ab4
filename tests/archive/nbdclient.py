"""A client of NBD in a hundred lines, which says what it is told to, right or wrong."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
from typing_extensions import Self

from amistore.archive import NBDServer
from amistore.wire import nbd
from amistore.wire.nbd import Chunk, Command, Option, Reply

SECONDS = 60  # without an answer until then something hangs


@attrs.frozen
class Refused(Exception):
    """A request that failed: its errno, and with structured replies a text and a place."""

    errno: int
    text: str = ""
    offset: int | None = None


def connect(server: NBDServer) -> socket.socket:
    """A connection that says nothing yet."""
    parts = urlsplit(server.uri(next(iter(server.uris))))
    if parts.scheme == "nbd":
        return socket.create_connection((parts.hostname or "", parts.port or 0), SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(parse_qs(parts.query)["socket"][0])
    return connection


class Client:
    """A client that has said its flags."""

    def __init__(self, server: NBDServer, flags: int = nbd.HANDSHAKE_FIXED | nbd.HANDSHAKE_NO_ZEROES) -> None:
        self.socket = connect(server)
        self.structured = False
        self.cookies = itertools.count(1)
        greeting = nbd.GREETING.unpack(self.receive(nbd.GREETING.size))
        assert greeting == (nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3)
        self.socket.sendall(nbd.CLIENT_FLAGS.pack(flags))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def receive(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self.socket.recv(size - len(content))
            if not piece:
                raise EOFError
            content += piece
        return content

    def ended(self) -> bool:
        """Whether the server ends the connection, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def leave(self) -> None:
        """Say goodbye, and wait for the server's end."""
        self.request(Command.DISC, 0, 0)
        assert self.ended()

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """The answers to an option, up to an ACK or an error."""
        self.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data)
        answers = []
        while True:
            magic, same, reply, length = nbd.OPTION_REPLY.unpack(self.receive(nbd.OPTION_REPLY.size))
            assert (magic, same) == (nbd.OPTION_REPLY_MAGIC, option)
            answers.append((reply, self.receive(length)))
            if reply == Reply.ACK or reply >= 2**31:
                return answers

    def contexts(self, name: str, *queries: str, option: int = Option.SET_META_CONTEXT) -> list[Any]:
        """The answers to a choice of contexts."""
        asked = b"".join(nbd.string(query) for query in queries)
        return self.option(option, nbd.string(name) + struct.pack(">I", len(queries)) + asked)

    def go(self, name: str = "", *, structured: bool = True) -> Self:
        """Choose an export, and base:allocation where replies are structured."""
        if structured:
            assert self.option(Option.STRUCTURED_REPLY) == [(Reply.ACK, b"")]
            self.structured = True
            assert self.contexts(name, nbd.ALLOCATION)[-1] == (Reply.ACK, b"")
        assert self.option(Option.GO, nbd.string(name) + bytes(2))[-1] == (Reply.ACK, b"")
        return self

    def request(self, command: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> int:
        """Ask for something; the cookie of the answer."""
        cookie = next(self.cookies)
        self.socket.sendall(
            nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length) + payload
        )
        return cookie

    def simple(self, cookie: int) -> None:
        """The simple answer to a request.

        Raises:
            Refused: it is an error.
        """
        magic, error, same = nbd.SIMPLE_REPLY.unpack(self.receive(nbd.SIMPLE_REPLY.size))
        assert (magic, same) == (nbd.SIMPLE_REPLY_MAGIC, cookie)
        if error:
            raise Refused(error)

    def chunks(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """The pieces of a structured answer.

        Raises:
            Refused: one of them is an error.
        """
        done = 0
        while not done:
            head = nbd.STRUCTURED_REPLY.unpack(self.receive(nbd.STRUCTURED_REPLY.size))
            magic, done, kind, same, length = head
            assert (magic, same) == (nbd.STRUCTURED_REPLY_MAGIC, cookie)
            content = self.receive(length)
            if kind in (Chunk.ERROR, Chunk.ERROR_OFFSET):
                error, size = struct.unpack_from(">IH", content)
                text, place = content[6 : 6 + size].decode(), content[6 + size :]
                assert done
                raise Refused(error, text, int.from_bytes(place, "big") if place else None)
            yield kind, content

    def do(self, command: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> None:
        """A request that gives nothing."""
        cookie = self.request(command, offset, length, flags, payload)
        if self.structured and command != Command.CACHE:
            list(self.chunks(cookie))
        else:
            self.simple(cookie)

    def pieces(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int, bytes | None]]:
        """The pieces that a read gives: offset, length, and bytes or None for a hole."""
        pieces: list[tuple[int, int, bytes | None]] = []
        for kind, content in self.chunks(self.request(Command.READ, offset, length, flags)):
            at = int.from_bytes(content[:8], "big")
            if kind == Chunk.OFFSET_DATA:
                pieces.append((at, len(content) - 8, content[8:]))
            elif kind == Chunk.OFFSET_HOLE:
                pieces.append((at, int.from_bytes(content[8:], "big"), None))
            else:
                assert (kind, content) == (Chunk.NONE, b"")
        return pieces

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        """The bytes that a read gives, each of them once."""
        if not self.structured:
            self.simple(self.request(Command.READ, offset, length, flags))
            return self.receive(length)
        content = b""
        for at, size, piece in self.pieces(offset, length, flags):
            assert at == offset + len(content)
            content += bytes(size) if piece is None else piece
        assert len(content) == length
        return content

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """The length and state of each extent."""
        ((kind, content),) = self.chunks(self.request(Command.BLOCK_STATUS, offset, length, flags))
        assert kind == Chunk.BLOCK_STATUS
        return [(length, state) for length, state in nbd.EXTENT.iter_unpack(content[4:])]
