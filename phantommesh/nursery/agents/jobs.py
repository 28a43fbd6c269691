# SPDX-License-Identifier: GPL-3.0-or-later
"""One agent's look in a thread of its own: measured, and stopped if it does not come back.

The budget is for the thread's own CPU time: on a busy machine a look may have to wait for a core, or for the
interpreter's lock, and the agent is not to blame for that. Nor is it for a collection of garbage, which goes
over the whole node's heap in whatever thread happens to start it. So these are not counted.

A look that hangs is found by the wall clock. One that has used more CPU than its budget by then runs in a
loop, and an exception is thrown into the thread (`PyThreadState_SetAsyncExc`), which Python raises there at
the next jump or call. Nothing stops a call that blocks in C: its thread is left behind, and counted.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from phantommesh.agents.council import Look

_collected: dict[int, float] = {}
"""By thread: CPU seconds that its job has spent in collections of garbage."""
_collecting: dict[int, float] = {}
"""By thread: the CPU time of the thread at which the collection began that it is in."""


class _StoppedError(BaseException):
    """Thrown into a look that hangs. No agent's `except Exception` catches it."""


@contextmanager
def collections_measured() -> Iterator[None]:
    """While this runs, each thread's time in collections of garbage is known to its job."""
    gc.callbacks.append(_measure)
    try:
        yield
    finally:
        gc.callbacks.remove(_measure)


def _measure(phase: Literal["start", "stop"], _about: dict[str, int]) -> None:
    thread = threading.get_ident()
    if thread not in _collected:
        return  # it runs no job
    if phase == "start":
        _collecting[thread] = time.thread_time()
    elif (began := _collecting.pop(thread, None)) is not None:
        _collected[thread] += time.thread_time() - began


class Job:
    """A look's work, to be called in a thread. Afterwards ``look`` is what the agent returned, or ``error``
    what it raised, and ``seconds`` the CPU time that it took."""

    def __init__(self, work: Callable[[], Look]) -> None:
        self._work = work
        self.look: Look | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._began = 0.0
        self._thrown = False
        self._ended = False

    def __call__(self) -> None:
        """Do the work. Raises nothing."""
        todo = [self._end, self._run]
        while todo:
            try:
                todo[-1]()
                todo.pop()
            except _StoppedError:
                todo = [self._end]  # which can be done twice

    def _run(self) -> None:
        thread = threading.get_ident()
        _collected[thread] = 0.0
        with self._lock:
            self._thread, self._began = thread, time.thread_time()
        try:
            self.look = self._work()
        except Exception as error:  # the agent's, and nobody else's
            self.error = error

    def _end(self) -> None:
        thread = threading.get_ident()
        self.seconds = max(0.0, time.thread_time() - self._began - _collected.pop(thread, 0.0))
        with self._lock:
            self._ended = True  # nothing is thrown any more
        if self._thrown:
            _raise_what_is_left(thread)

    @property
    def ended(self) -> bool:
        """Whether the thread is free again."""
        return self._ended

    def used(self) -> float:
        """The CPU seconds that the thread has used up to now, as far as that is known."""
        with self._lock:
            if self._ended or self._thread is None:
                return self.seconds
            # While the lock is held the thread lives, and has a clock.
            clock = time.clock_gettime(time.pthread_getcpuclockid(self._thread))
            collected, since = _collected.get(self._thread, 0.0), _collecting.get(self._thread, clock)
            return clock - self._began - collected - (clock - since)

    def stop(self) -> None:
        """Throw an exception into the work if it still runs. It may be lost there, in a finalizer for one:
        then this can be called again, some time later."""
        with self._lock:
            if not self._ended and self._thread is not None:
                self._thrown = True
                _throw(self._thread)


def _throw(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_StoppedError))


def _raise_what_is_left(thread: int) -> None:
    """Have what was thrown into this thread raised now, or it would hit who has the thread next. To take it
    back (`PyThreadState_SetAsyncExc` with no exception) is no way: the interpreter (CPython 3.11) would look
    for it for ever, at each jump of every thread, and hang where anything traces or profiles."""
    try:
        _throw(thread)  # one at most is kept
        while True:
            pass
    except _StoppedError:
        pass
