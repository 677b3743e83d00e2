"""A function in a process of its own: it gets what it is given, is stopped alone, and runs no foreign module."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airflow_team_authz import own_process


def echo() -> None:
    sys.stdout.buffer.write(b"%d %s " % (os.getpid(), sys.argv[1].encode()) + sys.stdin.buffer.read())


def fail() -> None:
    sys.exit("it does not work")


def sleep() -> None:
    time.sleep(60)


def test_it_gets_what_it_is_given() -> None:
    done = own_process.run(echo, b"\0 given", "an argument", seconds=60)
    process, *told = done.stdout.split(b" ", 1)
    assert (done.returncode, told) == (0, [b"an argument \0 given"])
    assert int(process) != os.getpid()


def test_its_failure_is_told() -> None:
    done = own_process.run(fail, b"", seconds=60)
    assert (done.returncode, done.stderr.strip()) == (1, b"it does not work")


def test_it_is_stopped_when_its_time_is_over() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        own_process.run(sleep, b"", seconds=0.2)


def test_a_module_of_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "airflow_team_authz.py").write_text("raise SystemExit('foreign')")
    monkeypatch.chdir(tmp_path)
    assert own_process.run(echo, b"", "x", seconds=60).returncode == 0
