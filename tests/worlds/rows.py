"""The rows of an Airflow's database, all of them, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import MetaData, Table, create_engine

Key = tuple[Any, ...]
Row = Mapping[str, Any]
# Table → primary key → the whole row.
Rows = Mapping[str, Mapping[Key, Row]]

# What says whose a row is.
_OWNERS = ("dag_id", "target_dag_id", "source_dag_id", "last_updated_by_dag_id", "team_name", "bundle_name")
_NUMBERS = (
    "asset_id",
    "alias_id",
    "dag_run_id",
    "dagrun_id",
    "backfill_id",
    "event_id",
    "asset_event_id",
    "trigger_id",
)


class Changed(NamedTuple):
    """A row that is not as it was."""

    table: str
    key: Key
    before: Row | None
    after: Row | None

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.table} {self.key}: {self.before or 'nothing'} -> {self.after or 'nothing'}"
        different = {
            name: (value, self.after[name]) for name, value in self.before.items() if value != self.after[name]
        }
        return f"{self.table} {self.key}: {different}"


def rows(url: str) -> Rows:
    """Everything that is in a database; ``url`` is SQLAlchemy's."""
    engine = create_engine(url)
    found: dict[str, dict[Key, Row]] = {}
    with engine.connect() as connection:
        for name, table in _tables(url).items():
            columns = [column.name for column in table.primary_key] or [column.name for column in table.columns]
            everything = connection.exec_driver_sql(f'SELECT * FROM "{name}"').mappings()  # noqa: S608
            found[name] = {
                tuple(row[column] for column in columns): {name: _plain(value) for name, value in row.items()}
                for row in everything
            }
    engine.dispose()
    return found


@cache
def _tables(url: str) -> Mapping[str, Table]:
    """They do not change while the tests run."""
    engine = create_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    engine.dispose()
    return tables.tables


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else str(value) if isinstance(value, dict | list) else value


def only_in(rows: Rows, other: Rows) -> dict[str, dict[Key, Row]]:
    """Rows that the other one has not, or has with another content."""
    different = {
        table: {key: row for key, row in of_table.items() if other.get(table, {}).get(key) != row}
        for table, of_table in rows.items()
    }
    return {table: of_table for table, of_table in different.items() if of_table}


def changed(before: Rows, now: Rows) -> list[Changed]:
    """Of the rows before, those that are gone or are different now."""
    return [
        Changed(table, key, row, now[table].get(key))
        for table, of_table in before.items()
        for key, row in of_table.items()
        if now[table].get(key) != row
    ]


def added(before: Rows, now: Rows) -> list[Changed]:
    """Rows that were not there before."""
    return [
        Changed(table, key, None, row)
        for table, of_table in now.items()
        for key, row in of_table.items()
        if key not in before.get(table, {})
    ]


def in_the_name_of(owner: str, numbers: range, row: Row) -> bool:
    """Whether a row says that it is about what is the owner's, whose rows have these numbers."""
    return (
        any(str(row.get(column) or "").startswith(owner) for column in _OWNERS)
        or any(row.get(column) in numbers for column in _NUMBERS)
        or f'"team_id": "{owner}"' in str(row.get("extra"))
    )
