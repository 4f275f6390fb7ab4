"""The way of one call: who asks, whether he may, and which service answers."""

from __future__ import annotations

import datetime
from typing import Any

import attrs

from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.ebs import EbsDirect
from amistore.testing.aws.images import Images
from amistore.testing.aws.records import Credential
from amistore.testing.aws.snapshots import Snapshots
from amistore.testing.aws.throttling import Throttle, throttled
from amistore.wire.answers import error_answer, xml_answer
from amistore.wire.calls import Answer, Call
from amistore.wire.ebs import ROUTES, routed
from amistore.wire.errors import ServiceError, wrong
from amistore.wire.members import OPERATIONS
from amistore.wire.query import checked_form, parse
from amistore.wire.signature import authenticate

__all__ = ["Services", "identified"]


def identified(call: Call) -> Call:
    """A call with its operation, as far as its head tells: all of the EBS direct APIs."""
    if "/s3/aws4_request" in call.headers.get("authorization", ""):  # what it is signed for
        return attrs.evolve(call, service="s3")
    return attrs.evolve(call, service="ec2") if call.path == "/" else routed(call)


class Services:
    """Answer calls of the EBS direct APIs, EC2 and STS, whatever they hold.

    Attributes:
        credentials: of all who may ask, by access key id.
        throttles: by operation.
    """

    def __init__(self, cloud: Cloud) -> None:
        self.credentials: dict[str, Credential] = {}
        self.throttles: dict[str, Throttle] = {}
        self._cloud = cloud
        self._ebs = EbsDirect(cloud)
        self._operations = {**Images(cloud).operations, **Snapshots(cloud).operations}

    def check_operation(self, operation: str) -> None:
        """Refuse the name of none that is answered: what is to happen to it would never happen.

        Raises:
            ValueError: as said.
        """
        known = {name for _, _, name in ROUTES} | {*self._operations, "GetCallerIdentity"}
        if operation not in known:
            raise ValueError(f"there is no operation {operation!r}, only {', '.join(sorted(known))}")

    def real_now(self) -> datetime.datetime:
        """The real time, as the services have it."""
        ahead = datetime.timedelta(seconds=self._cloud.behaviour.seconds_ahead)
        return datetime.datetime.now(datetime.timezone.utc) + ahead

    def answer(self, call: Call) -> Answer:
        """Carry out a call, or say why not."""
        try:
            if call.service == "s3":
                message = "FakeAWS is no S3: run an S3 server beside it, or take amistore.MemoryBackend().s3"
                raise ServiceError("NotImplemented", message, status=501)
            caller = authenticate(
                call,
                self.credentials,
                region=self._cloud.region,
                now=self._cloud.clock.now(),
                real_now=self.real_now(),
                maximum_skew=self._cloud.behaviour.maximum_clock_skew,
            )
            throttle = self.throttles.get(call.operation)
            if throttle is not None and not throttle.admits():
                raise throttled(call, throttle.reason)
            if call.service == "ebs":
                return self._answer_ebs(call, caller)
            return xml_answer(call, self._query(call, caller))
        except ServiceError as error:
            return error_answer(call, error)

    def arn(self, caller: Credential) -> str:
        """The principal that signs with a credential."""
        partition = self._cloud.partition
        if caller.session_token is not None:
            return f"arn:{partition}:sts::{caller.account_id}:assumed-role/{caller.user}/session"
        return f"arn:{partition}:iam::{caller.account_id}:user/{caller.user}"

    def _answer_ebs(self, call: Call, caller: Credential) -> Answer:
        if not call.operation:
            raise ServiceError("UnknownOperationException", "There is no such operation.", status=404)
        action = f"ebs:{call.operation}"
        if caller.denies(action):
            resource = (
                f"arn:{self._cloud.partition}:ec2:{self._cloud.region}::snapshot/{call.snapshot_id or '*'}"
            )
            message = (
                f"User: {self.arn(caller)} is not authorized to perform: {action} on resource: {resource} "
                f"because no identity-based policy allows the {action} action"
            )
            raise ServiceError("AccessDeniedException", message, status=403, reason="UNAUTHORIZED_ACCOUNT")
        return self._ebs.answer(call, caller)

    def _query(self, call: Call, caller: Credential) -> dict[str, Any]:
        form = checked_form(call)
        if call.service == "sts":
            return self._caller_identity(call, caller)
        if call.operation not in self._operations:
            raise wrong(f"The action {call.operation} is not valid for this web service.", "InvalidAction")
        self._permit(caller, f"ec2:{call.operation}")
        values = parse(form, OPERATIONS[call.operation])
        if values.get("TagSpecifications"):
            self._permit(caller, "ec2:CreateTags")
        if values.get("DryRun"):
            message = "Request would have succeeded, but DryRun flag is set."
            raise wrong(message, "DryRunOperation", 412)
        with self._cloud.lock:
            return self._operations[call.operation](values, caller)

    def _caller_identity(self, call: Call, caller: Credential) -> dict[str, Any]:
        if call.operation != "GetCallerIdentity":
            raise wrong(f"Could not find operation {call.operation}", "InvalidAction")
        return {"Arn": self.arn(caller), "UserId": "AIDAEXAMPLEEXAMPLEEX", "Account": caller.account_id}

    def _permit(self, caller: Credential, action: str) -> None:
        if caller.denies(action):
            message = (
                f"You are not authorized to perform this operation. User: {self.arn(caller)} is not "
                f"authorized to perform: {action} because no identity-based policy allows the {action} action"
            )
            raise wrong(message, "UnauthorizedOperation", 403)
