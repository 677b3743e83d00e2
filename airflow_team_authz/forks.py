"""Forks of this process: resources that a child renews, and resources that it must not share.

A child has one thread, the one that forked. What another thread was in the middle of stays as it is for ever there:
a lock that is held, a pipe to a program, half a module.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# A fork goes ahead after this time, whatever is under way.
LONGEST_SECONDS = 5.0


class _UnderWay:
    """Which threads are in the middle of something that a fork waits for."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything under way, as in a child process."""
        self._changed = threading.Condition()
        self._threads: Counter[int] = Counter()

    @contextmanager
    def one(self) -> Iterator[None]:
        """See ``whole``."""
        thread = threading.get_ident()
        with self._changed:
            self._threads[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._threads[thread] -= 1
                self._threads += Counter()  # leaves out what is 0
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for the other threads, and keep them from beginning with something else."""
        mine = threading.get_ident()
        self._changed.acquire()
        self._changed.wait_for(lambda: not self._threads.keys() - {mine}, LONGEST_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let them go on."""
        self._changed.release()


_under_way = _UnderWay()


@contextmanager
def whole() -> Iterator[None]:
    """Delay forks meanwhile, up to ``LONGEST_SECONDS``. For what is rare: a policy that is
    loaded, an instance of it that is made.
    """
    with _under_way.one():
        yield


def after_fork(begin_anew: Callable[[], Any]) -> None:
    """Have a method of an object called in each child, as long as there is the object."""
    method = weakref.WeakMethod(begin_anew)
    os.register_at_fork(after_in_child=lambda: (call := method()) and call())


def renewed(event: threading.Event) -> threading.Event:
    """An event as set as this one, for a child: another thread may have held its lock."""
    new = threading.Event()
    if event.is_set():
        new.set()
    return new


os.register_at_fork(
    before=_under_way.before_fork,
    after_in_parent=_under_way.after_fork_in_parent,
    after_in_child=_under_way.begin_anew,
)
