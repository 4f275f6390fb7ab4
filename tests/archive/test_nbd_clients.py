"""What goes wrong with an NBD client, the archive or the process harms no one else, and leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import images
import pytest
from archive.nbdclient import Client, Refused, connect
from children import LEFT, forked, split
from mounts import require

import amistore
from amistore import BLOCK_SIZE, GIB, MIB
from amistore.archive import NBDServer, nbdsession
from amistore.archive import nbd as nbdserver
from amistore.archive.archive import Archive
from amistore.archive.reader import ContainerFile
from amistore.backends.ranges import RangeReader
from amistore.container.layout import Layout
from amistore.wire import nbd
from amistore.wire.nbd import Command, Errno, Option

FORM = Layout(blocks_per_frame=2, blocks_per_segment=4)
BLOCKS = {i: images.block(i + 1) for i in range(16)} | {2047: images.block(99)}
CONTAINER = images.packed([(1, BLOCKS)], FORM)


@pytest.fixture
def archive() -> Iterator[Archive]:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        yield archive


@pytest.fixture
def server(archive: Archive) -> Iterator[NBDServer]:
    with archive.serve_nbd() as server:
        yield server


def assert_served(server: NBDServer) -> None:
    """A new client reads what it should."""
    with Client(server) as client:
        client.go()
        assert client.read(3, 9) == BLOCKS[0][3:12]
        client.leave()


def damaged(sequence: int) -> bytes:
    """The container with a flipped bit in the first frame of a segment."""
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        place = archive._container.segment(sequence).payload + 30
    content = bytearray(CONTAINER)
    content[place] ^= 1
    return bytes(content)


@pytest.mark.parametrize("structured", [True, False])
def test_damage_is_an_error_where_it_is_and_all_else_is_served(
    structured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with amistore.open(io.BytesIO(damaged(1))) as archive, archive.serve_nbd() as server:
        with Client(server) as client:
            client.go(structured=structured)
            for index, content in BLOCKS.items():
                if index not in (4, 5):  # which the damaged frame holds
                    assert client.read(index * BLOCK_SIZE, BLOCK_SIZE) == content
            for offset, length in ((4 * BLOCK_SIZE + 7, 10), (5 * BLOCK_SIZE, 10), (0, 8 * MIB)):
                with pytest.raises(Refused) as caught:
                    client.read(offset, length)
                assert caught.value.errno == Errno.EIO
                if structured:
                    assert "amistore.recover" in caught.value.text
                    assert caught.value.offset == max(offset, 4 * BLOCK_SIZE)
            with pytest.raises(Refused, match="5, "):
                client.read(0, 8 * MIB, nbd.COMMAND_DF) if structured else client.read(0, 8 * MIB)
        assert [type(error) for error in server.errors] == [amistore.CorruptArchiveError]
        lines = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert [(each.name, each.levelname) for each in lines] == [("amistore", "WARNING")]


def test_a_damaged_descriptor_is_an_error_of_block_status_too() -> None:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        place = archive._container.segment(1).offset + 40
    content = bytearray(CONTAINER)
    content[place] ^= 1
    archive = amistore.open(io.BytesIO(bytes(content)))
    with archive, archive.serve_nbd() as server, Client(server) as client:
        client.go()
        for ask in (client.status, client.read):
            with pytest.raises(Refused) as caught:
                ask(4 * BLOCK_SIZE, BLOCK_SIZE)
            assert caught.value.errno == Errno.EIO
        assert client.status(8 * BLOCK_SIZE, BLOCK_SIZE) == [(BLOCK_SIZE, 0)]


def test_the_tools_fail_on_damage(tmp_path: Path) -> None:
    with amistore.open(io.BytesIO(damaged(1))) as archive, archive.serve_nbd() as server:
        for command in (
            [require("nbdcopy"), server.uri(), str(tmp_path / "copy.raw")],
            [require("qemu-img"), "convert", "-O", "raw", server.uri(), str(tmp_path / "other.raw")],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode != 0
            assert "Input/output error" in done.stderr


def test_lost_blocks_are_data_that_cannot_be_read(tmp_path: Path) -> None:
    amistore.recover(io.BytesIO(damaged(1)), tmp_path / "lossy.bin")
    with amistore.open(tmp_path / "lossy.bin") as archive, archive.serve_nbd() as server:
        assert sum(each.block_count for each in archive.volumes[0].lost_blocks) == 2
        with Client(server) as client:
            client.go()
            assert client.status(0, 17 * BLOCK_SIZE) == [(16 * BLOCK_SIZE, 0), (BLOCK_SIZE, 3)]
            assert client.read(3 * BLOCK_SIZE, BLOCK_SIZE) == BLOCKS[3]
            assert client.read(6 * BLOCK_SIZE, BLOCK_SIZE) == BLOCKS[6]
            for index in (4, 5):
                with pytest.raises(Refused, match="lost"):
                    client.read(index * BLOCK_SIZE, 1)


class Failing(RangeReader):
    """A source that fails while it is told to."""

    def __init__(self, error: Exception) -> None:
        self.name = "failing"
        self.size = len(CONTAINER)
        self.error = error
        self.fails = False

    def read(self, offset: int, length: int) -> bytes:
        if self.fails:
            raise self.error
        return CONTAINER[offset : offset + length]


@pytest.mark.parametrize("error", [amistore.BackendError("gone"), OSError("gone"), MemoryError("gone")])
def test_a_source_that_fails_is_an_error_until_it_is_back(error: Exception) -> None:
    source = Failing(error)
    archive = Archive(ContainerFile(source))
    with archive.serve_nbd() as server, Client(server) as client:
        client.go()
        source.fails = True
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                client.read(0, 5)
            assert caught.value.errno == Errno.EIO
        source.fails = False
        assert client.read(0, 5) == BLOCKS[0][:5]
        assert len(server.errors) == 1


def test_an_archive_that_is_closed_too_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ami.bin").write_bytes(CONTAINER)
    with amistore.open(tmp_path / "ami.bin") as archive, archive.serve_nbd() as server:
        archive.close()
        with Client(server) as client:
            client.go()
            with pytest.raises(Refused, match="is closed"):
                client.read(0, 5)


@pytest.mark.parametrize("size", [0, 5, 28])
def test_a_client_that_dies_in_the_middle_harms_no_other(server: NBDServer, size: int) -> None:
    with Client(server) as other:
        other.go()
        for _ in range(3):
            client = Client(server).go()
            request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 0, 8 * MIB)
            client.socket.sendall(request[:size])
            # No goodbye: what is under way is dropped.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        assert other.read(3, 9) == BLOCKS[0][3:12]
    assert_served(server)


def test_a_client_that_reads_nothing_keeps_no_other_waiting(server: NBDServer) -> None:
    with Client(server) as client:
        client.go()
        for _ in range(4):
            client.request(Command.READ, 0, 8 * MIB)
        assert_served(server)


FLAGS = nbd.CLIENT_FLAGS.pack(3)
LIST = nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.LIST, 0)
RUBBISH = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "flags": nbd.CLIENT_FLAGS.pack(0xFFFFFFFF),
    "no option": FLAGS + bytes(16),
    "a long option": FLAGS + nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.GO, 2**32 - 1),
    "an unknown name": FLAGS + nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.EXPORT_NAME, 1) + b"\xff",
    "many options": FLAGS + 4097 * LIST,
    "noise": random.Random(1).randbytes(100_000),
}


@pytest.mark.parametrize("said", RUBBISH.values(), ids=RUBBISH)
def test_who_says_rubbish_is_hung_up_on_and_harms_no_other(server: NBDServer, said: bytes) -> None:
    with Client(server) as other:
        other.go()
        with connect(server) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(said)
            with contextlib.suppress(ConnectionError):
                while client.recv(1 << 16):
                    pass
        assert other.read(3, 9) == BLOCKS[0][3:12]
    assert server.errors == ()


@pytest.mark.parametrize("said", [bytes(28), nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, 1, 1, 0, 2**32 - 1)])
def test_who_reads_and_then_says_rubbish_is_hung_up_on(server: NBDServer, said: bytes) -> None:
    with Client(server) as client:
        client.go()
        client.socket.sendall(said)
        assert client.ended()
    assert_served(server)


@pytest.mark.parametrize("said", [b"", b"\0", FLAGS + LIST[:9]])
def test_who_is_silent_while_it_should_choose_is_hung_up_on(
    server: NBDServer, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server) as other:
        other.go()
        monkeypatch.setattr(nbdsession, "NEGOTIATION_SECONDS", 0.05)
        with connect(server) as client:
            client.sendall(said)
            while client.recv(100):  # the greeting, and then the end
                pass
        assert other.read(3, 9) == BLOCKS[0][3:12]  # who has chosen may be silent


def test_no_more_than_64_clients_are_served_at_once(server: NBDServer) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(64)]
        with connect(server) as other:
            assert other.recv(1) == b""
        clients[5].go().leave()
        assert_served(server)


def test_an_answer_over_tcp_is_sent_at_once(archive: Archive) -> None:
    with archive.serve_nbd(port=0) as server, Client(server) as client:
        client.go()
        (connection,) = server._clients
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_client_waits_while_the_process_has_no_descriptor_for_it(
    server: NBDServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failures = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def failing(listener: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(nbdserver, "_PAUSE", 0.01)
    monkeypatch.setattr(socket.socket, "accept", failing)
    assert_served(server)
    assert [type(error) for error in server.errors] == [OSError]


def test_a_socket_file_is_this_users_alone_and_goes_with_the_server(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "a b&c?.sock"
    with archive.serve_nbd(path=path) as server:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert_served(server)
        done = subprocess.run(
            [require("nbdinfo"), "--size", server.uri()], check=True, capture_output=True, timeout=60
        )
        assert int(done.stdout) == GIB
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_exists_is_refused_and_stays(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(amistore.AlreadyExistsError, match=f"{path} exists"):
        archive.serve_nbd(path=path).__enter__()
    assert path.read_text() == "precious"
    path.unlink()
    with archive.serve_nbd(path=path):
        with pytest.raises(amistore.AlreadyExistsError):
            archive.serve_nbd(path=path).__enter__()
        path.unlink()
        path.write_text("someone else's")
    assert path.read_text() == "someone else's"


def test_places_that_cannot_be_served_on_are_refused(archive: Archive, tmp_path: Path) -> None:
    for where, message in (
        ({"path": "x", "port": 0}, "give one of them"),
        ({"port": -1}, "whole number from 0 to 65,535"),
        ({"port": True}, "whole number from 0 to 65,535"),
        ({"path": ""}, "must be a path"),
        ({"workers": 0}, "workers must be"),
    ):
        with pytest.raises(amistore.InvalidRequestError, match=message):
            archive.serve_nbd(**where)  # type: ignore[arg-type]
    with pytest.raises(amistore.InvalidRequestError, match="too long for a socket"):
        archive.serve_nbd(path=tmp_path / ("x" * 120)).__enter__()
    with pytest.raises(amistore.NotFoundError):
        archive.serve_nbd(path=tmp_path / "none" / "x").__enter__()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(amistore.BackendError, match="in use"),
    ):
        archive.serve_nbd(port=taken.getsockname()[1]).__enter__()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", [{}, {"port": 0}])
def test_the_end_leaves_nothing_behind_however_it_comes(
    archive: Archive,
    error: type[BaseException] | None,
    where: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads, descriptors = threading.enumerate(), os.listdir("/proc/self/fd")
    with contextlib.ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(error))
        with archive.serve_nbd(**where) as server:  # type: ignore[arg-type]
            clients = [stack.enter_context(Client(server)) for _ in range(3)]
            clients[1].go()
            clients[2].go().request(Command.READ, 0, 8 * MIB)  # is under way
            if error is not None:
                raise error
        for client in clients[:2]:
            assert client.ended()
    if error is not None:
        for client in clients[:2]:
            client.socket.close()
    assert set(threading.enumerate()) <= set(threads)
    assert os.listdir("/proc/self/fd") == descriptors
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_serve_and_leaves_the_parents_server_as_it_is(
    archive: Archive, tmp_path: Path
) -> None:
    path = tmp_path / "x.sock"

    def end(server: NBDServer) -> bool:
        with Client(server) as mine:  # of the parent's server
            found = mine.go().read(0, 5)
        server.close()
        return found == BLOCKS[0][:5] and path.exists()

    def serve(leave: Callable[[], None]) -> bool:
        with archive.serve_nbd(path=path) as server, Client(server) as client:
            client.go()
            with forked(lambda: end(server)) as child:
                assert child.answer() is True
            with forked(lambda: server.__enter__()) as child:
                assert isinstance(child.answer(), amistore.InvalidRequestError)
            leave()  # a child leaves the block
            assert client.read(3, 9) == BLOCKS[0][3:12]
            assert_served(server)
        return path.exists()

    assert split(serve) == (False, LEFT)


def test_a_childs_copies_of_the_sockets_do_not_outlive_the_server(archive: Archive) -> None:
    with contextlib.ExitStack() as stack:
        with archive.serve_nbd(port=0) as server, Client(server) as client:
            client.go()
            port = int(server.uri().rsplit(":", 1)[1].strip("/"))
            reading, writing = os.pipe()

            def stay() -> None:
                os.write(writing, b"x")
                signal.pause()

            stack.enter_context(forked(stay))
            assert os.read(reading, 1) == b"x"
            os.close(reading)
            os.close(writing)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 60)
