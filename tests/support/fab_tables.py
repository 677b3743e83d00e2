"""A database with FAB's and Airflow's own tables, and people in it for every role that it holds."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow import settings
from airflow.models import Connection, DagModel, Pool, Variable, import_all_models
from airflow.models.asset import AssetModel
from airflow.models.base import Base
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from airflow.providers.fab.auth_manager import models as fab
from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from airflow_team_authz.cli.imports.fab import LINKS, PARTS, TYPES, VIEWS

Permission = tuple[str, str]

# The last two are not there; permissions on them are.
DAGS: dict[str, str | None] = {
    "alpha_etl": "alpha", "alpha_report": "alpha", "mine.etl": "my-team", "plain": "input", "common_etl": None,
    "größe": None, "gone": None, "DAG:literal": None,
}  # fmt: skip
TEAMS = ("alpha", "my-team", "input", "quiet")
PAGES = ("My Plugin", 'Sales "EU"/Ärzte', "Backfills", "SLA Misses", "Security")
VERBS = ("can_read", "can_create", "can_edit", "can_delete", "menu_access", "can_list", "muldelete")
NAMES = sorted(
    {*TYPES.values(), *VIEWS.values(), *LINKS, *LINKS.values(), *PAGES, "DAGs"}.union(*PARTS.values())
    | {prefix + dag for prefix in ("DAG:", "DAG Run:") for dag in DAGS}
)
ODD = (
    "Team Lead", "data/eng", "Ärzte", "ärzte", "ÄRZTE İ", "🚀 Launch", "L" * 250, "tab\tand\nline", "a.b[0]",
    "ops'\"\\", '"} allow contains "x" if true #', "{{ role }} <team> $x",
)  # fmt: skip


class Person(NamedTuple):
    """Names of a user's own roles, and of the groups."""

    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class Tables(NamedTuple):
    """What is to be in the database."""

    roles: Mapping[str, Collection[Permission]]
    people: Mapping[str, Person]
    groups: Mapping[str, tuple[str, ...]] = {}
    dags: Mapping[str, str | None] = DAGS

    def url(self, path: Path) -> str:
        """Writes it; the address of the database."""
        import_all_models()
        engine = create_engine(url := f"sqlite:///{path}")
        Base.metadata.create_all(engine)
        fab.model_metadata.create_all(engine)
        with sessionmaker(engine)() as rows:
            _owned(rows, self.dags)
            _people(rows, self)
            rows.commit()
        engine.dispose()
        return url


def standard_roles() -> dict[str, Collection[Permission]]:
    """As the provider's security manager has them; what FAB's own pages add for the admin beside it."""
    configured = FabAirflowSecurityManagerOverride.ROLE_CONFIGS
    roles = {config["role"]: list(dict.fromkeys(config["perms"])) for config in configured}
    admin = {permission for permissions in roles.values() for permission in permissions}
    pages = {("menu_access", name) for name in (*LINKS.values(), "Actions", "Resources")} | {("can_read", "Users")}
    return {**roles, "Admin": admin | pages}


def random_roles(seed: int, count: int) -> dict[str, Collection[Permission]]:
    """Custom roles from nearly nothing to nearly everything."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    names = [*ODD, *(f"Custom {i}" for i in range(count))][:count]
    every = [(verb, name) for verb in VERBS for name in NAMES]
    return {
        name: [pair for pair in every if chance.random() < share] for name, share in zip(names, _shares(), strict=False)
    }


def _shares() -> Iterator[float]:
    while True:
        yield from (0.02, 0.05, 0.1, 0.3, 0.6, 0.9)


@contextmanager
def airflows(url: str) -> Iterator[None]:
    """Inside, it is the database of Airflow's own sessions."""
    engine = create_engine(url)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Session", "NonScopedSession"):
            patch.setattr(settings, name, sessionmaker(engine, expire_on_commit=False))
        yield
    engine.dispose()


def _owned(rows: Any, dags: Mapping[str, str | None]) -> None:
    teams = {name: Team(name=name) for name in {*TEAMS, *filter(None, dags.values())}}
    rows.add_all(teams.values())
    rows.flush()
    for team in (None, *teams):
        bundle = DagBundleModel(name=f"of {team}")
        bundle.teams.extend([teams[team]] if team else [])
        rows.add(bundle)
        rows.flush()
        rows.add(Connection(conn_id=f"connection_of_{team}", conn_type="x", team_name=team))
        rows.add(Variable(key=f"variable of {team}", val="1", team_name=team))
        rows.add(Pool(pool=f"pool of {team}", team_name=team, slots=1, include_deferred=False))
    there = {dag: team for dag, team in dags.items() if dag not in {"gone", "DAG:literal"}}
    rows.add_all(DagModel(dag_id=dag, bundle_name=f"of {team}") for dag, team in there.items())
    rows.add_all(AssetModel(id=id_, name=str(id_), uri=f"s3://{id_}", group="") for id_ in (1, 2))


def _people(rows: Any, tables: Tables) -> None:
    pairs = {pair for permissions in tables.roles.values() for pair in permissions}
    verbs = {verb: fab.Action(name=verb) for verb, _ in pairs}
    names = {name: fab.Resource(name=name) for _, name in pairs}
    permissions = {pair: fab.Permission(action=verbs[pair[0]], resource=names[pair[1]]) for pair in pairs}
    roles = {
        role: fab.Role(name=role, permissions=[permissions[pair] for pair in has]) for role, has in tables.roles.items()
    }
    groups = {group: fab.Group(name=group, roles=[roles[role] for role in has]) for group, has in tables.groups.items()}
    rows.add_all([*roles.values(), *groups.values()])
    for name, person in tables.people.items():
        user = fab.User(username=name, first_name=name, last_name=name, email=f"{name}@example.org", active=True)
        user.roles = _of(roles, person.roles)
        user.groups = _of(groups, person.groups)
        rows.add(user)


def _of(known: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    return [known[name] for name in names]
