"""``team-authz decisions``: shows records of the decision log."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airflow_team_authz.cli.support.checks import Check
from airflow_team_authz.cli.support.console import (
    Table,
    UserError,
    print_columns,
    print_json,
    print_line,
)
from airflow_team_authz.cli.support.decision_log import (
    NOTHING,
    FileOption,
    SinceOption,
    TeamOption,
    TypeOption,
    UserOption,
    moment_of,
    open_records,
    record_of,
)
from airflow_team_authz.cli.support.engine import configured_engine
from airflow_team_authz.cli.support.spreadsheet import harmless

if TYPE_CHECKING:
    from airflow_team_authz.decision_log.reading import Record

_FOLLOW_SECONDS = 1.0
# What a record of another form raises.
_OTHER = (KeyError, TypeError, ValueError, AttributeError)
_COLUMNS = ("time", "outcome", "times", "user", "action", "type", "resource", "team", "door", "reason", "decision")


def decisions(
    decision: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Id of a decision, from a 403 or a 503.")
    ] = None,
    since: SinceOption = None,
    user: UserOption = None,
    team: TeamOption = None,
    type_: TypeOption = None,
    denied: Annotated[bool, typer.Option("--denied", help="Refusals and errors only.")] = False,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Instead of decisions, show different answers of the shadow policy.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the newest records to show.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new records too, until interrupted.")] = False,
    file: FileOption = None,
    output: Annotated[Table, typer.Option("--output", "-o", help="The form; JSON is one record a line.")] = Table.TABLE,
) -> None:
    """Show the newest records of the decision log, or one record by its id.

    The command is for administrators of the host: it reads Airflow's database, or the log's file, with your rights.

    Exit code 0: shown. 1: no record matches. 2: the decision log cannot be read.
    """
    from airflow_team_authz.decision_log.reading import Wanted

    wanted = Wanted(moment_of(since), user, team, type_, denied, shadow)
    if decision is not None:
        if follow or wanted != Wanted():
            raise UserError("name a decision, or select some by options: not both")
        _print([record_of(decision, file)], output, whole=True)
        return
    with open_records(file) as records:
        if follow:
            records.begin()
        found_now = records.newest(wanted, limit)
        _print(found_now, output)
        if follow:
            _follow(lambda: records.new(wanted), output)
    if not found_now:
        raise typer.Exit(NOTHING)


def _follow(new: Callable[[], list[Record]], output: Table) -> None:
    try:
        while True:
            time.sleep(_FOLLOW_SECONDS)
            if found := new():
                _print(found, output, with_head=False)
    except KeyboardInterrupt:
        return


def log_check() -> Check:
    """Where decisions are recorded, and whether they can be."""
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_team_authz.decision_log import log_file, sink_names
    from airflow_team_authz.engines.choice import default_state

    settings = configured_engine()
    places = {
        "database": f"the table {_TABLE} of Airflow's database, {settings.decision_log_days} days",
        "file": str(log_file(settings, settings.state or default_state())),
        "log": "Airflow's standard log",
        "otel": "a collector of OpenTelemetry, which its own variables name",
        "server": f"the bundle server {settings.decision_log_server}",
    }
    sinks = sink_names(settings.decision_log)
    where = ", ".join(places[sink] for sink in sinks) or "nowhere: [team_authz] decision_log is none"
    told = f"decisions are recorded in {where}" if sinks else f"decisions are recorded {where}"
    told += f"; level {settings.decision_log_levels}"
    if "database" not in sinks:
        return Check(_NAME, True, told)
    try:
        return Check(_NAME, True, told) if _table_is_there() else Check(_NAME, False, told + _NO_TABLE, _MIGRATE)
    except SQLAlchemyError as error:
        return Check(_NAME, True, f"{told} (not looked at: Airflow's database does not answer, {type(error).__name__})")


_NAME = "decision log"
_TABLE = "team_authz_decision"
_NO_TABLE = ", which does not exist: until it does, they go to the standard log"
_MIGRATE = "run `airflow db migrate`"


def _table_is_there() -> bool:
    """Whether the table is there, or Airflow's database has no tables at all yet."""
    from sqlalchemy import inspect

    from airflow_team_authz.doors.decision_point import airflows_engine
    from airflow_team_authz.settings import read_database

    tables = inspect(airflows_engine()).get_table_names(schema=read_database()[1])
    return _TABLE in tables or "dag" not in tables


def _print(records: list[Record], output: Table, whole: bool = False, with_head: bool = True) -> None:
    if output is Table.JSON and whole:
        print_json(records[0])
    elif output is Table.JSON:
        for record in records:
            print_line(json.dumps(record))
    elif output is Table.CSV:
        _print_csv(records, with_head)
    elif whole:
        try:
            told = list(_told(records[0]))
        except _OTHER:
            told = list(_row(records[0]).items())
        print_columns([[name, value] for name, value in told])
    elif records:
        shown = [_COLUMNS] if with_head else []
        print_columns([*shown, *([*_row(record).values()] for record in records)])
    elif with_head:
        print_line("No record matches.")


def _print_csv(records: list[Record], with_head: bool) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if with_head:
        writer.writerow(_COLUMNS)
    for record in records:
        writer.writerow([harmless(cell) for cell in _row(record).values()])
    for line in out.getvalue().splitlines():
        print_line(line)


def _row(record: Record) -> dict[str, str]:
    try:
        cells = _cells(record)
    except _OTHER:
        # Of an OPA server's own log, for example.
        other = "a record of another form: --output json shows it"
        said = (str(record["custom"]["outcome"]), "1", "", "", "", "", "", "", other, str(record["decision_id"]))
        cells = (record["timestamp"][:19] + "Z", *said)
    return dict(zip(_COLUMNS, map(str, cells), strict=True))


def _cells(record: Record) -> tuple[str, ...]:
    from airflow_team_authz.decision_log.reading import resources

    custom, input_ = record["custom"], record.get("input", {})
    about = resources(record)
    more = custom.get("asked", 1) - 1
    named = str(about[0].get("id", "")) if about else ""
    teams = dict.fromkeys(str(one["team_id"]) for one in about if one.get("team_id"))
    return (
        record["timestamp"][:19] + "Z",
        custom["outcome"],
        str(custom.get("repeated", {}).get("times", 1)),
        str(input_.get("subject", {}).get("id", "")),
        str(input_.get("action", "")),
        "/".join(str(about[0][name]) for name in ("type", "entity") if name in about[0]),
        f"{named} and {more} more" if more > 0 else named,
        ", ".join(teams),
        custom.get("door", ""),
        _reason(record),
        record["decision_id"],
    )


def _reason(record: Record) -> str:
    custom = record["custom"]
    if "candidate" in custom:
        return _told_of(custom["candidate"])
    if custom["outcome"] == "gap":
        return f"{custom['lost']} records were lost in {custom['sink']}, from {custom['since']} to {custom['until']}"
    if "error" in record:
        return str(record["error"]["message"])
    if custom["outcome"] == "list":
        return f"{custom['allowed']} of {custom['asked']} are allowed"
    said = record.get("result", [])
    decisions_ = [said] if isinstance(said, dict) else said
    wanted = [one for one in decisions_ if not one.get("allow")] or decisions_
    return "; ".join(dict.fromkeys(reason for one in wanted for reason in one.get("reasons", ())))


def _told_of(candidate: dict[str, Any]) -> str:
    """What a policy that is not in force has answered, and what would change by that."""
    said = candidate.get("error", {}).get("message") or "; ".join(candidate.get("result", {}).get("reasons", ()))
    more = f" (and {candidate['more']} more of this list)" if "more" in candidate else ""
    return f"the other policy {candidate['direction']} this: {said}{more}"


def _told(record: Record) -> Iterator[tuple[str, str]]:
    """All of one record, for people."""
    row = _row(record)
    row["time"] = record["timestamp"]
    yield from ((name, value) for name, value in row.items() if value)
    input_, custom = record.get("input", {}), record["custom"]
    for name, value in input_.get("subject", {}).items():
        if name != "id":
            yield f"subject {name}", _words(value)
    for name, value in (input_.get("context") or {}).items():
        yield f"context {name}", _words(value)
    if isinstance(said := record.get("result"), dict):
        yield from ((name, _words(said[name])) for name in ("layer", "team_version") if name in said)
    elif isinstance(said, list):
        for one, decision in zip(input_.get("resources", []), said, strict=False):
            outcome = "allow" if decision.get("allow") else "deny"
            yield outcome, f"{one.get('type')} {one.get('id', '')}: {'; '.join(decision.get('reasons', ()))}"
    if bundle := record.get("bundles", {}).get("authz"):
        yield "policy", f"revision {bundle['revision']}"
    if candidate := custom.get("candidate"):
        yield "other policy", f"revision {candidate.get('revision', 'unnamed')}"
        if "decision_id" in candidate:
            yield "decision in force", candidate["decision_id"]
    if taken := record.get("metrics", {}).get("timer_server_handler_ns"):
        yield "took", f"{taken / 1000:.0f} µs"
    for name, value in custom.get("request", {}).items():
        yield f"request {name}", _words(value)
    if again := custom.get("repeated"):
        yield "repeats", f"{again['decision_id']}, from {again['since']} to {again['until']}"
    for name in ("requested_by", "trace_id", "span_id", "erased"):
        if name in record:
            yield name.replace("_", " "), _words(record[name])
    yield "process", f"{record['labels'].get('pid')} on {record['labels'].get('host')}, {record['labels'].get('id')}"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
