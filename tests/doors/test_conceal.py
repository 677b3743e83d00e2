"""With ``refusals = conceal`` Airflow answers about another team's things like about what is not there.

What a number or a token finds is answered like that under ``explain`` as well.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from airflow import settings
from airflow.api_fastapi.core_api import security
from airflow.models import Connection, DagModel, DagRun, Pool, TaskInstance, Variable
from airflow.models.backfill import Backfill
from airflow.models.dagbag import DagPriorityParsingRequest
from airflow.models.dagwarning import DagWarning
from airflow.models.errors import ParseImportError
from airflow.models.log import Log
from airflow.models.xcom import XComModel
from itsdangerous import URLSafeSerializer
from sqlalchemy import delete, insert, select

from airflow_team_authz.doors import decision_point, wall
from tests.doors.test_user_requests import NEWEST, Site, airflows_routes, opened_site

__all__ = ["opened_site"]

ALPHAS = {"dag_id": "alpha_daily", "connection_id": "alpha_db", "pool_name": "alpha_pool", "variable_key": "alpha_key"}
MISSING = "not_there"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTHERS = {
    "asset_id": "1", "backfill_id": "1", "dag_run_id": "first", "dag_version_id": "1", "map_index": "-1",
    "task_id": "work", "try_number": "1", "version_number": "1", "xcom_key": "x", "run_id": "first",
}  # fmt: skip
BODIES: dict[tuple[str, str], Any] = {
    ("PATCH", "connections"): lambda id_: {"connection_id": id_, "conn_type": "http"},
    ("PATCH", "variables"): lambda id_: {"key": id_, "value": "2"},
    ("PATCH", "pools"): lambda id_: {"name": id_, "slots": 3, "include_deferred": False},
    ("PATCH", "dags"): lambda _: {"is_paused": True},
    ("POST", "dagRuns"): lambda _: {"logical_date": None},
    ("PATCH", "{dag_run_id}"): lambda _: {"state": "failed"},
    ("POST", "clear"): lambda _: {"dry_run": False},
    ("POST", "clearTaskInstances"): lambda _: {"dry_run": False},
    ("POST", "clearDagRuns"): lambda _: {"dag_runs": [{"dag_run_id": "first"}], "dry_run": False},
    ("POST", "xcomEntries"): lambda _: {"key": "x", "value": 1},
    ("PATCH", "{xcom_key:path}"): lambda _: {"value": 1},
    ("PATCH", "{task_id}"): lambda _: {"new_state": "failed"},
}
# Beside those of a path: what a query names.
QUERIES = (
    "/ui/structure/structure_data?dag_id={dag_id}",
    "/ui/backfills?dag_id={dag_id}",
    "/api/v2/backfills?dag_id={dag_id}",
    "/api/v2/eventLogs?dag_id={dag_id}",
)


@pytest.fixture
def site(opened_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The app with the second wall, which conceals."""
    wall.install()
    for route in airflows_routes(opened_site):
        for part in route.dependant.dependencies:
            # As the hooks have it, for what is imported after them.
            name = getattr(part.call, "__qualname__", "").partition(".")[0]
            if name.startswith("requires_access_"):
                monkeypatch.setattr(part, "call", wall.asked_before_handler(part.call, name))
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", "conceal")
    decision_point.forget()
    yield opened_site
    decision_point.forget()


def _named(site: Site) -> list[tuple[str, str]]:
    """Methods and paths of all routes that name something which a team owns."""
    found = [("GET", path) for path in QUERIES]
    for route in airflows_routes(site):
        if any(f"{{{name}" in route.path for name in ALPHAS):
            found += [(method, route.path) for method in sorted(route.methods)]
    return found


def _filled(template: str, named: dict[str, str]) -> str:
    values = OTHERS | named
    return re.sub(r"\{(\w+)(:path)?\}", lambda match: values.get(match[1], "1"), template)


def _asked(site: Site, who: str, method: str, template: str, named: dict[str, str]) -> tuple[int, str]:
    """Status and text, with the same word for whatever was named."""
    parts = template.split("/")
    body = BODIES.get((method, parts[-1])) or BODIES.get((method, parts[-2]), lambda _: {})
    (id_,) = {value for name, value in named.items() if f"{{{name}" in template} or {""}
    answer = site.ask(who, method, _filled(template, named), json=body(id_))
    return answer.status_code, answer.text.replace(id_, MISSING) if id_ else answer.text


def _rows() -> list[Any]:
    with settings.Session() as session:
        return [
            sorted(session.execute(select(*columns)).all(), key=str)
            for columns in (
                (Connection.conn_id, Connection.conn_type, Connection.team_name),
                (Variable.key, Variable._val, Variable.team_name),
                (Pool.pool, Pool.slots, Pool.team_name),
                (DagModel.dag_id, DagModel.is_paused),
                (DagRun.dag_id, DagRun.run_id, DagRun.state),
            )
        ]


@pytest.mark.parametrize("who", ["bob", "vic"])
def test_no_route_tells_another_teams_things_from_what_is_not_there(site: Site, who: str) -> None:
    before = _rows()
    missing = dict.fromkeys(ALPHAS, MISSING)
    statuses: dict[int, int] = {}
    differing = []
    for method, template in _named(site):
        there, gone = (_asked(site, who, method, template, named) for named in (ALPHAS, missing))
        statuses[there[0]] = statuses.get(there[0], 0) + 1
        if there != gone:
            differing.append((method, template, there, gone))
    assert differing == []
    assert statuses[404] > 20, statuses
    assert max(statuses) < 500, statuses
    assert _rows() == before


GONE = "gone_daily"


@pytest.fixture
def left_over(site: Site) -> Iterator[Callable[[], list[Any]]]:  # noqa: ARG001
    """What `airflow db clean` may leave of a Dag that it has deleted; returns these rows as they are now."""
    task = {"dag_id": GONE, "run_id": "first", "task_id": "work", "map_index": -1}
    run = {"run_type": "manual", "state": "success", "clear_number": 0, "log_template_id": 1}
    how = {"pool": "pool", "pool_slots": 1, "queue": "q", "priority_weight": 1, "try_number": 1, "max_tries": 0}
    with settings.Session() as session:
        run_key = session.scalar(
            insert(DagRun)
            .values(dag_id=GONE, run_id="first", run_after=NOW, start_date=NOW, **run)
            .returning(DagRun.id)
        )
        session.execute(insert(TaskInstance).values(id=uuid4(), state="success", **task, **how))
        session.execute(insert(XComModel).values(dag_run_id=run_key, key="x", value="1", timestamp=NOW, **task))
        of_backfill = {"max_active_runs": 1, "dag_run_conf": {}, "is_paused": False, "reprocess_behavior": "none"}
        session.execute(insert(Backfill).values(dag_id=GONE, from_date=NOW, to_date=NOW, **of_backfill))
        session.execute(insert(DagWarning).values(dag_id=GONE, warning_type="non-existent pool", message="x"))
        session.add(Log("trigger", owner="ann", dag_id=GONE))
        session.commit()
    tables = (DagRun, TaskInstance, XComModel, Backfill, DagWarning)

    def rows() -> list[Any]:
        with settings.Session() as session:
            return [session.execute(select(row.__table__).where(row.dag_id == GONE)).all() for row in tables]

    yield rows
    with settings.Session() as session:
        for row in (Log, *reversed(tables)):
            session.execute(delete(row).where(row.dag_id == GONE))
        session.commit()


@pytest.mark.parametrize(("who", "refusals"), [("bob", "explain"), ("vic", "conceal")])
def test_what_is_left_of_a_dag_that_is_gone_is_answered_like_what_is_not_there(
    site: Site, left_over: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, who: str, refusals: str
) -> None:
    """To a question such a Dag looks like a common one, since nothing says whose it was."""
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
    decision_point.forget()
    before = left_over()
    assert all(before)
    differing = {}
    for method, template in _named(site):
        if "{dag_id" in template:
            gone, missing = (_asked(site, who, method, template, {"dag_id": id_}) for id_ in (GONE, MISSING))
            if gone != missing:
                differing[method, template] = (gone, missing)
    assert differing == {}
    assert left_over() == before


@pytest.mark.parametrize("action", ["update", "delete"])
@pytest.mark.parametrize("map_index", [-1, None])
def test_a_bulk_change_names_another_teams_dag_like_one_that_is_not_there(
    site: Site, action: str, map_index: int | None
) -> None:
    def told(dag_id: str, path: str) -> str:
        task = {"dag_id": dag_id, "dag_run_id": "first", "task_id": "work", "map_index": map_index, "note": "x"}
        body = {"actions": [{"action": action, "entities": [task]}]}
        answer = site.ask("bob", "PATCH", path, json=body)
        assert answer.status_code == 200
        assert len(answer.json()[action]["errors"]) == 1
        return answer.text.replace(dag_id, MISSING)

    for path in ("dags/~/dagRuns/~/taskInstances", "dags/beta_daily/dagRuns/first/taskInstances"):
        assert told("alpha_daily", f"/api/v2/{path}") == told(MISSING, f"/api/v2/{path}")


def test_the_audit_log_holds_no_row_about_what_was_concealed_as_if_it_had_happened(site: Site) -> None:
    assert site.status("bob", "PATCH", "/api/v2/dags/alpha_daily", json={"is_paused": True}) == 404
    with settings.Session() as session:
        rows = session.scalars(select(Log.event).where(Log.dag_id == "alpha_daily", Log.owner == "bob")).all()
    assert rows == []


@pytest.fixture
def import_errors(site: Site) -> Iterator[dict[str | None, int]]:  # noqa: ARG001
    """The number of an import error in each bundle, of a file without a Dag."""
    bundles = ("of alpha", "of beta", "of None", "not configured", None)
    told = {"filename": "new.py", "stacktrace": "secret", "timestamp": NOW}
    errors = [ParseImportError(bundle_name=name, **told) for name in bundles]
    with settings.Session() as session:
        session.add_all(errors)
        session.flush()
        numbers = dict(zip(bundles, (error.id for error in errors), strict=True))
        session.commit()
    yield numbers
    with settings.Session() as session:
        session.execute(delete(ParseImportError).where(ParseImportError.id.in_(numbers.values())))
        session.commit()


@pytest.mark.parametrize("refusals", ["explain", "conceal"])
def test_an_import_error_of_a_file_without_dags_is_its_bundles_teams(
    site: Site, import_errors: dict[str | None, int], monkeypatch: pytest.MonkeyPatch, refusals: str
) -> None:
    """Airflow alone shows it to everybody who may see any."""
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
    decision_point.forget()
    path = "/api/v2/importErrors"
    for who, own in {"ann": {"of alpha"}, "vic": {"of beta"}, "pat": set(import_errors)}.items():
        seen = own | {"of None"}
        assert {error["bundle_name"] for error in site.ask(who, "GET", path).json()["import_errors"]} == seen
        for bundle, number in import_errors.items():
            answer = site.ask(who, "GET", f"{path}/{number}")
            assert answer.status_code == (200 if bundle in seen else 404), (who, bundle)
            assert ("secret" in answer.text) is (bundle in seen)
    for number in (import_errors["of alpha"], 0):
        assert site.status("nil", "GET", f"{path}/{number}") == 403


@pytest.fixture
def files(site: Site) -> Iterator[dict[str, str]]:
    """Paths that ask for a file of each owner to be parsed again: by a token that Airflow has signed."""
    signer = URLSafeSerializer(site.app.state.secret_key)
    named = {
        owner: {"bundle_name": f"of {owner}", "relative_fileloc": f"{owner}.py"} for owner in ("alpha", "beta", "no")
    }
    with settings.Session() as session:
        session.add_all(DagModel(dag_id=f"{owner}_in_file", **named[owner]) for owner in ("alpha", "beta"))
        session.commit()
    yield {owner: f"/api/v2/parseDagFile/{signer.dumps(file)}" for owner, file in named.items()}
    with settings.Session() as session:
        session.execute(delete(DagModel).where(DagModel.dag_id.endswith("_in_file")))
        session.execute(delete(DagPriorityParsingRequest))
        session.commit()


@NEWEST
@pytest.mark.parametrize("refusals", ["explain", "conceal"])
def test_a_token_of_another_teams_file_is_answered_like_one_of_no_file(
    site: Site, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, refusals: str
) -> None:
    monkeypatch.setenv("AIRFLOW__TEAM_AUTHZ__REFUSALS", refusals)
    decision_point.forget()
    for who, own in {"bob": 201, "vic": 403, "nil": 404}.items():
        answers = {owner: site.ask(who, "PUT", path) for owner, path in files.items()}
        assert {owner: answer.status_code for owner, answer in answers.items()} == {
            "alpha": 404, "beta": own, "no": 404
        }, who  # fmt: skip
        assert answers["alpha"].text == answers["no"].text
    assert site.status("pat", "PUT", files["alpha"]) == 201


def test_what_is_looked_for_by_more_than_its_name_is_looked_for_among_what_one_may_read() -> None:
    """Such a question of Airflow's queries the database for what it asks about."""
    asking = {name: make for name, make in vars(security).items() if name.startswith("requires_access_")}
    looking = {name for name, make in asking.items() if "session: SessionDep" in inspect.getsource(make)}
    assert looking == wall.FOUND_BY_HANDLE & asking.keys()
