"""What a team's task tries, as the run's configuration says; what came of each try is the task's result.

Each bundle holds a copy, so there is such a Dag of every team and a common one.
"""

import time
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Connection, Variable, get_current_context, task
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

TEAM = Path(__file__).parent.name.removesuffix("-dags")


def trigger(dag_id: str) -> str:
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    run_id = f"{dag_id}-by-{get_current_context()['run_id']}"
    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id))
    return "triggered"


def clear(dag_id: str) -> str:
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id="first", reset_dag_run=True))
    return "cleared"


def wait(file: str) -> str:
    while not Path(file).exists():
        time.sleep(0.1)
    return "waited"


TRIES: dict[str, Any] = {
    "read connection": lambda id_: Connection.get(id_).conn_type,
    "read variable": Variable.get,
    "write variable": lambda key: Variable.set(key, "taken"),
    "delete variable": Variable.delete,
    "list variables": lambda prefix: sorted(Variable.keys(prefix or None)),
    "touch": lambda file: Path(file).touch(),
    "wait for": wait,
    "trigger": trigger,
    "clear": clear,
    "pull xcom": lambda dag_id: get_current_context()["ti"].xcom_pull(
        dag_id=dag_id, task_ids="work", run_id="first", default="nothing"
    ),
    "count runs": RuntimeTaskInstance.get_dr_count,
    "task states": lambda dag_id: RuntimeTaskInstance.get_task_states(dag_id, run_ids=["first"]),
}

with DAG(f"{TEAM}_attempts", schedule=None, tags=[TEAM], max_active_runs=4):

    @task
    def attempt() -> list[dict[str, Any]]:
        outcomes = []
        for what, about in get_current_context()["dag_run"].conf["attempts"]:
            try:
                outcomes.append({"what": what, "about": about, "done": True, "told": TRIES[what](about)})
            except Exception as error:
                outcomes.append(
                    {"what": what, "about": about, "done": False, "told": f"{error} {error.__cause__ or ''}"}
                )
        return outcomes

    attempt()
