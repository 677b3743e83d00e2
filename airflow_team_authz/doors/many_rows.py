"""Reads all rows of a table at the price of one: the database makes one JSON text of them.

Whoever narrows a query needs the owner of every row, in every request. Rows by SQLAlchemy take five times as long as
one text. As long as the text is the same, the rows are the same object, and so is what was found out about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Text, cast, func, select

from airflow_team_authz.identities import requests
from airflow_team_authz.model import Remembering

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Row = TypeVar("Row", bound=msgspec.Struct)

# The functions of each database that make a list of a column's values, and a list of columns. With any other, rows are
# rows. A list for each column, since PostgreSQL takes nearly twice as long for a list of each row.
_JSON = {"postgresql": ("array_agg", "json_build_array"), "sqlite": ("json_group_array", "json_array")}
# Longer texts are decoded each time: what is kept of them would take too much memory. That many Dags are 40,000.
_MOST_KEPT = 4 << 20


class Rows(Remembering, tuple[Row, ...]):
    """All rows that a statement has selected at one moment."""


class Table(NamedTuple, Generic[Row]):
    """What is read: a statement whose columns are texts, times and whole numbers, and what each of its rows becomes.

    ``row`` is a frozen ``msgspec.Struct`` with ``array_like``. Each database writes times as texts in its own way.
    """

    statement: Any
    row: type[Row]


class _Newest(NamedTuple):
    text: str
    rows: Rows[Any]


# By dialect and table: what was read last. A text that is another one takes its place.
_newest: dict[tuple[str, Table[Any]], _Newest] = {}


def many_rows(session: Session, table: Table[Row]) -> Rows[Row]:
    """The rows of a table, in any order. Make the table once, since what is made of it is kept."""
    (rows,) = rows_of_each(session, (table,))
    return rows


def rows_of_each(session: Session, tables: tuple[Table[Any], ...]) -> list[Rows[Any]]:
    """The rows of each table at one moment, which the database sends together."""
    # By the connection: no objects are wanted.
    with requests.unfiltered():
        connection = session.connection()
        dialect = connection.dialect.name
        if dialect not in _JSON:
            return [_converted(connection.execute(table.statement), table.row) for table in tables]
        texts = connection.execute(_as_texts(tables, dialect)).one()
    return [_known_or_decoded(dialect, table, text) for table, text in zip(tables, texts, strict=True)]


def _converted(found: Iterable[Any], row: type[Row]) -> Rows[Row]:
    values = [
        [value if isinstance(value, (str, int)) or value is None else str(value) for value in one] for one in found
    ]
    return Rows(msgspec.convert(values, list[row]))  # type: ignore[valid-type]


def _known_or_decoded(dialect: str, table: Table[Row], text: str) -> Rows[Row]:
    newest = _newest.get((dialect, table))
    if newest is not None and newest.text == text:
        return newest.rows
    rows = Rows(map(table.row, *_columns(table.row, text)))
    if len(text) > _MOST_KEPT:
        return rows
    # A table's rows change their places whenever Airflow writes something else into one.
    if newest is not None and _counted(newest.rows) == _counted(rows):
        rows = newest.rows
    _newest[dialect, table] = _Newest(text, rows)
    return rows


def _counted(rows: Rows[Any]) -> dict[Any, int]:
    """How often there is each row. Plain dictionaries are compared in a sixth of the time."""
    return dict(Counter(rows))


@lru_cache(32)
def _as_texts(tables: tuple[Table[Any], ...], dialect: str) -> Any:
    list_of_values, list_of_columns = (getattr(func, name) for name in _JSON[dialect])
    return select(
        *(
            select(
                cast(list_of_columns(*(list_of_values(column) for column in table.statement.subquery().c)), Text)
            ).scalar_subquery()
            for table in tables
        )
    )


def _columns(row: type[Row], text: str) -> list[list[Any]]:
    """The values of each column; PostgreSQL has ``null`` for the columns of no row.

    Equal values, such as the bundle of all its Dags, are one object.
    """
    known: dict[Any, Any] = {}
    return [[known.setdefault(value, value) for value in column or ()] for column in _decoder(row).decode(text)]


@cache
def _decoder(row: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    columns = [list[field.type] | None for field in msgspec.structs.fields(row)]  # type: ignore[name-defined]
    return msgspec.json.Decoder(tuple[tuple(columns)])  # type: ignore[misc]
