"""Two running Airflows: in one of them team alpha is there and has nothing."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from airflow.api_fastapi.auth.tokens import JWTGenerator
from itsdangerous import URLSafeSerializer

from airflow_team_authz.opa.compile import shipped_policies
from demo.airflow import Airflow, Settings, free_port, merged
from demo.opa import Opa
from demo.process import Process, StartError
from tests.support.fab_site import CREATE_PEOPLE
from tests.worlds.build import FIRST_NUMBERS, NUMBERS_APART, TEAMS, instance_id
from tests.worlds.catalogue import NUMBERED, Catalogue
from tests.worlds.databases import Databases, SqliteFiles, copy_logs
from tests.worlds.rows import Rows, rows

_MANAGERS = {
    "simple": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "fab": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
}
WITH, WITHOUT = "with_alpha", "without_alpha"
_AUDIENCE = "urn:airflow.apache.org:task"
# Longer than the longest run.
_TOKEN_SECONDS = 86_400
_START_SECONDS = 300


class Person(NamedTuple):
    """Somebody who logs in; ``stranger`` is who has no business with alpha."""

    role: str | None
    team: str | None
    stranger: bool = True


PEOPLE = {
    "vic": Person("viewer", "beta"),
    "una": Person("user", "beta"),
    "bob": Person("op", "beta"),
    "bea": Person("admin", "beta"),
    "nil": Person(None, "beta"),
    "ann": Person("op", "alpha", stranger=False),
    "pat": Person("admin", None, stranger=False),
}
# Who is a task: the owner of its Dag.
TASKS = {"a task of beta": "beta", "a common task": "common"}
# Who asks the Execution API in a process of its own; see ``in_process``.
MACHINES = {"a Dag processor of beta": "dag_processor", "a triggerer of beta": "triggerer"}
STRANGERS = (*(name for name, person in PEOPLE.items() if person.stranger), *TASKS, *MACHINES)


class Worlds:
    """Both, in ``home``; a home that has them already is used as it is, with servers of its own.

    ``login`` is who logs people in, ``opa_server`` the engine, ``guarded`` whether this package has a say, ``refusals``
    the setting of this name.
    """

    def __init__(
        self,
        home: Path,
        login: str = "simple",
        opa_server: bool = False,
        databases: Databases | None = None,
        guarded: bool = True,
        refusals: str | None = None,
    ) -> None:
        self.home, self.login = home, login
        self._guarded, self._refusals = guarded, refusals
        self.conceal = refusals == "conceal"
        home.mkdir(parents=True, exist_ok=True)
        self.databases = databases or SqliteFiles(home)
        self._secrets = self._same_secrets()
        self._policy = self._write_policy(opa_server)
        self._opa = Opa(home / "opa", self._policy) if opa_server else None
        self.airflows = {
            # Airflow goes through sets, and stops at the first error: in the same order in both.
            world: Airflow(home / world, self._settings(world), variables={"PYTHONHASHSEED": "0"})
            for world in (WITHOUT, WITH)
        }
        self._in_process: dict[str, tuple[int, Process]] = {}
        self.tokens: dict[str, str] = {}
        self.begun = datetime.now(UTC)

    def _same_secrets(self) -> dict[str, str]:
        """For both worlds, so that what is encrypted or signed in one is good in the other."""
        file = self.home / "secrets.json"
        if not file.exists():
            made = {name: secrets.token_hex(32) for name in ("api", "jwt", "password")}
            file.write_text(json.dumps({"fernet": base64.urlsafe_b64encode(os.urandom(32)).decode()} | made))
        return dict(json.loads(file.read_text()))

    def _write_policy(self, opa_server: bool) -> Path:
        """The shipped policy, and which groups mean what."""
        policy = self.home / "policy"
        parts = ("airflow/roles", "airflow/directory", *(("airflow/authz",) if opa_server else ()))
        for part in parts:
            ignored = shutil.ignore_patterns("*_test.rego")
            shutil.copytree(shipped_policies() / part, policy / part, ignore=ignored, dirs_exist_ok=True)
        # FAB's people have groups, SimpleAuthManager's a role of their own: `admin` would be the platform's.
        entries = {f"{name}s": [_entry(person)] for name, person in PEOPLE.items()}
        directory = {"groups": entries, "roles": entries}
        (policy / "airflow/directory/data.json").write_text(json.dumps(directory))
        return policy

    def _settings(self, world: str) -> Settings:
        told: dict[str, dict[str, str]] = {
            "core": {
                "multi_team": "True",
                "auth_manager": "airflow_team_authz.TeamAuthManager" if self._guarded else _MANAGERS[self.login],
                "fernet_key": self._secrets["fernet"],
                "test_connection": "Enabled",
            },
            "database": {"sql_alchemy_conn": self.databases.url(world)},
            "api": {"secret_key": self._secrets["api"], "expose_config": "non-sensitive-only"},
            "api_auth": {"jwt_secret": self._secrets["jwt"]},
            "dag_processor": {"dag_bundle_config_list": json.dumps(self._bundles())},
        }
        ours = {"opa_url": self._opa.url} if self._opa else {"policy": str(self._policy)}
        # A busy machine is no reason for an answer of its own.
        ours |= {"authn_manager": _MANAGERS[self.login], "deadline_ms": "10000"}
        ours |= {"refusals": self._refusals} if self._refusals else {}
        return merged(told, self._people(), {"team_authz": ours} if self._guarded else {})

    def _people(self) -> Settings:
        """SimpleAuthManager's; FAB has them in the database."""
        passwords = self.home / "passwords.json"
        passwords.write_text(json.dumps(dict.fromkeys(PEOPLE, self._secrets["password"])))
        passwords.chmod(0o600)
        users = ",".join(
            f"{name}:{f'{name}s' if who.role == 'admin' and who.team else who.role or 'none'}"
            + (f":{who.team}" if who.team else "")
            for name, who in PEOPLE.items()
        )
        simple = {"simple_auth_manager_users": users, "simple_auth_manager_passwords_file": str(passwords)}
        return {"core": simple} if self.login == "simple" else {}

    def _bundles(self) -> list[dict[str, Any]]:
        classpath = "airflow.dag_processing.bundles.local.LocalDagBundle"
        made = []
        for owner, team in TEAMS.items():
            path = self.home / "bundles" / f"{owner}-dags"
            path.mkdir(parents=True, exist_ok=True)
            made.append({"name": path.name, "classpath": classpath, "kwargs": {"path": str(path)}, "team_name": team})
        return made

    def start(self) -> None:
        """Build what is not there, start both servers and log everybody in."""
        self.databases.start()
        if self._opa:
            self._opa.start()
        if not (self.home / "built").exists():
            self._build()
        else:
            self.restore()
        self.begun = datetime.now(UTC)
        self.both(lambda _, airflow: airflow.start())
        for name in PEOPLE:
            with self.airflows[WITH].login(name, self._secrets["password"]) as client:
                self.tokens[name] = client.headers["Authorization"].removeprefix("Bearer ")
        generator = JWTGenerator(
            secret_key=self._secrets["jwt"], audience=_AUDIENCE, valid_for=_TOKEN_SECONDS, algorithm="HS512"
        )
        self.tokens |= dict.fromkeys(MACHINES, "none")
        for name, owner in TASKS.items():
            self.tokens[name] = generator.generate({"sub": str(instance_id(owner)), "scope": "execution"})

    def url(self, world: str, person: str) -> str:
        """Where somebody sends requests to."""
        if person not in MACHINES:
            return self.airflows[world].url
        if not self._in_process:
            self._in_process = dict(self.both(_start_in_process))
        port, _ = self._in_process[world]
        return f"http://127.0.0.1:{port}/{MACHINES[person]}"

    def log(self, world: str) -> str:
        """What the world's servers have printed so far."""
        in_process = [self._in_process[world][1]] if self._in_process else []
        return "".join((self.airflows[world].log(), *(one.log.read_text(errors="replace") for one in in_process)))

    def _build(self) -> None:
        """Both databases: the one with alpha's is a copy of the other to which alpha's things are added."""
        without, with_ = self.airflows[WITHOUT], self.airflows[WITH]
        self._fill(without, "beta", "common")
        if self.login == "fab":
            self._create_people(without)
        self.databases.copy(WITHOUT, WITH)
        copy_logs(without.home / "logs", with_.home / "logs")
        self._fill(with_, "alpha")
        for world in self.airflows:
            self.databases.keep(world)
        (self.home / "built").touch()

    def _fill(self, airflow: Airflow, *owners: str) -> None:
        done = airflow.attempt("-m", "tests.worlds.build", str(self.home / "bundles"), *owners)
        if done.returncode != 0:
            raise StartError(f"The database cannot be filled with what is of {owners}:\n{done.stdout}{done.stderr}")

    def _create_people(self, airflow: Airflow) -> None:
        people = json.dumps({name: ((), (f"{name}s",)) for name in PEOPLE})
        done = airflow.attempt("-c", CREATE_PEOPLE, people, self._secrets["password"])
        if done.returncode != 0:
            raise StartError(f"FAB's users cannot be created:\n{done.stdout}{done.stderr}")

    def restore(self) -> None:
        """Set both databases back to how they were in the beginning."""
        for world in self.airflows:
            self.databases.restore(world)

    def rows(self, world: str) -> Rows:
        """Everything in a world's database."""
        return rows(self.databases.url(world))

    @cache  # noqa: B019 - as below
    def ids(self) -> frozenset[str]:
        """The ids, without hyphens, of what was there in the beginning."""
        values = (value for of_table in self.rows(WITH).values() for row in of_table.values() for value in row.values())
        return frozenset(str(value).replace("-", "") for value in values if len(str(value)) in {32, 36})

    @cache  # noqa: B019 - there are few of these, and they live as long as the tests
    def catalogue(self) -> Catalogue:
        """The requests about what is in these worlds."""
        numbers: dict[str, dict[str, tuple[int, ...]]] = {}
        there = self.rows(WITH)
        for table in NUMBERED.values():
            ids = sorted(id_ for (id_,) in there[table])
            numbers[table] = {
                owner: tuple(id_ for id_ in ids if first <= id_ < first + NUMBERS_APART)
                for owner, first in FIRST_NUMBERS.items()
            }
        signer = URLSafeSerializer(self._secrets["api"])
        files = {
            owner: str(signer.dumps({"bundle_name": f"{owner}-dags", "relative_fileloc": f"{owner}_all.py"}))
            for owner in TEAMS
        }
        return Catalogue(numbers, files)

    def stop(self) -> None:
        """Stop everything."""
        for _, process in self._in_process.values():
            process.stop()
        for airflow in self.airflows.values():
            airflow.stop()
        if self._opa:
            self._opa.stop()
        self.databases.stop()

    def both(self, act: Callable[[str, Airflow], Any]) -> Mapping[str, Any]:
        """What comes of it in each world, at the same time."""
        with ThreadPoolExecutor(len(self.airflows)) as threads:
            futures = {world: threads.submit(act, world, airflow) for world, airflow in self.airflows.items()}
            return {world: future.result() for world, future in futures.items()}


def _start_in_process(_: str, airflow: Airflow) -> tuple[int, Process]:
    """The Dag processor and the triggerer of a world, and their port."""
    port = free_port()
    process = airflow.program("in process", "-m", "tests.worlds.in_process", str(port))
    process.start(lambda: _listens(port), _START_SECONDS)
    return port, process


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _entry(person: Person) -> dict[str, Any]:
    """What the group of this person's name means."""
    return {"team_id": person.team} | ({"role": person.role} if person.role else {})
