"""What tasks try, what events start and which pools Dags use, on running Airflows: guarded, and Airflow alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest

from demo.play_running import look_at_all, start_all, try_all
from demo.running import RunningSite
from demo.running_scenes import ATTEMPTS, LOOKS, STARTS, Attempt

pytestmark = pytest.mark.timeout(900)

_ATTEMPTS_THAT_CHANGE = [scene for scene in ATTEMPTS if scene.owner]


def tried(site: RunningSite, scenes: Sequence[Attempt]) -> dict[str, bool]:
    return {words: result.done for words, result in try_all(site, scenes).items()}


def test_what_tasks_may_do(site: RunningSite) -> None:
    assert tried(site, ATTEMPTS) == {scene.words: scene.done for scene in ATTEMPTS}
    value = site.client("pat").get("/api/v2/variables/beta_config").json()
    assert (value["value"], value["team_name"]) == ("value of beta_config", "beta")


def test_which_dags_events_start(site: RunningSite) -> None:
    assert start_all(site, STARTS) == {scene.words: scene.done for scene in STARTS}


def test_a_refusal_is_in_the_tasks_log(site: RunningSite) -> None:
    run_id = site.begin("alpha", ("read connection", "beta_db"), ("read variable", "beta_config"))
    site.tried("alpha", run_id)
    path = f"/api/v2/dags/alpha_attempts/dagRuns/{run_id}/taskInstances/attempt/logs/1"
    log = site.client("ann").get(path, params={"full_content": "true"}).text
    assert "Refused: task alpha_attempts.attempt may not read connection beta_db of team beta" in log
    assert "Refused: task alpha_attempts.attempt may not read variable beta_config of team beta" in log


def test_a_dag_that_was_not_started_tells_why(site: RunningSite) -> None:
    site.make_event("alpha_makes_orders")
    wanted = {"dag_id": "beta_closed_to_orders", "event": "asset event refused", "order_by": "-when"}
    rows = site.wait_for(
        lambda: site.client("bob").get("/api/v2/eventLogs", params=wanted).json()["event_logs"], "the audit log"
    )
    assert "an event of team alpha starts it only if" in rows[0]["extra"]


def test_who_sees_what_dag_files_and_people_leave(site: RunningSite) -> None:
    assert look_at_all(site, LOOKS) == {scene.words: scene.done for scene in LOOKS}


def test_another_teams_pool_is_an_import_error(site: RunningSite) -> None:
    def refused() -> dict[tuple[str, str], str]:
        return {file: error for file, error in site.import_errors().items() if "may not be used" in error}

    errors = site.wait_for(lambda: (found := refused()) and len(found) == 2 and found, "Dags to be refused")
    assert set(errors) == {("beta-dags", "alpha_pool.py"), ("common-dags", "alpha_pool.py")}
    assert (
        "Dag beta_in_alphas_pool, task work: pool alpha_production may not be used"
        in errors["beta-dags", "alpha_pool.py"]
    )


@pytest.mark.parametrize(
    ("dag_id", "pool"),
    [
        ("alpha_in_alphas_pool", "alpha_production"),
        ("alpha_common_pool", "common_pool"),
        ("alpha_default_pool", "alpha_pool"),
        ("beta_default_pool", "default_pool"),
    ],
)
def test_own_common_and_default_pools(site: RunningSite, dag_id: str, pool: str) -> None:
    run_id = site.trigger(dag_id)
    site.wait_for(lambda: site.state(dag_id, run_id) == "success", f"{dag_id} to run")
    (task,) = site.client("pat").get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances").json()["task_instances"]
    assert task["pool"] == pool


def test_a_lent_pool_runs_the_borrowers_task(site: RunningSite) -> None:
    run_id = site.trigger("beta_in_alpha_lent")
    site.wait_for(lambda: site.state("beta_in_alpha_lent", run_id) == "success", "beta's task in alpha's pool to run")


def test_a_task_that_may_not_use_its_pool_does_not_run(site: RunningSite) -> None:
    """Though its Dag was imported: by then somebody may have changed the rules, or the pool's team."""
    run_id = site.trigger("beta_in_alpha_shown")
    site.wait_for(lambda: site.state("beta_in_alpha_shown", run_id) == "failed", "beta's task to be refused")
    path = f"/api/v2/dags/beta_in_alpha_shown/dagRuns/{run_id}/taskInstances/work/xcomEntries/return_value"
    assert site.client("pat").get(path).status_code == 404


def test_a_users_event_starts_what_the_user_may_start(site: RunningSite) -> None:
    before = site.runs_of(["alpha_takes_orders", "beta_takes_orders", "beta_closed_to_orders"])
    assets = site.client("ann").get("/api/v2/assets").json()["assets"]
    (orders,) = (asset["id"] for asset in assets if asset["name"] == "orders")
    answer = site.client("ann").post("/api/v2/assets/events", json={"asset_id": orders, "extra": {}})
    assert answer.status_code == 200, answer.text
    site.wait_for(
        lambda: site.runs("alpha_takes_orders") > before["alpha_takes_orders"]
        and site.runs("beta_takes_orders") > before["beta_takes_orders"], "Dags to start by ann's event"
    )  # fmt: skip
    assert site.runs("beta_closed_to_orders") == before["beta_closed_to_orders"]


_TAKEN = """
from airflow.sdk import DAG, Asset, task

for dag_id in ("alpha_daily", "beta_describes_inbox"):
    with DAG(dag_id, schedule=[Asset("inbox")], tags=["beta"], is_paused_upon_creation=False):

        @task
        def work():
            return "beta's"

        work()
"""


def test_another_teams_file_takes_no_dag_over(site: RunningSite) -> None:
    ann, bob, details = site.client("ann"), site.client("bob"), "/api/v2/dags/alpha_daily/details"
    # Apart from when the file was parsed.
    before = {name: value for name, value in ann.get(details).json().items() if "pars" not in name}
    file = site.home / "bundles" / "beta-dags" / "taken.py"
    file.write_text(_TAKEN)
    try:
        error = site.wait_for(lambda: site.import_errors().get(("beta-dags", "taken.py")), "beta's file to be refused")
        assert error.startswith("Dag alpha_daily belongs to team alpha (bundle alpha-dags), which declared it first")
        assert {name: value for name, value in ann.get(details).json().items() if "pars" not in name} == before
        assert bob.get(details).status_code == 403
        # The file's other Dag describes alpha's asset without its watcher, and has not taken that away.
        runs = site.runs("alpha_takes_inbox")
        site.make_event("watcher")
        site.wait_for(lambda: site.runs("alpha_takes_inbox") > runs, "alpha's watcher to start its Dag")
    finally:
        file.unlink()
    site.wait_for(lambda: ("beta-dags", "taken.py") not in site.import_errors(), "the import error to be gone")


def test_one_line_of_the_owner_changes_each(site: RunningSite) -> None:
    """Without a restart; the last test of this file, as it turns the site's policy round."""
    edits = defaultdict(list)
    changing = list(STARTS)
    for scene in (*_ATTEMPTS_THAT_CHANGE, *changing):
        edits[scene.owner].append(scene.rule)
    marker = (
        'deny contains "the new rules are in force" if input.resource.id == "alpha_config"; input.subject.id == "ann"'
    )
    edits["alpha"].append(marker.replace(" if ", " if { ") + " }")
    for owner, rules in edits.items():
        site.edit_policy(f"teams/{owner}/{owner}.rego", "", "\n" + "\n\n".join(rules) + "\n")
    site.wait_for(lambda: site.client("ann").get("/api/v2/variables/alpha_config").status_code == 403, "the new rules")
    assert tried(site, _ATTEMPTS_THAT_CHANGE) == {scene.words: not scene.done for scene in _ATTEMPTS_THAT_CHANGE}
    turned = [scene._replace(done=not scene.done) for scene in STARTS]
    assert start_all(site, turned) == {scene.words: scene.done for scene in turned}
