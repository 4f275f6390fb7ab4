"""`Loop`: many requests in flight, in one thread.

A request is a coroutine. Where it would wait (for a socket, for a time, for a helper's thread) the loop goes
on with others. asyncio is not used: a forked child cannot let its loop go without the parent's noticing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import heapq
import itertools
import selectors
import socket
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import attrs

from amistore import forks
from amistore.errors import BackendError

__all__ = ["READ", "WRITE", "Loop", "Places", "Watch"]

R = TypeVar("R")

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
_IDLE = 1.0  # seconds without a request after which the thread ends
_ENDING = 1.0  # seconds in which it ends that is told to


@attrs.define(eq=False)
class _Task:
    """A coroutine, and the future that gets its result."""

    coroutine: Coroutine[None, Any, Any]
    future: Future[Any]
    begun: bool = False

    def begin(self) -> bool:
        """Take it for begun; return whether its future was not cancelled before."""
        if not self.begun:
            self.begun = self.future.set_running_or_notify_cancel()
        return self.begun


class _CancelledError(BaseException):
    """Ends a task whose future was cancelled; no error of the request's."""


@types.coroutine
def _parked() -> Generator[None, Any, Any]:
    """Wait until the loop resumes this task; return what it is resumed with."""
    return (yield)


class _Result(Future[R]):
    """A task's future. A running task is not cancelled, but can see that nobody waits for it any more."""

    unwanted = False

    def cancel(self) -> bool:
        self.unwanted = True
        return super().cancel()


class Loop:
    """Runs coroutines in a thread of its own, which is there only while there are some.

    The thread holds the loop, the coroutines that run, and nothing else of whoever uses it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of what other threads touch: these three
        self._posted: collections.deque[tuple[Callable[[], None], Future[Any] | None]] = collections.deque()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._selector: selectors.BaseSelector | None = None
        self._wakers: tuple[socket.socket, socket.socket] | None = None
        self._tasks: set[_Task] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._current: _Task | None = None
        self._helpers = Places(self, 16)

    # For other threads.

    def submit(
        self, function: Callable[..., Coroutine[None, Any, R]], *arguments: Any, **options: Any
    ) -> Future[R]:
        """Run a coroutine function; return the future of its result."""
        future: Future[R] = _Result()
        if not self._post(functools.partial(self._begin, future, function, arguments, options), future):
            future.set_exception(_ended())
        return future

    def stop(self) -> None:
        """End the thread, for good. Takes no lock: the garbage collector may call it anywhere."""
        self._stopped = True
        self._wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_ENDING)

    def let_go(self) -> None:
        """In a forked child, close what the parent's thread works with."""
        with contextlib.suppress(OSError):  # a kqueue is not there
            if self._selector is not None:
                self._selector.close()  # an epoll's list is the parent's, too, and is left as it is
        for waker in self._wakers or ():
            waker.close()

    # For coroutines.

    def commit(self) -> None:
        """Take the current request for begun: from now on its future cannot be cancelled.

        If it has been, the task ends here.
        """
        if not self._running().begin():
            raise _CancelledError

    @property
    def unwanted(self) -> bool:
        """Whether somebody has cancelled the current task's future, in vain since it had begun."""
        return bool(getattr(self._running().future, "unwanted", False))

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.at(time.monotonic() + seconds, functools.partial(self.resume, self._running()))
            await _parked()

    async def in_thread(self, function: Callable[..., R], *arguments: Any, **options: Any) -> R:
        """Call a function that may block in a helper's thread."""
        async with self._helpers:
            task = self._running()

            def work() -> None:
                with forks.confined():
                    result: Any = None
                    error: BaseException | None = None
                    try:
                        result = function(*arguments, **options)
                    except BaseException as raised:
                        error = raised
                    self._post(functools.partial(self.resume, task, result, error))

            # Nobody waits for it at the interpreter's end: a name's server may be silent.
            threading.Thread(target=work, name="amistore-requests-helper", daemon=True).start()
            found: R = await _parked()
            return found

    async def park(self, hold: Callable[[_Task], None]) -> None:
        """Wait until the task that `hold` is given is resumed."""
        hold(self._running())
        await _parked()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call a function at a time of the monotonic clock."""
        heapq.heappush(self._timers, (when, next(self._numbers), action))

    def resume(self, task: _Task, value: Any = None, error: BaseException | None = None) -> None:
        """Go on with a task that waits."""
        if task not in self._tasks:  # the loop has ended since
            return
        before, self._current = self._current, task
        try:
            if error is None:
                task.coroutine.send(value)
            else:
                task.coroutine.throw(error)
        except StopIteration as done:
            self._finish(task, done.value, None)
        except BaseException as raised:
            self._finish(task, None, raised)
        finally:
            self._current = before

    def soon(self, task: _Task) -> None:
        """Go on with a task that waits, when the current one waits."""
        self.at(0.0, functools.partial(self.resume, task))

    @property
    def selector(self) -> selectors.BaseSelector:
        if self._selector is None:
            raise RuntimeError("the loop does not run")
        return self._selector

    # The thread.

    def _post(self, action: Callable[[], None], future: Future[Any] | None = None) -> bool:
        """Have a function called in the thread, which begins the future's task; return whether it will be."""
        with self._lock:
            if self._stopped:
                return False
            self._posted.append((action, future))
            begins = self._thread is None
            if begins:
                self._start()
            if begins or len(self._posted) == 1:  # who posted before it has waked the thread, for all of them
                self._wake()
            return True

    def _start(self) -> None:
        """Begin the thread; where that fails, what was posted is not done later."""
        try:
            self._selector = selectors.DefaultSelector()
            self._wakers = socket.socketpair()
            for waker in self._wakers:
                waker.setblocking(False)
            self._selector.register(self._wakers[0], READ)
            self._thread = threading.Thread(target=self._run, name="amistore-requests", daemon=True)
            self._thread.start()
        except BaseException:  # no more threads or descriptors
            self._posted.pop()
            self._close()
            raise

    def _wake(self) -> None:
        wakers = self._wakers
        if wakers is not None:
            with contextlib.suppress(OSError):  # full, so it wakes; or closed meanwhile
                wakers[1].send(b"!")

    def _running(self) -> _Task:
        if self._current is None:
            raise RuntimeError("this is for coroutines of the loop")
        return self._current

    def _run(self) -> None:
        with forks.confined(), forks.undoing(lambda _: self._end()):
            idle_until = time.monotonic() + _IDLE
            while not self._stopped:
                self._turn(idle_until)
                now = time.monotonic()
                if self._tasks:
                    idle_until = now + _IDLE
                elif now >= idle_until and self._rest():
                    return
            self._end()

    def _turn(self, idle_until: float) -> None:
        """Wait until there is something to do, and do it."""
        when = self._timers[0][0] if self._timers else None
        if not self._tasks:
            when = idle_until
        timeout = None if when is None else max(0.0, when - time.monotonic())
        for key, _ in self.selector.select(timeout):
            if key.data is not None:
                key.data.met()
            else:
                with contextlib.suppress(OSError):
                    while self._wakers is not None and self._wakers[0].recv(4096):
                        pass
        while self._posted:
            self._posted.popleft()[0]()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _rest(self) -> bool:
        """End the thread where nothing was posted meanwhile."""
        with self._lock:
            if self._posted:
                return False
            self._close()
            return True

    def _end(self) -> None:
        """End all tasks, and the thread."""
        for task in list(self._tasks):
            task.coroutine.close()
            self._finish(task, None, _ended())
        with self._lock:
            posted = list(self._posted)
            self._posted.clear()
            self._close()
        for _, future in posted:
            if future is not None and future.set_running_or_notify_cancel():
                future.set_exception(_ended())

    def _close(self) -> None:
        self._thread = None
        if self._selector is not None:
            self._selector.close()
        for waker in self._wakers or ():
            waker.close()
        self._selector = self._wakers = None

    def _begin(
        self,
        future: Future[R],
        function: Callable[..., Coroutine[None, Any, R]],
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        task = _Task(function(*arguments, **options), future)
        self._tasks.add(task)
        self.resume(task)

    def _finish(self, task: _Task, result: Any, error: BaseException | None) -> None:
        self._tasks.discard(task)
        if isinstance(error, _CancelledError) or not task.begin():
            return
        if error is None:
            task.future.set_result(result)
        else:
            task.future.set_exception(error)


def _ended() -> BackendError:
    return BackendError("the process, or whoever asked, ended before the answer came")


class Watch:
    """A socket that one task at a time waits for."""

    def __init__(self, loop: Loop, sock: Any) -> None:
        self._loop = loop
        self._sock = sock
        self._events = 0
        self._task: _Task | None = None
        self._until = 0.0
        self._checked = float("inf")  # when the loop will look whether it is too late

    async def ready(self, events: int, until: float) -> None:
        """Wait until the socket can be read or written.

        Args:
            events: READ or WRITE.
            until: by the monotonic clock.

        Raises:
            TimeoutError: it cannot until then.
        """
        if events != self._events:
            if self._events:
                self._loop.selector.modify(self._sock, events, self)
            else:
                self._loop.selector.register(self._sock, events, self)
            self._events = events
        self._until = until
        if until < self._checked:
            self._checked = until
            self._loop.at(until, self._check)
        await self._loop.park(self._hold)

    def _hold(self, task: _Task) -> None:
        self._task = task

    def met(self) -> None:
        """The socket can be read or written."""
        task, self._task = self._task, None
        if task is None:  # who has it waits for something else
            self.rest()
        else:
            self._loop.resume(task)

    def rest(self) -> None:
        """Watch the socket no more, until it is waited for again."""
        if self._events:
            self._events = 0
            self._loop.selector.unregister(self._sock)

    def _check(self) -> None:
        self._checked = float("inf")
        if self._task is None:
            return
        if time.monotonic() < self._until:
            self._checked = self._until
            self._loop.at(self._until, self._check)
            return
        task, self._task = self._task, None
        self._loop.resume(task, error=TimeoutError("the answer takes too long"))


class Places:
    """So many places for tasks, that are given in the order in which they are asked for."""

    def __init__(self, loop: Loop, number: int) -> None:
        self._loop = loop
        self._free = number
        self._waiting: collections.deque[_Task] = collections.deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
        else:
            await self._loop.park(self._waiting.append)

    async def __aexit__(self, *error: object) -> None:
        if self._waiting:
            self._loop.soon(self._waiting.popleft())
        else:
            self._free += 1
