"""Served by NBD, an archive's disks are those it was stored from: to qemu, to libnbd, to a client of ours."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import images
import pytest
from archive.nbdclient import Client, Refused
from hypothesis import given
from hypothesis import strategies as st
from mounts import require

import amistore
from amistore import BLOCK_SIZE, GIB, MIB
from amistore.archive import NBDServer
from amistore.container.layout import Layout
from amistore.wire import nbd
from amistore.wire.nbd import Command, Errno, Info, Option, Reply

FORM = Layout(blocks_per_frame=2, blocks_per_segment=4)
BLOCKS = {i: images.block(i + 1) for i in range(20)}
BLOCKS |= {20: images.block(0), 21: images.block(0), 700: images.block(0), 701: images.block(5)}
BLOCKS |= {2047: images.block(99)}
CONTAINER = images.packed([(1, BLOCKS), (2, {4095: images.block(3)})], FORM)
SNAPSHOT = "snap-00000000000000000"
DATA, ZERO, HOLE = 0, nbd.STATE_ZERO, nbd.STATE_ZERO | nbd.STATE_HOLE
MAP = [  # in blocks
    (0, 20, DATA),
    (20, 2, ZERO),
    (22, 678, HOLE),
    (700, 1, ZERO),
    (701, 1, DATA),
    (702, 1345, HOLE),
    (2047, 1, DATA),
]


@pytest.fixture(scope="module")
def archive() -> Iterator[amistore.Archive]:
    with amistore.open(io.BytesIO(CONTAINER)) as archive:
        yield archive


@pytest.fixture(scope="module")
def server(archive: amistore.Archive) -> Iterator[NBDServer]:
    with archive.serve_nbd() as server:
        yield server


@pytest.fixture(scope="module")
def raw(archive: amistore.Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first volume, extracted."""
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    archive.volumes[0].extract(path)
    return path


def run(tool: str, *arguments: str | Path) -> str:
    """What a tool prints."""
    command = [require(tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def expected(offset: int, length: int) -> bytes:
    pieces = []
    end = offset + length
    while offset < end:
        index, at = divmod(offset, BLOCK_SIZE)
        piece = BLOCKS.get(index, images.block(0))[at : at + end - offset]
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def states(offset: int, length: int) -> list[tuple[int, int]]:
    """The extents of a part, by the blocks that were stored."""
    parts = []
    for first, count, state in MAP:
        start = max(offset, first * BLOCK_SIZE)
        end = min(offset + length, (first + count) * BLOCK_SIZE)
        if start < end:
            parts.append((end - start, state))
    return parts


@pytest.mark.parametrize("where", [{}, {"port": 0}])
def test_nbdinfo_lists_each_device_and_snapshot_with_its_size(
    archive: amistore.Archive, where: dict[str, int]
) -> None:
    with archive.serve_nbd(**where) as server:  # type: ignore[arg-type]
        listed = json.loads(run("nbdinfo", "--list", "--json", server.uri()))["exports"]
        (default,) = json.loads(run("nbdinfo", "--json", server.uri()))["exports"]
    assert {each["export-name"]: each["export-size"] for each in listed} == {
        "/dev/sda": GIB,
        SNAPSHOT: GIB,
        "/dev/sdb": 2 * GIB,
        "snap-00000000000000001": 2 * GIB,
    }
    assert default["export-size"] == GIB
    assert all(each["is_read_only"] and each["can_multi_conn"] for each in [default, *listed])
    assert list(server.uris) == [each["export-name"] for each in listed]


def test_nbdcopy_gives_the_bytes_of_extract(server: NBDServer, raw: Path, tmp_path: Path) -> None:
    run("nbdcopy", server.uri("/dev/sda"), tmp_path / "copy.raw")
    run("cmp", raw, tmp_path / "copy.raw")


@pytest.mark.parametrize("name", ["", "/dev/sda", SNAPSHOT])
def test_qemu_img_finds_no_difference_to_the_extracted_disk(server: NBDServer, raw: Path, name: str) -> None:
    told = run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, server.uri(name))
    assert "Images are identical" in told


def test_nbdinfo_maps_data_zeros_and_holes_as_the_archive_lists_them(server: NBDServer) -> None:
    found = json.loads(run("nbdinfo", "--map", "--json", server.uri()))
    extents = [(each["offset"], each["length"], each["type"]) for each in found]
    assert extents == [(first * BLOCK_SIZE, count * BLOCK_SIZE, state) for first, count, state in MAP]


def test_qemu_img_maps_data_zeros_and_holes_as_the_archive_lists_them(server: NBDServer) -> None:
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()))
    extents = [(each["start"], each["length"], each["data"], each["zero"]) for each in found]
    assert extents == [
        (first * BLOCK_SIZE, count * BLOCK_SIZE, state != HOLE, state != DATA) for first, count, state in MAP
    ]


PLACES = st.one_of(
    st.integers(0, GIB - 1),
    st.tuples(st.sampled_from([0, 1, 5, 19, 20, 22, 699, 700, 701, 702, 2046, 2047]), st.integers(-3, 3)).map(
        lambda place: max(0, place[0] * BLOCK_SIZE + place[1])
    ),
)
LENGTHS = st.one_of(
    st.integers(1, 5000), st.integers(1, 3 * MIB), st.sampled_from([BLOCK_SIZE, 2 * BLOCK_SIZE])
)


@given(
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(["read", "whole", "status", "one"]), PLACES, LENGTHS), max_size=12),
)
def test_any_sequence_of_requests_gives_the_disks_bytes_and_states(
    server: NBDServer, structured: bool, requests: list[tuple[str, int, int]]
) -> None:
    with Client(server) as client:
        client.go("/dev/sda", structured=structured)
        for kind, offset, length in requests:
            length = min(length, GIB - offset)
            if kind == "read" or not structured:
                assert client.read(offset, length) == expected(offset, length)
            elif kind == "whole":
                assert client.pieces(offset, length, nbd.COMMAND_DF) == [
                    (offset, length, expected(offset, length))
                ]
            elif kind == "one":
                assert client.status(offset, length, nbd.COMMAND_ONE) == states(offset, length)[:1]
            else:
                assert client.status(offset, length) == states(offset, length)


def test_holes_and_zeros_are_told_in_reads_and_data_is_given_between_them(server: NBDServer) -> None:
    with Client(server) as client:
        client.go()
        pieces = client.pieces(19 * BLOCK_SIZE + 9, 3 * BLOCK_SIZE)
    assert pieces == [
        (19 * BLOCK_SIZE + 9, BLOCK_SIZE - 9, BLOCKS[19][9:]),
        (20 * BLOCK_SIZE, 2 * BLOCK_SIZE, None),
        (22 * BLOCK_SIZE, 9, None),
    ]


def test_clients_at_once_each_read_their_own_places(server: NBDServer) -> None:
    def read(seed: int) -> bool:
        chance = random.Random(seed)
        with Client(server) as client:
            client.go(structured=bool(seed % 2))
            for _ in range(40):
                offset = chance.choice([0, 700 * BLOCK_SIZE]) + chance.randrange(19 * BLOCK_SIZE)
                length = chance.randrange(1, 2 * BLOCK_SIZE)
                assert client.read(offset, length) == expected(offset, length)
            client.leave()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.parametrize("structured", [True, False])
def test_writes_are_refused_and_reads_go_on(server: NBDServer, structured: bool) -> None:
    with Client(server) as client:
        client.go(structured=structured)
        for command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            payload = bytes(600_000) if command == Command.WRITE else b""
            with pytest.raises(Refused) as caught:
                client.do(command, 0, 600_000, 0, payload)
            assert caught.value.errno == Errno.EPERM
        assert client.read(5, 7) == BLOCKS[0][5:12]


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(
    ("command", "offset", "length", "flags"),
    [
        (Command.READ, GIB - 1, 2, 0),
        (Command.READ, GIB, 1, 0),
        (Command.READ, 2**64 - 1, 2**32 - 1, 0),
        (Command.READ, 0, 0, 0),
        (Command.READ, 0, 32 * MIB + 1, 0),
        (Command.READ, 0, 1, 128),
        (Command.BLOCK_STATUS, 0, 2 * GIB, 0),
        (Command.FLUSH, 0, 0, 0),
        (77, 0, 1, 0),
    ],
)
def test_what_is_no_part_of_the_disk_or_too_much_is_refused_and_reads_go_on(
    server: NBDServer, structured: bool, command: int, offset: int, length: int, flags: int
) -> None:
    with Client(server) as client:
        client.go(structured=structured)
        with pytest.raises(Refused) as caught:
            client.do(command, offset, length, flags)
        assert caught.value.errno == Errno.EINVAL
        assert client.read(0, 5) == BLOCKS[0][:5]


def test_too_large_a_read_in_one_piece_overflows(server: NBDServer) -> None:
    with Client(server) as client:
        client.go()
        with pytest.raises(Refused) as caught:
            client.read(0, 33 * MIB, nbd.COMMAND_DF)
        assert caught.value.errno == Errno.EOVERFLOW
        assert len(client.read(0, 32 * MIB, nbd.COMMAND_DF)) == 32 * MIB


def test_a_request_to_cache_does_nothing_and_succeeds(server: NBDServer) -> None:
    with Client(server) as client:
        client.go()
        client.do(Command.CACHE, 0, GIB)
        assert client.read(0, 5) == BLOCKS[0][:5]


@pytest.mark.parametrize("zeroes", [True, False])
def test_an_old_client_chooses_by_name_alone(server: NBDServer, zeroes: bool) -> None:
    with Client(server, flags=0 if zeroes else nbd.HANDSHAKE_NO_ZEROES) as client:
        name = b"/dev/sdb"
        client.socket.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, Option.EXPORT_NAME, len(name)) + name)
        size, flags = nbd.EXPORT.unpack(client.receive(nbd.EXPORT.size))
        assert size == 2 * GIB
        assert flags & nbd.FLAG_READ_ONLY
        assert not flags & nbd.FLAG_SEND_DF  # which belongs to structured replies
        if zeroes:
            assert client.receive(124) == bytes(124)
        assert client.read(4095 * BLOCK_SIZE, 9) == images.block(3)[:9]


def test_negotiation_tells_what_is_asked_and_refuses_what_it_does_not_know(server: NBDServer) -> None:
    with Client(server) as client:
        asked = (
            nbd.string("dev/sda") + b"\0\3" + bytes([0, Info.NAME, 0, Info.DESCRIPTION, 0, Info.BLOCK_SIZE])
        )
        told = [data for _, data in client.option(Option.INFO, asked)]
        assert told[1] == b"\0\1dev/sda"
        assert told[2].startswith(b"\0\2" + SNAPSHOT.encode())
        assert told[3] == b"\0\3" + b"".join(n.to_bytes(4, "big") for n in (1, BLOCK_SIZE, 32 * MIB))
        assert client.option(Option.INFO, nbd.string("none") + bytes(2)) == [(Reply.ERR_UNKNOWN, b"")]
        assert client.option(Option.STARTTLS) == [(Reply.ERR_UNSUP, b"")]
        assert client.option(99, b"whatever") == [(Reply.ERR_UNSUP, b"")]
        for option, data in (
            (Option.GO, b""),
            (Option.GO, b"\xff\xff\xff\xff"),
            (Option.GO, nbd.string("") + b"\0\7"),
            (Option.INFO, b"\0\0\0\1\xff\0\0"),
            (Option.LIST, b"x"),
            (Option.STRUCTURED_REPLY, b"x"),
            (Option.SET_META_CONTEXT, nbd.string("") + bytes(4)),  # not without structured replies
        ):
            assert client.option(option, data) == [(Reply.ERR_INVALID, b"")], option
        assert client.option(Option.ABORT) == [(Reply.ACK, b"")]
        assert client.ended()


def test_only_the_chosen_context_of_the_chosen_export_is_told(server: NBDServer) -> None:
    listed = [(Reply.META_CONTEXT, bytes(4) + b"base:allocation"), (Reply.ACK, b"")]
    for chosen, queries in (("/dev/sdb", [nbd.ALLOCATION]), ("", ["base:", "qemu:dirty-bitmap:x"])):
        with Client(server) as client:
            client.option(Option.STRUCTURED_REPLY)
            client.structured = True
            for asked in ([], ["base:"], [nbd.ALLOCATION, "other:x"]):
                assert client.contexts("", *asked, option=Option.LIST_META_CONTEXT) == listed
            assert client.contexts("none", nbd.ALLOCATION) == [(Reply.ERR_UNKNOWN, b"")]
            for wrong in (b"\xff\xff\xff\xff", bytes(4) + b"x"):
                assert client.option(Option.SET_META_CONTEXT, bytes(4) + wrong) == [(Reply.ERR_INVALID, b"")]
            client.contexts(chosen, *queries)
            client.option(Option.GO, nbd.string("") + bytes(2))
            with pytest.raises(Refused, match="not chosen"):
                client.status(0, BLOCK_SIZE)


def test_a_long_map_is_told_in_several_answers() -> None:
    content = images.packed([(2, {index: images.block(1) for index in range(0, 4096, 2)})], None)
    with amistore.open(io.BytesIO(content)) as archive, archive.serve_nbd() as server:
        with Client(server) as client:
            client.go()
            assert client.status(0, 2 * GIB) == 512 * [(BLOCK_SIZE, DATA), (BLOCK_SIZE, HOLE)]
        found = json.loads(run("nbdinfo", "--map", "--json", server.uri()))
    assert [each["offset"] for each in found] == [index * BLOCK_SIZE for index in range(4096)]


def test_an_archive_that_does_not_know_its_root_device_has_no_default_export() -> None:
    content = images.packed([(1, {0: images.block(1)})], root_device_name=None)
    with amistore.open(io.BytesIO(content)) as archive, archive.serve_nbd() as server:
        with pytest.raises(amistore.InvalidRequestError, match=r"no export '': there are /dev/sda"):
            server.uri()
        with Client(server) as client:
            assert client.option(Option.GO, nbd.string("") + bytes(2)) == [(Reply.ERR_UNKNOWN, b"")]
            client.go("/dev/sda")
            assert client.read(0, 9) == images.block(1)[:9]


def test_uris_are_known_within_the_block_only_for_exports_that_there_are(archive: amistore.Archive) -> None:
    server = archive.serve_nbd(port=0)
    with pytest.raises(amistore.InvalidRequestError, match="enter its block"):
        server.uri()
    with server:
        found = re.fullmatch(r"nbd://(127\.0\.0\.1:\d+)/dev/sda", server.uri("/dev/sda"))
        assert found is not None
        with pytest.raises(amistore.InvalidRequestError, match="no export '/dev/sdz'"):
            server.uri("/dev/sdz")
        assert repr(server) == f"<NBDServer {found[1]}: 4 exports>"
    with pytest.raises(amistore.InvalidRequestError, match="serves once"):
        server.__enter__()
