"""What the services leave open, to be chosen by a test; it may change while they run."""

from __future__ import annotations

import attrs

__all__ = ["Behaviour"]


@attrs.define(kw_only=True)
class Behaviour:
    """How the fake uses the freedom that the services' documentation leaves them.

    Attributes:
        default_page_size: blocks in a page when MaxResults is absent; not documented.
        short_pages: pages hold fewer items than MaxResults ("EBS direct APIs reference:
            ListSnapshotBlocks").
        empty_pages: every other page of blocks, the first one too, is empty but has a
            NextToken, and the list ends with an empty page ("FAQ for EBS direct APIs").
        pages_renew_tokens: each further page of a listing kills the block tokens of the pages
            before; otherwise only a listing from its start does. Which is true is not documented.
        missing_seconds: for how long a started snapshot "does not exist", on the fake clock.
        missing_calls: in how many calls that name it a started snapshot "does not exist".
        missing_code: the EBS error that says so: ResourceNotFoundException or ValidationException.
        completion_seconds: from CompleteSnapshot until the snapshot is completed.
        completion_describes: DescribeSnapshots answers that still say pending.
        completion_failure: the StateMessage with which completion ends in the state error.
        image_seconds: from RegisterImage until the image is available.
        image_describes: DescribeImages answers that still say pending.
        image_failure: the StateReason with which registration ends in the state failed.
        encryption_by_default: what GetEbsEncryptionByDefault tells, and StartSnapshot obeys.
        default_kms_key: ARN of the key used when none is named; None is the account's own.
        pending_snapshots: how many snapshots may be pending at once ("Amazon EBS endpoints and
            quotas").
        maximum_clock_skew: seconds between the signing time and the real time ("Signature
            Version 4 signing process").
        seconds_ahead: by which the services' real time, that of signatures and of the header Date, is
            ahead of this machine's clock; negative for behind.
    """

    default_page_size: int = 1000
    short_pages: bool = False
    empty_pages: bool = False
    pages_renew_tokens: bool = False
    missing_seconds: float = 0
    missing_calls: int = 0
    missing_code: str = "ResourceNotFoundException"
    completion_seconds: float = 0
    completion_describes: int = 0
    completion_failure: str | None = None
    image_seconds: float = 0
    image_describes: int = 0
    image_failure: str | None = None
    encryption_by_default: bool = False
    default_kms_key: str | None = None
    pending_snapshots: int = 100
    maximum_clock_skew: float = 900
    seconds_ahead: float = 0
