"""The maker of each bundle, and the packages that bundles leave out."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Build all bundles again, since their origin is unknown."""
    op.add_column("environment", sa.Column("made_by", sa.String(120), nullable=False, server_default=""))
    op.create_table(
        "withheld",
        sa.Column("environment", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("instead", sa.BigInteger, nullable=False),
        sa.Column("why", sa.String(500), nullable=False),
    )
