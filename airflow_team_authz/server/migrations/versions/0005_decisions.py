"""Decisions that clients report."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "decision",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("decision_id", sa.String(64), nullable=False),
        sa.Column("reporter", sa.String(200), nullable=False),
        sa.Column("related", sa.String(64), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("subject", sa.String(250), nullable=False),
        sa.Column("action", sa.String(250), nullable=False),
        sa.Column("type", sa.String(50), nullable=False),
        sa.Column("resource", sa.String(250), nullable=False),
        sa.Column("teams", sa.String(500), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.UniqueConstraint("reporter", "decision_id", name="uq_decision_reporter_decision_id"),
    )
    for columns in (["decision_id"], ["related"], ["decided_at"], ["subject", "decided_at"]):
        op.create_index(f"ix_decision_{columns[0]}", "decision", columns)
