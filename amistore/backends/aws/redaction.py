"""What botocore and urllib3 log at DEBUG, without secrets.

botocore logs requests whole: session tokens, signatures and, of services that hand credentials
out, those too.
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
    """Let the loggers of botocore and urllib3 show no secret. Again does no harm."""
    for name in (*_LOGGERS, *URLLIB3_LOGGERS):
        redact_log(name)
