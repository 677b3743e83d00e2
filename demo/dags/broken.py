"""In team alpha's bundle: a Dag file that cannot be imported, and whose error tells of alpha's."""

from pathlib import Path

from airflow.sdk import DAG

if Path(__file__).parent.name == "alpha-dags":
    with DAG("alpha_broken"):
        raise ConnectionError("warehouse.alpha.example does not answer")
