"""The decision log of this Airflow, for all commands that read it, and the options that select its records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airflow_team_authz.cli.support.console import UserError, complain, talking_to_stderr
from airflow_team_authz.cli.support.engine import configured_engine

if TYPE_CHECKING:
    from airflow_team_authz.decision_log.reading import Record, Records

# The exit code if no record matches.
NOTHING = 1
_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

SinceOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only newer records: 90m, 2h, 7d, or 2026-11-27T08:00 (UTC).")
]
TypeOption = Annotated[str | None, typer.Option("--type", help="Questions about this type: connection, dag, …")]
UserOption = Annotated[str | None, typer.Option(metavar="NAME", help="Questions of this person or task.")]
TeamOption = Annotated[str | None, typer.Option(metavar="ID", help="Questions about resources of this team.")]
FileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read this file of the decision log, not the configured sink.")
]


def record_of(decision: str, file: Path | None = None) -> Record:
    """The record of a decision, of a file or as the settings say; ``UserError`` or ``typer.Exit`` if there is none."""
    if not re.fullmatch(_ID, decision):
        raise UserError(f"{decision!r} is not the id of a decision: such an id is 01a21b3a-846f-7e1e-b060-5da91a6773a4")
    with open_records(file) as records:
        if (found := records.one(decision)) is None:
            complain(
                f"the decision log has no record {decision}: it may be written in a moment, be older than "
                "[team_authz] decision_log_days, or be in another sink"
            )
            raise typer.Exit(NOTHING)
    return found


@contextmanager
def open_records(file: Path | None) -> Iterator[Records]:
    """The records in a file, or as the settings say; ``UserError`` if they cannot be read there."""
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_team_authz.decision_log.database import NoTableError
    from airflow_team_authz.decision_log.reading import InDatabase, InFile

    try:
        if file is not None:
            yield InFile(file)
            return
        with talking_to_stderr():
            found = _configured()
        if isinstance(found, InDatabase):
            found.require()
        yield found
    except NoTableError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"the decision log cannot be read: {error.filename}: {error.strerror}") from None
    except SQLAlchemyError as error:
        # Not its address, which may have a password.
        why = str(getattr(error, "orig", None) or type(error).__name__)
        raise UserError(f"the decision log in Airflow's database cannot be read: {why}") from None


def _configured() -> Records:
    from airflow_team_authz.decision_log import log_file, sink_names
    from airflow_team_authz.decision_log.reading import InDatabase, InFile
    from airflow_team_authz.engines.choice import default_state
    from airflow_team_authz.settings import read_database

    settings = configured_engine()
    sinks = sink_names(settings.decision_log)
    if "database" in sinks:
        from airflow_team_authz.doors.decision_point import airflows_engine

        return InDatabase(airflows_engine(), read_database()[1])
    if "file" in sinks:
        return InFile(log_file(settings, settings.state or default_state()))
    raise UserError(
        f"[team_authz] decision_log is {settings.decision_log}, which cannot be searched from here: set database or "
        "file, or name a file by --file"
    )


def moment_of(text: str | None) -> datetime | None:
    """The moment that ``--since`` names."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since: {text!r} is not a time: write 90m, 2h, 7d, or 2026-11-27T08:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
