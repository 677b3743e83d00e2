"""Releases that wait for an approval, who has approved a release, and which token made a token."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table. Who made the present tokens is not known."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "held_release",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("environment", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False, index=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(12), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("person", sa.String(200), nullable=False),
        sa.Column("by_platform", sa.Boolean, nullable=False),
        sa.Column("content", sa.LargeBinary),
        sa.Column("impact", sa.Text, nullable=False),
        sa.Column("seen", sa.String(32), nullable=False),
        sa.Column("waits_for", sa.Text, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.Column("waiting", sa.String(140)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(200), nullable=False),
        sa.Column("decided_at", moment),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.UniqueConstraint("waiting", name="uq_held_release_waiting"),
    )
    op.add_column("release", sa.Column("approved_by", sa.String(200), nullable=False, server_default=""))
    op.add_column("token", sa.Column("made_by", sa.String(200), nullable=False, server_default=""))
