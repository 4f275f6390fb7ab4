"""A strict fake of what amistore needs of AWS: the EBS direct APIs, EC2, and a word of STS.

It serves on loopback, keeps the promises that the services' documentation makes, and uses
the freedom that it leaves, against clients. Clients bring their own SDK::

    with FakeAWS() as aws:
        ebs = boto3.client("ebs", **aws.client_options())

Needs attrs and the standard library. S3 is not part of it. docs/testing-aws.md shows more.
"""

from amistore.testing.aws.behaviour import Behaviour
from amistore.testing.aws.calls import CallLog, LoggedCall
from amistore.testing.aws.clock import Clock
from amistore.testing.aws.fake import FakeAWS
from amistore.testing.aws.faults import FaultKind, FaultRule, Faults
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.testing.aws.throttling import Throttle

__all__ = [
    "Behaviour",
    "CallLog",
    "Clock",
    "Credential",
    "FakeAWS",
    "FaultKind",
    "FaultRule",
    "Faults",
    "Image",
    "LoggedCall",
    "Snapshot",
    "Throttle",
]
