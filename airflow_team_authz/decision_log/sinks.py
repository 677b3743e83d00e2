"""Sinks without a database: the standard log, and a file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from airflow_team_authz.decision_log.record import Entry, Gap, encode, without_secrets
from airflow_team_authz.escaping import escaped, logger
from airflow_team_authz.files import make_private
from airflow_team_authz.model import Decision

log = logger("airflow_team_authz.decision_log")

# A file that is larger becomes FILE.1, and the others one more; so many are kept.
MOST_BYTES = 64 << 20
KEPT = 8


class StandardLog:
    """Airflow's log, by structlog: fields for programs where Airflow writes JSON, a line for people elsewhere."""

    name, setting = "the standard log", "log"

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        out = structlog.get_logger("airflow_team_authz.decisions")
        for record in records:
            outcome = record["custom"]["outcome"]
            tell = out.warning if outcome in {"error", "gap"} else out.info
            # The logger has a timestamp of its own.
            fields = {"decided_at" if name == "timestamp" else name: part for name, part in _shown(record).items()}
            tell("decision", **fields)
        return 0

    def begin_anew(self) -> None:
        """See ``writer.Sink``."""


class LineForm:
    """Makes lines for people of refusals, for where no sink is Airflow's log."""

    def record(self, entry: Entry) -> dict[str, Any]:
        """See ``writer.Maker``."""
        policy = f"policy revision {entry.revision or 'unnamed'}" + (f", decision {entry.id}" if entry.id else "")
        refused = [one for one in entry.decisions or () if isinstance(one, Decision) and one.allow is not True]
        return {"lines": [f"denied ({one.layer}, {policy}): {'; '.join(one.reasons)}" for one in refused]}

    def gap(self, gap: Gap, sink: str) -> dict[str, Any]:  # noqa: ARG002 - there is one
        """See ``writer.Maker``."""
        return {"lines": [f"{gap.lost} refusals have no line here"]}


class Lines:
    """Airflow's log, for lines of people."""

    name, setting = "the lines of Airflow's log", "lines"

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``."""
        for record in records:
            for line in record["lines"]:
                log.info("%s", without_secrets(line))
        return 0

    def begin_anew(self) -> None:
        """See ``writer.Sink``."""


def _shown(part: Any) -> Any:
    """The same for a line that may be shown on a terminal."""
    if isinstance(part, str):
        return escaped(without_secrets(part))
    if isinstance(part, dict):
        return {_shown(name): _shown(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_shown(value) for value in part]
    return part


class File:
    """A file of one record a line (NDJSON), for this user alone; several processes may write it."""

    setting = "file"

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.name = str(path)
        self._path = path
        self._most = most_bytes
        self._descriptor: int | None = None

    def write(self, records: Sequence[dict[str, Any]]) -> int:
        """See ``writer.Sink``. All records or none, as far as the file system lets one take back."""
        content = "".join(f"{encode(record)}\n" for record in records).encode()
        descriptor = self._locked()
        try:
            size = os.fstat(descriptor).st_size
            # Who was killed while it wrote has left a part of a line.
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                content = b"\n" + content
            try:
                while content:
                    content = content[os.write(descriptor, content) :]
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            if os.fstat(descriptor).st_size >= self._most:
                self._rotate()
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return 0

    def begin_anew(self) -> None:
        """See ``writer.Sink``. A lock belongs to what is open, and that is the parent's too."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _locked(self) -> int:
        """The file of this name, open and locked: another process may have given it another name meanwhile."""
        while True:
            if self._descriptor is None:
                make_private(self._path.parent)
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):
                    return self._descriptor
            except FileNotFoundError:
                pass
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self) -> None:
        for number in range(KEPT - 1, -1, -1):
            old = Path(f"{self._path}.{number}") if number else self._path
            if old.exists():
                old.replace(f"{self._path}.{number + 1}")
