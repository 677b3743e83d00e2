"""A Dag in team alpha's pool: fine for alpha, an import error for all others."""

from pathlib import Path

from airflow.sdk import DAG, task

TEAM = Path(__file__).parent.name.removesuffix("-dags")

with DAG(f"{TEAM}_in_alphas_pool", schedule=None, tags=[TEAM]):

    @task(pool="alpha_production")
    def work() -> str:
        return "done"

    work()
