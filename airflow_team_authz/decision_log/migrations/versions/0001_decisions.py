"""The table of decisions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT

revision = "0001"
down_revision = None

_TABLE = "team_authz_decision"


def _schema() -> str | None:
    schema: str | None = op.get_context().opts["target_metadata"].schema
    return schema


def upgrade() -> None:
    """Make it."""
    op.create_table(
        _TABLE,
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("decision_id", sa.String(36), nullable=False),
        sa.Column("decided_at", sa.DateTime().with_variant(DATETIME(fsp=6), "mysql"), nullable=False),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("subject", sa.String(250), nullable=False),
        sa.Column("action", sa.String(250), nullable=False),
        sa.Column("type", sa.String(50), nullable=False),
        sa.Column("resource", sa.String(250), nullable=False),
        sa.Column("teams", sa.String(500), nullable=False),
        sa.Column("record", sa.Text().with_variant(LONGTEXT(), "mysql"), nullable=False),
        schema=_schema(),
    )
    for columns, unique in ((["decision_id"], True), (["decided_at"], False), (["subject", "decided_at"], False)):
        op.create_index(f"ix_{_TABLE}_{columns[0]}", _TABLE, columns, unique=unique, schema=_schema())


def downgrade() -> None:
    """Take it away."""
    op.drop_table(_TABLE, schema=_schema())
