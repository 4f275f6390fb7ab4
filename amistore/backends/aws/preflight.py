"""`preflight`: check whether an image can be stored, before anything is read.

Sources: EBS user guide, "EBS direct APIs" (limits and permissions), "Archive Amazon EBS
snapshots", "Amazon EBS local snapshots on Outposts".
"""

from __future__ import annotations

from collections.abc import Iterator

from amistore.backends import checks
from amistore.backends.aws.ec2 import AWSImageRegistry
from amistore.backends.blocks import BlockSource
from amistore.errors import AccessDeniedError, AmistoreError, BackendError, InvalidRequestError, NotFoundError
from amistore.model import Image, Snapshot

__all__ = ["preflight"]


def preflight(image: Image, *, registry: AWSImageRegistry, blocks: BlockSource) -> None:
    """Find everything that would make storing an image fail, by trial where nothing else tells.

    It reads the first block of each snapshot. That ends other listings of the same snapshots: call it before
    them.

    Args:
        image: the image, as `registry` describes it.
        registry: the registry that knows the snapshots' states.
        blocks: the store that lists and reads the snapshots.

    Raises:
        InvalidRequestError: the image or a snapshot is of a kind or in a state that cannot be read.
        NotFoundError: a snapshot is gone, or in another Region.
        AccessDeniedError: permissions are missing.
        BackendError: the service failed.

    The error has the first finding's class; its message lists all findings.
    """
    checks.check_storable(image)
    findings = list(_findings(image, registry, blocks))
    if not findings:
        return
    first = findings[0]
    if len(findings) > 1:
        told = "\n".join(f"- {finding}" for finding in findings)
        first.message = f"{image.image_id} cannot be stored, for {len(findings)} reasons:\n{told}"
        first.args = (first.message,)
    if isinstance(first, BackendError):
        first.locate(image_id=image.image_id, operation="preflight")
    raise first


def _findings(image: Image, registry: AWSImageRegistry, blocks: BlockSource) -> Iterator[AmistoreError]:
    if image.state != "available":
        remedy = "enable it (enable-image)" if image.state == "disabled" else "wait until it is available"
        yield InvalidRequestError(
            f"{image.image_id} is {image.state}, not available: {remedy}", code="InvalidAMIID.Unavailable"
        )
    region = registry.region_name
    there = {each.snapshot_id: each for each in registry.describe_snapshots(image.snapshot_ids)}
    for snapshot_id in image.snapshot_ids:
        snapshot = there.get(snapshot_id)
        if snapshot is None:
            yield NotFoundError(
                f"{snapshot_id} is not there for this account in {region}: it was deleted, is not shared"
                " with the account, or is of another Region; use that Region, ask the owner to share it, or"
                " make another image",
                snapshot_id=snapshot_id,
            )
        else:
            finding = _of_kind(snapshot) or _by_trial(snapshot, blocks)
            if finding is not None:
                yield finding


def _of_kind(snapshot: Snapshot) -> AmistoreError | None:
    """Why a snapshot of this description cannot be read; None if it can."""
    snapshot_id = snapshot.snapshot_id
    if snapshot.extra.get("OutpostArn"):
        return InvalidRequestError(
            f"{snapshot_id} is a local snapshot of an Outpost, which EBS direct APIs cannot read:"
            " copy it to the Region (copy-snapshot) and register an image from the copy",
            code="UnsupportedOperation",
        )
    if snapshot.state != "completed":
        remedy = {
            "pending": "wait until it is completed",
            "recoverable": "get it out of the recycle bin (restore-snapshot-from-recycle-bin)",
            "recovering": "wait until it is recovered",
        }.get(snapshot.state, "make another image")
        return InvalidRequestError(
            f"{snapshot_id} is {snapshot.state}, not completed: {remedy}", code="IncorrectState"
        )
    # One that is restored for a time says "archive" too, and when that ends.
    if snapshot.storage_tier == "archive" and not snapshot.extra.get("RestoreExpiryTime"):
        return InvalidRequestError(
            f"{snapshot_id} is in the archive tier: restore it first (restore-snapshot-tier),"
            " which takes up to 72 hours",
            code="UnsupportedOperation",
        )
    return None


def _by_trial(snapshot: Snapshot, blocks: BlockSource) -> AmistoreError | None:
    """The error of listing and reading a snapshot's first block; None if there is none."""
    snapshot_id = snapshot.snapshot_id
    try:
        for page in blocks.pages(snapshot_id):
            if page.blocks:
                first = page.blocks[0]
                blocks.get_snapshot_block(snapshot_id, first.block_index, first.block_token)
                break
    except (BackendError, InvalidRequestError) as error:
        if isinstance(error, BackendError) and error.retryable:
            raise
        error.message = f"{snapshot_id} cannot be read: {error.message}; {_remedy(snapshot, error)}"
        error.args = (error.message,)
        return error
    return None


def _remedy(snapshot: Snapshot, error: AmistoreError) -> str:
    remedies = []
    if isinstance(error, AccessDeniedError):
        remedies.append("allow ebs:ListSnapshotBlocks and ebs:GetSnapshotBlock on it")
    if snapshot.encrypted:
        remedies.append(f"allow kms:Decrypt on {snapshot.kms_key_id or 'its key'}, which must be enabled")
    owner = f"account {snapshot.owner_id}" if snapshot.owner_id else "another account"
    remedies.append(
        f"if it is of another account than yours (it is of {owner}), EBS direct APIs read it only when it is"
        " shared with yours by name, never when it is public: copy the image (copy-image) and store the copy"
    )
    return "; ".join(remedies)
