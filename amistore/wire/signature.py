"""Signature Version 4 as the services check it.

"AWS Identity and Access Management user guide: Create a signed AWS API request".
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

from amistore.wire.calls import Call
from amistore.wire.errors import ServiceError

__all__ = ["UNSIGNED", "Signer", "authenticate", "skewed"]

_ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
"""What stands for the hash of a body that is not part of the signature."""
_AUTHORIZATION = re.compile(
    rf"{_ALGORITHM} +Credential=([^/, ]+)/(\d{{8}})/([^/, ]+)/([^/, ]+)/aws4_request, *"
    r"SignedHeaders=([^, ]+), *Signature=([0-9a-f]{64})"
)
# What each service calls each trouble: the EBS direct APIs' "Common errors", the EC2 API
# reference's "Common client errors", the STS API reference's "Common error types".
_REFUSALS: dict[str, dict[str, tuple[str, int]]] = {
    "ebs": {
        "missing": ("MissingAuthenticationTokenException", 403),
        "incomplete": ("IncompleteSignatureException", 400),
        "unknown": ("UnrecognizedClientException", 403),
        "expired": ("ExpiredTokenException", 403),
        "mismatch": ("InvalidSignatureException", 403),
        "skewed": ("InvalidSignatureException", 403),
    },
    "ec2": {
        "missing": ("MissingAuthenticationToken", 403),
        "incomplete": ("IncompleteSignature", 400),
        "unknown": ("AuthFailure", 401),
        "expired": ("RequestExpired", 400),
        "mismatch": ("AuthFailure", 401),
        "skewed": ("RequestExpired", 400),
    },
    "sts": {
        "missing": ("MissingAuthenticationToken", 403),
        "incomplete": ("IncompleteSignature", 400),
        "unknown": ("InvalidClientTokenId", 403),
        "expired": ("ExpiredToken", 403),
        "mismatch": ("SignatureDoesNotMatch", 403),
        "skewed": ("SignatureDoesNotMatch", 403),
    },
}
_NOT_VALIDATED = "AWS was not able to validate the provided access credentials"


@attrs.frozen(kw_only=True)
class Signer:
    """Who may sign requests.

    Attributes:
        access_key_id: the public part.
        secret_access_key: what signs.
        session_token: what a temporary credential sends along.
        expires: when it dies; None is never.
    """

    access_key_id: str
    secret_access_key: str = attrs.field(repr=False)
    session_token: str | None = attrs.field(default=None, repr=False)
    expires: datetime.datetime | None = None


S = TypeVar("S", bound=Signer)


def authenticate(
    call: Call,
    signers: Mapping[str, S],
    *,
    region: str,
    now: datetime.datetime,
    real_now: datetime.datetime,
    maximum_skew: float,
) -> S:
    """Find out who signed a call.

    Args:
        call: as it came; the data of PutSnapshotBlock need not be signed, its checksum has to be.
        signers: by access key id.
        region: that the credential's scope has to name.
        now: when session credentials expire is told by this clock.
        real_now: when requests are signed is told by this one.
        maximum_skew: seconds between signing and `real_now`.

    Raises:
        ServiceError: what the service says to a signature that is missing, wrong or too old.
    """
    text = call.headers.get("authorization")
    if not text:
        raise _refusal(call, "missing", "Request is missing Authentication Token")
    found = _AUTHORIZATION.fullmatch(text.strip())
    stamp = call.headers.get("x-amz-date", "")
    if found is None or re.fullmatch(r"\d{8}T\d{6}Z", stamp) is None:
        raise _refusal(call, "incomplete", "Authorization header or X-Amz-Date is missing or malformed.")
    scope = _Scope(*found.groups())
    signer = signers.get(scope.key_id)
    if signer is None or signer.session_token != call.headers.get("x-amz-security-token"):
        raise _refusal(call, "unknown", "The security token included in the request is invalid.")
    _check_scope(call, scope, region, stamp)
    if not any(
        hmac.compare_digest(_sign(call, signer, scope, payload), scope.signature)
        for payload in _payload_hashes(call)
    ):
        raise _refusal(
            call, "mismatch", "The request signature we calculated does not match the signature you provided."
        )
    at = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    if abs((at - real_now).total_seconds()) > maximum_skew:
        raise skewed(call, at, real_now, maximum_skew)
    if signer.expires is not None and now >= signer.expires:
        raise _refusal(call, "expired", "The security token included in the request is expired")
    return signer


@attrs.frozen
class _Scope:
    """What the header Authorization says: who signed what, for where, and the signature."""

    key_id: str
    date: str
    region: str
    service: str
    names: str
    signature: str


def _check_scope(call: Call, scope: _Scope, region: str, stamp: str) -> None:
    """Refuse what is signed for another Region, service or day, or leaves headers unsigned."""
    if (scope.region, scope.service) != (region, call.service):
        expected = f"region '{region}' and service '{call.service}'"
        raise _refusal(call, "mismatch", f"Credential should be scoped to {expected}.")
    signed = scope.names.split(";")
    unsigned = [
        name for name in call.headers if (name.startswith("x-amz-") or name == "host") and name not in signed
    ]
    if unsigned or "host" not in signed or not stamp.startswith(scope.date):
        raise _refusal(call, "mismatch", f"Headers must be signed: {', '.join(unsigned)}.")


def skewed(call: Call, at: datetime.datetime, now: datetime.datetime, maximum_skew: float) -> ServiceError:
    """What is said of a signature of `at` that came too late, or too early."""
    late, limit = at < now, datetime.timedelta(seconds=maximum_skew)
    edge, signed, there = (
        f"{each:%Y%m%dT%H%M%SZ}" for each in (now - limit if late else now + limit, at, now)
    )
    found = (
        f"expired: {signed} is now earlier than" if late else f"not yet current: {signed} is still later than"
    )
    minutes = f"{'-' if late else '+'} {maximum_skew / 60:.0f} min."
    return _refusal(call, "skewed", f"Signature {found} {edge} ({there} {minutes})")


def _refusal(call: Call, trouble: str, message: str) -> ServiceError:
    code, status = _REFUSALS[call.service][trouble]
    return ServiceError(code, _NOT_VALIDATED if code == "AuthFailure" else message, status=status)


def _payload_hashes(call: Call) -> list[str]:
    """What the payload's hash in the canonical request may be."""
    stated = call.headers.get("x-amz-content-sha256")
    unsigned_data = call.operation == "PutSnapshotBlock"
    if stated == UNSIGNED:
        return [UNSIGNED] if unsigned_data else []
    real = hashlib.sha256(call.body).hexdigest()
    if stated is not None:
        return [real] if stated == real else []
    return [UNSIGNED, real] if unsigned_data else [real]


def _sign(call: Call, signer: Signer, scope: _Scope, payload: str) -> str:
    """The signature that a call with this hash of its payload has to carry."""
    headers = "".join(
        f"{name}:{' '.join(call.headers.get(name, '').split())}\n" for name in scope.names.split(";")
    )
    # Every service but S3 has the path, as it is sent, quoted once more.
    path = urllib.parse.quote(call.path, safe="/-_.~")
    canonical = "\n".join([call.method, path, _canonical_query(call.query), headers, scope.names, payload])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    where = f"{scope.date}/{scope.region}/{scope.service}/aws4_request"
    text = "\n".join([_ALGORITHM, call.headers["x-amz-date"], where, digest])
    key = _signing_key(signer.secret_access_key, scope.date, scope.region, scope.service)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _canonical_query(query: str) -> str:
    pairs = (item.partition("=") for item in query.split("&") if item)
    quoted = [(_requote(name), _requote(value)) for name, _, value in pairs]
    return "&".join(f"{name}={value}" for name, value in sorted(quoted))


def _requote(text: str) -> str:
    return urllib.parse.quote(urllib.parse.unquote(text), safe="-_.~")


@functools.lru_cache(maxsize=256)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
