"""In team beta's bundle: a Dag with the id of one of alpha's."""

from pathlib import Path

from airflow.sdk import DAG, task

if Path(__file__).parent.name == "beta-dags":
    with DAG("alpha_report", schedule=None):

        @task
        def work() -> str:
            return "beta's"

        work()
