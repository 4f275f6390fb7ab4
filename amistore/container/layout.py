"""Every byte of format version 1, declared: magics, constants, limits, structs, and how it is cut.

`docs/format.md` is the normative text; the two must say the same. Nothing here reads or
writes anything. Next: `records.py`, which turns these structs into objects.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from amistore.errors import InvalidValueError
from amistore.units import BLOCK_SIZE, GIB, KIB, MIB

__all__ = ["Layout", "descriptor_limit", "index_limit", "prelude_content_limit", "prelude_limit"]


# zstd (RFC 8878, 3.1.1 and 3.1.2): the magic of a frame, and the last of the sixteen of
# skippable frames. Those are anyone's to use, so a record is known by SIGNATURE and type.
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC: Final = 0x184D2A5A
SIGNATURE: Final = b"AMIS"

# A record: a skippable frame whose content is SIGNATURE, type, version, flags, payload and
# the CRC-32C of all bytes of the record before it.
ENVELOPE: Final = struct.Struct("<II4s4sHH")  # magic, length of what follows, SIGNATURE, type, version, flags
SKIPPABLE_HEADER: Final = 8  # bytes of magic and length, which the length does not count
CRC: Final = struct.Struct("<I")
RECORD_OVERHEAD: Final = ENVELOPE.size + CRC.size
RECORD_VERSION: Final = 1
CRITICAL: Final = 1  # flags, bit 0: who does not know this type must refuse the file

HEAD: Final = b"HEAD"
VOLD: Final = b"VOLD"
SEGD: Final = b"SEGD"
PAD: Final = b"PAD\0"
INDX: Final = b"INDX"
FOOT: Final = b"FOOT"
KNOWN: Final = frozenset((HEAD, VOLD, SEGD, PAD, INDX, FOOT))

# incompatible and compatible feature masks; block size; blocks per frame, per segment;
# segments per shard; part size; volumes; segments; listed blocks; file id;
# bytes of the manifest's tar member; its frames
HEAD_FIXED: Final = struct.Struct("<QQIHHQQIQQ16sQI")
# file id; volume; snapshot id (ASCII, NUL-padded); first segment; size in bytes; listed blocks;
# runs; hash of the runs; bytes of the prelude's tar headers and map; its frames
VOLD_FIXED: Final = struct.Struct("<16sI24sQQQI32sQI")
# file id; volume; segment; ordinal of its first block; blocks; frames; bytes of the run varints
SEGD_FIXED: Final = struct.Struct("<16sIQQHHI")
FRAME_ENTRY: Final = struct.Struct("<II")  # compressed size, CRC-32 (zlib's) of the compressed bytes
# SHA-256 of the front; end of the front; length of the HEAD copy; of the manifest's frames;
# volumes; segments; length of the column frames; their number; content id
INDX_FIXED: Final = struct.Struct("<32sQIQIQQI32s")
# snapshot id (ASCII, NUL-padded); offset of VOLD; length of VOLD and prelude frames;
# size in bytes; listed blocks; runs; segments; LINEAR; hash of the runs; content id;
# SHA-256 of VOLD and prelude frames
INDX_VOLUME: Final = struct.Struct("<24sQQQQIQ32s32s32s32s")
INDX_COLUMNS: Final = 3  # 8 bytes for each segment in each: offset of SEGD, first and last block index
# offset and length of INDX; end of data (where END_FRAME starts); listed blocks; SHA-256 of INDX
FOOT_FIXED: Final = struct.Struct("<QQQQ32s")
FOOT_SIZE: Final = RECORD_OVERHEAD + FOOT_FIXED.size

# Bytes of payload that the CRC covers in version 1 of two types that may be long: PAD is zeros, and
# FOOT has INDX's SHA-256. All of a record of any other type, version or flags is covered, so that a
# damaged one is told from a newer one.
COVERED: Final = {PAD: 0, INDX: INDX_FIXED.size}

# Bits of HEAD's incompatible mask: 0 is reserved for deltas against another archive, 1 for
# encrypted segments. 2: the manifest lists blocks that were lost, so a hole may be none.
LOST_BLOCKS: Final = 1 << 2
KNOWN_INCOMPATIBLE: Final = LOST_BLOCKS

# Limits: a reader refuses what is beyond them before it allocates for it.
MAX_FRAME_CONTENT: Final = 8 * MIB
MAX_FRAME_SIZE: Final = MAX_FRAME_CONTENT + 64 * KIB  # ZSTD_compressBound(8 MiB) is 8 MiB + 32 KiB
MAX_WINDOW: Final = 8 * MIB
MAX_SEGMENT_BLOCKS: Final = 512
MAX_DESCRIPTOR: Final = 64 * KIB  # HEAD, VOLD, SEGD and records of unknown type, envelope included
# Records of unknown type in one place: what a reader does for them stays within 1 MiB, in one read. Empty
# ones, 24 bytes each, would else cost a request each, or a million steps for 24 MB.
MAX_OTHERS: Final = 16
MAX_MANIFEST: Final = 4 * MIB
MAX_INDEX: Final = 256 * MIB
MAX_VOLUMES: Final = 1024
MAX_RUNS: Final = 2**22
MAX_VOLUME_GIB: Final = 65_536  # EBS direct APIs, StartSnapshot: VolumeSize 1 to 65,536 GiB
MAX_PARTS: Final = 10_000  # S3 user guide, "Multipart upload limits"
MIN_PART: Final = 5 * MIB
MAX_PART: Final = 5 * GIB
MAX_OBJECT: Final = MAX_PARTS * MAX_PART  # 48.8 TiB
MAX_SHARDS: Final = 512
MIN_SHARD_SEGMENTS: Final = 256

DOMAIN_FILE: Final = b"amistore file id 1\0"
DOMAIN_VOLUME: Final = b"amistore volume content 1\0"
DOMAIN_ARCHIVE: Final = b"amistore archive content 1\0"
# Of partial archives, whose ids bind which of the mapped snapshots they hold.
DOMAIN_PARTIAL_FILE: Final = b"amistore partial file id 1\0"
DOMAIN_PARTIAL_ARCHIVE: Final = b"amistore partial archive content 1\0"
SNAPSHOT_ID: Final = struct.Struct("<24s")  # in them as in VOLD and INDX: ASCII, NUL-padded


@attrs.frozen(kw_only=True)
class Layout:
    """The sizes of a container's frames, segments, shards and parts; HEAD and the file id include them.

    Attributes:
        blocks_per_frame: the number of blocks of 512 KiB in a frame, 1 to 16.
        blocks_per_segment: the number of blocks in a segment, 1 to 512, a multiple of `blocks_per_frame`.
        segments_per_shard: the number of segments that one worker turns into parts.
        part_size: the size in bytes with which 10,000 parts suffice where each shard is uploaded by itself.
    """

    blocks_per_frame: int = 8
    blocks_per_segment: int = 64
    segments_per_shard: int = MIN_SHARD_SEGMENTS
    part_size: int = MIN_PART

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Layout):
            value = getattr(self, field.name)
            if type(value) is not int:
                raise InvalidValueError(
                    f"Layout.{field.name} must be a whole number, not {value!r}",
                    field=f"Layout.{field.name}",
                    value=value,
                )
        if not (
            1 <= self.blocks_per_frame <= MAX_FRAME_CONTENT // BLOCK_SIZE
            and self.blocks_per_frame <= self.blocks_per_segment <= MAX_SEGMENT_BLOCKS
            and self.blocks_per_segment % self.blocks_per_frame == 0
            and 1 <= self.segments_per_shard < 2**64
            and MIN_PART <= self.part_size <= MAX_PART
        ):
            raise InvalidValueError(f"impossible {self}", field="Layout", value=self)

    def segments(self, blocks: int) -> int:
        """Segments of a volume of so many listed blocks."""
        return -(-blocks // self.blocks_per_segment)

    def segment_blocks(self, number: int, blocks: int) -> int:
        """Blocks of a segment, by its number in a volume of so many listed blocks."""
        return min(self.blocks_per_segment, blocks - number * self.blocks_per_segment)

    def frame_contents(self, blocks: int) -> tuple[int, ...]:
        """Content sizes in bytes of the frames of a segment of so many blocks."""
        full, rest = divmod(blocks, self.blocks_per_frame)
        return (self.blocks_per_frame * BLOCK_SIZE,) * full + (rest * BLOCK_SIZE,) * bool(rest)

    def frame_limit(self, blocks: int) -> int:
        """Most compressed bytes of the frames of a segment of so many blocks."""
        slack = MAX_FRAME_SIZE - MAX_FRAME_CONTENT
        return sum(content + slack for content in self.frame_contents(blocks))


def prelude_content_limit(runs: int) -> int:
    """Most bytes of a prelude's content: headers, and two numbers of up to 14 digits for each run."""
    return 5 * 512 + 32 * (runs + 2)


def prelude_limit(runs: int) -> int:
    """Most bytes of VOLD and the frames of a prelude of so many runs."""
    frames = -(-prelude_content_limit(min(runs, MAX_RUNS)) // MAX_FRAME_CONTENT)
    return MAX_DESCRIPTOR + frames * MAX_FRAME_SIZE


def index_limit(head: int, manifest_frames: int, volumes: int, segments: int) -> int:
    """Most bytes of an INDX with so many bytes of HEAD and manifest frames, volumes and segments."""
    columns = segments * INDX_COLUMNS * 8
    fixed = head + manifest_frames + volumes * INDX_VOLUME.size + segments * 32
    return fixed + columns + columns // 64 + MAX_DESCRIPTOR


def descriptor_limit(blocks: int, frames: int, first: int, last: int) -> int:
    """Most bytes of the SEGD of so many blocks between two block indexes, these included.

    What a reader asks for that knows the index only: exact but for the varints of the runs.
    """
    holes = last - first + 1 - blocks
    runs = min(blocks, holes + 1)
    # A gap or count takes a byte for each 7 bits; no gap but the first is above `holes`.
    varints = _varint_size(first) + (runs - 1) * _varint_size(holes) + runs * _varint_size(blocks)
    fixed = RECORD_OVERHEAD + SEGD_FIXED.size
    return min(fixed + varints + frames * FRAME_ENTRY.size + 32 * blocks, MAX_DESCRIPTOR)


def _varint_size(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))


README_NAME: Final = "README-amistore.txt"
README: Final = b"""\
This file is an Amazon Machine Image (AMI) in one piece: its metadata and all its EBS
snapshots, stored by amistore as container format version 1.

It is at the same time a Zstandard file and a tar archive, so you can open it without
amistore, with any of these:

    tar xf FILE                        (GNU tar or bsdtar, with zstd installed)
    zstd -dc FILE | tar x
    zstd -t FILE                       (checks every frame)

You get this text, <ami-id>/ami.json (the AMI's metadata, named as EC2's DescribeImages
names it) and for each snapshot <ami-id>/<snap-id>.raw, a sparse raw disk image. Use it
as any disk: losetup -fP --show DISK.raw, or qemu-img convert.

With amistore (Python: pip install amistore) it can be verified, opened at any place
without unpacking, and restored as an AMI:

    import amistore
    with amistore.open("FILE") as archive:
        print(archive.verify())

The bytes between the Zstandard frames are skippable frames that start with "AMIS": the
records for checking and random access. docs/format.md of amistore describes each byte.
"""

PREAMBLE_CHECKSUM: Final = bytes.fromhex("fa37afa3")  # low half of the XXH64 of README's tar member

# Low half of the XXH64 of the 1,024 zero bytes that end a tar (POSIX pax, "ustar Interchange Format").
END_CHECKSUM: Final = bytes.fromhex("cdac85f0")


def plain_frame(kind: int, size: int, body: bytes, checksum: bytes) -> bytes:
    """A zstd frame of one block that is not compressed. Built by hand: it is the same for every libzstd.

    Args:
        kind: the block's type: 0 for RAW, 1 for RLE, whose body is one byte.
        size: the bytes of content, 256 to 65,791.
        body: the block's bytes.
        checksum: low 4 bytes, little-endian, of the content's XXH64.
    """
    single = ZSTD_MAGIC + b"\x64"  # single segment, content checksum, content size in 2 bytes
    block = (size << 3 | kind << 1 | 1).to_bytes(3, "little")  # the last
    return single + struct.pack("<H", size - 256) + block + body + checksum


END_FRAME: Final = plain_frame(1, 1024, b"\0", END_CHECKSUM)
