"""When each bundle was signed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """The signatures of the present bundles do not tell it, so they are signed again."""
    op.add_column("bundle", sa.Column("signed_at", sa.DateTime(timezone=True)))
