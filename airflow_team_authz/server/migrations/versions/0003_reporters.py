"""Clients belong to the token that reports them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Forget the present clients: their tokens are unknown, and each reports again within a minute."""
    op.drop_table("client")
    op.create_table(
        "client",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("reporter", sa.String(200), nullable=False),
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("bundle", sa.String(200)),
        sa.Column("kind", sa.String(100), nullable=False),
        sa.Column("version", sa.String(40), nullable=False),
        sa.Column("bundles", sa.JSON, nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("reporter", "id", name="uq_client_reporter_id"),
    )
