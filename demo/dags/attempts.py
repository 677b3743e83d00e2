"""What a team's task tries, as the run's configuration says; what came of each try is the task's result.

Callbacks and listeners of other tasks try the same, and so does the Dag's own callback: each leaves what came of it in
a file. Each bundle holds a copy, so there are such Dags of every team and common ones.
"""

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.listeners import hookimpl
from airflow.sdk import DAG, Connection, Variable, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowSkipException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.sdk.listener import get_listener_manager

TEAM = Path(__file__).parent.name.removesuffix("-dags")


def trigger(dag_id: str, context: Any) -> str:
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    run_id = f"{dag_id}-by-{context['run_id']}"
    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id))
    return "triggered"


def clear(dag_id: str, _: Any) -> str:
    from airflow.sdk.execution_time.comms import TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id="first", reset_dag_run=True))
    return "cleared"


def wait(file: str, _: Any) -> str:
    while not Path(file).exists():
        time.sleep(0.1)
    return "waited"


def pull(dag_id: str, context: Any) -> Any:
    return context["ti"].xcom_pull(dag_id=dag_id, task_ids="work", run_id="first", default="nothing")


def push(key: str, context: Any) -> Any:
    ti = context["ti"]
    ti.xcom_push(key=key, value="pushed")
    return ti.xcom_pull(key=key, task_ids=ti.task_id)


def query(name: str, _: Any) -> Any:
    from airflow.utils.session import create_session
    from sqlalchemy import func, select, table

    with create_session() as session:
        return session.scalar(select(func.count()).select_from(table(name)))


TRIES: dict[str, Callable[[str, Any], Any]] = {
    "read connection": lambda id_, _: Connection.get(id_).conn_type,
    "read variable": lambda key, _: Variable.get(key),
    "write variable": lambda key, _: Variable.set(key, "taken"),
    "delete variable": lambda key, _: Variable.delete(key),
    "list variables": lambda prefix, _: sorted(Variable.keys(prefix or None)),
    "touch": lambda file, _: Path(file).touch(),
    "wait for": wait,
    "trigger": trigger,
    "clear": clear,
    "pull xcom": pull,
    "push xcom": push,
    "query": query,
    "count runs": lambda dag_id, _: RuntimeTaskInstance.get_dr_count(dag_id),
    "task states": lambda dag_id, _: RuntimeTaskInstance.get_task_states(dag_id, run_ids=["first"]),
}


def try_all(context: Any, named: str = "attempts") -> list[dict[str, Any]]:
    outcomes = []
    for what, about in context["dag_run"].conf[named]:
        try:
            outcomes.append({"what": what, "about": about, "done": True, "told": TRIES[what](about, context)})
        except Exception as error:
            outcomes.append({"what": what, "about": about, "done": False, "told": f"{error} {error.__cause__ or ''}"})
    return outcomes


with DAG(f"{TEAM}_attempts", schedule=None, tags=[TEAM], max_active_runs=4):

    @task
    def attempt() -> list[dict[str, Any]]:
        return try_all(get_current_context())

    attempt()


def leaving(name: str, tried: str = "attempts") -> Callable[[Any], None]:
    """What tries, and leaves what came of it in a file of this name."""

    def leave(context: Any) -> None:
        file = Path(context["dag_run"].conf["leave_in"], name)
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(try_all(context, tried)))
        unfinished.rename(file)

    return leave


class Listener:
    @hookimpl
    def on_task_instance_success(self, task_instance: Any) -> None:
        leaving("a listener of success")(task_instance.get_template_context())

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any) -> None:
        kind = "retry" if task_instance.state == "up_for_retry" else "failure"
        leaving(f"a listener of {kind}")(task_instance.get_template_context())


# The Dag's own callback runs in the Dag processor, which has no message for pushing an XCom.
of_dag = leaving("the Dag's callback of failure", "reads")

# Its schedule is over, so it runs when it is asked to, backfills included.
with DAG(
    f"{TEAM}_callbacks",
    schedule="@yearly",
    start_date=datetime(2001, 1, 1),
    end_date=datetime(2001, 12, 31),
    catchup=False,
    tags=[TEAM],
    on_failure_callback=of_dag,
) as callbacks:

    @task(on_execute_callback=leaving("a callback of execution"), on_success_callback=leaving("a callback of success"))
    def succeed() -> None:
        get_listener_manager().add_listener(Listener())

    @task(on_skipped_callback=leaving("a callback of skipping"))
    def skip() -> None:
        raise AirflowSkipException

    @task(
        retries=1,
        retry_delay=timedelta(0),
        on_retry_callback=leaving("a callback of retry"),
        on_failure_callback=leaving("a callback of failure"),
        email="ann@alpha.example",
        email_on_retry=True,
        email_on_failure=True,
    )
    def fail() -> None:
        get_listener_manager().add_listener(Listener())
        raise AirflowException("as it should")

    succeed(), skip(), fail()
