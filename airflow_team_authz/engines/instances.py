"""Instances of one policy, for all threads of a process: as many as work at once, and not one for each thread."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from airflow_team_authz import forks
from airflow_team_authz.opa.wasm import Machine, Policy, start

# More of them cannot work at the same time for long.
AT_REST = os.cpu_count() or 1
# A thread that is not served in time starts another one, as long as there are fewer than this times as many: on a busy
# machine each thread would.
MOST_TIMES = 4
# An instance above the number at rest ends after this time without work.
IDLE_SECONDS = 5.0
# What a question has taken more than this of, an instance gives back at once, which takes a twentieth of the time that
# such a list does; and of more than this, after a time without work.
FORGET_AT_ONCE_BYTES = 4 << 20
FORGET_BYTES, FORGET_SECONDS = 1 << 20, 0.5
_LOOK_SECONDS = 0.05


class Instances:
    """Hands out instances of a policy. The last one to come back is the first to go out: its memory is in the
    processor's cache, and the others can end.

    A thread that finds none waits for one as long as a start of another one takes, and then starts it, unless there are
    very many already. Without locks where it is fast: a deque's own operations are atomic. It is not for forked
    children: each of them makes one of its own.
    """

    def __init__(self, policy: Policy, at_rest: int = AT_REST) -> None:
        self._policy = policy
        self._at_rest = at_rest
        self._idle: deque[Machine] = deque()
        self._waiting: deque[threading.Lock] = deque()
        # Of what happens rarely: an instance begins or ends.
        self._counting = threading.Lock()
        self._count = 0
        # Until it is known.
        self._start_seconds = 1.0

    def take(self) -> Machine:
        """An instance for this thread alone, which has to ``give`` it back or ``discard`` it.

        Raises ``PolicyBrokenError`` if the policy cannot have one.
        """
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait_for_one()

    def give(self, machine: Machine) -> None:
        """It is as good as new."""
        if machine.taken > FORGET_AT_ONCE_BYTES:
            machine.forget()
        machine.rests_since = time.monotonic()
        self._idle.append(machine)
        if self._waiting:
            self._wake_one()

    def discard(self) -> None:
        """Drop an instance that was taken: it must not be used again."""
        with self._counting:
            self._count -= 1
        self._wake_one()

    def shrink(self) -> bool:
        """End what has had no work for a while and is not kept for the next questions, or its memory of long lists.

        Whether there was any.
        """
        has_shrunk = self._end_some()
        for machine in tuple(self._idle):
            if machine.taken > FORGET_BYTES and machine.rests_since < time.monotonic() - FORGET_SECONDS:
                try:
                    self._idle.remove(machine)
                except ValueError:
                    # Somebody has taken it.
                    continue
                machine.forget()
                self._idle.appendleft(machine)
                has_shrunk = True
        return has_shrunk

    def _end_some(self) -> bool:
        oldest, has_ended = time.monotonic() - IDLE_SECONDS, False
        while len(self._idle) > self._at_rest:
            try:
                machine = self._idle.popleft()
            except IndexError:
                break
            if machine.rests_since > oldest:
                self._idle.appendleft(machine)
                break
            # A child that is forked while wasmtime frees it would wait for ever for wasmtime's locks.
            with forks.whole():
                del machine
            self.discard()
            has_ended = True
        return has_ended

    @property
    def idle(self) -> tuple[Machine, ...]:
        """Unused instances. The last one is the next to be taken."""
        return tuple(self._idle)

    def _start(self) -> Machine:
        """Start an instance that is counted already."""
        began = time.monotonic()
        try:
            # A child that is forked meanwhile would be left with half of it.
            with forks.whole():
                machine = start(self._policy)
        except BaseException:
            self.discard()
            raise
        took = time.monotonic() - began
        # Not what it took while many began at once.
        self._start_seconds = min(took, self._start_seconds)
        return machine

    def _wait_for_one(self) -> Machine:
        """Wait for an instance that another thread returns, or start one more."""
        until = time.monotonic() + self._start_seconds
        while not self._may_start(until):
            ready = threading.Lock()
            ready.acquire()
            self._waiting.append(ready)
            # Only now: one that came back before has woken nobody.
            if not self._idle:
                # Each evaluation ends, since its fuel does.
                ready.acquire(timeout=max(until - time.monotonic(), _LOOK_SECONDS))
            try:
                return self._idle.pop()
            except IndexError:
                continue
        return self._start()

    def _may_start(self, until: float) -> bool:
        """Whether this thread has to start one, which is counted from now on."""
        with self._counting:
            most = self._at_rest if time.monotonic() < until else MOST_TIMES * self._at_rest
            if self._count >= most:
                return False
            self._count += 1
            return True

    def _wake_one(self) -> None:
        try:
            self._waiting.popleft().release()
        except IndexError:
            return
