"""What Airflow's own commands do with this package: who asks, and what tasks get that they run in their own process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from demo.running import RunningSite
from tests.running import commands
from tests.running.test_callbacks import OF_TASKS, OF_THE_DAG, READ, TRIED, left_in

pytestmark = [pytest.mark.timeout(900), pytest.mark.exhaustive]

# A command's own process has Airflow's database.
BY_COMMAND = TRIED | {("query", "connection"): True}
OF_ONE_TASK = {"a callback of execution", "a callback of success", "a listener of success"}
WITHOUT_FAILURE = OF_ONE_TASK | {"a callback of skipping"}


def test_what_tasks_get_that_a_command_runs(site_in_process: RunningSite, tmp_path: Path) -> None:
    site, left = site_in_process, tmp_path / "left"
    left.mkdir()
    file = site.home / "bundles" / "alpha-dags" / "attempts.py"
    (tmp_path / "gamma-dags").mkdir()
    elsewhere = shutil.copy(file, tmp_path / "gamma-dags" / "attempts.py")
    conf = {"attempts": list(TRIED), "reads": list(READ)}
    errors = site.import_errors().keys()
    # The scheduler would run what the commands run.
    _pause(site, True)
    try:
        arguments = (str(file), str(elsewhere), str(left), json.dumps(conf))
        done = site.airflow.attempt(commands.__file__, *arguments, seconds=400)
    finally:
        _pause(site, False)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    in_no_bundle = ended.pop("dag.test() of a Dag in no bundle")
    assert ended == {"backfill": "", "dags test": "DagRun failed", "tasks test": "", "dag.test()": ""}
    assert "gamma_callbacks because the dag is not serialized" in in_no_bundle

    # Outside of a task nothing asks the Execution API, and nobody else does.
    of_the_dag = dict.fromkeys(READ, False) | {("query", "connection"): True}
    assert left_in(left / "dags test") == dict.fromkeys(OF_TASKS, BY_COMMAND) | {OF_THE_DAG: of_the_dag}
    assert left_in(left / "tasks test") == dict.fromkeys(OF_ONE_TASK, BY_COMMAND)
    assert left_in(left / "dag.test()") == dict.fromkeys(WITHOUT_FAILURE, BY_COMMAND)
    # They have read all files of the bundle: the doors for names and pools stand in their way as well.
    assert site.import_errors().keys() == errors

    # What the scheduler makes of a backfill are tasks like any other.
    by_scheduler = left / "backfill" / "a listener of success"
    site.wait_for(by_scheduler.exists, "the backfill to run")
    assert left_in(left / "backfill").items() >= dict.fromkeys(OF_ONE_TASK, TRIED).items()


def _pause(site: RunningSite, paused: bool) -> None:
    answer = site.client("pat").patch("/api/v2/dags/alpha_callbacks", json={"is_paused": paused})
    assert answer.status_code == 200, answer.text
