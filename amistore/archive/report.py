"""`VerifyReport`: what a verification found."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import attrs

from amistore.errors import REMEDY, ArchiveError, advising, is_unadvised
from amistore.text import html_table, printable
from amistore.units import BLOCK_SIZE, counted, sized

__all__ = ["VerifyReport"]


@attrs.frozen(kw_only=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        name: the archive's name.
        quick: whether the verification was quick, and decompressed and hashed no block.
        content_id: the archive's content id, in hexadecimal.
        size: the number of bytes read and checked.
        volumes: the number of volumes.
        segments: the number of segments.
        blocks: the number of listed blocks, of 524,288 bytes each.
        seconds: the duration in seconds.
        findings: the faults, each an error that says where; empty for an intact archive.
        lost_blocks: the number of blocks that were lost before the archive was recovered; restoring it needs
            `allow_lost`.
        another: whether the content id is not the expected one. That is the first finding then, and no
            damage.
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
    lost_blocks: int = 0
    another: bool = False

    @property
    def ok(self) -> bool:
        """Whether the archive is intact, and the expected one."""
        return not self.findings

    @property
    def throughput(self) -> float:
        """The number of the archive's bytes checked in a second."""
        return self.size / self.seconds if self.seconds else 0.0

    def check(self) -> VerifyReport:
        """Return this report if it has no findings.

        Raises:
            ArchiveError: the first finding.
        """
        if self.findings:
            with advising():
                raise copy.copy(self.findings[0])
        return self

    def __str__(self) -> str:
        lines = [f"{printable(self.name)}: {self._verdict()}"]
        lines += [f"  {name:<10}  {text}" for name, text in self._facts()]
        lines += [f"  - {finding}" for finding in self.findings]
        return "\n".join([*lines, *(f"  {remedy}" for remedy in self._remedy())])

    def _repr_html_(self) -> str:
        """What a notebook shows: the same, with a line for each finding."""
        facts = [("archive", self.name), ("verdict", self._verdict()), *self._facts()]
        found = [("finding", str(finding)) for finding in self.findings]
        return html_table([*facts, *found, *(("remedy", remedy) for remedy in self._remedy())])

    def _verdict(self) -> str:
        faults = len(self.findings) - self.another
        state = f"DAMAGED, {counted(faults, 'finding')}" if faults else "intact"
        return f"another archive than the expected one, {state}" if self.another else state

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "content id", self.content_id
        yield "checked", "quickly: records, index, CRCs" if self.quick else "fully: every block"
        blocks = f"{counted(self.blocks, 'block')} ({sized(self.blocks * BLOCK_SIZE)})"
        yield "holds", f"{counted(self.volumes, 'volume')}, {counted(self.segments, 'segment')}, {blocks}"
        seconds = f"{self.seconds:.{1 if self.seconds >= 0.1 else 4}f}"
        yield "read", f"{sized(self.size)} in {seconds} s, {sized(self.throughput)}/s"
        if self.lost_blocks:
            lost = f"{counted(self.lost_blocks, 'block')} ({sized(self.lost_blocks * BLOCK_SIZE)})"
            yield "LOST", f"{lost}, when it was recovered; restoring needs allow_lost=True"

    def _remedy(self) -> list[str]:
        return [REMEDY] if any(map(is_unadvised, self.findings)) else []
