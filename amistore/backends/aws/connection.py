"""Where AWS is and who asks: Region, credentials, endpoints, time limits.

boto3 is imported here and in the package's other files only. No call is retried here: the
one owner of retries is `amistore.backends.retries`.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import attrs
import boto3
import botocore.config
import botocore.exceptions
import botocore.session

from amistore.backends.aws.answers import Answers
from amistore.backends.aws.redaction import redact_logs
from amistore.errors import InvalidRequestError, InvalidValueError

__all__ = ["Connection"]

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 12.0  # seconds without a byte; hangs without it were coldsnap's (issues 374, 437)
PART_TIMEOUT = 60.0  # the same of S3, whose answer to a part waits for all its bytes


@attrs.define(eq=False)
class Connection:
    """A boto3 session in one Region, with clients that make one attempt each.

    Attributes:
        region_name: such as ``us-gov-east-1``.
        endpoint_urls: by service (``ec2``, ``ebs``, ``s3``, ``sts``); the others' are AWS's own.
        given_session: the caller's, or None for botocore's default chain of credentials.
    """

    region_name: str
    endpoint_urls: Mapping[str, str]
    given_session: Any = attrs.field(repr=False)
    _session: Any = attrs.field(init=False, repr=False, default=None)
    _clients: dict[str, Any] = attrs.field(init=False, repr=False, factory=dict)
    _lock: Any = attrs.field(init=False, repr=False, factory=threading.Lock)

    @classmethod
    def open(
        cls, session: Any, region_name: str | None, endpoint_urls: Mapping[str, str] | None
    ) -> Connection:
        """Find the Region.

        Raises:
            InvalidRequestError: none is configured, or an endpoint would send data in the clear.
        """
        if session is not None and not isinstance(session, boto3.Session):
            raise _invalid("session", session, "a boto3.Session or None")
        region = region_name or (session or boto3.Session()).region_name
        if not region:
            raise InvalidRequestError("no Region: give region_name=, or set AWS_REGION or a profile's region")
        if not isinstance(region, str) or not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", region):
            raise _invalid("region_name", region, "the name of a Region, such as us-gov-east-1")
        if endpoint_urls is not None and not isinstance(endpoint_urls, Mapping):
            raise _invalid("endpoint_urls", endpoint_urls, "a mapping of services to URLs")
        urls = dict(endpoint_urls or {})
        for service, url in urls.items():
            if service not in ("ec2", "ebs", "s3", "sts"):
                raise InvalidRequestError(f"endpoint_urls has {service!r}; it takes ec2, ebs, s3 and sts")
            if not isinstance(url, str):
                raise _invalid("endpoint_urls", url, f"of {service} a URL")
            check_endpoint(url)
        return cls(region, urls, session)

    def __getstate__(self) -> dict[str, Any]:
        # Sent to another process it finds its credentials again, so none are in the pickle.
        if self.given_session is not None:
            raise InvalidRequestError(
                "an AWSBackend with a session of yours cannot be sent to another process: "
                "let it find its credentials by itself (profile or environment)"
            )
        return {"region_name": self.region_name, "endpoint_urls": dict(self.endpoint_urls)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["region_name"], state["endpoint_urls"], None)  # type: ignore[misc]

    @property
    def session(self) -> Any:
        """The boto3 session."""
        with self._lock:
            return self._boto3_session()

    @property
    def partition(self) -> str:
        """``aws``, ``aws-us-gov``, ``aws-cn`` or another, by the Region's name."""
        try:
            return str(self.session.get_partition_for_region(self.region_name))
        except botocore.exceptions.UnknownRegionError:
            return "aws"

    def client(self, service: str) -> Any:
        """The client of a service, with an attempt a call and finite time limits."""
        with self._lock:
            client = self._clients.get(service)
            if client is None:
                client = self._make(service)
                check_endpoint(client.meta.endpoint_url)  # it may come from the environment
                Answers().watch(client)
                self._clients[service] = client
            return client

    def _make(self, service: str) -> Any:
        client = self._configured(service, {"payload_signing_enabled": False})
        if client.meta.endpoint_url.startswith("https:"):
            return client
        return self._configured(service, {})

    def _configured(self, service: str, s3: Mapping[str, Any]) -> Any:
        config = botocore.config.Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=PART_TIMEOUT if service == "s3" else READ_TIMEOUT,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=64,
            user_agent_extra="amistore",
            # Parts carry a checksum of our own, which S3 verifies; ranges are checked by the archive.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A SHA-256 of each part is most of its cost, and TLS does the same: docs/decisions/0009.
            s3=dict(s3),
        )
        return self._boto3_session().client(
            service,
            region_name=self.region_name,
            endpoint_url=self.endpoint_urls.get(service),
            config=config,
        )

    def _boto3_session(self) -> Any:
        if self._session is None:
            redact_logs()
            self._session = self.given_session or boto3.Session()
        return self._session


def _invalid(name: str, value: object, rule: str) -> InvalidValueError:
    field = f"AWSBackend.{name}"
    return InvalidValueError(f"{field} must be {rule}, not {value!r}", field=field, value=value)


def check_endpoint(url: str) -> None:
    """Refuse plain http to another machine: data and, of some services, tokens would be readable."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    if not host:  # its text may hold a password
        raise InvalidRequestError(
            "an endpoint is a URL such as https://vpce-1.ebs.us-east-1.vpce.amazonaws.com"
        )
    if parts.scheme == "https":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if parts.scheme != "http" or not loopback:
        raise InvalidRequestError(
            f"the endpoint {parts.scheme}://{host} is not https; plain http is for loopback only"
        )
