"""The rows of an Airflow's database, all of them, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import MetaData, create_engine

# Table → primary key → the whole row.
Rows = Mapping[str, Mapping[tuple[Any, ...], tuple[Any, ...]]]


class Changed(NamedTuple):
    """A row that is not as it was."""

    table: str
    key: tuple[Any, ...]
    before: tuple[Any, ...] | None
    after: tuple[Any, ...] | None

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.before} -> {self.after}"


def rows(url: str) -> Rows:
    """Everything that is in a database; ``url`` is SQLAlchemy's."""
    engine = create_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    found: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {}
    with engine.connect() as connection:
        for name, table in tables.tables.items():
            columns = [column.name for column in table.primary_key] or [column.name for column in table.columns]
            everything = connection.exec_driver_sql(f'SELECT * FROM "{name}"').mappings()  # noqa: S608
            found[name] = {
                tuple(row[column] for column in columns): tuple(map(_plain, row.values())) for row in everything
            }
    engine.dispose()
    return found


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else str(value) if isinstance(value, dict | list) else value


def only_in(rows: Rows, other: Rows) -> dict[str, dict[tuple[Any, ...], tuple[Any, ...]]]:
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


def names(row: tuple[Any, ...] | None, name: str) -> bool:
    """Whether a row holds a name anywhere."""
    return any(name in str(value) for value in row or ())
