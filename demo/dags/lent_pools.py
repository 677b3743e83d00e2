"""Team beta's Dags in pools of team alpha: one that alpha lends, and one that beta's Dags may name but not use."""

from pathlib import Path

from airflow.sdk import DAG, task

TEAM = Path(__file__).parent.name.removesuffix("-dags")

if TEAM == "beta":
    for pool in ("alpha_lent", "alpha_shown"):
        with DAG(f"beta_in_{pool}", schedule=None, tags=[TEAM]):

            @task(pool=pool)
            def work() -> str:
                return "done"

            work()
