"""A site whose Dags run: scheduler, Dag processor and team alpha's triggerer beside the API server."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx

from demo.airflow import Settings, merged
from demo.process import StartError
from demo.site import Progress, Site, write_dags

T = TypeVar("T")

_DAGS = Path(__file__).parent / "dags"
# Alpha lends one pool to beta; the other one to who parses beta's Dags, and not to their tasks.
_LENDS = """
allow contains "alpha lends this pool to team beta" if {
	input.resource.id == "alpha_lent"
	input.action == "use"
	"beta" in input.subject.team_ids
}

allow contains "beta's Dags may name this pool" if {
	input.resource.id == "alpha_shown"
	input.subject.type == "dag_processor"
	"beta" in input.subject.team_ids
}
"""
_COMPONENTS = {
    "scheduler": ("scheduler",),
    "dag_processor": ("dag-processor",),
    "triggerer": ("triggerer", "--team-name", "alpha"),
}
# Two busy cores; on an idle machine a task takes ten seconds.
_WAIT_SECONDS = 400
_POLL_SECONDS = 0.5


class Tried(NamedTuple):
    """What came of something that a task has tried."""

    what: str
    about: str
    done: bool
    told: Any


class RunningSite(Site):
    """The site with Dags that try things, make asset events, wait for them, and use pools.

    ``guarded`` is whether this package has a say; ``database`` is another one than SQLite in the site's home.
    """

    def __init__(self, home: Path, opa_server: bool = False, guarded: bool = True, database: str | None = None) -> None:
        self._guarded = guarded
        self._database = database
        self._runs = itertools.count(1)
        super().__init__(home, opa_server, _COMPONENTS)
        self.edit_policy("teams/alpha/alpha.rego", "", _LENDS)

    def write_dags(self, folder: Path) -> list[dict[str, Any]]:
        """See ``Site``."""
        bundles = write_dags(folder)
        for bundle in bundles:
            for source in sorted(_DAGS.glob("*.py")):
                shutil.copy(source, bundle["kwargs"]["path"])
        return bundles

    def more_settings(self) -> Settings:
        """See ``Site``."""
        told = {
            # Airflow's own defaults have a task wait for minutes when the API server cannot answer.
            "workers": {"execution_api_retries": "2", "execution_api_retry_wait_min": "0.1"},
            "core": {"parallelism": "4", "mp_start_method": "fork"},
            "dag_processor": {"min_file_process_interval": "20", "refresh_interval": "5"},
            "scheduler": {"scheduler_heartbeat_sec": "1"},
        }
        database = {"database": {"sql_alchemy_conn": self._database}} if self._database else {}
        return merged(told, database)

    def guarding_settings(self) -> Settings:
        """See ``Site``."""
        return (
            super().guarding_settings() if self._guarded else {"core": {"multi_team": "True", "auth_manager": _SIMPLE}}
        )

    def start(self, progress: Progress = nullcontext) -> None:
        """See ``Site``."""
        super().start(progress)
        for name in ("alpha_lent", "alpha_shown"):
            self._create("pools", {"name": name, "slots": 4, "team_name": "alpha"})

    def begin_to_run(self) -> None:
        """Have all Dags run, and a first run of each team's daily Dag behind us."""
        # Airflow makes the routes for tasks with the first request; on a busy machine tasks would give up meanwhile.
        with self.airflow.client() as client:
            client.get("/execution/variables/none", timeout=_WAIT_SECONDS)
        for dag_id in self.dag_ids():
            self.unpause(dag_id)
        first = [dag_id for dag_id in ("alpha_daily", "beta_daily") if self.trigger(dag_id, run_id="first")]
        self.wait_for(lambda: {self.state(dag_id, "first") for dag_id in first} == {"success"}, "the first runs")

    def dag_ids(self) -> list[str]:
        """All Dags that can run."""
        dags = self.client("pat").get("/api/v2/dags", params={"limit": 100}).json()["dags"]
        return [str(dag["dag_id"]) for dag in dags]

    def import_errors(self) -> dict[tuple[str, str], str]:
        """What could not be imported, by bundle and file."""
        errors = self.client("pat").get("/api/v2/importErrors").json()["import_errors"]
        return {(error["bundle_name"], error["filename"]): error["stack_trace"] for error in errors}

    def attempt(self, team: str, *attempts: tuple[str, str]) -> list[Tried]:
        """Have a task of ``team`` (or ``common``) try these, one after the other."""
        return self.tried(team, self.begin(team, *attempts))

    def begin(self, team: str, *attempts: tuple[str, str]) -> str:
        """Have a task of ``team`` begin with these; returns the run's id."""
        return self.trigger(f"{team}_attempts", {"attempts": attempts})

    def tried(self, team: str, run_id: str) -> list[Tried]:
        """What came of all that a task has tried, when it has ended."""
        dag_id = f"{team}_attempts"
        self.wait_for(lambda: self.state(dag_id, run_id) in {"success", "failed"}, f"{dag_id} {run_id} to end")
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/attempt/xcomEntries/return_value"
        answer = self.client("pat").get(path, params={"deserialize": "false", "stringify": "false"})
        if answer.status_code != 200:
            raise StartError(f"{dag_id} {run_id} has no result: HTTP {answer.status_code} {answer.text}")
        return [Tried(**tried) for tried in answer.json()["value"]]

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a Dag, paused or not; returns the run's id."""
        run_id = run_id or f"run-{next(self._runs)}"
        self.unpause(dag_id)
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        answer = self._written(lambda: self.client("pat").post(f"/api/v2/dags/{dag_id}/dagRuns", json=body))
        if answer.status_code != 200:
            raise StartError(f"{dag_id} does not start: HTTP {answer.status_code} {answer.text}")
        return run_id

    @staticmethod
    def _written(ask: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer, asked for again while SQLite is locked by another of Airflow's processes."""
        for _ in range(5):
            answer = ask()
            if answer.status_code != 500 or "Database error" not in answer.text:
                break
            time.sleep(1)
        return answer

    def unpause(self, dag_id: str) -> None:
        """Let a Dag's runs begin."""
        answer = self._written(lambda: self.client("pat").patch(f"/api/v2/dags/{dag_id}", json={"is_paused": False}))
        if answer.status_code != 200:
            raise StartError(f"{dag_id} cannot be unpaused: HTTP {answer.status_code} {answer.text}")

    def make_event(self, source: str) -> None:
        """Have a Dag, or alpha's ``watcher``, make an asset event, and wait until it has."""
        if source == "watcher":
            inbox = self.home / "bundles" / "inbox.txt"
            inbox.write_text("a letter")
            self.wait_for(lambda: not inbox.exists(), "the watcher to take the letter")
            return
        run_id = self.trigger(source)
        self.wait_for(lambda: self.state(source, run_id) == "success", f"{source} to make an event")

    def state(self, dag_id: str, run_id: str) -> str:
        """The state of a run."""
        return str(self.client("pat").get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}").json().get("state"))

    def runs(self, dag_id: str) -> int:
        """How many runs a Dag has."""
        return int(self.client("pat").get(f"/api/v2/dags/{dag_id}/dagRuns").json().get("total_entries", 0))

    def runs_of(self, dag_ids: Iterable[str]) -> dict[str, int]:
        """How many runs each Dag has."""
        return {dag_id: self.runs(dag_id) for dag_id in dag_ids}

    def wait_for(self, check: Callable[[], T], what: str) -> T:
        """What ``check`` returns, as soon as it is true."""
        end = time.monotonic() + _WAIT_SECONDS
        while not (found := check()):
            if time.monotonic() > end:
                raise StartError(f"waited {_WAIT_SECONDS} seconds for {what}; logs are in {self.airflow.home}")
            time.sleep(_POLL_SECONDS)
        return found


_SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
