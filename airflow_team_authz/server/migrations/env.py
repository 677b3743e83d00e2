"""Alembic's environment: the connection is the caller's (``database.migrate``)."""

from alembic import context

from airflow_team_authz.server.database import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
