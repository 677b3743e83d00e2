"""Alembic's environment for the table of decisions: on Airflow's own connection, beside Airflow's migrations."""

from typing import Any

from airflow import settings
from alembic import context

from airflow_team_authz.decision_log.db_manager import DecisionLogManager

_metadata = DecisionLogManager.metadata


def _is_ours(_: Any, name: str | None, type_: str, *__: Any) -> bool:
    return type_ != "table" or name in _metadata.tables


def _run(**options: Any) -> None:
    version_table = DecisionLogManager.version_table_name
    context.configure(target_metadata=_metadata, version_table=version_table, include_object=_is_ours, **options)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run(url=settings.SQL_ALCHEMY_CONN, literal_binds=True)
else:
    assert settings.engine is not None  # noqa: S101 - whoever migrates has one
    with settings.engine.connect() as connection:
        _run(connection=connection, transaction_per_migration=True)
