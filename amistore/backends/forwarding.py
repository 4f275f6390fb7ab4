"""`Forwarding`: base of what is put around a backend, or around one of its services.

Retries, faults and counters are such wrappers. Each defines only what it changes: a new verb of an interface
passes through all of them, with its arguments unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from amistore.backends.interface import Interface, attributes, verbs

__all__ = ["Forwarding"]

S = TypeVar("S", bound=Interface)
R = TypeVar("R")


class Forwarding(Generic[S]):
    """Base of a wrapper around a service.

    Name it before the interface::

        class CountingStore(Forwarding[ObjectStore], ObjectStore):
            calls = 0

            def _call(self, verb, function, /, *arguments, **options):
                self.calls += 1
                return function(*arguments, **options)

        store = CountingStore.around(backend.s3)

    Verbs that a subclass does not define go to the inner service through `_call`. Attributes of the
    interface, such as `where`, are the inner service's. Composed methods, such as `put_object`, run on the
    wrapper, so their calls pass through it. For anything beyond the interface, use `inner`.

    Attributes:
        inner: the service inside.
    """

    def __init__(self, inner: S) -> None:
        self.inner = inner

    def __init_subclass__(cls, **options: Any) -> None:
        for name, declared in {**verbs(cls), **attributes(cls)}.items():
            definer = next(each for each in cls.__mro__ if name in vars(each))
            if Interface in definer.__bases__:  # and no wrapper
                setattr(cls, name, _verb(name, declared) if callable(declared) else _attribute(name))
        super().__init_subclass__(**options)

    @classmethod
    def around(cls, inner: S, *parts: Any) -> Self:
        """Make a wrapper around a service; type checkers take the class itself for an abstract one.

        Args:
            inner: the service to wrap.
            parts: the further arguments of the class.
        """
        return cls(inner, *parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    def _call(self, verb: str, function: Callable[..., R], /, *arguments: Any, **options: Any) -> R:
        """Make one call. Override it to act before it, after it or instead of it.

        Args:
            verb: the verb's name, such as ``"put_snapshot_block"``.
            function: the inner service's method.
            arguments: the caller's positional arguments.
            options: the caller's keyword arguments.
        """
        return function(*arguments, **options)


def _verb(name: str, declared: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(declared, updated=())  # without the mark of an abstract method
    def forward(self: Any, /, *arguments: Any, **options: Any) -> Any:
        return self._call(name, getattr(self.inner, name), *arguments, **options)

    return forward


def _attribute(name: str) -> property:
    return property(lambda self: getattr(self.inner, name))
