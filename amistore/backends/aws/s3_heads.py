"""HEAD, whose answer has no body: where it is refused, GET is asked once for the reason. And GET's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import botocore.exceptions

from amistore.backends.aws.error_codes import REFUSED_CONDITION
from amistore.backends.aws.errors import code_of
from amistore.errors import InvalidRequestError

__all__ = ["get_object", "head_bucket", "head_object"]

# 404 tells itself; time-outs and throttling are answered by another attempt.
_TOLD = frozenset({404, 408, 429})
# Of GET alone: its range, where the object is empty.
_OF_GET = frozenset({408, 416, 429})


def head_object(client: Any, place: Mapping[str, Any]) -> Any:
    """boto3's answer to HeadObject; raises botocore's errors, and `InvalidRequestError` as `Answers` does."""

    def get() -> None:
        client.get_object(**place, Range="bytes=0-0")["Body"].close()

    return _asked(lambda: client.head_object(**place), get)


def head_bucket(client: Any, place: Mapping[str, Any]) -> Any:
    """boto3's answer to HeadBucket, as `head_object`."""
    return _asked(
        lambda: client.head_bucket(**place),
        lambda: client.list_objects_v2(**place, MaxKeys=1),
    )


def get_object(client: Any, place: Mapping[str, Any], if_match: str | None) -> Any:
    """boto3's answer to GetObject, of the ETag `if_match` where the server knows it by that name.

    One that has another form of its ETag, or a weak one, refuses all. So whoever refuses is asked without
    a condition: the ETag of the answer is compared in any case.
    """
    if if_match is not None:
        try:
            return client.get_object(**place, IfMatch=f'"{if_match}"')
        except botocore.exceptions.ClientError as error:
            if code_of(error) not in REFUSED_CONDITION:
                raise
    return client.get_object(**place)


def _asked(head: Callable[[], Any], get: Callable[[], object]) -> Any:
    try:
        return head()
    except botocore.exceptions.ClientError as refusal:
        status = _status(refusal)
        reason = _reason(get) if 400 <= status < 500 and status not in _TOLD else None
        raise (reason or refusal) from None


def _reason(get: Callable[[], object]) -> Exception | None:
    """What the answer to GET says; None where it says nothing of the refusal of HEAD."""
    try:
        get()
    except botocore.exceptions.ClientError as error:
        status, code = _status(error), code_of(error)
        # botocore's code is the status where the answer has none.
        is_told = 400 <= status < 500 and status not in _OF_GET and code and not code.isdigit()
        return error if is_told else None
    except InvalidRequestError as error:  # of another Region, or a redirect
        return error
    except Exception:  # a connection that failed, an answer that nobody can read
        return None
    return None


def _status(error: botocore.exceptions.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
