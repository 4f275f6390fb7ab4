"""`VerifyReport`: what a verification found."""

from __future__ import annotations

import attrs

from amistore.errors import ArchiveError
from amistore.units import BLOCK_SIZE, counted, sized

__all__ = ["VerifyReport"]


@attrs.frozen(kw_only=True)
class VerifyReport:
    """What was checked and what was found.

    Attributes:
        name: of the archive.
        quick: whether no block was decompressed and hashed.
        content_id: of the archive, in hexadecimal.
        size: bytes read and checked.
        volumes: how many.
        segments: how many.
        blocks: listed blocks, of 524,288 bytes.
        seconds: that it took.
        findings: what is wrong, each an error with its place; empty for an intact archive.
    """

    name: str
    quick: bool
    content_id: str
    size: int
    volumes: int
    segments: int
    blocks: int
    seconds: float
    findings: tuple[ArchiveError, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def throughput(self) -> float:
        """Bytes of the archive checked per second."""
        return self.size / self.seconds if self.seconds else 0.0

    def check(self) -> VerifyReport:
        """Return the report of an intact archive.

        Raises:
            ArchiveError: the first finding.
        """
        if self.findings:
            raise self.findings[0]
        return self

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {'intact' if self.ok else 'DAMAGED, ' + counted(len(self.findings), 'finding')}",
            f"  content id  {self.content_id}",
            f"  checked     {'quickly: records, index, CRCs' if self.quick else 'fully: every block'}",
            f"  holds       {counted(self.volumes, 'volume')}, {counted(self.segments, 'segment')}, "
            f"{counted(self.blocks, 'block')} ({sized(self.blocks * BLOCK_SIZE)})",
            f"  read        {sized(self.size)} in {self.seconds:.{1 if self.seconds >= 0.1 else 4}f} s, "
            f"{sized(self.throughput)}/s",
        ]
        return "\n".join([*lines, *(f"  - {finding}" for finding in self.findings)])
