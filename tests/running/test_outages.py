"""The policy is gone, frozen, empty or broken while tasks run: nothing forbidden happens, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.opa import Opa
from demo.running import RunningSite
from demo.running_scenes import ATTEMPTS

pytestmark = pytest.mark.timeout(900)

_OF_ALPHA = [scene for scene in ATTEMPTS if scene.team == "alpha" and scene.what != "trigger"]
_CONSUMERS = ("alpha_takes_orders", "beta_takes_orders", "beta_closed_to_orders")


def waiting(site: RunningSite) -> list[dict[str, Any]]:
    """What `team-authz assets list` shows."""
    told = site.airflow.attempt("-m", "airflow_team_authz.cli", "assets", "list", "--output", "json")
    assert told.returncode in {0, 1}, told.stderr
    rows = json.loads(told.stdout)
    assert told.returncode == int(bool(rows))
    return list(rows)


@contextmanager
def killed(site: RunningSite) -> Iterator[None]:
    assert site.opa is not None
    os.kill(site.opa.pid, signal.SIGKILL)
    site.opa.stop()
    yield
    site.opa.start()


@contextmanager
def frozen(site: RunningSite) -> Iterator[None]:
    assert site.opa is not None
    os.kill(site.opa.pid, signal.SIGSTOP)
    yield
    os.kill(site.opa.pid, signal.SIGCONT)


@contextmanager
def empty(site: RunningSite) -> Iterator[None]:
    assert site.opa is not None
    site.opa.stop()
    nothing = Opa(site.home / "opa", None)
    nothing.start()
    yield
    nothing.stop()
    site.opa.start()


Fault = Callable[[RunningSite], Any]


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", [killed, frozen, empty])
def test_without_an_opa_server_nothing_forbidden_happens_and_nothing_is_lost(
    site_with_opa: RunningSite, fault: Fault, tmp_path: Path
) -> None:
    site = site_with_opa
    go, tried, end = (tmp_path / name for name in ("go", "tried", "end"))
    attempts = [(scene.what, scene.about) for scene in _OF_ALPHA]
    task = site.begin("alpha", ("wait for", str(go)), *attempts, ("touch", str(tried)), ("wait for", str(end)))
    producer = site.trigger("alpha_makes_orders", {"wait": str(go)})
    for dag_id, run_id, task_id in (("alpha_attempts", task, "attempt"), ("alpha_makes_orders", producer, "work")):
        instance = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        site.wait_for(
            lambda instance=instance: site.client("pat").get(instance).json()["state"] == "running",  # type: ignore[misc]
            f"{dag_id} to run",
        )
    before = site.runs_of(_CONSUMERS)
    already = len(waiting(site))

    with fault(site):
        assert site.client("ann").get("/api/v2/variables/alpha_config").status_code == 503
        go.touch()
        site.wait_for(tried.exists, "the task to try everything")
        # The producer has ended, though no decision could be had, and its event waits with all who wait for it.
        site.wait_for(lambda: len(waiting(site)) == already + len(_CONSUMERS), "the event to be held back")
    site.wait_for(lambda: site.client("pat").get("/api/v2/variables/beta_config").status_code == 200, "decisions")
    end.touch()

    _, *outcomes, _, _ = site.tried("alpha", task)
    assert [outcome.done for outcome in outcomes] == [False] * len(attempts)
    assert site.client("pat").get("/api/v2/variables/beta_config").json()["value"] == "value of beta_config"
    assert site.state("alpha_makes_orders", producer) == "success"
    assert site.runs_of(_CONSUMERS) == before

    replayed = site.airflow.attempt("-m", "airflow_team_authz.cli", "assets", "replay")
    assert replayed.returncode == 0, replayed.stderr
    assert waiting(site) == []
    site.wait_for(
        lambda: all(site.runs(dag_id) > before[dag_id] for dag_id in _CONSUMERS[:2]), "what was held back to start"
    )
    assert site.runs("beta_closed_to_orders") == before["beta_closed_to_orders"]
    _as_ever(site)


@contextmanager
def deleted(site: RunningSite) -> Iterator[None]:
    away = site.policy.with_name("away")
    site.policy.rename(away)
    yield
    away.rename(site.policy)


@contextmanager
def truncated(site: RunningSite) -> Iterator[None]:
    with _replaced(site.policy / "teams" / "beta" / "beta.rego", lambda text: text[: len(text) // 2]):
        yield


@contextmanager
def broken(site: RunningSite) -> Iterator[None]:
    with _replaced(site.policy / "airflow" / "site" / "site.rego", lambda text: text + "\nallow contains {{{\n"):
        yield


@contextmanager
def _replaced(file: Path, change: Callable[[str], str]) -> Iterator[None]:
    text = file.read_text()
    file.write_text(change(text))
    yield
    file.write_text(text)


@pytest.mark.parametrize(
    "fault", [*(pytest.param(fault, marks=pytest.mark.exhaustive) for fault in (deleted, truncated)), broken]
)
def test_a_policy_that_is_spoilt_leaves_the_last_good_one_in_force(site_in_process: RunningSite, fault: Fault) -> None:
    site = site_in_process
    with fault(site):
        # The engine looks at its files several times a second.
        time.sleep(2)
        _as_ever(site)
        site.make_event("alpha_makes_orders")
    assert waiting(site) == []


def _as_ever(site: RunningSite) -> None:
    """The tasks' scenes come out as they should."""
    outcomes = site.attempt("alpha", *((scene.what, scene.about) for scene in _OF_ALPHA))
    assert [outcome.done for outcome in outcomes] == [scene.done for scene in _OF_ALPHA]
