"""The second wall: a request writes what its subject may write, however it does that."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow import settings
from airflow.models import Connection, DagModel, DagRun, Pool, Variable
from airflow.models.dag import DagTag
from airflow.models.dagbag import DagPriorityParsingRequest
from airflow.models.taskinstance import TaskInstanceNote
from fastapi import HTTPException
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from airflow_team_authz.doors import owned_rows, wall
from airflow_team_authz.identities import requests
from airflow_team_authz.model import Resource
from tests.doors.wall.conftest import BOB, PAT, VIC, As


def _change(session: Session, conn_id: str, **values: Any) -> None:
    """As code does that has found a row by a way of its own."""
    with requests.unfiltered():
        found = session.scalars(select(Connection).where(Connection.conn_id == conn_id)).one()
    for name, value in values.items():
        setattr(found, name, value)
    session.flush()


def _delete_run(session: Session, dag_id: str) -> None:
    with requests.unfiltered():
        session.delete(session.scalars(select(DagRun).where(DagRun.dag_id == dag_id)).one())
    session.flush()


def _add_pool(session: Session, team_id: str) -> None:
    session.add(Pool(pool="x", slots=1, include_deferred=False, team_name=team_id))
    session.flush()


def _parse_again(session: Session, team_id: str) -> None:
    with requests.unfiltered():
        session.execute(update(DagModel).values(relative_fileloc=DagModel.dag_id + ".py"))
    file = {"bundle_name": f"of {team_id}", "relative_fileloc": f"{team_id}_daily.py"}
    session.add(DagPriorityParsingRequest(**file))
    session.flush()


@pytest.mark.parametrize(
    ("write", "refusal"),
    [
        (lambda session: _change(session, "alpha_db", host="bobs.example"), "may not update connection alpha_db"),
        (
            lambda session: _change(session, "beta_db", team_name="alpha"),
            "may not update connection beta_db of team alpha",
        ),
        (lambda session: _delete_run(session, "alpha_daily"), "may not delete dag alpha_daily"),
        (lambda session: _add_pool(session, "alpha"), "may not create pool x of team alpha"),
        (lambda session: _parse_again(session, "alpha"), "may not create dag alpha_daily of team alpha"),
        (lambda session: _change(session, "beta_db", host="bobs.example"), None),
        (lambda session: _add_pool(session, "beta"), None),
        (lambda session: _parse_again(session, "beta"), None),
    ],
)
def test_a_row_of_others_is_not_written(by: As, write: Callable[[Session], None], refusal: str | None) -> None:
    with by(BOB) as session:
        if refusal is None:
            write(session)
            return
        with pytest.raises(HTTPException, match=refusal):
            write(session)


def test_a_row_that_hangs_on_a_new_one_is_asked_about_with_that(by: As) -> None:
    """As the history of a task that waited for an answer, when its run is cleared."""
    hanging = owned_rows.OWNED["TaskInstanceNote"]
    with by(BOB) as session, requests.unfiltered():
        note = session.scalars(select(TaskInstanceNote).where(TaskInstanceNote.content == "alpha_daily")).one()
        assert {resource.id for resource in hanging.resources(note, session)} == {"alpha_daily"}
        assert hanging.resources(SimpleNamespace(ti_id=uuid4()), session) == set()


def test_somebody_who_sees_nothing_of_a_type_is_not_told_whose_a_row_is(by: As) -> None:
    with by(VIC) as session, pytest.raises(HTTPException, match="may not update connection alpha_db") as refused:
        _change(session, "alpha_db", host="vics.example")
    assert "alpha:" not in refused.value.detail
    assert "of team alpha" not in refused.value.detail


def test_what_one_may_read_is_not_kept_for_another(by: As) -> None:
    with by(PAT) as session:
        assert "alpha_db" in session.scalars(select(Connection.conn_id))
        requests.remember(BOB)
        assert "alpha_db" not in session.scalars(select(Connection.conn_id))


def test_a_row_is_asked_about_under_the_team_that_it_had(by: As) -> None:
    asked_about_beta = ("update", Resource("connection", "beta", "alpha_db"))
    with by(BOB, asked_about_beta) as session, pytest.raises(HTTPException, match="of team alpha"):
        _change(session, "alpha_db", team_name="beta")


@pytest.mark.parametrize("statement", [update(DagRun).values(state="failed"), delete(DagRun)], ids=["update", "delete"])
def test_a_bulk_change_leaves_what_may_not_be_changed(by: As, statement: Any) -> None:
    with by(BOB) as session:
        assert session.execute(statement).rowcount == 2
    with by(VIC) as session:
        assert session.execute(statement).rowcount == 0
    with by(VIC, ("trigger", Resource("dag", "alpha", "alpha_daily", "run"))) as session:
        assert session.execute(statement).rowcount == 1


def test_an_insert_does_not_replace_what_others_have(by: As) -> None:
    def statement(key: str, team_id: str | None) -> Any:
        values = {"key": key, "val": "bobs", "team_name": team_id, "is_encrypted": False}
        return upsert(Variable).values(**values).on_conflict_do_update(index_elements=["key"], set_={"val": "bobs"})

    for key, team_id in (("alpha_key", "beta"), ("alpha_key", "alpha"), ("key", "beta"), ("key", None)):
        with by(BOB) as session, pytest.raises(HTTPException, match=f"The variable {key} already exists"):
            session.execute(statement(key, team_id))
    with by(BOB) as session, pytest.raises(HTTPException, match="may not create variable new of team alpha"):
        session.execute(statement("new", "alpha"))
    with by(BOB, ("update", Resource("variable", "beta", "beta_key"))) as session:
        session.execute(statement("beta_key", "beta"))
        session.execute(statement("new", "beta"))


def test_a_row_of_others_is_not_inserted(by: As) -> None:
    with by(BOB) as session, pytest.raises(HTTPException, match="may not create dag alpha_daily"):
        session.execute(insert(DagTag).values(dag_id="alpha_daily", name="bobs"))
    with by(BOB) as session:
        session.execute(insert(DagTag).values(dag_id="beta_daily", name="bobs"))


def test_rows_that_cannot_be_checked_are_not_inserted(by: As) -> None:
    with by(BOB) as session, pytest.raises(wall.NotNarrowedError, match="inserted into dag_tag"):
        session.execute(insert(DagTag), [{"dag_id": "beta_daily", "name": "bobs"}])


# Airflow inserts the task instances of a run by these.
AT_ONCE: dict[str, Callable[[Session, str], Any]] = {
    "rows": lambda session, dag_id: session.bulk_insert_mappings(DagTag.__mapper__, _tags(dag_id)),
    "objects": lambda session, dag_id: session.bulk_save_objects([DagTag(**tag) for tag in _tags(dag_id)]),
    "into a table": lambda session, dag_id: session.execute(insert(DagTag.__table__), _tags(dag_id)),
    "one into a table": lambda session, dag_id: session.execute(insert(DagTag.__table__).values(_tags(dag_id)[1])),
}


def _tags(dag_id: str) -> list[dict[str, str]]:
    return [{"dag_id": "beta_daily", "name": "bobs"}, {"dag_id": dag_id, "name": "bobs too"}]


@pytest.mark.parametrize("write", AT_ONCE.values(), ids=AT_ONCE)
def test_each_of_many_rows_that_are_inserted_at_once_is_asked_about(
    by: As, write: Callable[[Session, str], Any]
) -> None:
    with by(BOB) as session, pytest.raises(HTTPException, match="may not create dag alpha_daily"):
        write(session, "alpha_daily")
    with by(BOB) as session:
        write(session, "beta_daily")
    with by(BOB, ("create", Resource("dag", "alpha", "alpha_daily", "run"))) as session:
        write(session, "alpha_daily")


# Its owner is said to be beta, and the key is another team's.
_VARIABLE = {"key": "alpha_key", "val": "bobs", "team_name": "beta", "is_encrypted": False}
PAST_THE_SESSION: dict[str, Callable[[Session], Any]] = {
    "changes at once": lambda session: session.bulk_update_mappings(Pool.__mapper__, [{"id": 1, "slots": 0}]),
    "an update of a table": lambda session: session.execute(update(Variable.__table__).values(val="")),
    "an upsert into a table": lambda session: session.connection().execute(
        upsert(Variable.__table__)
        .values(_VARIABLE)
        .on_conflict_do_update(index_elements=["key"], set_={"val": "changed"})
    ),
    "an insert that replaces": lambda session: session.connection().execute(
        insert(Variable.__table__).prefix_with("OR REPLACE").values(_VARIABLE)
    ),
    "an insert of what a query finds": lambda session: session.connection().execute(
        insert(DagTag.__table__).from_select(["dag_id", "name"], select(text("'alpha_daily'"), text("'bobs'")))
    ),
    "an insert for an owner that is an expression": lambda session: session.connection().execute(
        insert(DagTag.__table__).values(dag_id=func.lower("ALPHA_DAILY"), name="bobs")
    ),
    "an insert of several rows as one": lambda session: session.connection().execute(
        insert(DagTag.__table__).values([{"dag_id": "beta_daily", "name": "x"}, {"dag_id": "alpha_daily", "name": "x"}])
    ),
    "a delete from a table": lambda session: session.execute(delete(DagRun.__table__)),
    "text": lambda session: session.execute(text('DELETE FROM "dag_run"')),
    "text that changes by another name": lambda session: session.execute(
        text("WITH x AS (SELECT 1) INSERT INTO dag_tag SELECT * FROM x")
    ),
    "another connection": lambda session: session.connection().execute(delete(DagRun.__table__)),
}


@pytest.mark.parametrize("write", PAST_THE_SESSION.values(), ids=PAST_THE_SESSION)
def test_what_is_written_past_the_session_is_not_sent(by: As, write: Callable[[Session], Any]) -> None:
    with by(BOB) as session, pytest.raises(wall.NotNarrowedError, match="cannot be checked for user bob"):
        write(session)
    # Nor after something has been checked and written, or failed to be.
    with by(BOB) as session:
        session.add(DagTag(dag_id="beta_daily", name="bobs"))
        session.flush()
        with pytest.raises(wall.NotNarrowedError):
            write(session)
    with by(BOB) as session:
        session.add(DagTag(dag_id="beta_daily", name=None))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        with pytest.raises(wall.NotNarrowedError):
            write(session)


@pytest.mark.parametrize(("model", "name"), [(Connection, "alpha_db"), (Variable, "alpha_key"), (Pool, "alpha_pool")])
def test_what_was_allowed_under_another_team_opens_no_row(by: As, model: Any, name: str) -> None:
    type_ = model.__name__.lower()
    of_alpha = select(func.count()).select_from(model).where(model.team_name == "alpha")
    with settings.Session() as session:
        there = session.scalar(of_alpha)
    for team_id in ("beta", None):
        with by(BOB, *((action, Resource(type_, team_id, name)) for action in ("read", "update"))) as session:
            assert session.scalars(select(model)).all()
            assert all(row.team_name != "alpha" for row in session.scalars(select(model)))
            session.execute(delete(model))
            with requests.unfiltered():
                assert session.scalar(of_alpha) == there
    with by(BOB, ("read", Resource(type_, "alpha", name))) as session:
        assert [row.team_name for row in session.scalars(select(model))].count("alpha") == 1
