"""Requests without a token, in process: of Dag processors, triggerers and commands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from airflow import settings
from airflow.api_fastapi.execution_api import app as execution_api
from airflow.api_fastapi.execution_api.routes import execution_api_router
from airflow.models import DagRun, TaskInstance
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert

from airflow_team_authz.doors import routes
from airflow_team_authz.identities import machines
from tests.doors.tasks.conftest import ARCHIVED, INSTANCES, STRANGERS_POOL, Api, everything, needs_state

IN_PROCESS = {
    "the Dag processor of alpha's bundle": (lambda session: machines.dag_processor("of alpha", session), "alpha"),
    "the Dag processor of a common bundle": (lambda session: machines.dag_processor("of None", session), None),
    "the Dag processor of a bundle that is not there": (lambda session: machines.dag_processor("x", session), None),
    "alpha's triggerer": (lambda _: machines.triggerer("alpha"), "alpha"),
    "the common triggerer": (lambda _: machines.triggerer(None), None),
    "nobody in particular": (None, None),
}


@pytest.mark.parametrize("who", IN_PROCESS)
def test_in_process_one_acts_for_a_team_and_only_reads(api: Api, who: str) -> None:
    subject, team_id = IN_PROCESS[who]

    def call(method: str, path: str, **more: Any) -> int:
        if subject is None:
            return int(api.call(machines.NO_TASK, method, path, **more).status_code)
        with machines.acting(subject):
            return int(api.call(machines.NO_TASK, method, path, **more).status_code)

    assert call("GET", "connections/db") == 200
    assert call("GET", "connections/beta_db") == 403
    assert call("GET", "connections/alpha_db") == (200 if team_id == "alpha" else 403)
    before = everything()
    for key in ("alpha_key", "beta_key", "key", "new"):
        assert call("PUT", f"variables/{key}", json={"val": "2"}) == 403
        assert call("DELETE", f"variables/{key}") == 403
    assert call("POST", "dag-runs/alpha_daily/new", json={}) == 403
    assert everything() == before


ACTING = {
    "the Dag processor of a team's bundle": ("beta", lambda session: machines.dag_processor("of beta", session)),
    "a team's triggerer": ("beta", lambda _: machines.triggerer("beta")),
    "the common triggerer": (None, lambda _: machines.triggerer(None)),
    "a task that is tested": ("beta", lambda session: machines.task(INSTANCES["beta"], session)),
    "a task that is tested, after its attempt": ("alpha", lambda session: machines.task(ARCHIVED, session)),
}
_HERE = {getattr(route, "path", "") for route in execution_api_router.routes}
ABOUT_A_TASK = [about for about in routes.ROUTES if "{task_instance_id}" in about[1] and about[1] in _HERE]


@pytest.fixture(scope="module")
def without_tokens(opened_api: Api) -> Iterator[TestClient]:  # noqa: ARG001
    with TestClient(execution_api.InProcessExecutionAPI().app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def in_process(api: Api, without_tokens: TestClient) -> Api:
    """The API as the Dag processor and the triggerer have it: without tokens."""
    return api._replace(client=without_tokens)


@pytest.mark.parametrize("who", ACTING)
def test_in_process_nobody_acts_for_a_task_of_another_team(in_process: Api, who: str) -> None:
    own, subject = ACTING[who]
    answers: dict[tuple[str, str], dict[str | None, str]] = {}
    for method, path in ABOUT_A_TASK:
        answers[method, path] = {}
        for team_id, instance in INSTANCES.items():
            url = path.replace("{task_instance_id}", str(instance)).replace("{key:path}", "place")
            with machines.acting(subject):
                answer = in_process.client.request(method, url, **({"json": {}} if method != "GET" else {}))
            refused = answer.status_code == 403 and "may not act for task" in answer.text
            answers[method, path][team_id] = "refused" if refused else "own"
    assert answers == {
        about: {team_id: "own" if team_id == own else "refused" for team_id in INSTANCES} for about in ABOUT_A_TASK
    }
    with machines.acting(subject):
        assert in_process.client.get(f"/hitlDetails/{uuid4()}").status_code == 404


@pytest.mark.usefixtures("concealing")
@pytest.mark.parametrize("who", ACTING)
def test_in_process_a_task_of_another_team_is_answered_like_none(in_process: Api, who: str) -> None:
    own, _ = ACTING[who]
    for team_id, instance in INSTANCES.items():
        if team_id != own:
            _is_answered_like_none(in_process, who, str(instance))


def _is_answered_like_none(in_process: Api, who: str, id_: str) -> None:
    """Each route answers about this task instance as about one that does not exist."""
    _, subject = ACTING[who]
    for method, path in ABOUT_A_TASK:
        answers = []
        for asked in (id_, unknown := str(uuid4())):
            url = path.replace("{task_instance_id}", asked).replace("{key:path}", "place")
            with machines.acting(subject):
                answers.append(in_process.client.request(method, url, **({"json": {}} if method != "GET" else {})))
        there, missing = answers
        assert (there.status_code, there.text) == (missing.status_code, missing.text.replace(unknown, id_)), path


@pytest.fixture
def left_over(api: Api) -> Iterator[UUID]:  # noqa: ARG001
    """A task instance whose Dag somebody has deleted, as `airflow db clean` may leave it."""
    id_, named = uuid4(), {"dag_id": "gone_daily", "run_id": "first"}
    run = {"run_type": "manual", "state": "running", "clear_number": 0, "log_template_id": 1}
    how = {"pool": "pool", "pool_slots": 1, "queue": "q", "priority_weight": 1, "try_number": 1, "max_tries": 0}
    with settings.Session() as session:
        session.execute(insert(DagRun).values(run_after=datetime(2026, 1, 1, tzinfo=UTC), **named, **run))
        session.execute(insert(TaskInstance).values(id=id_, task_id="work", map_index=-1, **named, **how))
        session.commit()
    yield id_
    with settings.Session() as session:
        session.execute(delete(TaskInstance).where(TaskInstance.dag_id == "gone_daily"))
        session.execute(delete(DagRun).where(DagRun.dag_id == "gone_daily"))
        session.commit()


@pytest.mark.parametrize("who", ACTING)
def test_in_process_a_task_whose_dag_is_gone_is_answered_like_none(in_process: Api, left_over: UUID, who: str) -> None:
    """Also to whoever belongs to no team, as such a task seems to do."""
    _is_answered_like_none(in_process, who, str(left_over))


@needs_state
def test_in_process_one_answers_for_a_task_of_the_own_team(in_process: Api) -> None:
    asked = {"options": ["yes", "no"], "subject": "?", "ti_id": str(INSTANCES["alpha"])}
    answer = {"chosen_options": ["yes"], "params_input": {}, "ti_id": str(INSTANCES["alpha"])}
    path = f"/hitlDetails/{INSTANCES['alpha']}"
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert in_process.client.post(path, json=asked).status_code == 201
    with machines.acting(lambda _: machines.triggerer("beta")):
        assert in_process.client.patch(path, json=answer).status_code == 403
        assert in_process.client.get(path).status_code == 403
    with machines.acting(lambda _: machines.triggerer("alpha")):
        assert in_process.client.get(path).json()["response_received"] is False
        assert in_process.client.patch(path, json=answer).status_code == 200


def test_in_process_the_path_says_who_starts_a_task_that_is_tested(in_process: Api) -> None:
    """`dag.test()` starts and ends tasks itself; only what their code asks for is made on their behalf."""
    body = {"state": "running", "hostname": "h", "unixname": "u", "pid": 1, "start_date": "2026-01-01T00:00:00Z"}
    refused = in_process.client.patch(f"/task-instances/{STRANGERS_POOL}/run", json=body)
    assert "may not use pool beta_pool" in refused.json()["detail"]["message"]
