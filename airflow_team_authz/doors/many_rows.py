"""Reads all rows of a table at the price of one: the database makes one JSON text of them.

Whoever narrows a query needs the owner of every row, in every request. Rows by SQLAlchemy take five times as long as
one text, and equal texts are decoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from sqlalchemy import Text, cast, func, select

from airflow_team_authz.identities import requests

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

Row = TypeVar("Row", bound=msgspec.Struct)

# The functions of each database that make a list of rows, and a list of columns. With any other, rows are rows.
_JSON = {"postgresql": ("json_agg", "json_build_array"), "sqlite": ("json_group_array", "json_array")}
# Longer texts are decoded each time: what is kept of them would take too much memory.
_MOST_KEPT = 4 << 20


def many_rows(session: Session, statement: Any, row: type[Row]) -> Sequence[Row]:
    """What ``statement`` selects, in any order, as instances of ``row``: a ``msgspec.Struct`` with ``array_like``.

    Columns are texts and whole numbers. Make the statement once, since what is made of it is kept.
    """
    # By the connection: no objects are wanted.
    with requests.unfiltered():
        connection = session.connection()
        if connection.dialect.name not in _JSON:
            return msgspec.convert([tuple(found) for found in connection.execute(statement)], list[row])  # type: ignore[valid-type]
        text: str | None = connection.execute(_as_text(statement, connection.dialect.name)).scalar()
    if text is None:
        return ()
    return _decoded(row, text) if len(text) <= _MOST_KEPT else _decoder(row).decode(text)


@lru_cache(32)
def _as_text(statement: Any, dialect: str) -> Any:
    list_of_rows, list_of_columns = (getattr(func, name) for name in _JSON[dialect])
    return select(cast(list_of_rows(list_of_columns(*statement.subquery().c)), Text))


@lru_cache(8)
def _decoded(row: type[Row], text: str) -> Sequence[Row]:
    return _decoder(row).decode(text)


@cache
def _decoder(row: type[Row]) -> msgspec.json.Decoder[tuple[Row, ...]]:
    return msgspec.json.Decoder(tuple[row, ...])  # type: ignore[valid-type]
