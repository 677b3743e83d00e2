"""The demonstration's site: two teams, five users, what belongs to whom, and where its policy lies."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

from airflow_team_authz.opa.compile import shipped_policies
from demo.airflow import Airflow, Settings, merged
from demo.opa import Opa
from demo.process import StartError

_SITE_PARTS: tuple[str, ...] = ("airflow/roles", "airflow/directory", "airflow/site", "teams")
_SHIPPED_PART = "airflow/authz"
_DAG = '''"""Made for the demonstration."""

from airflow.sdk import DAG, task

with DAG("{dag_id}", schedule=None, tags=["{tag}", "plain"]):

    @task
    def work() -> str:
        return "done"

    work()
'''


class User(NamedTuple):
    """Somebody who logs in; ``team_id`` is ``None`` for the platform's own people."""

    name: str
    role: str
    team_id: str | None
    who: str


USERS = (
    User("ann", "op", "alpha", "operates team alpha"),
    User("ivy", "user", "alpha", "intern of team alpha"),
    User("bob", "op", "beta", "operates team beta"),
    User("vic", "viewer", "beta", "looks on in team beta"),
    User("pat", "admin", None, "platform admin"),
)

# By team, None being common to all.
DAGS = {"alpha": ("alpha_daily", "alpha_report"), "beta": ("beta_daily",), None: ("common_cleanup",)}
CONNECTIONS = {"alpha": ("alpha_db", "alpha_warehouse", "audit_store"), "beta": ("beta_db",), None: ("common_db",)}
VARIABLES = {"alpha": ("alpha_config",), "beta": ("beta_config",), None: ("announcement", "common_config")}
POOLS = {"alpha": ("alpha_production", "alpha_pool"), "beta": ("beta_pool",), None: ("common_pool",)}

Components = Mapping[str, Sequence[str]]
Progress = Callable[[str], AbstractContextManager[object]]


class Site:
    """An Airflow with all this in ``home``; decisions in process, or by an OPA server beside it.

    People are SimpleAuthManager's. A subclass may have others: ``login_settings`` and ``create_people``. The
    ``commands`` of `airflow` make the database.
    """

    commands: tuple[Sequence[str], ...] = (("db", "migrate"), ("teams", "sync"), ("dags", "reserialize"))

    def __init__(self, home: Path, opa_server: bool = False, components: Components = MappingProxyType({})) -> None:
        self.home = home
        self.policy = home / "policy"
        self.passwords = {user.name: secrets.token_urlsafe(9) for user in USERS}
        self.opa: Opa | None = None
        parts = _SITE_PARTS
        if opa_server:
            # In process the package adds its own part; a server is given all of it.
            parts = (*parts, _SHIPPED_PART)
            self.opa = Opa(home / "opa", self.policy)
        for part in parts:
            copy = self.policy / part
            shutil.copytree(shipped_policies() / part, copy, ignore=shutil.ignore_patterns("*_test.rego"))
        self.told = self.guarding_settings()
        bundles = {"dag_processor": {"dag_bundle_config_list": json.dumps(self.write_dags(home / "bundles"))}}
        settings = merged(self.told, self.login_settings(), bundles, self.more_settings())
        self.airflow = Airflow(home / "airflow", settings, components=components, variables=self.variables())
        self._clients: dict[str, httpx.Client] = {}

    def guarding_settings(self) -> Settings:
        """What puts this package in its place."""
        return {
            "core": {"multi_team": "True", "auth_manager": "airflow_team_authz.TeamAuthManager"},
            "team_authz": {"opa_url": self.opa.url} if self.opa else {"policy": str(self.policy)},
        }

    def login_settings(self) -> Settings:
        """What tells Airflow who there is."""
        passwords_file = self.home / "passwords.json"
        passwords_file.write_text(json.dumps(self.passwords))
        passwords_file.chmod(0o600)
        return {
            "core": {
                "simple_auth_manager_users": ",".join(_simple_user(user) for user in USERS),
                "simple_auth_manager_passwords_file": str(passwords_file),
            }
        }

    def write_dags(self, folder: Path) -> list[dict[str, Any]]:
        """Write the Dags of every team, and return Airflow's list of Dag bundles."""
        return write_dags(folder)

    def more_settings(self) -> Settings:
        """What else Airflow is to be told."""
        return {}

    def variables(self) -> Mapping[str, str]:
        """What is in the environment of its processes besides."""
        return {}

    def create_people(self) -> None:
        """Create them, where settings are not enough; the database is there, the server does not run yet."""

    def start(self, progress: Progress = nullcontext) -> None:
        """Start everything and fill it; ``StartError`` says what went wrong."""
        if self.opa:
            with progress("Starting the OPA server"):
                self.opa.start()
        with progress("Creating the database and the teams, and reading their Dags"):
            self.airflow.run_all(*self.commands)
            self.create_people()
        with progress("Starting Airflow"):
            self.airflow.start()
        with progress("Logging in, creating connections, variables and pools"):
            for name, password in self.passwords.items():
                self._clients[name] = self.airflow.login(name, password)
            self._fill()

    def stop(self) -> None:
        """Stop everything."""
        for client in self._clients.values():
            client.close()
        self.airflow.stop()
        if self.opa:
            self.opa.stop()

    def client(self, name: str) -> httpx.Client:
        """The HTTP client that ``name`` is logged in with."""
        return self._clients[name]

    def edit_policy(self, file: str, old: str, new: str) -> None:
        """Replace ``old`` by ``new`` in a policy file, or append ``new`` if ``old`` is empty."""
        path = self.policy / file
        text = path.read_text()
        path.write_text(text.replace(old, new) if old else text + new)

    def _fill(self) -> None:
        for team_id, names in CONNECTIONS.items():
            for name in names:
                self._create("connections", {"connection_id": name, "conn_type": "sqlite", "team_name": team_id})
        for team_id, names in VARIABLES.items():
            for name in names:
                self._create("variables", {"key": name, "value": f"value of {name}", "team_name": team_id})
        for team_id, names in POOLS.items():
            for name in names:
                self._create("pools", {"name": name, "slots": 4, "team_name": team_id})

    def _create(self, collection: str, body: dict[str, Any]) -> None:
        answer = self.client("pat").post(f"/api/v2/{collection}", json=body)
        if answer.status_code != 201:
            raise StartError(
                f"pat cannot create {body} in {collection}: HTTP {answer.status_code} {answer.text}."
                f" The log is {self.airflow.home}/api-server.log"
            )


def _simple_user(user: User) -> str:
    return f"{user.name}:{user.role}" + (f":{user.team_id}" if user.team_id else "")


def write_dags(folder: Path) -> list[dict[str, Any]]:
    """One Dag bundle per team and a common one; returns Airflow's list of them."""
    bundles = []
    for team_id, dag_ids in DAGS.items():
        name = f"{team_id or 'common'}-dags"
        path = folder / name
        path.mkdir(parents=True)
        for dag_id in dag_ids:
            (path / f"{dag_id}.py").write_text(_DAG.format(dag_id=dag_id, tag=team_id or "common"))
        bundles.append(
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(path)},
                "team_name": team_id,
            }
        )
    return bundles
