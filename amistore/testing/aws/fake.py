"""The fake itself: its services behind one endpoint, and what a test sets and reads."""

from __future__ import annotations

import datetime
import os
import secrets
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from amistore import forks
from amistore.testing.aws.behaviour import Behaviour
from amistore.testing.aws.calls import CallLog
from amistore.testing.aws.certificate import Certificate
from amistore.testing.aws.clock import Clock
from amistore.testing.aws.cloud import Cloud
from amistore.testing.aws.content import StoredBlocks, given_content, volume_blocks
from amistore.testing.aws.faults import Faults
from amistore.testing.aws.records import Credential, Image, Snapshot
from amistore.testing.aws.registering import given_mapping
from amistore.testing.aws.server import Server
from amistore.testing.aws.services import Services
from amistore.testing.aws.throttling import Throttle
from amistore.units import BLOCK_SIZE, GIB

__all__ = ["FakeAWS"]


@attrs.frozen
class _State:
    """What the services share with the object that tests hold."""

    clock: Clock
    cloud: Cloud
    services: Services
    faults: Faults
    log: CallLog


class FakeAWS:
    """The EBS direct APIs, EC2's operations on images and snapshots, and GetCallerIdentity.

    Open it with ``with``: it then serves at `endpoint_url`, in this process and on loopback. Forked children
    may be its clients, by `endpoint_url`, `credential` and `client_options`; the rest is refused there.

    Args:
        region: that requests have to be signed for.
        account_id: of the default credential, and of what is added without an owner.
        partition: in ARNs.
        start: the clock's time, with a time zone; None is now.
        seed: of the ids, which are then the same in each run; None is others in each fake.
        tls: serve https, with a certificate that the openssl program makes; clients trust `ca_bundle`.

    Attributes:
        credential: the default one.
    """

    def __init__(
        self,
        region: str = "us-east-1",
        account_id: str = "123456789012",
        partition: str = "aws",
        *,
        start: datetime.datetime | None = None,
        seed: int | None = None,
        tls: bool = False,
    ) -> None:
        self.region = region
        self.account_id = account_id
        self.partition = partition
        clock = Clock(start)
        cloud = Cloud(region=region, account_id=account_id, partition=partition, clock=clock, seed=seed)
        services = Services(cloud)
        self._state = _State(clock, cloud, services, Faults(services.check_operation), CallLog())
        self._process = os.getpid()
        self._tls = tls
        self._certificate: Certificate | None = None
        self._server: Server | None = None
        self.credential = self.add_credential()

    def __enter__(self) -> FakeAWS:
        if self._server is None:
            own, certificate = self._own, Certificate() if self._tls else None
            self._certificate = certificate
            self._server = Server(
                own.services, own.faults, own.log, certificate.context() if certificate else None
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; what is held is let go. What the account holds can still be read."""
        server, self._server = self._server, None
        if self._process != os.getpid():  # what serves is the parent's
            return
        self.faults.clear()
        if server is not None:
            server.close()
        self._certificate = None

    @property
    def _own(self) -> _State:
        """What the services share with this object, in the process that they serve in."""
        forks.check_owner(self._process, "this FakeAWS", "do that there, and be a client here")
        return self._state

    @property
    def clock(self) -> Clock:
        """Of the services; nothing expires unless it is advanced."""
        return self._own.clock

    @property
    def faults(self) -> Faults:
        """Rules for troubles on the way."""
        return self._own.faults

    @property
    def log(self) -> CallLog:
        """Counts of requests, and the requests."""
        return self._own.log

    @property
    def endpoint_url(self) -> str:
        """What clients take as the endpoint of all three services.

        Raises:
            RuntimeError: it does not serve.
        """
        if self._server is None:
            raise RuntimeError("FakeAWS serves only inside its with block")
        return self._server.url

    @property
    def ca_bundle(self) -> str:
        """Path of the PEM file that clients have to trust, such as by ``AWS_CA_BUNDLE``.

        Raises:
            RuntimeError: it does not serve https.
        """
        if self._server is None or self._certificate is None:
            raise RuntimeError("FakeAWS(tls=True) has a certificate, inside its with block")
        return str(self._certificate.file)

    @property
    def behaviour(self) -> Behaviour:
        """How the services use the freedom that they have."""
        return self._own.cloud.behaviour

    def client_options(self, credential: Credential | None = None) -> dict[str, Any]:
        """The arguments of ``boto3.client`` that lead here, signing with a credential."""
        used = credential or self.credential
        options = {
            "endpoint_url": self.endpoint_url,
            "region_name": self.region,
            "aws_access_key_id": used.access_key_id,
            "aws_secret_access_key": used.secret_access_key,
            "aws_session_token": used.session_token,
        }
        return {**options, "verify": self.ca_bundle} if self._tls else options

    def add_credential(
        self,
        *,
        session_token: str | None = None,
        expires_in: float | None = None,
        denied: Iterable[str] = (),
        account_id: str | None = None,
        user: str = "tester",
    ) -> Credential:
        """Let one more sign requests.

        Args:
            session_token: makes it a temporary credential.
            expires_in: seconds from now, on the clock, until it dies.
            denied: IAM actions that are refused, such as ``"ebs:PutSnapshotBlock"``,
                ``"kms:Decrypt"`` or ``"ec2:*"``.
            account_id: whose it is; None is the fake's.
            user: the name in its ARN.
        """
        expires = None
        if expires_in is not None:
            expires = self.clock.now() + datetime.timedelta(seconds=expires_in)
        credential = Credential(
            # At random, so that another fake refuses it, as another account does.
            access_key_id=f"{'ASIA' if session_token else 'AKIA'}{secrets.token_hex(8).upper()}",
            secret_access_key=secrets.token_hex(20),
            session_token=session_token,
            expires=expires,
            denied=frozenset(denied),
            account_id=account_id or self.account_id,
            user=user,
        )
        self._own.services.credentials[credential.access_key_id] = credential
        return credential

    def remove_credential(self, credential: Credential) -> None:
        """Let a credential sign no longer."""
        del self._own.services.credentials[credential.access_key_id]

    def throttle(
        self,
        operation: str,
        *,
        per_second: float | None = None,
        burst: int | None = None,
        every: int | None = None,
        reason: str = "ACCOUNT_THROTTLED",
    ) -> Throttle:
        """Limit an operation.

        Args:
            operation: its name in the service's reference.
            per_second: calls that the clock adds each second. It stands still by itself.
            burst: calls that may come at once; None is a second's.
            every: refuse each Nth call, instead of a rate.
            reason: of the EBS direct APIs' RequestThrottledException.

        Raises:
            ValueError: there is no such operation.
        """
        self._own.services.check_operation(operation)
        limit = Throttle(self.clock, per_second=per_second, burst=burst, every=every, reason=reason)
        self._own.services.throttles[operation] = limit
        return limit

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """Those that there are, by id, as they are now."""
        cloud = self._own.cloud
        with cloud.lock:
            for snapshot in cloud.snapshots.values():
                cloud.settle(snapshot)
            return types.MappingProxyType(dict(cloud.snapshots))

    @property
    def images(self) -> Mapping[str, Image]:
        """Those that there are, by id, as they are now."""
        cloud = self._own.cloud
        with cloud.lock:
            for image in cloud.images.values():
                cloud.settle_image(image)
            return types.MappingProxyType(dict(cloud.images))

    def read_snapshot(self, snapshot_id: str) -> dict[int, bytes]:
        """All blocks of a snapshot in any state, those of its parents too, by their indexes.

        Raises:
            KeyError: there is no such snapshot.
        """
        cloud = self._own.cloud
        with cloud.lock:
            content = cloud.snapshots[snapshot_id].content
            return {index: content.block(index)[0] for index in content.indexes}

    def read_volume(self, snapshot_id: str, *, encrypted: bool | None = None) -> Iterator[bytes]:
        """The blocks of a volume that is made of a snapshot, in order.

        EBS decrypts what was never written like the rest: blocks that the snapshot does not list are
        noise on an encrypted volume, the same in each reading, and zeros on another.

        Args:
            snapshot_id: of the snapshot.
            encrypted: whether the volume is; None is as the snapshot is, whose volumes always are if it is.

        Raises:
            KeyError: there is no such snapshot.
        """
        cloud = self._own.cloud
        with cloud.lock:
            snapshot = cloud.snapshots[snapshot_id]
            return volume_blocks(
                snapshot.content,
                snapshot.volume_size * GIB // BLOCK_SIZE,
                snapshot_id if snapshot.encrypted or encrypted else None,
            )

    def add_snapshot(
        self,
        *,
        volume_size: int,
        blocks: Mapping[int, bytes] | Callable[[int], bytes] | None = None,
        indexes: Sequence[int] | None = None,
        snapshot_id: str | None = None,
        owner_id: str | None = None,
        volume_id: str = "vol-ffffffff",
        parent_snapshot_id: str | None = None,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        state: str = "completed",
        encrypted: bool = False,
        kms_key_arn: str | None = None,
        storage_tier: str = "standard",
        outpost_arn: str | None = None,
        public: bool = False,
        shared_with: Iterable[str] = (),
    ) -> str:
        """Put a snapshot into the account.

        Args:
            volume_size: GiB.
            blocks: by their indexes; or what makes the block of an index, each time it is read.
            indexes: of the blocks that are made, ascending; a ``range`` costs no memory.
            snapshot_id: None is a new one.
            owner_id: an account; None is the fake's.
            volume_id: what it was taken of; ListChangedBlocks compares snapshots of one volume.
            parent_snapshot_id: it is of that snapshot's lineage; `blocks` holds all its blocks.
            state: ``pending``, ``completed`` or ``error``.
            kms_key_arn: None is the account's own key, if it is encrypted.
            storage_tier: ``standard`` or ``archive``.
            shared_with: account ids.

        Returns:
            Its id.

        Raises:
            ValueError: a block is not of 524,288 bytes, or outside the volume; or the id is taken.
        """
        cloud = self._own.cloud
        with cloud.lock:
            name = snapshot_id or cloud.new_id("snap")
            if name in cloud.snapshots:
                raise ValueError(f"there is a snapshot {name}")
            parent = cloud.snapshots[parent_snapshot_id] if parent_snapshot_id else None
            own = StoredBlocks(cloud.pool)
            content = given_content(own, blocks or {}, indexes, volume_size)
            cloud.add_snapshot(
                name,
                parent=parent,
                owner_id=owner_id or self.account_id,
                volume_size=volume_size,
                own=own,
                content=content,
                volume_id=volume_id,
                description=description,
                tags=dict(tags or {}),
                state=state,
                progress=100 if state == "completed" else 0,
                completion_time=self.clock.now() if state == "completed" else None,
                encrypted=encrypted,
                kms_key_arn=(kms_key_arn or cloud.default_key) if encrypted else None,
                storage_tier=storage_tier,
                outpost_arn=outpost_arn,
                public=public,
                shared_with=set(shared_with),
            )
            return name

    def add_image(
        self,
        *,
        name: str,
        mappings: Sequence[Mapping[str, Any]],
        root_device_name: str = "/dev/xvda",
        image_id: str | None = None,
        owner_id: str | None = None,
        state: str = "available",
        tags: Mapping[str, str] | None = None,
        public: bool = False,
        shared_with: Iterable[str] = (),
        uefi_data: str | None = None,
        deprecation_time: datetime.datetime | None = None,
        **members: Any,
    ) -> str:
        """Put an image into the account, of any kind, also one that RegisterImage would refuse.

        Args:
            name: need not be unique here.
            mappings: block device mappings as boto3 spells them, ``{"DeviceName": "/dev/xvda",
                "Ebs": {"SnapshotId": ...}}``, or as EC2's XML does, ``{"deviceName": ...}``.
            image_id: None is a new one.
            owner_id: an account; None is the fake's.
            uefi_data: base64.
            members: further ones of an Image by their names in EC2's XML, such as
                ``architecture="arm64"``, ``productCodes=[...]`` or ``platform="windows"``.

        Returns:
            Its id.

        Raises:
            ValueError: a mapping has a member that EC2 does not know, or a snapshot that is not there.
        """
        cloud = self._own.cloud
        with cloud.lock:
            mapped = [given_mapping(item) for item in mappings]
            for item in mapped:
                if (named := item.get("ebs", {}).get("snapshotId")) not in (None, *cloud.snapshots):
                    raise ValueError(f"there is no snapshot {named}: add_snapshot makes one")
            return cloud.add_image(
                image_id or cloud.new_id("ami"),
                name=name,
                owner_id=owner_id or self.account_id,
                root_device_name=root_device_name,
                members={"architecture": "x86_64", "virtualizationType": "hvm", **members},
                state=state,
                mappings=mapped,
                attributes={"uefiData": uefi_data} if uefi_data else {},
                tags=dict(tags or {}),
                public=public,
                shared_with=set(shared_with),
                deprecation_time=deprecation_time,
            ).image_id
