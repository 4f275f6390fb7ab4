"""The container: format version 1 as pure functions between bytes and objects.

Sans-IO: nothing here opens a file or socket, starts a thread or reads a clock. Imports the
model only. Where to look: `layout.py` declares every byte, `envelope.py` and `records.py` turn records into
objects, `plan.py` says what stands where, `encoder.py` writes, `decoder.py`
reads from front to end, `index.py` is the way in from the end, `segments.py` proves blocks.
`docs/format.md` is the normative text.
"""

from amistore.container.decoder import (
    ContainerEnd,
    ContainerStart,
    Event,
    VolumeStart,
    container_events,
)
from amistore.container.encoder import ContainerWriter, EncodedSegment, encode_segment
from amistore.container.frames import FrameDecoder
from amistore.container.index import Index, IndexedVolume, Ledger
from amistore.container.layout import Layout
from amistore.container.members import PREAMBLE
from amistore.container.plan import Plan, PlannedSegment, PlannedVolume, plan
from amistore.container.records import Foot, Head, SegmentDescriptor, VolumeDescriptor
from amistore.container.runs import Runs
from amistore.container.segments import (
    DecodedBlock,
    DecodedFrame,
    LocatedSegment,
    StoredSegment,
    decode_frame,
    decode_segment,
)

__all__ = [
    "PREAMBLE",
    "ContainerEnd",
    "ContainerStart",
    "ContainerWriter",
    "DecodedBlock",
    "DecodedFrame",
    "EncodedSegment",
    "Event",
    "Foot",
    "FrameDecoder",
    "Head",
    "Index",
    "IndexedVolume",
    "Layout",
    "Ledger",
    "LocatedSegment",
    "Plan",
    "PlannedSegment",
    "PlannedVolume",
    "Runs",
    "SegmentDescriptor",
    "StoredSegment",
    "VolumeDescriptor",
    "VolumeStart",
    "container_events",
    "decode_frame",
    "decode_segment",
    "encode_segment",
    "plan",
]
