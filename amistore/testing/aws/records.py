"""What the fake account holds: snapshots, images and credentials."""

from __future__ import annotations

import datetime
from typing import Any

import attrs

from amistore.testing.aws.content import Content, StoredBlocks
from amistore.wire.signature import Signer

__all__ = ["Credential", "Image", "Snapshot"]


@attrs.frozen(kw_only=True)
class Credential(Signer):
    """Who may sign requests, and what they may not do.

    Attributes:
        access_key_id, secret_access_key, session_token, expires: as of every signer, on the fake clock.
        denied: IAM actions that are refused, such as ``"ebs:PutSnapshotBlock"``; ``"ec2:*"`` and
            ``"*"`` too.
        account_id: whose resources it acts on.
        user: the name in its ARN.
    """

    denied: frozenset[str] = frozenset()
    account_id: str = "123456789012"
    user: str = "tester"

    def denies(self, action: str) -> bool:
        """Whether an IAM action is refused."""
        return not self.denied.isdisjoint(("*", f"{action.partition(':')[0]}:*", action))


@attrs.define(kw_only=True, eq=False)
class Snapshot:
    """A snapshot, as EC2 and the EBS direct APIs see it; a test may change it.

    Attributes:
        number: of its creation in this account, the order of lists.
        volume_size: GiB.
        timeout: minutes from the last write until a pending one is cancelled.
        own: the blocks that were put into it.
        content: all its blocks.
        sealed: when CompleteSnapshot was accepted.
        generation: of the block tokens that are valid now.
        missing_until, missing_calls: how it still "does not exist".
        describes: DescribeSnapshots answers left that say pending.
    """

    number: int
    snapshot_id: str
    owner_id: str
    volume_size: int
    own: StoredBlocks = attrs.field(repr=False)
    content: Content = attrs.field(repr=False)
    start_time: datetime.datetime
    last_write: datetime.datetime
    volume_id: str = "vol-ffffffff"
    description: str = ""
    tags: dict[str, str] = attrs.field(factory=dict)
    state: str = "pending"
    state_message: str | None = None
    progress: int = 0
    completion_time: datetime.datetime | None = None
    encrypted: bool = False
    kms_key_arn: str | None = None
    storage_tier: str = "standard"
    outpost_arn: str | None = None
    public: bool = False
    shared_with: set[str] = attrs.field(factory=set)
    parent_snapshot_id: str | None = None
    lineage: frozenset[str] = frozenset()
    timeout: int = 60
    sealed: datetime.datetime | None = None
    generation: int = 0
    missing_until: datetime.datetime | None = None
    missing_calls: int = 0
    describes: int = 0


@attrs.define(kw_only=True, eq=False)
class Image:
    """An AMI; a test may change it.

    Attributes:
        number: of its creation in this account, the order of lists.
        members: DescribeImages members by their names in the XML, beside those named here.
        mappings: ``blockDeviceMapping`` items by their names in the XML.
        attributes: what DescribeImageAttribute alone tells, such as ``uefiData``.
        describes: DescribeImages answers left that say pending.
    """

    number: int
    image_id: str
    owner_id: str
    name: str
    creation_time: datetime.datetime
    state: str = "available"
    state_message: str | None = None
    members: dict[str, Any] = attrs.field(factory=dict)
    mappings: list[dict[str, Any]] = attrs.field(factory=list)
    attributes: dict[str, str] = attrs.field(factory=dict, repr=False)
    tags: dict[str, str] = attrs.field(factory=dict)
    public: bool = False
    shared_with: set[str] = attrs.field(factory=set)
    deprecation_time: datetime.datetime | None = None
    describes: int = 0

    @property
    def snapshot_ids(self) -> list[str]:
        """The snapshots that its mappings name."""
        return [
            ebs["snapshotId"] for item in self.mappings if (ebs := item.get("ebs") or {}).get("snapshotId")
        ]
