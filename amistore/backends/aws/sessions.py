"""Gives a forked child's boto3 session connections of its own, and locks that nobody holds.

botocore refreshes credentials under a lock, which a thread of the parent may hold at the fork. The classes
that ask an instance's, a container's or STS's service for credentials keep connections.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, Final

import boto3.session
import botocore.client
import botocore.credentials
import botocore.endpoint
import botocore.httpsession
import botocore.session
import botocore.signers
import botocore.tokens
import botocore.utils

from amistore.backends.connections import let_pools_go

__all__ = ["renew"]

# Of these modules' objects the members are looked at. Models and parsers, which are large, hold neither.
_MODULES: Final = frozenset(
    module.__name__
    for module in (
        boto3.session,
        botocore.client,
        botocore.credentials,
        botocore.endpoint,
        botocore.session,
        botocore.signers,
        botocore.tokens,
        botocore.utils,
    )
)
_LOCK: Final = type(threading.Lock())
_WIDE: Final = (list, tuple, set, dict, type, types.ModuleType, types.FunctionType)
_MANY = 1000  # members of a container that is looked through: providers, not what they have read


def renew(roots: Iterable[Any]) -> None:
    """In a forked child, give all reachable objects new locks, and empty their pools of connections.

    A user's function that refreshes credentials is searched, too, for the session or client that it asks:
    what it closes over, what it is a method of, and the members of these.

    Args:
        roots: boto3 sessions and clients.
    """
    seen: dict[int, Any] = {}
    rest = list(roots)
    while rest:
        thing = rest.pop()
        if id(thing) in seen or type(thing) in weakref.ProxyTypes:
            continue
        seen[id(thing)] = thing
        rest += _renewed(thing)


def _renewed(thing: Any) -> Iterator[Any]:
    """Give an object new locks, and empty its pools; return the objects to look at next."""
    if isinstance(thing, botocore.httpsession.URLLib3Session):
        for manager in (thing._manager, *thing._proxy_managers.values()):
            let_pools_go(manager)
    elif isinstance(thing, (list, tuple, set, dict)) and len(thing) <= _MANY:
        yield from thing.values() if isinstance(thing, dict) else thing
    elif isinstance(thing, (types.MethodType, types.FunctionType, functools.partial)):
        for held in _held(thing):
            yield held
            if not isinstance(held, _WIDE):
                yield from gc.get_referents(held)
    elif any(kind.__module__ in _MODULES for kind in type(thing).__mro__):
        for name, value in getattr(thing, "__dict__", {}).items():
            if type(value) is _LOCK:
                setattr(thing, name, threading.Lock())
            yield value


def _held(function: Any) -> Iterator[Any]:
    """The objects that a function holds."""
    if isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif isinstance(function, types.MethodType):
        yield from (function.__func__, function.__self__)
    else:
        yield from function.__defaults__ or ()
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a cell that is empty yet
                yield cell.cell_contents
