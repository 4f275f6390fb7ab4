"""AWS itself: EBS direct APIs, EC2 and S3. Needs the extra ``amistore[aws]`` (boto3).

`connection.py` says where and who, `errors.py` what an answer means; `ebs.py`, `s3.py` and
`ec2.py` are the three services.
"""

from amistore.backends.aws.backend import AWSBackend
from amistore.backends.aws.settings import ObjectSettings, SnapshotSettings

__all__ = ["AWSBackend", "ObjectSettings", "SnapshotSettings"]
