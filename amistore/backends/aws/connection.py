"""Where AWS is and who asks: Region, credentials, endpoints, time limits.

boto3 is imported here and in the package's other files only. No call is retried here: the
one owner of retries is `amistore.backends.retries`.
"""

from __future__ import annotations

import ipaddress
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import boto3
import botocore.config

from amistore.backends.aws.answers import Answers
from amistore.backends.aws.redaction import redact_logs
from amistore.errors import InvalidRequestError

__all__ = ["Connection"]

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 12.0  # seconds without a byte; hangs without it were coldsnap's (issues 374, 437)
PART_TIMEOUT = 60.0  # the same of S3, whose answer to a part waits for all its bytes


class Connection:
    """A boto3 session in one Region, with clients that make one attempt each.

    Args:
        session: the caller's, or None for botocore's default chain of credentials.
        region_name: None for the session's.
        endpoint_urls: by service; the others' are AWS's own.

    Attributes:
        session: of boto3.
        region_name: such as ``us-gov-east-1``.
        endpoint_urls: by service (``ec2``, ``ebs``, ``s3``).

    Raises:
        InvalidRequestError: no Region is configured, or an endpoint would send data in the clear.
    """

    def __init__(
        self, session: Any, region_name: str | None = None, endpoint_urls: Mapping[str, str] | None = None
    ) -> None:
        redact_logs()
        self._is_own = session is None
        self.session: Any = session or boto3.Session()
        self.region_name: str = region_name or self.session.region_name
        self.endpoint_urls = dict(endpoint_urls or {})
        if not self.region_name:
            raise InvalidRequestError("no Region: give region_name=, or set AWS_REGION or a profile's region")
        unknown = sorted(set(self.endpoint_urls) - {"ec2", "ebs", "s3"})
        if unknown:
            raise InvalidRequestError(f"endpoint_urls has {unknown[0]!r}; it takes ec2, ebs and s3")
        for url in self.endpoint_urls.values():
            check_endpoint(url)
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Sent to another process it finds its credentials again, so none are in the pickle.
        if not self._is_own:
            raise InvalidRequestError(
                "an AWSBackend with a session of yours cannot be sent to another process: "
                "let it find its credentials by itself (profile or environment)"
            )
        return Connection, (None, self.region_name, self.endpoint_urls)

    def client(self, service: str) -> Any:
        """The client of a service, with an attempt a call and finite time limits."""
        with self._lock:
            if service not in self._clients:
                # A SHA-256 of each part is most of its cost, and TLS does the same: docs/decisions/0009.
                client = self._made(service, {"payload_signing_enabled": False})
                check_endpoint(client.meta.endpoint_url)  # it may come from the environment
                if service == "s3" and not client.meta.endpoint_url.startswith("https:"):
                    client = self._made(service, {})
                Answers().watch(client)
                self._clients[service] = client
            return self._clients[service]

    def _made(self, service: str, s3: dict[str, Any]) -> Any:
        config = botocore.config.Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=PART_TIMEOUT if service == "s3" else READ_TIMEOUT,
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=64,
            user_agent_extra="amistore",
            # Parts carry a checksum of our own, which S3 verifies; ranges are checked by the archive.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3=s3,
        )
        return self.session.client(
            service,
            region_name=self.region_name,
            endpoint_url=self.endpoint_urls.get(service),
            config=config,
        )


def check_endpoint(url: str) -> None:
    """Refuse plain http to another machine: data and, of some services, tokens would be readable."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return
    host = parts.hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if parts.scheme != "http" or not loopback:
        raise InvalidRequestError(
            f"the endpoint {parts.scheme}://{host} is not https; plain http is for loopback only"
        )
