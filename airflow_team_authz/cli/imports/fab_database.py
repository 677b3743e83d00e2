"""Reads FAB's roles and permissions, and the owner of each Dag, from an Airflow database. It never writes."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, quote_plus

from airflow_team_authz.cli.support.console import UserError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

# What the role says may be done: FAB's verb (`can_read`) and the name of what it is about (`DAG:etl`).
Permission = tuple[str, str]

_NEEDED = ("ab_permission", "ab_permission_view", "ab_permission_view_role", "ab_role", "ab_view_menu")
_GROUPS = ("ab_group", "ab_group_role")
_TEAMS = ("dag", "dag_bundle_team")
_ADDRESS = (
    "the database's address cannot be read: write it like postgresql+psycopg2://user:password@host/name, "
    "with %40 for @, %3A for : and %2F for / in a password"
)


class FabDatabase(NamedTuple):
    """Every role with its permissions, the roles of each group that has any, and the team of each Dag that has one."""

    roles: dict[str, frozenset[Permission]]
    groups: dict[str, list[str]]
    owners: dict[str, str]


def read_fab(address: str, schema: str | None = None) -> FabDatabase:
    """The content of the database at a SQLAlchemy URL.

    ``UserError`` if it cannot be read or has no FAB tables; the message never has a password in it.
    """
    from sqlalchemy import MetaData, Table, inspect
    from sqlalchemy.exc import SQLAlchemyError

    url = _parsed(address)
    engine = _engine(url)
    secrets = _secrets(address, url)
    name = _hidden(url.render_as_string(), secrets)
    try:
        with engine.connect() as connection:
            there = set(inspect(connection).get_table_names(schema=schema))
            missing = [table for table in _NEEDED if table not in there]
            if missing:
                raise UserError(
                    f"{name} has no FAB tables ({missing[0]} is missing): "
                    "name the database of an Airflow with the FAB auth manager by --database"
                )
            wanted = [table for table in (*_NEEDED, *_GROUPS, *_TEAMS) if table in there]
            metadata = MetaData(schema=schema)
            tables = {table: Table(table, metadata, autoload_with=connection, resolve_fks=False) for table in wanted}
            return FabDatabase(_roles(connection, tables), _groups(connection, tables), _owners(connection, tables))
    except SQLAlchemyError as error:
        why = _hidden(str(getattr(error, "orig", None) or type(error).__name__), secrets)
        raise UserError(f"{name} cannot be read ({why}): check its address, and that this user may read it") from None
    finally:
        engine.dispose()


def _roles(connection: Connection, tables: dict[str, Table]) -> dict[str, frozenset[Permission]]:
    from sqlalchemy import select

    role, verb, name = tables["ab_role"].c, tables["ab_permission"].c, tables["ab_view_menu"].c
    pair, given = tables["ab_permission_view"].c, tables["ab_permission_view_role"].c
    found: dict[str, set[Permission]] = {str(role_name): set() for role_name in connection.scalars(select(role.name))}
    rows = connection.execute(
        select(role.name, verb.name, name.name)
        .join(tables["ab_permission_view_role"], given.role_id == role.id)
        .join(tables["ab_permission_view"], pair.id == given.permission_view_id)
        .join(tables["ab_permission"], verb.id == pair.permission_id)
        .join(tables["ab_view_menu"], name.id == pair.view_menu_id)
    )
    for role_name, verb_name, about in rows:
        found.setdefault(str(role_name), set()).add((str(verb_name), str(about)))
    return {role_name: frozenset(permissions) for role_name, permissions in found.items()}


def _groups(connection: Connection, tables: dict[str, Table]) -> dict[str, list[str]]:
    from sqlalchemy import select

    if not tables.keys() >= {*_GROUPS}:
        return {}
    group, role, has = tables["ab_group"].c, tables["ab_role"].c, tables["ab_group_role"].c
    rows = connection.execute(
        select(group.name, role.name)
        .join(tables["ab_group_role"], has.group_id == group.id)
        .join(tables["ab_role"], role.id == has.role_id)
        .order_by(group.name, role.name)
    )
    found: dict[str, list[str]] = defaultdict(list)
    for group_name, role_name in rows:
        found[str(group_name)].append(str(role_name))
    return dict(found)


def _owners(connection: Connection, tables: dict[str, Table]) -> dict[str, str]:
    from sqlalchemy import select

    # Airflow 2 knows neither bundles nor teams.
    if not tables.keys() >= {*_TEAMS} or "bundle_name" not in tables["dag"].c:
        return {}
    dag, team = tables["dag"].c, tables["dag_bundle_team"].c
    rows = connection.execute(
        select(dag.dag_id, team.team_name).join(tables["dag_bundle_team"], dag.bundle_name == team.dag_bundle_name)
    )
    return {str(dag_id): str(team_name) for dag_id, team_name in rows}


def _parsed(address: str) -> URL:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    # With a second @ a part of the password would be taken for the host, and told as such.
    if address.count("@") > 1 and not address.startswith("sqlite"):
        raise UserError(_ADDRESS)
    try:
        return make_url(address)
    except (ArgumentError, ValueError):
        raise UserError(_ADDRESS) from None


def _engine(url: URL) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    if url.get_backend_name() == "sqlite":
        path = Path((url.database or "").removeprefix("file:")).absolute()
        if not path.is_file():
            raise UserError(f"there is no database file {path}: name the Airflow database by --database")
        # SQLite would write beside it and make a file that is not there.
        read_only = f"{path.as_uri()}?mode=ro"
        return create_engine("sqlite://", creator=lambda: sqlite3.connect(read_only, uri=True), poolclass=NullPool)
    try:
        return create_engine(url, poolclass=NullPool)
    except (ImportError, NoSuchModuleError):
        raise UserError(
            f"the driver of {url.drivername} databases is not installed: run the command where Airflow runs"
        ) from None
    except (ArgumentError, TypeError, ValueError):
        raise UserError(_ADDRESS) from None


def _secrets(address: str, url: URL) -> list[str]:
    """The passwords of an address in every form that a message may have them in, long ones first."""
    as_written = address.partition("://")[2].rpartition("@")[0].partition(":")[2]
    in_query = [part.partition("=")[2] for part in address.partition("?")[2].split("&") if "pass" in part.lower()]
    plain = [url.password or "", *(str(value) for key, value in url.query.items() if "pass" in key.lower())]
    quoted = [form(secret) for secret in plain for form in (quote_plus, partial(quote, safe=""))]
    return sorted(filter(None, {as_written, *in_query, *plain, *quoted}), key=len, reverse=True)


def _hidden(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
