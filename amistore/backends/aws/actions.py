"""The IAM actions that each verb needs: `policies.py` lists them, `errors.py` names the missing one.

Source: Service Authorization Reference, "Actions, resources, and condition keys" of Amazon
EBS, Amazon EC2 and Amazon S3; EBS user guide, "Requirements for Amazon EBS encryption".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ACTIONS", "KMS_READ", "KMS_WRITE"]

ACTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    # EBS direct APIs
    "list_snapshot_blocks": ("ebs:ListSnapshotBlocks",),
    "get_snapshot_block": ("ebs:GetSnapshotBlock",),
    "start_snapshot": ("ebs:StartSnapshot", "ec2:CreateTags"),
    "put_snapshot_block": ("ebs:PutSnapshotBlock",),
    "complete_snapshot": ("ebs:CompleteSnapshot",),
    # EC2
    "delete_snapshot": ("ec2:DeleteSnapshot",),
    "describe_snapshot": ("ec2:DescribeSnapshots",),
    "encryption_by_default": ("ec2:GetEbsEncryptionByDefault", "ec2:GetEbsDefaultKmsKeyId"),
    "describe_image": ("ec2:DescribeImages", "ec2:DescribeImageAttribute", "ec2:DescribeSnapshots"),
    "describe_images": ("ec2:DescribeImages", "ec2:DescribeImageAttribute", "ec2:DescribeSnapshots"),
    "find_images": ("ec2:DescribeImages", "ec2:DescribeImageAttribute", "ec2:DescribeSnapshots"),
    "describe_snapshots": ("ec2:DescribeSnapshots",),
    # DescribeImages: to see when it is available.
    "register_image": ("ec2:RegisterImage", "ec2:CreateTags", "ec2:DescribeImages"),
    "enable_image_deprecation": ("ec2:EnableImageDeprecation",),
    "enable_image_deregistration_protection": ("ec2:EnableImageDeregistrationProtection",),
    "finish_registration": (
        "ec2:DescribeImages",
        "ec2:EnableImageDeprecation",
        "ec2:EnableImageDeregistrationProtection",
    ),
    "deregister_image": ("ec2:DeregisterImage",),
    # S3
    "head_bucket": ("s3:ListBucket",),
    "head_object": ("s3:GetObject", "s3:ListBucket"),
    "get_object_range": ("s3:GetObject",),
    "get_object_tagging": ("s3:GetObjectTagging",),
    "restore_object": ("s3:RestoreObject", "s3:GetObject"),
    "delete_object": ("s3:DeleteObject", "s3:GetObject"),
    "create_multipart_upload": ("s3:PutObject", "s3:PutObjectTagging"),
    "upload_part": ("s3:PutObject",),
    "list_parts": ("s3:ListMultipartUploadParts",),
    "complete_multipart_upload": ("s3:PutObject", "s3:GetObject"),
    "abort_multipart_upload": ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
    "list_keys": ("s3:ListBucket",),
    "list_multipart_uploads": ("s3:ListBucketMultipartUploads",),
    "bucket_warnings": (
        "s3:ListBucket",
        "s3:GetBucketPublicAccessBlock",
        "s3:GetEncryptionConfiguration",
    ),
}

KMS_READ: Final = ("kms:Decrypt", "kms:DescribeKey")
"""On the key of an encrypted snapshot, to read it."""

KMS_WRITE: Final = (*KMS_READ, "kms:CreateGrant", "kms:GenerateDataKey*", "kms:ReEncrypt*")
"""On the key that is to encrypt a snapshot, to write it."""
