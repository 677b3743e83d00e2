"""Two running Airflows: in one of them team alpha is there and has nothing."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from itsdangerous import URLSafeSerializer

from airflow_team_authz.compile import shipped_policies
from demo.airflow import Airflow, Settings, merged
from demo.process import StartError
from tests.worlds.build import FIRST_NUMBERS, NUMBERS_APART, TEAMS
from tests.worlds.catalogue import NUMBERED, Catalogue

_SIMPLE = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
WITH, WITHOUT = "with", "without"


class Person(NamedTuple):
    """Somebody who logs in; ``stranger`` is who has no business with alpha."""

    role: str
    team: str | None
    stranger: bool = True


PEOPLE = {
    "vic": Person("viewer", "beta"),
    "una": Person("user", "beta"),
    "bob": Person("op", "beta"),
    "bea": Person("admin", "beta"),
    "nil": Person("none", "beta"),
    "ann": Person("op", "alpha", stranger=False),
    "pat": Person("admin", None, stranger=False),
}
STRANGERS = tuple(name for name, person in PEOPLE.items() if person.stranger)


class Worlds:
    """Both, in ``home``; a home that has them already is used as it is, with servers of its own.

    ``guarded`` is whether this package has a say.
    """

    def __init__(self, home: Path, guarded: bool = True, refusals: str | None = None) -> None:
        self.home = home
        self.guarded = guarded
        self.refusals = refusals
        home.mkdir(parents=True, exist_ok=True)
        self.secrets = self._secrets()
        self.airflows = {world: Airflow(home / world, self._settings()) for world in (WITHOUT, WITH)}
        self.tokens: dict[str, str] = {}

    def _secrets(self) -> dict[str, str]:
        """The same for both worlds, so that what is encrypted or signed in one is good in the other."""
        file = self.home / "secrets.json"
        if not file.exists():
            made = {name: secrets.token_hex(32) for name in ("api", "jwt", *PEOPLE)}
            file.write_text(json.dumps({"fernet": base64.urlsafe_b64encode(os.urandom(32)).decode()} | made))
        return dict(json.loads(file.read_text()))

    def _settings(self) -> Settings:
        policy = self.home / "policy"
        for part in ("airflow/roles", "airflow/directory"):
            shutil.copytree(
                shipped_policies() / part, policy / part, ignore=shutil.ignore_patterns("*_test.rego"),
                dirs_exist_ok=True,
            )  # fmt: skip
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps({name: self.secrets[name] for name in PEOPLE}))
        passwords.chmod(0o600)
        users = ",".join(f"{name}:{who.role}" + (f":{who.team}" if who.team else "") for name, who in PEOPLE.items())
        told: dict[str, dict[str, str]] = {
            "core": {
                "multi_team": "True",
                "auth_manager": "airflow_team_authz.TeamAuthManager" if self.guarded else _SIMPLE,
                "fernet_key": self.secrets["fernet"],
                "test_connection": "Enabled",
                "simple_auth_manager_users": users,
                "simple_auth_manager_passwords_file": str(passwords),
            },
            "api": {"secret_key": self.secrets["api"], "expose_config": "non-sensitive-only"},
            "api_auth": {"jwt_secret": self.secrets["jwt"]},
            "dag_processor": {"dag_bundle_config_list": json.dumps(self._bundles())},
        }
        if not self.guarded:
            return told
        ours = {"policy": str(policy)} | ({"refusals": self.refusals} if self.refusals else {})
        return merged(told, {"team_authz": ours})

    def _bundles(self) -> list[dict[str, Any]]:
        made = []
        for owner, team in TEAMS.items():
            path = self.home / "bundles" / f"{owner}-dags"
            path.mkdir(parents=True, exist_ok=True)
            classpath = "airflow.dag_processing.bundles.local.LocalDagBundle"
            made.append({"name": path.name, "classpath": classpath, "kwargs": {"path": str(path)}, "team_name": team})
        return made

    def build(self) -> None:
        """Both databases: the one with alpha's is a copy of the other to which alpha's things are added."""
        without, with_ = self.airflows[WITHOUT], self.airflows[WITH]
        without.run("db", "migrate")
        without.run("teams", "sync")
        without.run("teams", "create", "gamma")
        self._fill(without, "beta", "common")
        self._copy(without.home, with_.home)
        self._fill(with_, "alpha")
        (self.home / "built").touch()

    def _fill(self, airflow: Airflow, *owners: str) -> None:
        done = airflow.attempt("-m", "tests.worlds.build", str(self.home / "bundles"), *owners)
        if done.returncode != 0:
            raise StartError(f"The database cannot be filled with what is of {owners}:\n{done.stdout}{done.stderr}")

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        with sqlite3.connect(source / "airflow.db") as old, sqlite3.connect(target / "airflow.db") as new:
            old.backup(new)
        shutil.copytree(source / "logs", target / "logs", dirs_exist_ok=True)

    def start(self) -> None:
        """Build what is not there, start both servers and log everybody in."""
        if not (self.home / "built").exists():
            self.build()
        self.both(lambda _, airflow: airflow.start())
        for name in PEOPLE:
            with self.airflows[WITH].login(name, self.secrets[name]) as client:
                self.tokens[name] = client.headers["Authorization"].removeprefix("Bearer ")

    def numbers(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The numbers of the rows that a path can name, by table and owner."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        with sqlite3.connect(self.airflows[WITH].home / "airflow.db") as database:
            for table in NUMBERED.values():
                ids = [int(id_) for (id_,) in database.execute(f"SELECT id FROM {table} ORDER BY id")]  # noqa: S608
                found[table] = {
                    owner: tuple(id_ for id_ in ids if first <= id_ < first + NUMBERS_APART)
                    for owner, first in FIRST_NUMBERS.items()
                }
        return found

    def file_tokens(self) -> dict[str, str]:
        """How a request names each owner's Dag file."""
        signer = URLSafeSerializer(self.secrets["api"])
        return {
            owner: str(signer.dumps({"bundle_name": f"{owner}-dags", "relative_fileloc": f"{owner}_all.py"}))
            for owner in TEAMS
        }

    def catalogue(self) -> Catalogue:
        """The requests about what is in these worlds."""
        return Catalogue(self.numbers(), self.file_tokens())

    def stop(self) -> None:
        """Stop both servers."""
        for airflow in self.airflows.values():
            airflow.stop()

    def both(self, act: Callable[[str, Airflow], Any]) -> dict[str, Any]:
        """What comes of it in each world, at the same time."""
        with ThreadPoolExecutor(len(self.airflows)) as threads:
            futures = {world: threads.submit(act, world, airflow) for world, airflow in self.airflows.items()}
            return {world: future.result() for world, future in futures.items()}
