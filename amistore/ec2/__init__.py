"""EC2's calls in boto3's names: a script that has a boto3 EC2 client runs on any backend.

`client.py` is what scripts call; `operations.py` answers requests of plain members with plain
members, `errors.py` says which code an error has. Which members there are: `amistore.wire.members`.
May import all layers below; botocore is used where it is installed, and not needed for the calls themselves.
"""

from amistore.ec2.client import EC2Client

__all__ = ["EC2Client"]
