"""`Interface`: what the interfaces of a backend have in common.

Their public methods are verbs: one call of a service each. Only this module turns a verb's exceptions into
our errors, whoever implements the verb. Methods that are `composed` of verbs are no verbs. Imports the
errors only. Next: `blocks.py`, `objects.py`, `images.py`, `base.py`; `forwarding.py` for wrappers.
"""

from __future__ import annotations

import abc
import builtins
import functools
import inspect
from collections.abc import Callable, Mapping
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType
from typing import Any, TypeVar

from amistore.errors import BackendError, foreign_errors

__all__ = ["Interface", "attributes", "composed", "verbs"]

F = TypeVar("F", bound=Callable[..., Any])

_UNDONE = (CoroutineType, GeneratorType, AsyncGeneratorType)  # of a call whose body has not run


def composed(method: F) -> F:
    """Mark a method of an interface that calls its verbs: a wrapper runs it on itself."""
    vars(method)["composed"] = True
    return method


class Interface(abc.ABC):  # noqa: B024 - those of the interfaces are
    """Base of the interfaces. Every class under one reports the errors of its verbs the same way.

    An exception from outside our error tree becomes a `BackendError` with the original as its cause, and
    `retryable` if that is a `ConnectionError` or `TimeoutError`. An answer of the wrong type, such as None
    for a block, is a `BackendError`, too. A `BackendError` gets the verb as its operation and, from the
    arguments, the snapshot, block, image, bucket and key, unless it has them. Other `AmistoreError`s,
    `MemoryError` and anything but an `Exception` pass unchanged.

    A method that replaces a verb on a single object is called as it is.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for verb, declared in verbs(cls).items():
            method = inspect.getattr_static(cls, verb)
            if getattr(method, "__isabstractmethod__", False):
                continue
            if not hasattr(method, "tells"):
                setattr(cls, verb, _telling(verb, declared, method))
            elif verb in vars(cls):
                _renew_class_cell(method.__wrapped__, cls)


def verbs(kind: type) -> Mapping[str, Any]:
    """The verbs of an interface, or of a class that implements some, by name."""
    return {
        name: found
        for name, found in _declared(kind)
        if isinstance(found, FunctionType) and not hasattr(found, "composed")
    }


def attributes(kind: type) -> Mapping[str, Any]:
    """The attributes of an interface, such as `where`, with their defaults."""
    return {name: found for name, found in _declared(kind) if not isinstance(found, FunctionType)}


def _declared(kind: type) -> list[tuple[str, Any]]:
    interfaces = (each for each in kind.__mro__ if Interface in each.__bases__)
    return [(name, found) for each in interfaces for name, found in vars(each).items() if name[0] != "_"]


def _telling(verb: str, declared: Any, method: Any) -> Callable[..., Any]:
    """A verb's method, wrapped so that its errors name the call."""
    function = method if isinstance(method, FunctionType) else _function_of(method)
    kind = _answer(declared)

    @functools.wraps(method)
    def call(self: Interface, /, *arguments: Any, **options: Any) -> Any:
        try:
            answer = function(self, *arguments, **options)
            if not isinstance(answer, kind):
                raise TypeError(f"{verb} must give {kind.__name__}, not {type(answer).__name__}")
            if isinstance(answer, _UNDONE):
                raise TypeError(f"{verb} has done nothing yet: it is async, or has a yield")
            return answer
        except Exception:
            try:
                given = inspect.signature(declared).bind(self, *arguments, **options).arguments
            except TypeError:
                given = None
            if given is None:  # no call of this interface: the caller's own mistake
                raise
            facts = {name: fact for name, fact in given.items() if name in BackendError._facts}
            with foreign_errors(verb, **facts):
                raise

    vars(call)["tells"] = True
    return call


def _answer(declared: Any) -> type:
    """The class of a verb's answer, if it is a built-in one or one of ours; else `object`."""
    function = inspect.unwrap(declared)
    name = str(function.__annotations__.get("return")).partition("[")[0]
    found = function.__globals__.get(name, getattr(builtins, name, None))
    return found if isinstance(found, type) else object


def _function_of(method: Any) -> Callable[..., Any]:
    """Of a static or partial method, a compiled one, or any object that can be called."""
    bind = getattr(method, "__get__", lambda *_: method)

    def function(self: Interface, /, *arguments: Any, **options: Any) -> Any:
        return bind(self, type(self))(*arguments, **options)

    return function


def _renew_class_cell(function: Any, cls: type) -> None:
    """Let `super()` find the class again that attrs has made anew, with slots, of its methods.

    attrs does so for the methods that it sees, and not for those behind a wrapper.
    """
    if isinstance(function, FunctionType) and "__class__" in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index("__class__")]
        if cell.cell_contents.__qualname__ == cls.__qualname__:
            cell.cell_contents = cls
