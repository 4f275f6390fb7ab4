"""Keeps credentials and signatures out of texts and logs.

A logger's filter sees only what is logged to that very logger, so each logger is named.
"""

from __future__ import annotations

import logging
import re

__all__ = ["URLLIB3_LOGGERS", "hide_secrets", "redact_log"]

URLLIB3_LOGGERS = (
    "urllib3.connection",
    "urllib3.connectionpool",
    "urllib3.poolmanager",
    "urllib3.util.retry",
)
"""Those of urllib3 2.8 that log a URL or an error in whose text one may be."""

_NAMES = (
    r"x-amz-security-token|x-amz-s3session-token|x-amz-signature|(?:proxy-)?authorization|signature"
    r"|(?:secret|aws_secret_)_?access_?key|session_?token|aws_session_token|security_?token"
    r"|(?:access|refresh|id)_?token|client_?secret|x-aws-ec2-metadata-token"
)
# A header, a member of JSON or of a dict's repr, a parameter of a query, or an element of XML.
_SECRET = re.compile(
    rf"""(?P<name>\b(?:{_NAMES})\b['"]?\s*(?:[:=,>]|%3D)\s*)
    (?: b?(?P<quote>['"]) (?:\\.|(?!(?P=quote)).)* (?P=quote)
      | AWS4-HMAC-SHA256\b[^\n'"]* | (?:Basic|Bearer)\s+[^\s'"]+ | [^\s&,;<>'"\]}})]+ )""",
    re.IGNORECASE | re.VERBOSE,
)
# The authority of a URL with a password in it, as a proxy's may have.
_PASSWORD = re.compile(r"(://)[^/\s@'\"]+@")


def hide_secrets(text: str) -> str:
    """The text, with ``***`` for tokens, keys, signatures and the passwords of URLs."""
    return _PASSWORD.sub(r"\1***@", _SECRET.sub(r"\g<name>***", text))


def redact_log(name: str) -> None:
    """Hide secrets in a logger's records. A second call does no harm."""
    logging.getLogger(name).addFilter(_redact)


def _redact(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(_without_body(each) for each in record.args)
    text = record.getMessage()
    shown = hide_secrets(text)
    if shown != text:
        record.msg, record.args = shown, None
    if record.exc_info and not record.exc_text:
        # What a handler's formatter would make of it, and then uses as it is.
        record.exc_text = hide_secrets(logging.Formatter().formatException(record.exc_info))
    return True


def _without_body(argument: object) -> object:
    """A logged request without its body: parts of disks, in plain, and megabytes each."""
    if not isinstance(argument, dict) or "body" not in argument:
        return argument
    return {**argument, "body": "..."}
