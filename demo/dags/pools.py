"""A Dag whose tasks name no pool."""

from pathlib import Path

from airflow.sdk import DAG, task

TEAM = Path(__file__).parent.name.removesuffix("-dags")

with DAG(f"{TEAM}_default_pool", schedule=None, tags=[TEAM]):

    @task
    def work() -> str:
        return "done"

    work()

with DAG(f"{TEAM}_common_pool", schedule=None, tags=[TEAM]):

    @task(pool="common_pool")
    def work_in_common() -> str:
        return "done"

    work_in_common()
