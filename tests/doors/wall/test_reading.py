"""The second wall: a query of a request finds what its subject may read, however it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from airflow import settings
from airflow.models import Connection, DagModel, DagRun, Pool, TaskInstance, Variable
from airflow.models.asset import (
    AssetAliasModel,
    AssetEvent,
    AssetModel,
    DagScheduleAssetReference,
    TaskOutletAssetReference,
)
from airflow.models.errors import ParseImportError
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstanceNote
from airflow.models.team import dag_bundle_team_association_table
from msgspec import UNSET
from sqlalchemy import delete, event, exists, func, insert, literal, or_, select, text, union_all, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, aliased, immediateload, joinedload, lazyload, selectinload, subqueryload
from sqlalchemy.sql import visitors

from airflow_team_authz.doors import owned_rows, readable, wall
from airflow_team_authz.doors.owned_rows import OWNED, OfDag, mapped_classes
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Resource, Subject
from tests.conftest import opened
from tests.doors.wall.conftest import ANN, BOB, NOW, PAT, TASK, VIC, As

EVERYTHING = ["alpha_daily", "beta_daily", "daily"]
COLUMN = DagRun.dag_id
ALIAS = aliased(DagRun)
# However a query is written: each asks for the Dags that have runs.
FORMS: dict[str, Any] = {
    "a class": lambda session: [run.dag_id for run in session.scalars(select(DagRun))],
    "a column": lambda session: session.scalars(select(COLUMN)),
    "an alias": lambda session: session.scalars(select(ALIAS.dag_id)),
    "of Dags": lambda session: session.scalars(select(COLUMN).where(COLUMN.in_(EVERYTHING))),
    "of Dags, by an alias": lambda session: session.scalars(select(ALIAS.dag_id).where(ALIAS.dag_id.in_(EVERYTHING))),
    "of one Dag each": lambda session: session.scalars(
        union_all(*(select(COLUMN).where(dag_id == COLUMN) for dag_id in EVERYTHING))
    ),
    "of Dags, or others": lambda session: session.scalars(
        select(COLUMN).where(or_(COLUMN.in_(EVERYTHING), DagRun.id > 0))
    ),
    "a query": lambda session: [run.dag_id for run in session.query(DagRun)],
    "a query of a column": lambda session: [row[0] for row in session.query(COLUMN)],
    "a subquery": lambda session: session.scalars(select(select(COLUMN).subquery().c.dag_id)),
    "a common table expression": lambda session: session.scalars(select(select(COLUMN).cte().c.dag_id)),
    "a union": lambda session: session.scalars(union_all(select(COLUMN), select(COLUMN).where(COLUMN == "no"))),
    "in": lambda session: session.scalars(select(DagModel.dag_id).where(DagModel.dag_id.in_(select(COLUMN)))),
    "exists": lambda session: session.scalars(select(DagModel.dag_id).where(exists().where(DagModel.dag_id == COLUMN))),
    "a join": lambda session: session.scalars(select(COLUMN).join(TaskInstance, TaskInstance.run_id == DagRun.run_id)),
    "a join by relationship": lambda session: session.scalars(select(TaskInstance.dag_id).join(TaskInstance.dag_run)),
    "a join from": lambda session: session.scalars(
        select(COLUMN).select_from(TaskInstance).join(DagRun, TaskInstance.run_id == DagRun.run_id)
    ),
    "loaded at once": lambda session: [
        run.dag_id for run in session.scalars(select(DagRun).options(joinedload(DagRun.task_instances))).unique()
    ],
    "loaded beside": lambda session: [
        instance.dag_id
        for run in session.scalars(select(DagRun).options(selectinload(DagRun.task_instances)))
        for instance in run.task_instances
    ],
    "loaded later": lambda session: [
        instance.dag_id for run in session.scalars(select(DagRun)) for instance in run.task_instances
    ],
    "a part that hangs on it": lambda session: session.scalars(select(TaskInstanceNote.content)),
    "a correlated part": lambda session: session.scalars(
        select(TaskInstanceNote.content).join(TaskInstance, TaskInstance.id == TaskInstanceNote.ti_id)
    ),
    "a scalar": lambda session: [
        dag_id
        for dag_id, count in session.execute(
            select(
                DagModel.dag_id,
                select(func.count(DagRun.id)).where(DagModel.dag_id == COLUMN).correlate(DagModel).scalar_subquery(),
            )
        )
        if count
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_query_finds_what_may_be_read_however_it_is_written(by: As, form: str) -> None:
    everything = set(EVERYTHING)
    for subject, expected in ((BOB, everything - {"alpha_daily"}), (PAT, everything), (None, set())):
        with by(subject) as session:
            assert set(FORMS[form](session)) == expected, subject


@pytest.mark.parametrize("form", FORMS)
def test_every_part_of_a_statement_is_looked_at(by: As, form: str) -> None:
    """A table in a part that is passed over would not be narrowed."""
    statements: list[Any] = []

    def keep(state: Any) -> None:
        statements.append(state.statement)

    event.listen(Session, "do_orm_execute", keep)
    try:
        with by(BOB) as session:
            list(FORMS[form](session))
    finally:
        event.remove(Session, "do_orm_execute", keep)
    assert statements
    for statement in statements:
        assert set(map(id, wall._elements(statement))) == set(map(id, visitors.iterate(statement)))


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload, immediateload, lazyload])
def test_what_hangs_on_a_common_row_is_narrowed_however_it_is_loaded(by: As, load: Any) -> None:
    statement = select(AssetModel).where(AssetModel.id == 1).options(load(AssetModel.scheduled_dags))
    with by(BOB) as session:
        asset = session.scalars(statement).unique().one()
        assert {reference.dag_id for reference in asset.scheduled_dags} == {"beta_daily", "daily"}


@contextmanager
def sending() -> Iterator[list[str]]:
    """The statements that are sent to the database meanwhile."""
    sent: list[str] = []

    def send(_: Any, __: Any, sql: str, *___: Any) -> None:
        sent.append(sql)

    event.listen(Engine, "before_cursor_execute", send)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", send)


_CHECKED = "WHEN (dag_run.dag_id IN"


@pytest.mark.parametrize(
    ("statement", "narrowed", "checked"),
    [
        (select(Log).options(joinedload(Log.dag_model)), "log.dag_id IN", "THEN 1 ELSE 0"),
        (select(TaskInstance).join(TaskInstance.dag_run), "task_instance.dag_id IN", _CHECKED),
        (select(DagRun.dag_id).where(DagRun.dag_id.in_(select(TaskInstance.dag_id))), "task_instance.dag_id IN", ""),
        (select(COLUMN).where(COLUMN == "daily"), "dag_run.dag_id =", _CHECKED),
        (select(COLUMN).where(COLUMN.in_(EVERYTHING)).limit(1), "WHERE dag_run.dag_id IN", _CHECKED),
        (select(COLUMN).where(literal("daily") == COLUMN), "= dag_run.dag_id", _CHECKED),
        (select(ALIAS.dag_id).where(ALIAS.dag_id == "daily"), "dag_run_1.dag_id =", "WHEN (dag_run_1.dag_id IN"),
        (select(COLUMN).where(or_(COLUMN == "daily", COLUMN.is_(None))), "AND dag_run.dag_id IN", ""),
        (select(COLUMN).where(DagRun.state == "running"), "AND dag_run.dag_id IN", ""),
    ],
)
def test_what_has_a_key_is_narrowed_without_a_choice_of_another_plan(
    by: As, statement: Any, narrowed: str, checked: str
) -> None:
    """PostgreSQL would multiply how rare the key and the ids of Dags are, and compare each row with each."""
    with sending() as sent, by(BOB) as session:
        session.scalars(statement).unique().all()
    sql = sent[-1]
    assert narrowed in sql
    assert f"WHEN ({narrowed}" not in sql
    assert checked in sql if checked else "CASE" not in sql


def test_what_an_audit_row_is_about_is_looked_for_where_it_is_said(by: As) -> None:
    """PostgreSQL knows how many texts have a beginning, and nothing of how often a part of a text is among others."""
    assert owned_rows.about("connection", "beta").startswith(owned_rows._ABOUT_SOMETHING.removesuffix("%"))
    with sending() as sent, by(BOB) as session:
        session.scalars(select(Log)).all()
    (statement,) = (sql for sql in sent if "FROM log" in sql)
    assert re.search(r"log\.extra LIKE \S+ AND substr\(log\.extra, ", statement)


def test_a_row_that_hangs_on_another_is_narrowed_by_that_once(by: As) -> None:
    statement = select(TaskInstanceNote.content).join(TaskInstance, TaskInstance.id == TaskInstanceNote.ti_id)
    with sending() as sent, by(BOB) as session:
        assert set(session.scalars(statement)) == {"beta_daily", "daily"}
    # The note's own condition, and that of the task instance.
    assert sent[-1].count("dag_id IN") == 2


def test_what_is_loaded_later_is_narrowed_once_until_something_is_decided(by: As) -> None:
    with by(BOB) as session:
        first, second = session.scalars(select(DagRun).order_by(COLUMN)).all()
        with sending() as sent:
            assert [instance.dag_id for instance in first.task_instances] == ["beta_daily"]
        # Of the task instance, and of its run, which comes along.
        assert sent[-1].count("dag_id IN") == 2
        requests.conceal(Resource("dag", None, "daily"))
        requests.remember_allowed("read", Resource("dag", None, "unknown"))
        with sending() as sent:
            assert [instance.dag_id for instance in second.task_instances] == ["daily"]
        assert sent[-1].count("dag_id IN") > 2


def test_a_request_that_names_dags_finds_their_teams_among_all_dags(by: As) -> None:
    """They are read anyway. Whoever asks: a Dag that a person may not see does not seem to be common."""
    with sending() as sent, by(BOB) as session:
        found = [DagModel.get_team_name(dag_id) for dag_id in EVERYTHING]
        assert set(session.scalars(select(COLUMN))) == {"beta_daily", "daily"}
    assert found == ["alpha", "beta", None]
    assert sum("dag_bundle_team" in sql for sql in sent) == 1
    # A Dag that is not among them may be there by now.
    with sending() as sent, by(BOB):
        assert DagModel.get_team_name("unknown") is None
    assert sum("dag_bundle_team" in sql for sql in sent) == 2


def test_the_team_of_a_dag_is_that_of_its_bundle_at_each_request(by: As) -> None:
    def give_daily_to(team_id: str | None) -> None:
        of_daily = select(DagModel.bundle_name).where(DagModel.dag_id == "daily").scalar_subquery()
        association = dag_bundle_team_association_table
        with settings.Session() as session:
            session.execute(delete(association).where(association.c.dag_bundle_name == of_daily))
            if team_id:
                session.execute(insert(association).values(dag_bundle_name=of_daily, team_name=team_id))
            session.commit()

    try:
        for team_id in ("alpha", "beta"):
            give_daily_to(team_id)
            with by(BOB) as session:
                assert DagModel.get_team_name("daily") == team_id
                assert ("daily" in session.scalars(select(COLUMN)).all()) is (team_id == "beta")
    finally:
        give_daily_to(None)


@pytest.mark.parametrize("subject", [TASK, None], ids=["a task", "nobody"])
def test_only_a_person_reads_all_dags_to_find_a_team(by: As, subject: Subject | None) -> None:
    with sending() as sent, by(subject):
        assert DagModel.get_team_name("alpha_daily") == "alpha"
    assert not any("json" in sql for sql in sent)


def test_without_aliases_of_assets_no_whole_dag_is_read_for_them(by: As) -> None:
    with sending() as sent, by(BOB) as session:
        assert list(session.scalars(select(AssetAliasModel.name))) == []
    assert not any("FROM serialized_dag" in sql for sql in sent)


@pytest.mark.parametrize(
    ("dialect", "function"),
    [(mysql, "instr"), (postgresql, "strpos"), (sqlite, "instr")],
    ids=["mysql", "postgresql", "sqlite"],
)
def test_kinds_of_audit_rows_are_one_look_at_each_row(by: As, dialect: Any, function: str) -> None:
    with by(BOB) as session:
        found = wall._readable(session)
        assert found is not None
        criteria = owned_rows.OWNED["Log"].criteria(Log, found, writes=False)
    assert criteria is not None
    sql = str(criteria.compile(dialect=dialect.dialect()))
    assert sql.count("substr(") == sql.count(f"{function}(log.extra") == 1


def test_what_may_be_read_follows_the_tables_at_once(by: As) -> None:
    """What was found out about the rows of a request before is not used when a row is another one."""
    reference, output = DagScheduleAssetReference, TaskOutletAssetReference
    early, late = NOW, NOW.replace(year=2027)

    with by(BOB) as session:

        def found() -> tuple[bool, bool, bool]:
            """Whether a new request sees alpha's Dag, the asset, and what only the asset's owner sees of it."""
            with requests.request(of_airflow=True):
                requests.remember(BOB)
                readable_rows = wall.readable_by(BOB, session)
                assert readable_rows is not None
                dag = session.scalar(select(DagModel.dag_id).where(DagModel.dag_id == "alpha_daily"))
                asset = session.scalar(select(AssetModel.id).where(AssetModel.id == 1))
                return dag is not None, asset is not None, 1 in readable_rows.assets("state", writes=False).ids

        def change(*statements: Any) -> None:
            with requests.unfiltered():
                for statement in statements:
                    session.connection().execute(statement)

        def writes(dag_id: str, since: datetime) -> Any:
            values = {"asset_id": 1, "dag_id": dag_id, "task_id": "load", "created_at": since, "updated_at": since}
            return insert(output).values(**values)

        used, made, dags = reference.__table__, output.__table__, DagModel.__table__
        change(delete(made).where(made.c.asset_id == 1))
        # The state of what nobody produces is that of its first user.
        assert found() == (False, True, False)
        change(update(used).where(used.c.dag_id == "beta_daily").values(created_at=NOW.replace(year=2020)))
        assert found() == (False, True, True)
        change(delete(used).where(used.c.dag_id.in_(["beta_daily", "daily"])))
        assert found() == (False, False, False)
        change(writes("alpha_daily", early), writes("beta_daily", late))
        assert found() == (False, True, False)
        change(update(made).where(made.c.dag_id == "beta_daily").values(created_at=NOW.replace(year=2025)))
        assert found() == (False, True, True)
        change(update(made).where(made.c.dag_id == "beta_daily").values(created_at=late))
        assert found() == (False, True, False)
        change(update(dags).where(dags.c.dag_id == "alpha_daily").values(bundle_name="of beta"))
        assert found() == (True, True, True)


def test_counts_are_of_what_may_be_read(by: As) -> None:
    for statement in (
        select(func.count()).select_from(DagRun),
        select(func.count(DagRun.id)),
        select(func.count()).select_from(select(DagRun.id).order_by(DagRun.id).subquery()),
    ):
        with by(BOB) as session:
            assert session.scalar(statement) == 2


def test_an_object_is_not_had_by_its_key(by: As) -> None:
    with by(BOB) as session:
        assert session.get(DagModel, "alpha_daily") is None
        assert session.get(DagModel, "beta_daily") is not None


@pytest.mark.parametrize(
    ("model", "column", "mine"),
    [
        (Connection, Connection.conn_id, {"beta_db", "db"}),
        (Variable, Variable.key, {"beta_key", "announcement", "key"}),
        (Pool, Pool.pool, {"beta_pool", "pool"}),
        (ParseImportError, ParseImportError.stacktrace, {"beta", "None"}),
    ],
)
def test_rows_with_a_team_are_ones_own_and_common(by: As, model: Any, column: Any, mine: set[str]) -> None:
    with by(BOB) as session:
        assert set(session.scalars(select(column))) == mine
        assert session.scalar(select(func.count()).select_from(model)) == len(mine)
    with by(PAT) as session:
        assert set(session.scalars(select(column))) > mine


def test_who_may_read_no_connection_sees_none(by: As) -> None:
    with by(VIC) as session:
        assert list(session.scalars(select(Connection.conn_id))) == []


def test_audit_rows_are_shown_by_what_they_are_about(by: As) -> None:
    statement = select(func.coalesce(Log.dag_id, Log.owner))
    with by(BOB) as session:
        assert set(session.scalars(statement)) == {"beta_daily", "daily", "beta", "None", "bob"}
    with by(VIC) as session:
        assert set(session.scalars(statement)) == {"beta_daily", "daily"}
    with by(PAT) as session:
        assert len(list(session.scalars(statement))) == 12


@pytest.mark.parametrize("query", ["SELECT dag_id FROM dag_run", "select * from slot_pool p, variable v"])
def test_a_query_that_cannot_be_narrowed_is_not_sent(by: As, query: str) -> None:
    with by(BOB) as session, pytest.raises(wall.NotNarrowedError, match="cannot be narrowed to what user bob may read"):
        session.execute(text(query))
    with by(BOB) as session, pytest.raises(wall.NotNarrowedError):
        session.connection().execute(select(DagRun.__table__))
    with by(BOB) as session, requests.unfiltered():
        assert session.execute(text(query)).all()


@pytest.mark.parametrize(
    "query",
    [
        'SELECT a FROM "airflow"."dag_run"', "select a from `dag_run`", "SELECT 1 FROM job, dag_run d",
        "WITH x AS (SELECT 1 FROM dag_run) SELECT * FROM x", "SELECT a FROM t\nLEFT OUTER JOIN dag_run ON 1 = 1",
    ],
)  # fmt: skip
def test_an_owned_table_is_recognized_in_every_database(query: str) -> None:
    assert "dag_run" in wall._touched(query).read
    assert wall._touched("SELECT dag_run_id, run FROM team").read == set()


def test_outside_of_requests_everything_is_there(rows: None) -> None:  # noqa: ARG001
    with settings.Session() as session:
        assert set(session.scalars(select(COLUMN))) == {"alpha_daily", "beta_daily", "daily"}


def test_a_task_finds_its_own_dag_and_what_it_was_allowed_by_name(by: As) -> None:
    with by(TASK) as session:
        assert set(session.scalars(select(COLUMN))) == {"beta_daily"}
        assert list(session.scalars(select(Connection.conn_id))) == []
    allowed = ("read", Resource("dag", "alpha", "alpha_daily", "run")), ("read", Resource("connection", None, "db"))
    with by(TASK, *allowed) as session:
        assert set(session.scalars(select(COLUMN))) == {"beta_daily", "alpha_daily"}
        assert list(session.scalars(select(Connection.conn_id))) == ["db"]


def test_what_was_allowed_by_name_is_there(by: As) -> None:
    """A policy may let somebody change what it does not let be listed."""
    with by(VIC, ("update", Resource("connection", "alpha", "alpha_db"))) as session:
        assert list(session.scalars(select(Connection.conn_id))) == ["alpha_db"]


def test_an_event_is_seen_by_whom_may_read_its_dag_or_a_run_that_took_it(by: As) -> None:
    """Of an asset that they see: the asset of an event is theirs to see or not, whatever took the event."""
    taken_by = AssetEvent.metadata.tables["dagrun_asset_event"]
    now = {"created_at": NOW, "updated_at": NOW}
    source = {"source_dag_id": "alpha_daily", "source_map_index": -1, "timestamp": NOW, "extra": {}}
    with by(None) as session:
        send = session.connection().execute
        with requests.unfiltered():
            send(insert(AssetModel).values(id=9, name="alphas", uri="s3://alphas", group="", extra={}, **now))
            send(insert(TaskOutletAssetReference).values(asset_id=9, dag_id="alpha_daily", task_id="load", **now))
        for id_, asset_id, runs in ((91, 2, (1, 2)), (92, 2, (1,)), (93, 9, (1, 2))):
            rows = [insert(AssetEvent).values(id=id_, asset_id=asset_id, **source)]
            rows += [insert(taken_by).values(dag_run_id=run, event_id=id_) for run in runs]
            with requests.unfiltered():
                for row in rows:
                    send(row)
        statement = select(AssetEvent).options(selectinload(AssetEvent.created_dagruns))
        for subject, seen, of_dags in (
            (VIC, {91}, {"beta_daily"}),
            (ANN, {91, 92, 93}, {"alpha_daily"}),
            (PAT, {91, 92, 93}, {"alpha_daily", "beta_daily"}),
        ):
            with requests.request(of_airflow=True):
                requests.remember(subject)
                events = session.scalars(statement).all()
                assert {found.id for found in events} == seen
                assert {run.dag_id for found in events for run in found.created_dagruns} == of_dags
                session.expunge_all()


@pytest.mark.parametrize("subject", [ANN, BOB, TASK], ids=lambda subject: subject.id)
def test_what_is_left_of_a_dag_that_is_gone_is_the_platforms(by: As, subject: Subject) -> None:
    """Its question was about a common Dag, as about any Dag that is not there."""
    asked = (("read", Resource("dag", None, "gone", "audit_log")), ("delete", Resource("dag", None, "gone")))
    with by(subject, *asked) as session:
        assert "gone" not in session.scalars(select(Log.dag_id)).all()
        assert session.execute(delete(Log).where(Log.dag_id == "gone")).rowcount == 0
    with by(PAT, *asked) as session:
        assert "gone" in session.scalars(select(Log.dag_id)).all()


IVY = Subject("user", "ivy", ("alpha",), ("user",))
PARTS = {"run": DagRun.dag_id, "task_instance": TaskInstance.dag_id, "audit_log": Log.dag_id}
OWNERS_RULE = """package teams.alpha

deny contains "not for ivy" if {
	input.subject.id == "ivy"
	input.resource.entity in {"run", "task_instance", "audit_log"}
}
"""


@pytest.mark.parametrize("part", PARTS)
def test_a_list_of_parts_of_dags_leaves_out_what_their_owner_denies(
    by: As, part: str, policy_directory: Callable[[dict[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(policy_directory({"teams/alpha/alpha.rego": OWNERS_RULE})) as decisions:
        monkeypatch.setattr(readable, "decision_point", lambda: decisions)
        for subject, sees in ((IVY, False), (ANN, True)):
            with by(subject) as session:
                assert ("alpha_daily" in session.scalars(select(PARTS[part]))) is sees
                # The Dag itself is not denied.
                assert session.get(DagModel, "alpha_daily") is not None
                assert "daily" in session.scalars(select(PARTS[part]))


NO_PART = """package teams.alpha

deny contains "not for her" if input.subject.id == concat(" ", ["no", input.resource.entity])
"""


def test_every_row_of_a_part_is_narrowed_by_that_part(
    by: As, policy_directory: Callable[[dict[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_parts = {
        name: row
        for name, row in OWNED.items()
        if name in mapped_classes() and isinstance(row, OfDag) and row.entity is not UNSET
    }
    assert len({row.entity for row in of_parts.values()}) > 5
    with opened(policy_directory({"teams/alpha/alpha.rego": NO_PART})) as decisions:
        monkeypatch.setattr(readable, "decision_point", lambda: decisions)
        for name, row in of_parts.items():
            other = "run" if row.entity != "run" else "xcom"
            for part, sees in ((row.entity, False), (other, True)):
                with by(Subject("user", f"no {part}", ("alpha",), ("op",))) as session:
                    criteria: Any = row.criteria(mapped_classes()[name], wall._readable(session), False)
                    (found,) = criteria.compile().params.values()
                    assert ("alpha_daily" in found) is sees, (name, part)
                    assert "daily" in found


def test_dags_of_one_file_are_seen_together(by: As) -> None:
    """Files are read only where somebody may not read all Dags of a bundle: a file is in one bundle."""
    opened_dag = ("read", Resource("dag", "alpha", "alpha_daily"))
    for subject, allowed, sees, reads_files in (
        (BOB, (), set(), False),
        (ANN, (), {"daily", "second", "third"}, False),
        (BOB, (opened_dag,), {"daily", "second"}, True),
        (TASK, (opened_dag,), {"daily", "second"}, True),
    ):
        with by(subject, *allowed) as session, sending() as sent:
            with requests.unfiltered():
                _add_dags_beside_alpha_daily(session, alpha_second="one.py", alpha_third="other.py")
            found = session.scalars(select(DagModel.dag_id).where(DagModel.dag_id.startswith("alpha_")))
            assert {dag_id.removeprefix("alpha_") for dag_id in found} == sees
        assert any("json" in sql and "relative_fileloc" in sql for sql in sent) is reads_files


def _add_dags_beside_alpha_daily(session: Session, **files: str) -> None:
    dag: Any = DagModel.__table__
    session.execute(update(dag).where(dag.c.dag_id == "alpha_daily").values(relative_fileloc="one.py"))
    for dag_id, file in files.items():
        changed = {"dag_id": literal(dag_id), "relative_fileloc": literal(file)}
        columns = select(*(changed.get(column.name, column) for column in dag.c)).where(dag.c.dag_id == "alpha_daily")
        session.execute(insert(dag).from_select(list(dag.c), columns))
