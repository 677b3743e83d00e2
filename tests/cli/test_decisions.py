"""``team-authz decisions`` over both places that it can read."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow import settings
from sqlalchemy import create_engine

from airflow_team_authz.cli import decisions as command
from airflow_team_authz.cli.support.decision_log import open_records
from airflow_team_authz.decision_log.database import Database
from airflow_team_authz.decision_log.origin import Origin
from airflow_team_authz.decision_log.reading import InDatabase, Wanted
from airflow_team_authz.decision_log.record import Beside, Entry, Form, Gap, new_id
from airflow_team_authz.decision_log.sinks import File
from airflow_team_authz.decision_log.tables import decisions
from airflow_team_authz.model import Decision, Evaluations, Resource, Subject, UnreachableError
from tests.cli.conftest import Run

NO, YES = Decision(False, ("because\nof this",), "baseline"), Decision(True, ("allowed",), "team")


def made(subject: str, resource: Resource, said: Decision | None = NO, days: float = 0, **named: Any) -> dict[str, Any]:
    at = int((datetime.now(UTC) - timedelta(days=days)).timestamp() * 1e9)
    question = Evaluations(Subject("user", subject), "read", [resource])
    error = None if said else UnreachableError("nobody answers")
    origin = Origin("users", "GET", "/api/v2/x", headers=[(b"x-request-id", b"r-1")])
    entry = Entry(new_id(), at, 71_000, origin, question, "r1", 1, int(said is YES), [resource], said and [said], error)
    return Form().record(entry._replace(**named))


RECORDS = [
    made("bob", Resource("connection", "alpha", "alpha_db"), days=3),
    made("ann", Resource("connection", "alpha", "alpha_db"), YES, days=2),
    made("bob", Resource("dag", "beta", "=HYPERLINK(1)", "run"), days=1),
    made("=cmd|' /C calc'!A0", Resource("pool", None, "\x1b[2J\nforged"), days=0.01),
    made("bob", Resource("variable", "alpha_x", "gone"), None),
    Form().gap(Gap(7, 1, 2), "a sink"),
]
# No decision, so it is not among them unless somebody asks for it.
SHADOW = made("bob", Resource("dag", "alpha", "daily"), beside=Beside(YES, None, "r2"))
IDS = [record["decision_id"] for record in RECORDS]


@pytest.fixture(params=["database", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both places hold the same records."""
    if request.param == "file":
        File(tmp_path / "log.ndjson").write(RECORDS[:2])
        (tmp_path / "log.ndjson").rename(tmp_path / "log.ndjson.1")
        File(tmp_path / "log.ndjson").write([SHADOW, *RECORDS[2:]])
        (tmp_path / "log.ndjson").open("a").write('{"half')
        monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", "file")
        monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG_FILE", str(tmp_path / "log.ndjson"))
    else:
        engine = create_engine(f"sqlite:///{tmp_path}/airflow.db")
        decisions().metadata.create_all(engine)
        Database(lambda: engine, None, 90).write([*RECORDS[:2], SHADOW, *RECORDS[2:]])
        monkeypatch.setattr(settings, "engine", engine)
        monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", "database, log")
    return str(request.param)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["--user", "bob"], [0, 2, 4, 5]),
        (["--team", "alpha"], [0, 1, 5]),
        (["--type", "dag"], [2, 5]),
        (["--denied"], [0, 2, 3, 4, 5]),
        (["--since", "36h"], [2, 3, 4, 5]),
        (["--since", RECORDS[2]["timestamp"]], [2, 3, 4, 5]),
        (["--since", "36h", "--user", "bob", "--denied", "--team", "beta"], [2, 5]),
        (["--limit", "2"], [4, 5]),
        (["--user", "nobody"], [5]),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_is_wanted_is_found_in_both_places(run: Run, options: list[str], found: list[int]) -> None:
    done = run("decisions", "-o", "json", *options)
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["decision_id"] for line in done.stdout.splitlines()] == [IDS[index] for index in found]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("options", "found"), [([], [SHADOW, RECORDS[5]]), (["--type", "pool"], [RECORDS[5]])])
def test_differences_of_the_shadow_are_shown_alone(run: Run, options: list[str], found: list[dict[str, Any]]) -> None:
    done = run("decisions", "-o", "json", "--shadow", *options)
    assert [json.loads(line) for line in done.stdout.splitlines()] == found


@pytest.mark.usefixtures("place")
def test_the_last_decision_of_each_subject_is_the_same_in_both_places() -> None:
    decided = [record for record in RECORDS if record["custom"]["outcome"] != "gap"]
    last = {record["input"]["subject"]["id"]: record for record in decided}
    with open_records(None) as records:
        found = {record["input"]["subject"]["id"]: record for record in records.last_of_each_subject()}
    assert found == last
    assert len(found) > 1


@pytest.mark.usefixtures("place")
def test_what_is_not_there_is_1(run: Run) -> None:
    done = run("decisions", "--since", "2100-01-01")
    assert (done.exit_code, done.stdout) == (1, "No record matches.\n")
    done = run("decisions", new_id())
    assert done.exit_code == 1
    assert "the decision log has no record" in done.stderr


@pytest.mark.usefixtures("place")
def test_the_table_is_for_people_and_nothing_steers_their_terminal(run: Run) -> None:
    done = run("decisions")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(RECORDS)
    assert lines[0].split() == list(command._COLUMNS)
    assert "\\x1b[2J forged" in lines[4]
    assert "because of this" in lines[1]
    assert "nobody answers" in lines[5]
    assert "7 records were lost in a sink" in lines[6]


@pytest.mark.usefixtures("place")
def test_csv_holds_no_formula_and_no_line_of_its_own(run: Run) -> None:
    done = run("decisions", "-o", "csv")
    head, *rows = csv.reader(io.StringIO(done.stdout))
    assert head == list(command._COLUMNS)
    assert len(rows) == len(RECORDS)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert rows[2][6] == "'=HYPERLINK(1)"
    assert rows[3][3] == "'=cmd|' /C calc'!A0"
    assert [row[-1] for row in rows] == IDS


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_one_is_shown_by_its_id(run: Run, form: str) -> None:
    shown = [run("decisions", id_, "-o", form) for id_ in IDS]
    assert [done.exit_code for done in shown] == [0] * len(IDS)
    assert all(id_ in done.stdout for id_, done in zip(IDS, shown, strict=True))
    if form == "json":
        assert [json.loads(done.stdout) for done in shown] == RECORDS
    if form == "table":
        words = set(shown[0].stdout.split())
        assert {"because", "baseline", "r1", "71", "GET", "/api/v2/x", "r-1", "alpha_db"} <= words


def test_what_comes_is_followed(run: Run, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = [made("eve", Resource("pool", "alpha", f"p{number}")) for number in range(3)]
    parts = [late[:1], [], late[1:]]

    def sleep(_: float) -> None:
        if not parts:
            raise KeyboardInterrupt
        if part := parts.pop(0):
            if place == "file":
                if len(part) == 2:
                    (tmp_path / "log.ndjson").rename(tmp_path / "log.ndjson.1")
                File(tmp_path / "log.ndjson").write(part)
            else:
                Database(lambda: settings.engine, None, 90).write(part)

    monkeypatch.setattr(command.time, "sleep", sleep)
    done = run("decisions", "-o", "json", "--follow", "--limit", "1", "--denied")
    assert done.exit_code == 0, done.output
    shown = [json.loads(line)["decision_id"] for line in done.stdout.splitlines()]
    assert shown == [IDS[-1], *(record["decision_id"] for record in late)]


def test_what_is_committed_late_is_followed_too(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/airflow.db")
    table = decisions()
    table.metadata.create_all(engine)
    sink = Database(lambda: engine, None, 90)
    sink.write(RECORDS[:3])
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.number == 3).values(number=9))
    reading = InDatabase(engine, None)
    reading.begin()
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.number == 9).values(number=8))
    assert [record["decision_id"] for record in reading.new(Wanted())] == [IDS[2]]
    assert reading.new(Wanted()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--since", "yesterday"], "--since: 'yesterday' is not a time"),
        (["x"], "'x' is not the id of a decision"),
        ([new_id(), "--user", "bob"], "name a decision, or select some by options"),
        (["--file", "/no/such/file"], "/no/such/file: No such file or directory"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(run: Run, options: list[str], told: str) -> None:
    done = run("decisions", *options)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sinks", "told"),
    [
        ("database", "run `airflow db migrate`"),
        ("none", "[team_authz] decision_log is none, which cannot be searched from here"),
        ("log", "[team_authz] decision_log is log, which cannot be searched from here"),
        ("file", "decisions.ndjson: No such file or directory"),
    ],
)
def test_where_nothing_can_be_read_it_says_what_to_do(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sinks: str, told: str
) -> None:
    monkeypatch.setattr(settings, "engine", create_engine(f"sqlite:///{tmp_path}/airflow.db"))
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__DECISION_LOG", sinks)
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__STATE", str(tmp_path))
    done = run("decisions")
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("sql", "ok"), [("CREATE TABLE dag (x)", False), ("CREATE TABLE team_authz_decision (x)", True)]
)
def test_doctor_says_whether_the_table_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, ok: bool
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/airflow.db")
    with engine.begin() as connection:
        connection.exec_driver_sql(sql)
    monkeypatch.setattr(settings, "engine", engine)
    check = command.log_check()
    assert check.ok is ok
    assert "the table team_authz_decision of Airflow's database, 90 days" in check.detail
    assert ("airflow db migrate" in check.help) is not ok
