"""Assets: who makes events of them, and who waits for them. Each bundle holds a copy."""

import time
from pathlib import Path
from typing import Any

from airflow.providers.standard.triggers.file import FileDeleteTrigger
from airflow.sdk import DAG, Asset, AssetAccessControl, AssetWatcher, get_current_context, task

TEAM = Path(__file__).parent.name.removesuffix("-dags")
INBOX = str(Path(__file__).parent.parent / "inbox.txt")


def dag(name: str, schedule: Any, outlet: Asset | None = None) -> None:
    with DAG(f"{TEAM}_{name}", schedule=schedule, tags=[TEAM], is_paused_upon_creation=False):

        @task(outlets=[outlet] if outlet else [])
        def work() -> str:
            wait = (get_current_context()["dag_run"].conf or {}).get("wait")
            while wait and not Path(wait).exists():
                time.sleep(0.1)
            return "done"

        work()


closed = AssetAccessControl(allow_global=False)

if TEAM == "alpha":
    # Orders go to who takes them; secrets stay with their team.
    dag("makes_orders", None, Asset("orders"))
    dag(
        "makes_secrets",
        None,
        Asset("secrets", access_control=AssetAccessControl(consumer_teams=[], allow_global=False)),
    )
    dag("takes_orders", Asset("orders", access_control=closed))
    dag("takes_secrets", Asset("secrets", access_control=closed))
    watcher = AssetWatcher("inbox", trigger=FileDeleteTrigger(filepath=INBOX, poke_interval=1))
    dag("takes_inbox", Asset("inbox", watchers=[watcher], access_control=closed))

if TEAM == "beta":
    dag("closed_to_orders", Asset("orders", access_control=closed))
    dag("takes_orders", Asset("orders", access_control=AssetAccessControl(producer_teams=["alpha"])))
    dag("takes_secrets", Asset("secrets", access_control=AssetAccessControl(producer_teams=["alpha"])))
    # By its name: who describes the asset itself, without its watcher, takes the watcher away.
    dag("takes_inbox", Asset.ref(name="inbox"))
