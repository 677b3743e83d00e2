"""The table of decisions in Airflow's database; ``migrations`` make it, by ``airflow db migrate``."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT

TABLE = "team_authz_decision"
VERSION_TABLE = "alembic_version_team_authz"
# A record is found by these; in ``record`` it is whole. What is longer is cut here, and not there.
LONGEST = 250
LONGEST_TEAMS = 500


def decisions(schema: str | None = None) -> Table:
    """The table, in a schema of the database if Airflow's are in one."""
    return Table(
        TABLE,
        MetaData(schema=schema),
        # In the order of writing, which is nearly that of deciding.
        Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("decision_id", String(36), nullable=False),
        Column("decided_at", DateTime().with_variant(DATETIME(fsp=6), "mysql"), nullable=False),
        Column("outcome", String(10), nullable=False),
        Column("subject", String(LONGEST), nullable=False),
        Column("action", String(LONGEST), nullable=False),
        Column("type", String(50), nullable=False),
        Column("resource", String(LONGEST), nullable=False),
        # ,alpha,beta, for resources of these two; ,~beta,alpha, if a task of beta's asked about one of alpha's. No team
        # has a ~ in its id.
        Column("teams", String(LONGEST_TEAMS), nullable=False),
        Column("record", Text().with_variant(LONGTEXT(), "mysql"), nullable=False),
        Index("ix_team_authz_decision_decision_id", "decision_id", unique=True),
        Index("ix_team_authz_decision_decided_at", "decided_at"),
        Index("ix_team_authz_decision_subject", "subject", "decided_at"),
    )
