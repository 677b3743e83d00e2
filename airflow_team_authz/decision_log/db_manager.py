"""Makes the table: ``airflow db migrate`` runs the migrations of every provider's manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.utils.db_manager import BaseDBManager

from airflow_team_authz.decision_log.tables import VERSION_TABLE, decisions

_MIGRATIONS = Path(__file__).parent / "migrations"


class DecisionLogManager(BaseDBManager):
    """Makes the table of decisions in Airflow's database, and takes it away with Airflow's own."""

    metadata = decisions(conf.get("database", "sql_alchemy_schema", fallback="") or None).metadata
    migration_dir = str(_MIGRATIONS)
    # There is none: the environment takes Airflow's own engine.
    alembic_file = ""
    version_table_name = VERSION_TABLE
    supports_table_dropping = True

    def get_alembic_config(self) -> Any:
        """See the base class, which would look for a file."""
        from airflow import settings
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", self.migration_dir.replace("%", "%%"))
        config.set_main_option("sqlalchemy.url", str(settings.SQL_ALCHEMY_CONN).replace("%", "%%"))
        return config
