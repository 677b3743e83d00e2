"""What is under way when a process is forked: finished first if it is soon, and never waited for without end."""

from __future__ import annotations

import os
import threading
import time

import pytest

from airflow_team_authz import forks
from airflow_team_authz.doors import decision_point
from tests.conftest import forked


def busy(until: threading.Event) -> threading.Thread:
    """A thread in the middle of something."""
    began = threading.Event()

    def work() -> None:
        with forks.whole():
            began.set()
            until.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(30)
    return thread


def fork() -> None:
    child = os.fork()
    if child == 0:
        # Nothing of the parent's keeps it from beginning something, or from forking.
        with forks.whole():
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_waits_for_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LONGEST_SECONDS", 60.0)
    done = threading.Event()
    thread = busy(done)
    threading.Timer(0.3, done.set).start()
    fork()
    assert done.is_set()
    thread.join()


def test_a_fork_waits_neither_without_end_nor_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    thread = busy(done)
    monkeypatch.setattr(forks, "LONGEST_SECONDS", 0.1)
    fork()
    assert not done.is_set()
    done.set()
    thread.join()
    monkeypatch.setattr(forks, "LONGEST_SECONDS", 60.0)
    began = time.monotonic()
    with forks.whole():
        fork()
    assert time.monotonic() - began < 30


def test_a_child_does_not_wait_for_who_opens_the_engine_in_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LONGEST_SECONDS", 0.1)
    opening, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def slow() -> str:
        if os.getpid() == parent:
            opening.set()
            go_on.wait(60)
        return "opened"

    monkeypatch.setattr(decision_point, "_opened", slow)
    thread = threading.Thread(target=decision_point.decision_point)
    thread.start()
    assert opening.wait(30)
    with forked(decision_point.decision_point) as ask:
        assert ask() == "opened"
    go_on.set()
    thread.join()
