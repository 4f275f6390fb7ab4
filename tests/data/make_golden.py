"""Make the golden containers of this format version, golden.json, and the dump in docs/format.md.

    python tests/data/make_golden.py

Run it only before a format version is released: afterwards its files are kept for ever.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import attrs
import zstandard

import amistore
from amistore.container import layout as form
from amistore.container.index import Index
from amistore.container.members import PREAMBLE
from amistore.container.records import Foot

HERE = Path(__file__).parent
UNBOUND = "partial-v1-unbound.bin"
"""What `partial` gave before the ids of partial archives bound the snapshots; no writer makes it any more."""

sys.path.insert(0, str(HERE.parent))

import images  # noqa: E402


def tiny() -> bytes:
    """One volume of 1 GiB with one block of zeros listed, at index 3."""
    return images.packed([(1, {3: images.block(0)})], None, tags=(amistore.Tag(key="Name", value="tiny"),))


def multi() -> bytes:
    """Three volumes in several small segments; one mapped twice, one empty; hostile metadata."""
    volumes: list[tuple[int, Any]] = [
        (1, {i: images.block(i) for i in (0, 1, 2, 7, 8, 100, 2047)}),
        (2, {}),
        (3, {4000 + i: images.block(i) for i in range(9)}),
    ]
    source = images.Volumes(volumes)
    first, *_ = source.volumes
    image = images.image(
        [*source.volumes, first],
        description="größer\n𝄞",
        architecture="arm64",
        boot_mode="uefi",
        ena_support=True,
        tags=(amistore.Tag(key="aws:x", value=""), amistore.Tag(key="Ключ", value="日本語")),
        snapshots=(amistore.Snapshot(snapshot_id=first, volume_size=1, description="root"),),
        extra={"FutureMember": {"Values": [1, None, "x"]}},
    )
    ephemeral = amistore.BlockDeviceMapping(device_name="/dev/sdz", virtual_name="ephemeral0")
    image = attrs.evolve(image, block_device_mappings=(*image.block_device_mappings, ephemeral))
    return b"".join(amistore.pack(image, source, options=amistore.PackOptions(layout=images.SMALL)))


def partial() -> bytes:
    """The second of two volumes that are equal."""
    source = images.Volumes([(1, {0: images.block(1), 9: images.block(2)})] * 2)
    _, second = source.volumes
    packed = amistore.pack(
        images.image(source.volumes),
        source,
        snapshots=second,
        options=amistore.PackOptions(layout=images.SMALL),
    )
    return b"".join(packed)


def facts(container: bytes) -> dict[str, Any]:
    """What a reader of any later version must find in a golden file."""
    backend = amistore.MemoryBackend()
    with amistore.open(io.BytesIO(container)) as archive:
        image = amistore.unpack(io.BytesIO(container), backend.ebs)
        there = [volume.snapshot_id for volume in archive.volumes]
        kept = archive.image.with_snapshots(dict(zip(there, there, strict=True)))
        restored = dict(
            zip(
                (m.ebs.snapshot_id for m in kept.block_device_mappings if m.ebs),
                (m.ebs.snapshot_id for m in image.block_device_mappings if m.ebs),
                strict=True,
            )
        )
        return {
            "sha256": hashlib.sha256(container).hexdigest(),
            "content_id": archive.content_id,
            "image_name": archive.image.name,
            "volumes": {
                volume.snapshot_id: {
                    "content_id": volume.content_id,
                    "blocks": {
                        str(index): hashlib.sha256(content).hexdigest()
                        for index, content in images.contents(
                            backend.ebs, restored[volume.snapshot_id] or ""
                        )[1].items()
                    },
                }
                for volume in archive.volumes
            },
        }


def pieces(container: bytes) -> list[tuple[str, int, int]]:
    """Name, start and end of each part of the tiny container."""
    foot = Foot.parse(container[-form.FOOT_SIZE :])
    index = Index.parse(container[foot.index_offset : foot.index_offset + foot.index_length])
    head = container.index(b"AMISHEAD") - 8
    manifest = head + len(index.head)
    volume = index.volumes[0].offset
    prelude = volume + int.from_bytes(container[volume + 4 : volume + 8], "little") + 8
    segment = index.offsets[0]
    frame = segment + int.from_bytes(container[segment + 4 : segment + 8], "little") + 8
    starts = [
        ("PREAMBLE, its first 16 and last 8 bytes", 0),
        ("HEAD", head),
        ("frame of the manifest's tar member", manifest),
        ("VOLD", volume),
        ("frame of the volume's tar headers and sparse map", prelude),
        ("SEGD", segment),
        ("frame of the segment's one block", frame),
        ("END_FRAME", foot.data_end),
        ("INDX", foot.index_offset),
        ("FOOT", foot.index_offset + foot.index_length),
    ]
    ends = [start for _, start in starts[1:]] + [len(container)]
    return [(name, start, end) for (name, start), end in zip(starts, ends, strict=True)]


def dump(container: bytes) -> str:
    """The hex dump of the tiny container, part by part."""
    lines: list[str] = []
    for name, start, end in pieces(container):
        lines.append(f"{name} ({end - start} bytes)")
        rows = range(start, end, 16)
        if name.startswith("PREAMBLE"):
            rows = range(start, start + 16, 16)
        lines += [row(container, at, min(at + 16, end)) for at in rows]
        if name.startswith("PREAMBLE"):
            lines += ["  ...", row(container, end - 8, end)]
        lines.append("")
    return "\n".join(lines).rstrip()


def preamble() -> str:
    """README's text, and what of PREAMBLE follows from it."""
    checksum = PREAMBLE[-4:].hex(" ")
    digest = hashlib.sha256(PREAMBLE).hexdigest()
    facts = (
        f"The XXH64's four bytes are `{checksum}`; PREAMBLE has {len(PREAMBLE):,} bytes, SHA-256\n`{digest}`."
    )
    return f"```text\n{form.README.decode()}```\n\n{facts}"


def row(container: bytes, start: int, end: int) -> str:
    piece = container[start:end]
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
    return f"  {start:05x}  {piece.hex(' '):<47}  {shown}"


def main() -> None:
    golden: dict[str, Any] = {"libzstd": list(zstandard.ZSTD_VERSION), "files": {}}
    for name, container in (
        ("tiny-v1.bin", tiny()),
        ("multi-v1.bin", multi()),
        ("partial-v1.bin", partial()),
        (UNBOUND, (HERE / UNBOUND).read_bytes()),
    ):
        (HERE / name).write_bytes(container)
        golden["files"][name] = facts(container)
    (HERE / "golden.json").write_text(json.dumps(golden, indent=2, ensure_ascii=False) + "\n")
    document = HERE.parents[1] / "docs" / "format.md"
    if document.exists():
        text = document.read_text()
        for name, block in (("dump", f"```text\n{dump(tiny())}\n```"), ("preamble", preamble())):
            text = re.sub(
                rf"<!-- {name} -->.*<!-- end of {name} -->",
                lambda _, name=name, block=block: f"<!-- {name} -->\n{block}\n<!-- end of {name} -->",  # type: ignore[misc]
                text,
                flags=re.DOTALL,
            )
        document.write_text(text)


if __name__ == "__main__":
    main()
