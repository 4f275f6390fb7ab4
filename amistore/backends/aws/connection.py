"""`Connection`: Region, credentials, endpoints, time limits.

Only this package imports boto3. No call is retried here: `amistore.backends.retries` owns all retries.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from amistore import forks
from amistore.backends.aws import sessions
from amistore.backends.aws.answers import Answers
from amistore.backends.aws.errors import aws_errors
from amistore.backends.aws.redaction import redact_logs
from amistore.errors import InvalidRequestError, InvalidValueError

__all__ = ["Connection"]

CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 12.0  # seconds without a byte; hangs without it were coldsnap's (issues 374, 437)
PART_TIMEOUT = 60.0  # the same of S3, whose answer to a part waits for all its bytes
COMPLETION_TIMEOUT = 600.0  # API reference, CompleteMultipartUpload: "could take several minutes"

_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")  # the ends of its hosts
_REGION = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Connection:
    """A boto3 session in one Region, with clients that make one attempt each. Forked children make their own.

    Args:
        session: the boto3 session; None for botocore's default chain of credentials.
        region_name: the Region's name; None for the session's.
        endpoint_urls: the URL of each service that has another one than AWS's.
        profile_name: the profile to make a session of, instead of the default chain.
        requester_pays: whether to tell S3 with each request that the caller pays for it.

    Attributes:
        session: the boto3 session.
        region_name: the Region's name, such as ``us-gov-east-1``.
        endpoint_urls: the given URLs by service (``ec2``, ``ebs``, ``s3``).

    Raises:
        InvalidRequestError: no Region is configured, there is no such profile, or an endpoint would send data
            in the clear.
    """

    def __init__(
        self,
        session: Any,
        region_name: str | None = None,
        endpoint_urls: Mapping[str, str] | None = None,
        profile_name: str | None = None,
        requester_pays: bool = False,
    ) -> None:
        if endpoint_urls is not None and not isinstance(endpoint_urls, Mapping):
            raise _invalid("endpoint_urls", endpoint_urls, "a mapping of services to URLs")
        if type(requester_pays) is not bool:
            raise _invalid("requester_pays", requester_pays, "True or False")
        redact_logs()
        self._is_own = session is None
        self._profile_name = profile_name
        self._requester_pays = requester_pays
        self.session, self._given, region = _opened(session, profile_name)
        region = region_name or region
        if not region:
            raise InvalidRequestError(
                "no Region: give region_name=, or set AWS_DEFAULT_REGION or a profile's region"
            )
        if not isinstance(region, str) or not _REGION.fullmatch(region):
            raise _invalid("region_name", region, "the name of a Region, such as us-gov-east-1")
        self.region_name = region
        self.endpoint_urls = dict(endpoint_urls or {})
        for service, url in self.endpoint_urls.items():
            if service not in ("ec2", "ebs", "s3"):
                raise InvalidRequestError(f"endpoint_urls has {service!r}; it takes ec2, ebs and s3")
            if not isinstance(url, str):
                raise _invalid("endpoint_urls", url, f"of {service} a URL")
            check_endpoint(url)
        self._clients: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        forks.register(self, Connection._begin_anew)

    def __repr__(self) -> str:
        return f"Connection(region_name={self.region_name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Sent to another process it finds its credentials again, so none are in the pickle.
        if not self._is_own:
            raise InvalidRequestError(
                "an AWSBackend with a session of yours cannot be sent to another process: "
                "give profile_name= instead, or let it find its credentials by itself"
            )
        given = (self.region_name, self.endpoint_urls, self._profile_name, self._requester_pays)
        return Connection, (None, *given)

    def _begin_anew(self) -> None:
        """Begin anew in a forked child: without the parent's clients, with fresh locks."""
        sessions.renew([self.session, *self._clients.values()])
        self._clients = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def own_endpoint(self, service: str) -> str | None:
        """The URL of a service that is not AWS's: the given one, or the environment's or profile's."""
        if service in self.endpoint_urls:
            return self.endpoint_urls[service]
        names = {"AWS_ENDPOINT_URL", f"AWS_ENDPOINT_URL_{service.upper()}"}
        config = self.session._session.get_scoped_config()
        if not (names & os.environ.keys() or {"endpoint_url", "services"} & config.keys()):
            return None  # most have none, and a client costs some time
        with aws_errors("endpoint"):
            url = str(self._made(service, False, {}).meta.endpoint_url)
        check_endpoint(url)
        host = urllib.parse.urlsplit(url).hostname or ""
        return None if host.endswith(_AMAZON) else url

    def client(self, service: str, *, completes: bool = False, **s3: Any) -> Any:
        """A service's client, with one attempt for each call and finite time limits.

        Args:
            service: ``ec2``, ``ebs`` or ``s3``.
            completes: whether it is for completions of uploads, whose answer takes longer.
            s3: our values of the Config's member ``s3``.
        """
        if self._process != os.getpid():  # another library's hook was called before ours
            self._begin_anew()
        key = (service, completes, *sorted(s3.items()))
        with self._lock:
            if key not in self._clients:
                # A SHA-256 of each part is most of its cost, and TLS does the same: docs/decisions/0009.
                client = self._made(service, completes, {"payload_signing_enabled": False, **s3})
                check_endpoint(client.meta.endpoint_url)  # it may come from the environment
                if service == "s3" and not client.meta.endpoint_url.startswith("https:"):
                    client = self._made(service, completes, s3)
                Answers().watch(client)
                if service == "s3" and self._requester_pays:
                    client.meta.events.register("before-call.s3", _pay)
                if self.session.get_credentials() is None:
                    return client  # it would never have any: the next one may, of a machine that is starting
                self._clients[key] = client
            return self._clients[key]

    def config(self, service: str, s3: Mapping[str, Any] | None = None, *, completes: bool = False) -> Any:
        """The configuration of a service's client: the session's own values, and ours for all others.

        Args:
            service: ``ec2``, ``ebs`` or ``s3``.
            s3: our values of the member ``s3``.
            completes: whether it is for completions of uploads.
        """
        of_s3 = COMPLETION_TIMEOUT if completes else PART_TIMEOUT
        ours = botocore.config.Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=of_s3 if service == "s3" else READ_TIMEOUT,
            max_pool_connections=64,
            user_agent_extra="amistore",
            # Parts carry a checksum of our own, which S3 verifies; ranges are checked by the archive.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # Whatever the session says: retries around retries would make 25 attempts of 5.
        last: dict[str, Any] = {"retries": {"total_max_attempts": 1, "mode": "standard"}}
        if service == "s3":
            # botocore merges this member as a whole, and lets a client's values go before a profile's.
            of_profile = self.session._session.get_config_variable("s3")
            last["s3"] = {**(s3 or {}), **(of_profile or {}), **(self._given.s3 or {})}
        return ours.merge(self._given).merge(botocore.config.Config(**last))

    def _made(self, service: str, completes: bool, s3: Mapping[str, Any]) -> Any:
        return self.session.client(
            service,
            region_name=self.region_name,
            endpoint_url=self.endpoint_urls.get(service),
            config=self.config(service, s3, completes=completes),
        )


def _pay(params: dict[str, Any], **_: Any) -> None:
    """Confirm that the caller pays, in each request (S3 user guide, "Using Requester Pays buckets").

    botocore has no parameter for it in HeadBucket.
    """
    params["headers"]["x-amz-request-payer"] = "requester"


def _opened(session: Any, profile_name: str | None) -> tuple[Any, Any, str | None]:
    """The session to use, its own Config for all clients, and its Region."""
    if session is not None and not isinstance(session, boto3.Session):
        raise _invalid("session", session, "a boto3.Session or None")
    if profile_name is not None and not (isinstance(profile_name, str) and profile_name):
        raise _invalid("profile_name", profile_name, "the name of a profile")
    if profile_name is not None and session is not None:
        raise InvalidRequestError("a session has its profile already: give session= or profile_name=")
    try:
        opened = session or boto3.Session(profile_name=profile_name)
        given: Any = opened._session.get_default_client_config() or botocore.config.Config()
        return opened, given, given.region_name or opened.region_name
    except botocore.exceptions.BotoCoreError as error:  # no such profile, or a file that cannot be read
        raise InvalidRequestError(
            f"{str(error).rstrip('.')}: check ~/.aws/config, or the file that AWS_CONFIG_FILE names, and "
            "the profile's name in profile_name=, AWS_PROFILE or your session"
        ) from None


def _invalid(name: str, value: object, rule: str) -> InvalidValueError:
    field = f"AWSBackend.{name}"
    return InvalidValueError(f"{field} must be {rule}, not {value!r}", field=field, value=value)


def check_endpoint(url: str) -> None:
    """Refuse plain http to another machine: data, and tokens of some services, could be read on the way."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        parts.port  # noqa: B018 - raises where it is no number
        # A user or a query may be secret, and endpoints are told: by botocore, in resume logs.
        if not host or parts.query or "@" in parts.netloc:
            raise ValueError("it has no host, or too much")
    except ValueError:  # whose text may hold a password
        raise InvalidRequestError(
            "an endpoint is a URL such as https://objects.example.org or "
            "https://vpce-1.ebs.us-east-1.vpce.amazonaws.com, without a user or a query"
        ) from None
    if parts.scheme == "https":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if parts.scheme != "http" or not loopback:
        raise InvalidRequestError(
            f"the endpoint {parts.scheme}://{parts.netloc} is not https; plain http is for loopback only: "
            "put TLS in front of the server (AWS_CA_BUNDLE names an authority of your own), or a tunnel to "
            "loopback"
        )
