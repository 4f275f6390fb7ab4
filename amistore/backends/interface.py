"""`Interface`: what the interfaces of a backend have in common.

Their public methods are verbs: one call of a service each. Whoever implements a verb, its errors are
told the same way, and here only. Methods that are `composed` of verbs are no verbs. Imports the errors
only. Next: `blocks.py`, `objects.py`, `images.py`, `base.py`; `forwarding.py` for wrappers.
"""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, TypeVar

from amistore.errors import BackendError, foreign_errors

__all__ = ["Interface", "attributes", "composed", "verbs"]

F = TypeVar("F", bound=Callable[..., Any])


def composed(method: F) -> F:
    """Mark a method of an interface that is made of verbs: a wrapper runs it on itself."""
    vars(method)["composed"] = True
    return method


class Interface(abc.ABC):  # noqa: B024 - those of the interfaces are
    """Base of the interfaces. In every class under one, what a verb raises is told the same way.

    An exception beyond our error tree becomes a `BackendError` with that one as its cause; `retryable`
    where it is a `ConnectionError` or `TimeoutError`. A `BackendError` gets the operation, which is the
    verb, and of the arguments the snapshot, block, image, bucket and key, where it does not have them.
    So does an answer of another kind than the interface says, such as None for a block.
    `AmistoreError` beside it, `MemoryError` and what is no `Exception` pass as they are.

    A method that is put in place of a verb on one object is called as it is.
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
    """The verbs of an interface, or of what implements some: by name, as they are declared."""
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
    """A verb's method that tells of its errors what the call was."""
    function = method if isinstance(method, FunctionType) else _function_of(method)
    kind = _answer(declared)

    @functools.wraps(method)
    def call(self: Interface, /, *arguments: Any, **options: Any) -> Any:
        try:
            answer = function(self, *arguments, **options)
            if not isinstance(answer, kind):
                raise TypeError(f"{verb} must give {kind.__name__}, not {type(answer).__name__}")
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
    """The class that a verb gives, where that is bytes or one of ours; else `object`."""
    function = inspect.unwrap(declared)
    name = function.__annotations__.get("return")
    found = bytes if name == "bytes" else function.__globals__.get(name)
    return found if isinstance(found, type) else object


def _function_of(method: Any) -> Callable[..., Any]:
    """Of a static or partial method, or a compiled one."""

    def function(self: Interface, /, *arguments: Any, **options: Any) -> Any:
        return method.__get__(self, type(self))(*arguments, **options)

    return function


def _renew_class_cell(function: Any, cls: type) -> None:
    """Let `super()` find the class again that attrs has made anew, with slots, of its methods.

    attrs does so for the methods that it sees, and not for those behind a wrapper.
    """
    if isinstance(function, FunctionType) and "__class__" in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index("__class__")]
        if cell.cell_contents.__qualname__ == cls.__qualname__:
            cell.cell_contents = cls
