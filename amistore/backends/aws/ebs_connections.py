"""Connections for `ebs_wire.py`: opened by urllib3's classes, and reused.

They follow session and environment as botocore does: proxies, certificates, TLS that verifies the host.
urllib3's own pool is not used, since it costs more than a block's signature and transfer together
(docs/decisions/0012).
"""

from __future__ import annotations

import contextlib
import os
import ssl
import urllib.parse
import weakref
from typing import Any

import attrs
import botocore.httpsession
import botocore.utils
import urllib3
import urllib3.connection
import urllib3.util

from amistore import forks
from amistore.backends.aws.connection import CONNECT_TIMEOUT, READ_TIMEOUT, Connection
from amistore.backends.connections import let_go, no_fork
from amistore.errors import InvalidRequestError

__all__ = ["Pool", "TimeLimits"]

ATTEMPT_TIMEOUT = 60.0  # seconds
_KEPT = 64  # connections at most


@attrs.frozen(kw_only=True)
class TimeLimits:
    """Time limits in seconds.

    Attributes:
        connect: the limit for connecting to each address of the host, and for each step of TLS and of a
            proxy.
        read: the longest wait for a byte.
        attempt: the limit for a whole request, so that a slow body cannot draw it out for ever. It is long,
            since many threads may share a slow line.
    """

    connect: float = CONNECT_TIMEOUT
    read: float = READ_TIMEOUT
    attempt: float = ATTEMPT_TIMEOUT

    @classmethod
    def of(cls, connection: Connection) -> TimeLimits:
        """The limits of a connection, whose session may have others than ours."""
        config = connection.config("ebs")
        read = config.read_timeout or READ_TIMEOUT
        connect = config.connect_timeout or CONNECT_TIMEOUT
        return cls(connect=connect, read=read, attempt=max(ATTEMPT_TIMEOUT, read))


class Pool:
    """Connections to one endpoint. Each of any number of threads has a connection to itself.

    Each process has connections of its own: a block's answer names no block, so on a shared connection a
    forked child or its parent could get the other's block.

    Args:
        url: the endpoint's URL.
        session: the boto3 session, which knows the configured certificate bundle.
        config: the configuration of the session's client, which knows proxies and the client's certificate.
        limits: the time limits.

    Attributes:
        host: the endpoint's host.
        port: the endpoint's port.
        secure: whether TLS is spoken with it.
        passes_proxy: whether a proxy lies between.
        prefix: the beginning of a request's target: the endpoint's URL for a proxy of plain http, else empty.
        headers: the headers for that proxy.

    Raises:
        InvalidRequestError: the proxy or the certificate bundle is unusable.
    """

    def __init__(self, url: str, session: Any, config: Any, limits: TimeLimits) -> None:
        parts = urllib.parse.urlsplit(url)
        self.secure = secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if secure else 80)
        self._limits = limits
        self._session = session
        self._config = config
        self._idle: list[Any] = []
        weakref.finalize(self, _close, self._idle)
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._process = os.getpid()
        forks.register(self, Pool._begin_anew)
        given = botocore.utils.get_environ_proxies(url) if config.proxies is None else config.proxies
        proxies = botocore.httpsession.ProxyConfiguration(given)
        proxy = proxies.proxy_url_for(url)
        self._proxy = urllib3.util.parse_url(proxy) if proxy else None
        self._proxy_headers: dict[str, str] = proxies.proxy_headers_for(proxy) if proxy else {}
        if self._proxy is not None and self._proxy.scheme not in ("http", "https"):
            raise InvalidRequestError(
                f"the proxy of the session, or the environment, is {self._proxy.scheme}:, not http: or https:"
            )
        self.passes_proxy = self._proxy is not None
        self._tunnels = self.passes_proxy and secure
        passing = self.passes_proxy and not secure
        self.prefix = url if passing else ""
        self.headers = self._proxy_headers if passing else {}
        self._encrypted = secure or (self._proxy is not None and self._proxy.scheme == "https")
        self._context: ssl.SSLContext | None = None
        self._proxy_context: ssl.SSLContext | None = None

    def _begin_anew(self) -> None:
        """Begin anew in a forked child: without the parent's connections, those in use included."""
        for connection in list(self._open):
            let_go(connection)
        self._idle.clear()
        self._open = weakref.WeakSet()
        # OpenSSL's own locks, such as that of the certificates, may be held by a thread of the parent.
        self._context = self._proxy_context = None
        self._process = os.getpid()

    def take(self) -> Any:
        """A connection for this thread alone: a kept one that is not known to be dead, or a new one.

        Raises:
            OSError, urllib3.exceptions.HTTPError: the connection cannot be opened.
        """
        if self._process != os.getpid():  # another library's hook was called before ours
            self._begin_anew()
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            # The server may have closed it meanwhile: then there is something to read, the end.
            if connection.is_connected:
                return connection
            connection.close()
        connection = self._new()
        self._open.add(connection)
        try:
            with no_fork() if self._encrypted else contextlib.nullcontext():
                connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def give(self, connection: Any) -> None:
        """Keep a connection, whose last answer was read to its end, for reuse."""
        if len(self._idle) < _KEPT:
            self._idle.append(connection)
        else:
            connection.close()

    def context(self) -> ssl.SSLContext:
        """The TLS that connections speak.

        Raises:
            InvalidRequestError: the certificate bundle is unusable.
        """
        if self._context is None:
            self._context = _tls(self._bundle(), self._config.client_cert)
        return self._context

    def _context_of_proxy(self) -> ssl.SSLContext:
        """The TLS that is spoken with the proxy: the endpoint's, unless the session has another for it."""
        settings = self._config.proxies_config or {}
        bundle, certificate = settings.get("proxy_ca_bundle"), settings.get("proxy_client_cert")
        if bundle is None and certificate is None:
            return self.context()
        if self._proxy_context is None:
            self._proxy_context = _tls(bundle or self._bundle(), certificate)
        return self._proxy_context

    def _bundle(self) -> str:
        variable = self._session._session.get_config_variable("ca_bundle")
        return str(variable or botocore.httpsession.get_cert_path(True))

    def _new(self) -> Any:
        host, port, proxy = self.host, self.port, self._proxy
        if proxy is not None:
            host, port = proxy.host or "", proxy.port or (443 if proxy.scheme == "https" else 80)
        options: dict[str, Any] = {"timeout": self._limits.connect}
        if not self._encrypted:
            return urllib3.connection.HTTPConnection(host, port, **options)
        if not self._tunnels or proxy is None:
            options["ssl_context"] = self.context() if proxy is None else self._context_of_proxy()
            return urllib3.connection.HTTPSConnection(host, port, **options)
        options["ssl_context"] = self.context()
        options["proxy"] = proxy
        options["proxy_config"] = urllib3.connection.ProxyConfig(self._context_of_proxy(), False, None, None)
        connection = urllib3.connection.HTTPSConnection(host, port, **options)
        connection.set_tunnel(self.host, self.port, self._proxy_headers, proxy.scheme or "http")
        return connection


def _tls(bundle: str, certificate: str | tuple[str, str] | None) -> ssl.SSLContext:
    """TLS that trusts a bundle of certificates, and shows the client's certificate where there is one."""
    named = f"the certificate bundle {bundle}" + ("" if certificate is None else f" or {certificate}")
    try:
        context = ssl.create_default_context(cafile=bundle)
        if certificate is not None:
            context.load_cert_chain(*([certificate] if isinstance(certificate, str) else certificate))
        context.set_alpn_protocols(["http/1.1"])  # as urllib3 does for each connection
        return context
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequestError(f"{named} cannot be read: {error}") from None


def _close(connections: list[Any]) -> None:
    while connections:
        connections.pop().close()
