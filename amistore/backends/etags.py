"""ETags without what servers and proxies put around them.

A proxy that compresses marks an ETag as weak (RFC 9110, 8.8.1) or adds ``-gzip``; some servers quote it
twice, or write an MD5 in capital letters. The object is the same.
"""

from __future__ import annotations

import re

__all__ = ["bare_etag", "is_same_etag"]

# A weak mark stands before a quote, or an MD5 follows it: in base64 it may belong to the ETag.
_DECORATED = re.compile(
    r"""(?:W/(?="|&quot;|[0-9A-Fa-f]{32})|"|&quot;|\s)*(.*?)(?:"|&quot;|\s|--?gzip)*""", re.DOTALL
)
_LONGEST = 1024  # characters of an ETag that is looked at; what is longer is none of ours
_MD5 = re.compile(r"[0-9A-Fa-f]{32}(-\d+)?")  # with the number of parts, where it is an upload's


def bare_etag(etag: str) -> str:
    """The ETag without weak mark, quotes and suffix. Its letters stay: a server may compare them."""
    found = _DECORATED.fullmatch(etag) if len(etag) <= _LONGEST else None
    return found[1] if found else etag


def is_same_etag(one: str, other: str) -> bool:
    """Whether two ETags are of the same bytes, whoever told them."""
    return _normal(one) == _normal(other)


def _normal(etag: str) -> str:
    bare = bare_etag(etag)
    # Any other ETag is opaque: in base64, "a" and "A" are two.
    return bare.lower() if _MD5.fullmatch(bare) else bare
