"""The tar view: README, manifest and sparse disks as tar members, made, and out of their frames proved.

What is parsed is proved by building it again: a reader accepts only what a writer makes.

POSIX.1-2001 pax, "ustar Interchange Format"; GNU tar manual, "PAX Format, Version 1.0".
No `size` record is written in a pax header: with one beside the GNU.sparse records
Python's tarfile takes it for the sparse size and skips the next member. Sizes of 8 GiB
and more are base-256 in the ustar header, which GNU tar, bsdtar and Python all read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from amistore.container import layout
from amistore.container.frames import decode_member, decompress, piece_sizes
from amistore.container.plan import PlannedVolume, check_lost_blocks
from amistore.container.records import Head, VolumeDescriptor
from amistore.container.runs import Runs
from amistore.errors import CorruptArchiveError, InvalidRequestError, locating
from amistore.model import Image, decode_manifest
from amistore.units import BLOCK_SIZE, KIB

__all__ = [
    "PREAMBLE",
    "RECORD",
    "PreludeReader",
    "SparseMap",
    "check_volume",
    "file_header",
    "is_prelude",
    "manifest_member",
    "open_manifest",
    "padding",
    "prelude",
    "read_manifest",
    "sparse_header",
]

RECORD = 512
_OCTAL_LIMIT = 8**11
_MAP_START = 3 * RECORD  # two headers of one record each, and one record of pax body between them
_LONGEST_NUMBER = 20  # digits of 2**64
_STEP = 256 * KIB  # of a map's text, taken at once


def padding(size: int) -> int:
    """Zero bytes that follow `size` bytes up to a whole tar record of 512."""
    return -size % RECORD


def file_header(name: str, size: int, mtime: int, kind: bytes = b"0") -> bytes:
    """A ustar header. `name` is ASCII of at most 100 bytes; `mtime` in seconds since 1970."""
    header = bytearray(RECORD)
    header[0 : len(name)] = name.encode("ascii")
    header[100:108] = b"0000600\0"
    header[108:116] = header[116:124] = b"0000000\0"
    if size < _OCTAL_LIMIT:
        header[124:136] = b"%011o\0" % size
    else:
        header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[136:148] = b"%011o\0" % mtime
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _plain_member(name: str, content: bytes, mtime: int) -> bytes:
    """Header, content, and zeros up to a tar record."""
    return file_header(name, len(content), mtime) + content + bytes(padding(len(content)))


def sparse_header(directory: str, file: str, size: int, runs: Runs, mtime: int) -> Iterator[bytes]:
    """All that stands before the blocks of a sparse member, in pieces: pax header, ustar header, map.

    Args:
        directory: directory of the member.
        file: its file name.
        size: its size in bytes, holes included.
        runs: its blocks.
        mtime: seconds since 1970.
    """
    pax = b"".join(
        _pax_record(key, value)
        for key, value in (
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", f"{directory}/{file}"),
            ("GNU.sparse.realsize", str(size)),
        )
    )
    # Written twice, since its length stands in front: it may have 134 MB.
    length = sum(map(len, _sparse_map(size, runs)))
    stored = length + padding(length) + runs.blocks * BLOCK_SIZE
    yield file_header(f"{directory}/PaxHeaders.0/{file}", len(pax), mtime, b"x")
    yield pax + bytes(padding(len(pax)))
    yield file_header(f"{directory}/GNUSparseFile.0/{file}", stored, mtime)
    yield from _sparse_map(size, runs)
    yield bytes(padding(length))


def _pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _sparse_map(size: int, runs: Runs) -> Iterator[bytes]:
    ends_in_hole = runs.end * BLOCK_SIZE != size
    yield b"%d\n" % (len(runs) + ends_in_hole)
    pairs = iter(runs)
    while some := list(islice(pairs, 2**13)):
        yield b"".join([b"%d\n%d\n" % (start * BLOCK_SIZE, count * BLOCK_SIZE) for start, count in some])
    if ends_in_hole:
        yield b"%d\n0\n" % size  # GNU tar ends a file whose end is a hole so


class SparseMap:
    """The runs in the map of a `sparse_header` that comes in pieces: what they decode to is not kept.

    The caller proves the rest by building the header again from them: here nothing is checked
    but what bounds memory and time.
    """

    def __init__(self) -> None:
        self._left = _MAP_START  # bytes of headers still to come
        self._rest = b""  # text behind the last newline
        self._numbers: list[int] | None = None  # those that are no whole pair yet; None before the first
        self._ended = False
        self.runs = Runs()

    def feed(self, piece: bytes) -> None:
        """The next bytes.

        Raises:
            CorruptArchiveError: no map that `sparse_header` writes.
        """
        view = memoryview(piece)[self._left :]
        self._left -= min(self._left, len(piece))
        try:
            for at in range(0, len(view), _STEP):
                self._take(bytes(view[at : at + _STEP]))
        except (InvalidRequestError, ValueError) as error:
            raise CorruptArchiveError(f"the sparse map is invalid: {error}") from None

    def _take(self, text: bytes) -> None:
        lines, newline, self._rest = (self._rest + text).rpartition(b"\n")
        words = lines.split(b"\n") if newline else []
        # Zeros up to a whole tar record follow the last number, perhaps in the next piece.
        if len(self._rest) > RECORD or max(map(len, words), default=0) > _LONGEST_NUMBER:
            raise CorruptArchiveError("the sparse map is invalid: what stands there is no number")
        numbers = [int(word) for word in words]
        if self._numbers is None:
            if not numbers:
                return
            self._numbers = []
            del numbers[0]  # of the pairs
        numbers = self._numbers + numbers
        self._numbers = numbers[len(numbers) & ~1 :]
        for start, length in zip(numbers[::2], numbers[1::2], strict=False):
            if self._ended:
                raise CorruptArchiveError("the sparse map is invalid: a pair of length 0 is not its last")
            self._ended = not length  # as that of a file that ends in a hole is
            if length:
                self.runs.append(start // BLOCK_SIZE, length // BLOCK_SIZE)


_MEMBER = _plain_member(layout.README_NAME, layout.README, 0)

PREAMBLE = layout.plain_frame(0, len(_MEMBER), _MEMBER, layout.PREAMBLE_CHECKSUM)
"""A frame of one RAW block, so that `strings FILE | head` shows what the file is."""


def manifest_member(image: Image, manifest: bytes) -> bytes:
    """The tar member that holds the manifest."""
    return _plain_member(f"{image.image_id}/ami.json", manifest, image.creation_time)


def prelude(image: Image, volume: PlannedVolume) -> Iterator[bytes]:
    """The tar headers and sparse map that stand before a volume's blocks, in pieces."""
    # In the tar view lost blocks look like holes: the name tells.
    ending = "incomplete.raw" if image.snapshot(volume.snapshot_id).lost_blocks else "raw"
    return sparse_header(
        image.image_id, f"{volume.snapshot_id}.{ending}", volume.size, volume.runs, image.creation_time
    )


@locating(record="manifest")
def open_manifest(head: Head, frames: bytes) -> tuple[bytes, Image]:
    """The manifest's bytes and the image that they describe.

    Args:
        head: has the table of the frames.
        frames: all of them.

    Raises:
        CorruptArchiveError: not as a writer makes it.
        UnsupportedArchiveError: another major version.
    """
    member = decode_member(frames, head.frames, head.content)
    manifest = read_manifest(member)
    image = decode_manifest(manifest)
    if member != manifest_member(image, manifest):
        raise CorruptArchiveError("the manifest's tar member is not as a writer makes it")
    if image.lost_blocks != head.lost_blocks:
        raise CorruptArchiveError("HEAD and the manifest differ on whether blocks were lost")
    return manifest, image


def read_manifest(member: bytes) -> bytes:
    """The manifest in its tar member.

    Raises:
        CorruptArchiveError: the header's size is none, or more than is there.
    """
    try:
        size = int(member[124:135], 8)
    except ValueError:
        raise CorruptArchiveError("the manifest's tar header has no size") from None
    if not 512 + size <= len(member):
        raise CorruptArchiveError("the manifest is longer than its tar member")
    return member[512 : 512 + size]


def check_volume(volume: VolumeDescriptor, file_id: bytes, number: int, first_segment: int) -> None:
    """Refuse a VOLD that is not the one of this place in this file.

    Raises:
        CorruptArchiveError: it is not.
    """
    if (volume.file_id, volume.volume, volume.first_segment) != (file_id, number, first_segment):
        raise CorruptArchiveError("VOLD belongs to another file or another place")


def is_prelude(digest: bytes, image: Image, volume: PlannedVolume) -> bool:
    """Whether tar headers and sparse map of this SHA-256 are those that a writer makes for a volume."""
    built = hashlib.sha256()
    for piece in prelude(image, volume):
        built.update(piece)
    return built.digest() == digest and volume.runs.end * BLOCK_SIZE <= volume.size


class PreludeReader:
    """A volume by its VOLD, and by the tar headers and sparse map in the frames behind it.

    They may have 134 MB: of a frame nothing is kept but its runs.

    Attributes:
        descriptor: the VOLD.
    """

    def __init__(self, record: bytes, file_id: bytes, number: int, first_segment: int) -> None:
        """Take the VOLD record, and what says its place in which file.

        Raises:
            CorruptArchiveError: it is damaged, or belongs elsewhere.
        """
        self.descriptor = VolumeDescriptor.parse(record)
        check_volume(self.descriptor, file_id, number, first_segment)
        self._sizes = zip(self.descriptor.frames, piece_sizes(self.descriptor.content), strict=True)
        self._map = SparseMap()
        self._digest = hashlib.sha256()

    def feed(self, frame: bytes) -> None:
        """The next frame's bytes.

        Raises:
            CorruptArchiveError: it is not what VOLD says, or holds no part of a map.
        """
        entry, size = next(self._sizes)
        content = decompress(frame, size, entry.crc32)
        self._digest.update(content)
        self._map.feed(content)

    def volume(self, image: Image) -> PlannedVolume:
        """The volume of this image, after the last frame.

        Raises:
            CorruptArchiveError: the map contradicts VOLD or the manifest.
        """
        descriptor, runs = self.descriptor, self._map.runs
        volume = PlannedVolume(
            number=descriptor.volume,
            snapshot_id=descriptor.snapshot_id,
            size=descriptor.size,
            runs=runs,
            first_segment=descriptor.first_segment,
        )
        sums = descriptor.blocks, descriptor.runs, descriptor.runs_digest
        if (runs.blocks, len(runs), runs.digest()) != sums or not is_prelude(
            self._digest.digest(), image, volume
        ):
            raise CorruptArchiveError("tar headers and sparse map contradict VOLD or the manifest")
        if volume.snapshot_id not in image.snapshot_ids:
            raise CorruptArchiveError(
                "no mapping of the image names this volume", snapshot_id=volume.snapshot_id
            )
        try:
            check_lost_blocks(image, volume)
        except InvalidRequestError as error:
            raise CorruptArchiveError(error.message) from None
        return volume
