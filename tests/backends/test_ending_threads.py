"""A fork waits for threads that are joined and have not quite ended: OpenSSL takes a lock there."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

import pytest
from children import answers

import amistore.backends.connections  # noqa: F401 - its hook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads that end are told by /proc")

ENDING = 200_000  # microseconds


def test_a_fork_waits_for_a_thread_that_is_joined_and_has_not_ended() -> None:
    thread = threading.Thread(target=_end_slowly)
    thread.start()
    thread.join()
    task = Path(f"/proc/self/task/{thread.native_id}")
    assert task.exists()
    answers([os.getpid])
    assert not task.exists()


def _end_slowly() -> None:
    """What belongs to a thread is let go of at its very end, here by sleeping."""
    libc = ctypes.CDLL(None)
    key = ctypes.c_uint()
    libc.pthread_key_create(ctypes.byref(key), ctypes.cast(libc.usleep, ctypes.c_void_p))
    libc.pthread_setspecific(key, ctypes.c_void_p(ENDING))
