"""A program that runs beside us: started with a log, waited for, stopped."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TAIL_LINES = 30
_STOP_SECONDS = 15
_POLL_SECONDS = 0.1
# Of the caller's environment only what a program needs to run at all: an AIRFLOW__… variable or a proxy of the
# caller's would make this another Airflow than the one that is described.
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")


class StartError(Exception):
    """A program did not start; the message holds the end of its log and where the rest is."""


def environment(**variables: str) -> dict[str, str]:
    """A small environment of its own for a program, plus ``variables``."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | variables


class Process:
    """One program, its output in ``log``."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._env = dict(env)
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 if it does not run."""
        return self._popen.pid if self._popen else 0

    def start(self, ready: Callable[[], bool], timeout: float) -> None:
        """Start, and return when ``ready`` says so; ``StartError`` if the program ends or time runs out."""
        with self.log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal is ours to handle, and a stop reaches all its children.
            self._popen = subprocess.Popen(
                self._command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=self._env,
                cwd=self.log.parent, start_new_session=True,
            )  # fmt: skip
        self.wait(ready, timeout)

    def wait(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return when ``ready`` says so; ``StartError`` if the program ends or time runs out."""
        end = time.monotonic() + timeout
        while not ready():
            if self._popen is None or self._popen.poll() is not None:
                code = self._popen.returncode if self._popen else "unknown"
                raise StartError(f"{self.name} ended with code {code}.{self.tail()}")
            if time.monotonic() > end:
                self.stop()
                raise StartError(f"{self.name} was not ready after {timeout:.0f} seconds.{self.tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it: first politely, then not."""
        popen, self._popen = self._popen, None
        if popen is None:
            return
        popen.terminate()
        try:
            popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()

    def tail(self) -> str:
        """The end of the log, and where the rest is."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        return f" The end of {self.log}:\n  " + "\n  ".join(lines)
