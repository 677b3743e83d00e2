"""The auth manager over Simple and FAB, with a real engine and a real database in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from airflow import settings
from airflow.api_fastapi.auth.managers.base_auth_manager import BaseAuthManager
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.common.types import ExtraMenuItem, MenuItem
from airflow.models import Connection, DagModel, Pool, Variable, import_all_models
from airflow.models.asset import AssetModel
from airflow.models.base import Base
from airflow.models.dagbundle import DagBundleModel
from airflow.models.team import Team
from sqlalchemy import String, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

from airflow_team_authz import review
from airflow_team_authz.doors.users import build_manager
from airflow_team_authz.engines import DecisionPoint, Reply
from airflow_team_authz.engines.choice import packaged_baseline
from airflow_team_authz.engines.in_process import InProcess
from airflow_team_authz.gate import no_effect
from airflow_team_authz.opa.compile import compile_directory
from tests.conftest import REPOSITORY, log_without_sinks

# What the database holds; the example policies have rules of their own about some of these.
OWNED: dict[str, dict[Any, str | None]] = {
    "connection": {
        "alpha_db": "alpha",
        "alpha_warehouse": "alpha",
        "audit_store": "alpha",
        "beta_db": "beta",
        "db": None,
    },
    "dag": {"alpha_daily": "alpha", "beta_daily": "beta", "daily": None, "größe/🚀": "alpha"},
    "pool": {"alpha_production": "alpha", "alpha_pool": "alpha", "beta_pool": "beta", "pool": None},
    "variable": {"alpha_key": "alpha", "beta_key": "beta", "announcement": None, "key": None},
    "team": {"alpha": "alpha", "beta": "beta"},
    "asset": {1: None, 2: None},
}
SCHEMA = json.loads((REPOSITORY / "policies/schemas/input.json").read_text())


class Pages(BaseAuthManager[Any]):
    """A login manager's own pages, and a menu that it would decide about itself."""

    def get_extra_menu_items(self, **_: Any) -> list[ExtraMenuItem]:
        return [ExtraMenuItem(text=text, href="/") for text in ("Users", "Roles")]

    def get_authorized_menu_items(self, **_: Any) -> list[MenuItem]:
        return list(MenuItem)


class Recording:
    """An engine that keeps what it was asked, each of which the schema, the gate and the review must know."""

    def __init__(self, bundle: Path) -> None:
        self._engine = InProcess(bundle)
        self._schema = jsonschema.Draft7Validator(SCHEMA)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.close = self._engine.close

    def query(self, entrypoint: str, question: bytes, size: int, teams: int = 1, pace: float | None = None) -> Reply:
        asked = json.loads(question)
        self.asked.append((entrypoint, asked))
        shared = {name: part for name, part in asked.items() if name != "resources"}
        for resource in asked["resources"]:
            self._schema.validate(shared | {"resource": resource})
            _must_be_known(asked["subject"]["type"], asked["action"], resource["type"], resource.get("entity"))
        return self._engine.query(entrypoint, question, size, teams, pace)


def _must_be_known(subject: str, action: str, type_: str, entity: str | None) -> None:
    """The gate says of a rule about any other question that it has no effect; the review asks no other."""
    kind = type_ if entity is None else f"{type_}.{entity}"
    # Guardrails answer these whatever rules say, and Airflow has the method, but no route with it.
    if subject in {"dag_processor", "triggerer"} or action == "menu":
        return
    verb = action if action in no_effect.ACTIONS else "any other verb"
    assert no_effect.is_asked(subject, verb, type_, entity), (subject, action, kind)
    if subject == "task":
        assert action in review.ACTIONS[kind], (action, kind)


class World(NamedTuple):
    """A manager with its engine, and people who log in through it."""

    manager: Any
    engine: Recording
    people: dict[str, Any]
    policy: str

    def decided_by(self, policy: Any) -> None:
        """Puts another decision point under the manager."""
        vars(self.manager)["_policy"] = policy

    def call(self, name: str, user: str = "op", **arguments: Any) -> Any:
        return getattr(self.manager, name)(user=self.people[user], **arguments)


def login_manager(kind: str) -> type:
    if kind == "Simple":
        return SimpleAuthManager
    reason = "the FAB provider is not installed"
    module: Any = pytest.importorskip("airflow.providers.fab.auth_manager.fab_auth_manager", reason=reason)
    return module.FabAuthManager  # type: ignore[no-any-return]


def person(kind: str, role: str | None, teams: list[str], groups: list[str]) -> Any:
    if kind == "Simple":
        return SimpleAuthManagerUser(username="sue", role=role, teams=teams)
    from airflow.providers.fab.auth_manager.models import Role, User

    user = User(id=7, username="sue", roles=[Role(name=role)] if role else [])
    user._team_authz_groups = dict.fromkeys(groups, ())
    return user


def build(login: type | str) -> Any:
    """The manager over a class of this module's, or over what a setting names."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(login, type):
            patch.setattr(sys.modules[__name__], "Login", login, raising=False)
        patch.setenv("AIRFLOW__TEAM_AUTHZ__AUTHN_MANAGER", login if isinstance(login, str) else f"{__name__}.Login")
        build_manager.cache_clear()
        try:
            return build_manager()
        finally:
            build_manager.cache_clear()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Airflow's tables, made as for a new database, with what is in ``OWNED``."""
    import_all_models()
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('database')}/airflow.db")
    Base.metadata.create_all(engine)
    session = sessionmaker(engine)
    with session() as rows:
        teams: dict[Any, list[Team]] = {name: [Team(name=name)] for name in OWNED["team"]} | {None: []}
        rows.add_all(team for (team,) in (teams["alpha"], teams["beta"]))
        rows.flush()
        for name, owner in teams.items():
            bundle = DagBundleModel(name=f"of {name}")
            bundle.teams.extend(owner)
            rows.add(bundle)
        rows.flush()
        rows.add_all(
            Connection(conn_id=id_, conn_type="x", team_name=team) for id_, team in OWNED["connection"].items()
        )
        rows.add_all(DagModel(dag_id=id_, bundle_name=f"of {team}") for id_, team in OWNED["dag"].items())
        new_pools = {"slots": 1, "include_deferred": False}
        rows.add_all(Pool(pool=name, team_name=team, **new_pools) for name, team in OWNED["pool"].items())
        rows.add_all(Variable(key=key, val="1", team_name=team) for key, team in OWNED["variable"].items())
        rows.add_all(AssetModel(id=id_, name=str(id_), uri=f"s3://{id_}", group="") for id_ in OWNED["asset"])
        rows.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "Session", session)
        patch.setattr(settings, "NonScopedSession", session)
        yield
    engine.dispose()


@pytest.fixture
def strict() -> Iterator[set[str]]:
    """Texts are stored as on the strictest of Airflow's databases: what does not fit is an error, and so is NUL.

    Yields the columns that texts came to.
    """
    seen: set[str] = set()

    def look(session: Any, *_: Any) -> None:
        for row in (*session.new, *session.dirty):
            for column in type(row).__table__.columns:
                value = vars(row).get(column.key)
                if not isinstance(value, str) or not isinstance(column.type, String):
                    continue
                seen.add(f"{type(row).__name__}.{column.key}")
                # MySQL counts characters where a length is given, and bytes in TEXT.
                size, limit = (len(value), column.type.length) if column.type.length else (len(value.encode()), 65_535)
                assert size <= limit, f"{column} takes {limit}, not {size}"
                assert "\0" not in value, f"{column} takes no NUL"

    event.listen(Session, "before_flush", look)
    yield seen
    event.remove(Session, "before_flush", look)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The policy that is in the wheel, and that of this repository, with a site's and teams' rules."""
    compiled: Path = tmp_path_factory.mktemp("example") / "bundle.tar.gz"
    compile_directory(REPOSITORY / "policies", compiled)
    return {"baseline": packaged_baseline(), "example": compiled}


@pytest.fixture(
    scope="module", params=[("Simple", "baseline"), ("Simple", "example"), ("FAB", "example")], ids="-".join
)
def opened_world(request: pytest.FixtureRequest, bundles: dict[str, Path], database: None) -> Iterator[World]:  # noqa: ARG001
    """The manager over each login manager and with each policy."""
    kind, policy = request.param
    engine = Recording(bundles[policy])
    people = {
        # In FAB it is the example's directory that makes somebody a member of a team.
        "op": person(kind, "Op" if kind == "Simple" else None, ["alpha"], ["alpha-engineers"]),
        "viewer": person(kind, "viewer", ["beta"], []),
        "admin": person(kind, "ADMIN", [], []),
        "nobody": person(kind, None, ["alpha"], []),
    }
    yield World(build(type("WithPages", (Pages, login_manager(kind)), {}))(), engine, people, policy)
    engine.close()


@pytest.fixture
def world(opened_world: World) -> World:
    """The same for every test, with its own engine and nothing asked yet."""
    opened_world.engine.asked.clear()
    opened_world.decided_by(DecisionPoint(opened_world.engine, log_without_sinks()))
    return opened_world
