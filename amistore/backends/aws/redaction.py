"""Keeps secrets out of what botocore and urllib3 log at DEBUG.

botocore logs whole requests with session tokens and signatures, and answers of services that hand out
credentials.
"""

from __future__ import annotations

from amistore.backends.redaction import URLLIB3_LOGGERS, redact_log

__all__ = ["redact_logs"]

# Those of botocore 1.44 that log a request, an answer, a URL or a credential, or an
# error in whose text one may be.
_LOGGERS = (
    "botocore.auth",
    "botocore.awsrequest",
    "botocore.credentials",
    "botocore.endpoint",
    "botocore.handlers",
    "botocore.hooks",
    "botocore.httpsession",
    "botocore.parsers",
    "botocore.regions",
    "botocore.retries.standard",
    "botocore.retryhandler",
    "botocore.tokens",
    "botocore.utils",
)


def redact_logs() -> None:
    """Hide secrets in the logs of botocore and urllib3. A second call does no harm."""
    for name in (*_LOGGERS, *URLLIB3_LOGGERS):
        redact_log(name)
